//! What a restore will do and why: decided before anything is written.

pub mod choice;
pub mod commits;
#[cfg(test)]
mod tests;
mod text;

use jiff::Timestamp;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::history::{Ancestor, TimelineHistory};
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_before, segment_of};
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::inventory::{Beyond, Inventory, Reach};

use self::choice::{Chosen, RuledOut, Unfit, choose, named, named_target};
use self::commits::{ArchivedWal, MOST_SEGMENTS, TransactionEnd, Verdict};
use super::args::BackupChoice;
use super::target::{Request, Role, Target, TimelineChoice};
use super::time::to_postgres;
use crate::catalog::Catalog;
use crate::list::segment_size;

/// Bytes of WAL that a server replays in a second, as far as that can be said of any: pages that are not in memory, and have
/// no image in the WAL, make it slower, a quick disk faster.
pub const REPLAYED_PER_SECOND: u64 = 64 << 20;

/// What a restore will do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The backup.
    pub backup: Backup,
    /// Why this one.
    pub backup_reason: String,
    /// What was asked for; the target is gone where recovery ends at a hole before it.
    pub request: Request,
    /// Where recovery ends, as far as that is known.
    pub end: RecoveryEnd,
    /// The timeline written into the configuration.
    pub timeline: RecoveryTimeline,
    /// Why this one.
    pub timeline_reason: String,
    /// The WAL that is replayed.
    pub wal: ReplayedWal,
    /// Nothing after this segment must be fetched.
    pub last_segment: Option<SegmentName>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What is known about the end of recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryEnd {
    /// At this position at the latest.
    Position(Lsn),
    /// Before this transaction's end.
    Before(TransactionEnd),
    /// Before this transaction's end or that of an earlier one.
    BeforeAtLatest(TransactionEnd),
    /// At the target, if it is found before the archived WAL ends.
    IfFound,
    /// With the archived WAL.
    ArchiveEnd,
    /// At a hole in the archive, before this segment.
    Hole(SegmentName),
    /// Never: a standby goes on.
    Never,
}

/// The value of `recovery_target_timeline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryTimeline {
    /// This one, whatever comes into the archive later.
    Number(Timeline),
    /// Whichever is the newest: a standby follows its primary.
    Latest,
}

/// WAL from the backup's start on, all seen to be archived or kept with the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayedWal {
    /// The first segment.
    pub first: SegmentName,
    /// The last segment that can be needed.
    pub last: SegmentName,
    /// How many segments.
    pub segments: u64,
    /// Where the archived WAL ends.
    pub end_lsn: Lsn,
    /// When the last archived segment was written.
    pub written: Option<Timestamp>,
}

/// What follows from how far the WAL goes.
#[derive(Debug)]
struct Settled {
    target: Target,
    end: RecoveryEnd,
    timeline: RecoveryTimeline,
    timeline_reason: String,
    last_number: u64,
    last_segment: Option<SegmentName>,
    warnings: Vec<String>,
}

impl Plan {
    /// Bytes of WAL that are replayed at most.
    pub fn wal_bytes(&self) -> u64 {
        self.wal.segments.saturating_mul(self.backup.segment_size.bytes())
    }

    /// How long the backup took, which is about what restoring its files takes.
    pub fn copy_time(&self) -> std::time::Duration {
        let taken = self.backup.stop_time.duration_since(self.backup.start_time);
        std::time::Duration::try_from(taken).unwrap_or_default()
    }

    /// How many seconds it may take until the server has replayed all this.
    pub fn estimated_seconds(&self) -> u64 {
        self.copy_time().as_secs().saturating_add(self.wal_bytes() / REPLAYED_PER_SECOND).max(1)
    }
}

/// Plans a restore from one cluster's archive.
///
/// # Errors
/// `NotFound`: no backup, or nothing, reaches the target. `Hole`: WAL or a history in between is missing. `Damaged`,
/// `Usage`, `Refused`, `Unavailable`.
pub async fn plan(archive: &WalArchive, catalog: &Catalog, choice: &BackupChoice, request: Request) -> Result<Plan> {
    let Some(size) = segment_size(archive, catalog).await? else {
        return Err(Error::new(Kind::NotFound, "there are no base backups").hint("Take one with: basebackup take."));
    };
    let inventory = archive.inventory(size).await?;
    let mut ruled_out = RuledOut::new();
    let (chosen, verdict) = loop {
        let chosen = match choice {
            BackupChoice::Newest => choose(&request, &catalog.backups, &inventory, &ruled_out)?,
            BackupChoice::Id(id) => named(&request, catalog.find(id)?, &inventory, &ruled_out)?,
        };
        match find_target(archive, &request, &chosen, size).await? {
            // The clocks of a standby and its primary differ: what must not be replayed is in the backup already.
            Some(Verdict::Stops(end) | Verdict::StopsAtLatest(end)) if end.lsn < chosen.backup.stop_lsn => {
                let _ = ruled_out.insert(chosen.backup.id.clone(), Unfit::HoldsLater(end));
            }
            verdict => break (chosen, verdict),
        }
    };
    let settled = settle(&request, &chosen, verdict, &inventory)?;
    let first = segment_of(chosen.backup.start_lsn, size);
    let replayed = first..chosen.reach.end.min(settled.last_number + 1);
    let written = ArchivedWal { archive, history: &chosen.history, size, segments: replayed }.last_written().await;
    let (written, damaged) = match written {
        Err(error) if error.kind() == Kind::Damaged => (None, Some(error.to_string())),
        written => (written?, None),
    };
    let name = |number| chosen.history.segment_name(number, size);
    let mut warnings = chosen.warnings;
    warnings.extend(settled.warnings);
    warnings.extend(unusable(catalog));
    warnings.extend(altered(catalog, chosen.backup));
    warnings.extend(bad_pages(chosen.backup));
    warnings.extend(damaged);
    Ok(Plan {
        backup: chosen.backup.clone(),
        backup_reason: chosen.reason,
        request: Request { target: settled.target, ..request },
        end: settled.end,
        timeline: settled.timeline,
        timeline_reason: settled.timeline_reason,
        wal: ReplayedWal {
            first: name(first),
            last: name(settled.last_number),
            segments: (settled.last_number + 1).saturating_sub(first),
            end_lsn: chosen.reach.end_lsn(size),
            written,
        },
        last_segment: settled.last_segment,
        warnings,
    })
}

/// What the archived WAL says about the target, where it can say something.
async fn find_target(
    archive: &WalArchive,
    request: &Request,
    chosen: &Chosen<'_>,
    size: SegmentSize,
) -> Result<Option<Verdict>> {
    let segments = segment_of(chosen.backup.start_lsn, size)..chosen.reach.end;
    let archived = ArchivedWal { archive, history: &chosen.history, size, segments };
    Ok(match &request.target {
        Target::Time(moment) => Some(archived.find_time(moment.time, request.bound).await?),
        Target::Lsn(lsn) if segment_of(*lsn, size) < chosen.reach.end => Some(archived.find_position(*lsn).await?),
        _ => None,
    })
}

/// Decides what happens at the end of the archived WAL, or at a hole in it.
fn settle(request: &Request, chosen: &Chosen<'_>, verdict: Option<Verdict>, inventory: &Inventory) -> Result<Settled> {
    let Chosen { backup, history, reach, .. } = chosen;
    let size = inventory.segment_size();
    let stop_number = segment_before(backup.stop_lsn, size);
    // Segments kept with the backup are read from pg_wal, where no hole can be.
    let last_number = stop_number.max(reach.end.saturating_sub(1));
    let last_before = reach.end.checked_sub(1).map(|last| history.segment_name(last, size));
    let before_hole = last_before.filter(|_| reach.is_broken() && request.role == Role::Primary);
    let (timeline, timeline_reason) = recovery_timeline(request, history);
    let mut settled = Settled {
        target: request.target.clone(),
        end: RecoveryEnd::ArchiveEnd,
        timeline,
        timeline_reason,
        last_number,
        // The server reads ahead of what it replays: a hole behind the target must look like the end to it. Should it
        // come so far without having met the target, it refuses to open.
        last_segment: before_hole,
        warnings: Vec::new(),
    };
    let until_hole = |mut settled: Settled| {
        settled.end = RecoveryEnd::Hole(reach.missing);
        settled.target = Target::End;
        if let Some(last) = settled.last_segment {
            settled.timeline = RecoveryTimeline::Number(last.timeline.max(backup.end_timeline()));
            "where the hole is".clone_into(&mut settled.timeline_reason);
        }
        settled
    };
    match (&request.target, verdict) {
        (Target::Immediate, _) => {
            settled.end = RecoveryEnd::Position(backup.stop_lsn);
            settled.last_number = stop_number;
            settled.timeline = RecoveryTimeline::Number(backup.end_timeline());
            "the backup's own: recovery goes no further than its end".clone_into(&mut settled.timeline_reason);
            Ok(settled)
        }
        (Target::Lsn(lsn), Some(Verdict::Reached)) => {
            settled.end = RecoveryEnd::Position(*lsn);
            settled.last_number = stop_number.max(segment_of(*lsn, size));
            settled.warnings.extend(abandoned(*lsn, history, inventory));
            Ok(settled)
        }
        (Target::Time(_), Some(verdict @ (Verdict::Stops(end) | Verdict::StopsAtLatest(end)))) => {
            settled.end = match verdict {
                Verdict::Stops(_) => RecoveryEnd::Before(end),
                _ => RecoveryEnd::BeforeAtLatest(end),
            };
            settled.last_number = stop_number.max(segment_of(end.lsn, size));
            settled.warnings.extend(abandoned(end.lsn, history, inventory));
            Ok(settled)
        }
        (Target::Xid(_) | Target::Name(_), _) => {
            settled.end = RecoveryEnd::IfFound;
            if reach.is_broken() {
                let target = named_target(request);
                settled.warnings.push(format!("{}: {target} is only found if it comes before", broken(reach)));
            }
            Ok(settled)
        }
        (Target::End, _) if request.role != Role::Primary => settle_standby(request, reach, settled),
        _ if reach.is_broken() && request.until_hole => Ok(until_hole(settled)),
        (_, verdict) if reach.is_broken() => Err(refuse_hole(request, reach, verdict)),
        (_, Some(Verdict::AfterLast(_) | Verdict::BehindLast(_) | Verdict::NothingEnded)) | (Target::Lsn(_), None) => {
            Err(refuse_beyond(request, chosen, verdict, size))
        }
        (_, Some(verdict)) => {
            settled.end = RecoveryEnd::IfFound;
            settled.warnings.push(format!("whether the target is reached cannot be told: {}", doubt(verdict)));
            Ok(settled)
        }
        _ => Ok(settled),
    }
}

/// That the target lies behind what is archived, with the one to use instead.
fn refuse_beyond(request: &Request, chosen: &Chosen<'_>, verdict: Option<Verdict>, size: SegmentSize) -> Error {
    let target = named_target(request);
    let (message, last) = match verdict {
        Some(Verdict::AfterLast(end)) => {
            let time = to_postgres(end.time);
            (format!("{target} lies after the last archived end of a transaction, at {time}"), end.lsn)
        }
        Some(Verdict::NothingEnded) => {
            let message = format!(
                "no transaction is archived that ended after {target}, nor any other since base backup {}",
                chosen.backup.id
            );
            return Error::new(Kind::NotFound, message).hint("To recover everything that is archived: no target.");
        }
        Some(Verdict::BehindLast(last)) => (format!("{target} lies behind the last archived record, at {last}"), last),
        _ => {
            let message = format!("{target} is not archived: the archived WAL ends at {}", chosen.reach.end_lsn(size));
            return Error::new(Kind::NotFound, message)
                .hint("WAL that was not archived may still be in pg_wal of the server that wrote it.");
        }
    };
    let instead = if last < chosen.backup.stop_lsn {
        String::new()
    } else {
        format!("To recover up to and with that one: --target-lsn={last}. ")
    };
    Error::new(Kind::NotFound, message).hint(format!("{instead}To recover everything that is archived: no target."))
}

fn doubt(verdict: Verdict) -> String {
    match verdict {
        Verdict::UnknownVersion => "the WAL is of a PostgreSQL newer than this program".to_owned(),
        _ => format!("nothing in the last {MOST_SEGMENTS} archived segments says so"),
    }
}

/// Ancestors that went on after they were left, before `lsn`: the operator may have meant what happened there.
fn abandoned(lsn: Lsn, history: &TimelineHistory, inventory: &Inventory) -> Vec<String> {
    let size = inventory.segment_size();
    let left_before = history.ancestors().iter().filter(|ancestor| ancestor.switch_point <= lsn);
    let went_on = left_before.filter(|ancestor| {
        inventory.has(SegmentName::new(ancestor.timeline, segment_of(ancestor.switch_point, size), size))
    });
    went_on
        .map(|Ancestor { timeline, switch_point }| {
            format!(
                "timeline {timeline} was left at {switch_point}, before the target, and went on: what happened there \
                 afterwards is only reached with --target-timeline={timeline}"
            )
        })
        .collect()
}

/// A standby can get from its primary what the archive lacks, if it has one.
fn settle_standby(request: &Request, reach: &Reach, mut settled: Settled) -> Result<Settled> {
    settled.end = RecoveryEnd::Never;
    let source = match (&request.role, reach.beyond) {
        (_, Beyond::Nothing) => return Ok(settled),
        (Role::Standby { primary_conninfo: Some(_), .. }, _) => "the standby must get it from its primary",
        (_, Beyond::Fork(_)) => "the standby waits for it",
        (_, Beyond::Wal | Beyond::Expired) => return Err(refuse_hole(request, reach, None)),
    };
    settled.warnings.push(format!("{}: {source}", broken(reach)));
    Ok(settled)
}

/// Why recovery cannot go on.
fn broken(reach: &Reach) -> String {
    match reach.beyond {
        Beyond::Fork(_) => {
            format!(
                "timeline {} begins inside \"{}\", which is not archived yet",
                reach.missing.timeline, reach.missing
            )
        }
        Beyond::Expired => format!("the WAL from \"{}\" on was removed by basebackup expire", reach.missing),
        _ => format!("\"{}\" is missing in the archive although later WAL is there", reach.missing),
    }
}

fn refuse_hole(request: &Request, reach: &Reach, verdict: Option<Verdict>) -> Error {
    let last = match verdict {
        Some(Verdict::AfterLast(last)) => {
            format!("; the last transaction before it ended at {}", to_postgres(last.time))
        }
        _ => String::new(),
    };
    let way_out = match (reach.beyond, &request.role) {
        (Beyond::Fork(left), _) => format!(
            "Run on the promoted server: SELECT pg_switch_wal(). Or recover along the timeline it left: \
             --target-timeline={}.",
            left.timeline
        ),
        (Beyond::Expired, _) => {
            "What was kept of this backup's WAL is what makes it consistent: --target=immediate.".to_owned()
        }
        (_, Role::Primary) => "It may still be in pg_wal of the server that wrote it. To recover up to the hole: \
             --until-hole."
            .to_owned(),
        (_, Role::Standby { .. }) => "It may still be in pg_wal of the server that wrote it. A primary that still has \
             it can be named with --primary-conninfo."
            .to_owned(),
    };
    let target = named_target(request);
    Error::new(Kind::Hole, format!("cannot recover to {target}: {}{last}", broken(reach))).hint(way_out)
}

fn recovery_timeline(request: &Request, history: &TimelineHistory) -> (RecoveryTimeline, String) {
    let timeline = history.timeline();
    match (request.timeline, &request.role) {
        (TimelineChoice::Latest, Role::Standby { .. }) => {
            (RecoveryTimeline::Latest, "a standby follows its primary".to_owned())
        }
        (TimelineChoice::Latest, Role::Primary) => {
            (RecoveryTimeline::Number(timeline), "the newest in the archive".to_owned())
        }
        (TimelineChoice::Current, _) => (RecoveryTimeline::Number(timeline), "the backup's own".to_owned()),
        (TimelineChoice::Number(_), _) => (RecoveryTimeline::Number(timeline), "asked for".to_owned()),
    }
}

fn unusable(catalog: &Catalog) -> impl Iterator<Item = String> {
    catalog.unusable.iter().map(|(id, problem)| format!("base backup {id} cannot be used: {problem}"))
}

fn altered(catalog: &Catalog, backup: &Backup) -> Option<String> {
    let is_altered = catalog.altered.contains(&backup.id);
    is_altered.then(|| format!("backup.json of backup {} was changed since it was written", backup.id))
}

fn bad_pages(backup: &Backup) -> Option<String> {
    let first = backup.bad_pages.first()?;
    Some(format!(
        "the backup holds {} with a wrong checksum, as the server had them: \"{}\" block {}{}",
        if backup.bad_pages.len() == 1 { "a page".to_owned() } else { format!("{} pages", backup.bad_pages.len()) },
        first.file,
        first.block,
        if backup.bad_pages.len() == 1 { "" } else { ", …" }
    ))
}
