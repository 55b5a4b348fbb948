//! Which backup is restored, and which timeline recovery follows from there. Pure: decided on what the catalog and the
//! inventory say.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, Timeline, segment_before, segment_of};
use walkeep_common::wal_archive::inventory::{Inventory, Reach};

use super::commits::TransactionEnd;
use crate::list::time;
use crate::restore::target::{Request, Target, TimelineChoice, low_half};
use crate::restore::time::to_postgres;

/// How many backups an error explains; more would hide what matters.
const EXPLAINED: usize = 4;

/// A backup from which recovery can start.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    /// The backup.
    pub backup: &'a Backup,
    /// The history of the timeline that recovery follows.
    pub history: TimelineHistory,
    /// How far archived WAL goes from the backup's start.
    pub reach: Reach,
    /// Why this one.
    pub reason: String,
    /// What the operator should know about the choice.
    pub warnings: Vec<String>,
}

/// Backups that turned out not to fit when their WAL was looked at.
pub type RuledOut = BTreeMap<BackupId, Unfit>;

/// Why a backup cannot be the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It is not a full one.
    Kind(String),
    /// Its timeline is not an ancestor of the wanted one, or was left before the backup ended.
    OtherBranch {
        /// The timeline to follow.
        wanted: Timeline,
        /// The backup's.
        timeline: Timeline,
        /// Where the wanted one left the backup's, if it did.
        left: Option<Lsn>,
        /// Where the backup ended.
        stop: Lsn,
    },
    /// It ended at or after the target time.
    EndsAfterTime(Timestamp),
    /// A transaction that ended behind the target time did so before the backup ended, whatever its clock said.
    HoldsLater(TransactionEnd),
    /// It ended after the target position.
    EndsAfterLsn(Lsn),
    /// The transaction may have ended before the backup did.
    MayHoldXid {
        /// The next transaction's id at the backup's end.
        next: u64,
    },
    /// WAL that it needs to be consistent is not archived.
    WalMissing(SegmentName),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "backups of type \"{kind}\" cannot be restored by this version"),
            Self::OtherBranch { wanted, timeline, left: Some(left), stop } => {
                write!(f, "timeline {wanted} left timeline {timeline} at {left}, before the backup ended at {stop}")
            }
            Self::OtherBranch { wanted, timeline, left: None, .. } => {
                write!(f, "timeline {wanted} does not descend from the backup's timeline {timeline}")
            }
            Self::EndsAfterTime(stop) => write!(f, "the backup ended at {}, not before the target", time(*stop)),
            Self::HoldsLater(end) => {
                let (time, lsn) = (to_postgres(end.time), end.lsn);
                write!(f, "it holds a transaction that ended at {time}, not before the target, at {lsn}")
            }
            Self::EndsAfterLsn(stop) => write!(f, "the backup ended at {stop}, behind the target"),
            Self::MayHoldXid { next } => {
                write!(f, "transactions up to {} may have ended before the backup did", next.saturating_sub(1))
            }
            Self::WalMissing(segment) => {
                write!(f, "WAL segment \"{segment}\", without which it is not consistent, is not archived")
            }
        }
    }
}

/// Chooses the newest backup, of those in the catalog's order, that can reach the target.
///
/// # Errors
/// `NotFound` if none can reach the target; `Hole` if a history that recovery reads is missing; `Usage`.
pub fn choose<'a>(
    request: &Request,
    backups: &'a [Backup],
    inventory: &Inventory,
    ruled_out: &RuledOut,
) -> Result<Chosen<'a>> {
    if backups.is_empty() {
        return Err(Error::new(Kind::NotFound, "there are no base backups").hint("Take one with: basebackup take."));
    }
    let mut fitting: Vec<(&Backup, TimelineHistory, Reach)> = Vec::new();
    let mut unfit: Vec<(&Backup, Unfit)> = Vec::new();
    for backup in backups.iter().rev() {
        let history = followed(request, backup, inventory)?;
        match fit(request, backup, &history, inventory, ruled_out) {
            Ok(reach) => fitting.push((backup, history, reach)),
            Err(problem) => unfit.push((backup, problem)),
        }
    }
    // Along one history the later position is the newer state, whatever the clocks said. Without one history to follow
    // the order is that of the catalog.
    if request.timeline != TimelineChoice::Current {
        fitting.sort_by_key(|(backup, ..)| std::cmp::Reverse(backup.stop_lsn));
    }
    if matches!(request.target, Target::Name(_)) && fitting.len() > 1 {
        let ids: Vec<&str> = fitting.iter().take(EXPLAINED).map(|(backup, ..)| backup.id.as_str()).collect();
        return Err(Error::new(
            Kind::Usage,
            "several backups could reach the restore point, if they are older than it",
        )
        .hint(format!("Name the newest one that ended before it was made, as in: restore {}.", ids.join(" or "))));
    }
    let count = fitting.len();
    let Some((backup, history, reach)) = fitting.into_iter().next() else { return Err(none_fits(request, &unfit)) };
    check_histories(backup, &history, inventory)?;
    let reason = match (count, &request.target) {
        (1, _) => "the only one that can reach the target".to_owned(),
        (_, Target::End | Target::Immediate) => {
            format!("the newest of {count} on the way to timeline {}", history.timeline())
        }
        _ => format!("the newest of {count} that can reach the target"),
    };
    let warnings = passed_over(backup, &unfit);
    Ok(Chosen { backup, history, reach, reason, warnings })
}

/// Takes the backup that was asked for.
///
/// # Errors
/// As [`choose`].
pub fn named<'a>(
    request: &Request,
    backup: &'a Backup,
    inventory: &Inventory,
    ruled_out: &RuledOut,
) -> Result<Chosen<'a>> {
    let history = followed(request, backup, inventory)?;
    let mut warnings = Vec::new();
    let reach = match fit(request, backup, &history, inventory, ruled_out) {
        Ok(reach) => reach,
        Err(problem @ Unfit::MayHoldXid { .. }) => {
            warnings.push(format!("{problem}: if transaction {} did, recovery will not find it", xid(request)));
            inventory.reach(&history, segment_of(backup.start_lsn, inventory.segment_size()))
        }
        Err(problem) => {
            let error = Error::new(
                kind_of(&problem),
                format!("cannot recover to {} from base backup {}: {problem}", named_target(request), backup.id),
            );
            return Err(match problem {
                Unfit::OtherBranch { .. } => {
                    error.hint("Choose an older backup, or --target-timeline=current to follow this one's timeline.")
                }
                Unfit::WalMissing(_) => error.hint("It may still be in pg_wal of the server that wrote it."),
                _ => error.hint("Leave the id away to let the right backup be chosen."),
            });
        }
    };
    check_histories(backup, &history, inventory)?;
    Ok(Chosen { backup, history, reach, reason: "named by its id".to_owned(), warnings })
}

/// The history of the timeline that recovery from this backup is to follow.
fn followed(request: &Request, backup: &Backup, inventory: &Inventory) -> Result<TimelineHistory> {
    let own = backup.end_timeline();
    let timeline = match request.timeline {
        TimelineChoice::Latest => inventory.newest_timeline().unwrap_or(own),
        TimelineChoice::Current => own,
        TimelineChoice::Number(timeline) => timeline,
    };
    if timeline != own && !inventory.timelines().contains(&timeline) {
        let there: Vec<String> = inventory.timelines().iter().map(Timeline::to_string).collect();
        return Err(Error::new(Kind::NotFound, format!("nothing of timeline {timeline} is archived"))
            .hint(format!("Timelines in the archive: {}.", there.join(", "))));
    }
    if !inventory.has_history(timeline) {
        return Err(no_history(timeline, timeline, inventory));
    }
    Ok(inventory.history(timeline))
}

/// Whether recovery along the history can start from the backup and come to the target; how far WAL goes if so.
fn fit(
    request: &Request,
    backup: &Backup,
    history: &TimelineHistory,
    inventory: &Inventory,
    ruled_out: &RuledOut,
) -> Result<Reach, Unfit> {
    if let Some(problem) = ruled_out.get(&backup.id) {
        return Err(problem.clone());
    }
    if backup.kind != "full" {
        return Err(Unfit::Kind(backup.kind.clone()));
    }
    let (timeline, stop) = (backup.end_timeline(), backup.stop_lsn);
    if !history.passes_through(timeline, stop) {
        let left = history.switch_point(timeline);
        return Err(Unfit::OtherBranch { wanted: history.timeline(), timeline, left, stop });
    }
    match &request.target {
        Target::Time(moment) if backup.stop_time >= moment.time => return Err(Unfit::EndsAfterTime(backup.stop_time)),
        Target::Lsn(lsn) if stop > *lsn => return Err(Unfit::EndsAfterLsn(stop)),
        Target::Xid(xid) if !assigned_later(*xid, backup.next_xid_at_stop) => {
            return Err(Unfit::MayHoldXid { next: backup.next_xid_at_stop });
        }
        _ => {}
    }
    let size = inventory.segment_size();
    let reach = inventory.reach(history, segment_of(backup.start_lsn, size));
    let missing = (reach.end..=segment_before(stop, size)).map(|number| history.segment_name(number, size));
    match missing.into_iter().find(|name| !backup.kept_wal.contains(&name.to_string())) {
        Some(missing) => Err(Unfit::WalMissing(missing)),
        None => Ok(reach),
    }
}

/// Whether a transaction with this id began when `next` was the next one. A server takes ids without their epoch and
/// compares them on a circle (`TransactionIdPrecedes`, src/backend/access/transam/transam.c); an id with an epoch is
/// exact.
fn assigned_later(xid: u64, next: u64) -> bool {
    if u32::try_from(xid).is_err() {
        return xid >= next;
    }
    low_half(xid).wrapping_sub(low_half(next)) < 1 << 31
}

/// Recovery asks for every history from the backup's timeline to the newest, whether or not they are ancestors
/// (`restoreTimeLineHistoryFiles` and `findNewestTimeLine`, src/backend/access/transam/timeline.c), and stops where one
/// is missing that must have been there.
fn check_histories(backup: &Backup, history: &TimelineHistory, inventory: &Inventory) -> Result<()> {
    let newest = inventory.newest_timeline().unwrap_or(backup.timeline).max(history.timeline());
    let missing = (backup.timeline.0..=newest.0).map(Timeline).find(|&timeline| !inventory.has_history(timeline));
    missing.map_or(Ok(()), |missing| Err(no_history(missing, newest, inventory)))
}

fn no_history(missing: Timeline, because: Timeline, inventory: &Inventory) -> Error {
    if let Some(problem) = inventory.history_problem(missing) {
        return Error::new(Kind::Damaged, problem.to_owned())
            .hint("Look for a good copy: an earlier version in the bucket, or pg_wal of a server that has it.");
    }
    Error::new(
        Kind::Hole,
        format!(
            "\"{}\" is missing in the archive although there is something of timeline {because}",
            WalFileName::History(missing)
        ),
    )
    .hint("Archive it from pg_wal of a server that has it: archive-push pg_wal/NAME.")
}

/// Newer backups that were not taken because of their timeline: most likely not what the operator expects.
fn passed_over(chosen: &Backup, unfit: &[(&Backup, Unfit)]) -> Vec<String> {
    let newer = unfit.iter().filter(|(backup, _)| backup.stop_time > chosen.stop_time);
    let telling = newer
        .filter(|(_, problem)| matches!(problem, Unfit::OtherBranch { .. } | Unfit::WalMissing(_) | Unfit::Kind(_)));
    telling.map(|(backup, problem)| format!("the newer base backup {} is not used: {problem}", backup.id)).collect()
}

fn none_fits(request: &Request, unfit: &[(&Backup, Unfit)]) -> Error {
    let reasons: Vec<String> =
        unfit.iter().take(EXPLAINED).map(|(backup, problem)| format!("{}: {problem}", backup.id)).collect();
    let more =
        if unfit.len() > EXPLAINED { format!("; and {} older ones", unfit.len() - EXPLAINED) } else { String::new() };
    let kind = unfit.first().map_or(Kind::NotFound, |(_, problem)| kind_of(problem));
    let message = format!("no base backup can reach {} ({}{more})", named_target(request), reasons.join("; "));
    Error::new(kind, message).hint("basebackup list shows the windows in which recovery is possible.")
}

fn kind_of(problem: &Unfit) -> Kind {
    if matches!(problem, Unfit::WalMissing(_)) { Kind::Hole } else { Kind::NotFound }
}

fn xid(request: &Request) -> String {
    request.target.setting().map(|(_, value)| value).unwrap_or_default()
}

/// The target in an error message.
pub fn named_target(request: &Request) -> String {
    match &request.target {
        Target::End => "the end of the archive".to_owned(),
        Target::Immediate => "the end of the backup".to_owned(),
        Target::Time(moment) => format!("time {}", to_postgres(moment.time)),
        Target::Lsn(lsn) => format!("position {lsn}"),
        Target::Xid(xid) => format!("transaction {xid}"),
        Target::Name(name) => format!("restore point \"{name}\""),
    }
}
