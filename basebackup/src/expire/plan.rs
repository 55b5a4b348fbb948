//! What one run would do to one cluster: a pure function of what there is, what is asked for, and the time.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use object_store::path::Path;
use walkeep_common::config::Retention;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::expire::{Covered, Range, RemovedBackup, firsts, merged};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::store::{Listed, StaleFile};
use walkeep_common::wal::segment::{SegmentName, SegmentSize};

use super::gather::{Incomplete, Present};
use super::policy::{Candidate, GRACE, Keeps, Reason, Selection, select};
use super::wal::{Holding, Rules, ranges};

/// Removing more than half of the backups is no cause to stop as long as it is not as many.
const FEW: usize = 3;
/// A backup that ended so much later than now was taken by a clock that is wrong.
const CLOCKS: SignedDuration = SignedDuration::from_mins(15);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// Keep what a policy keeps.
    Policy(Retention),
    /// Remove one backup, whatever the policy.
    Delete(BackupId),
    /// Keep nothing of a cluster that is no more but what is pinned.
    Forget,
}

/// What would be done, and why.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// What was asked for.
    pub wish: Wish,
    /// Backups that stay, oldest first.
    pub kept: Vec<Kept>,
    /// Backups that go, oldest first.
    pub removed: Vec<Removed>,
    /// Backups that are being taken, or died too short a time ago to be sure.
    pub under_way: Vec<Incomplete>,
    /// What is left of backups that were never completed, or whose removal was interrupted.
    pub debris: Vec<Debris>,
    /// Objects in the folders of backups that stay, which these do not name.
    pub leftovers: Vec<Listed>,
    /// Files of a local repository that never became objects.
    pub stale_files: Vec<StaleFile>,
    /// WAL that goes.
    pub wal: WalPart,
    /// The cluster's segment size, where it is known.
    pub segment_size: Option<SegmentSize>,
    /// Why somebody should look first.
    pub doubts: Vec<String>,
}

/// A backup that stays.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its record.
    pub backup: Backup,
    /// How much WAL it holds.
    pub keeps: Keeps,
    /// Why it stays.
    pub reasons: BTreeSet<Reason>,
    /// Why it cannot be restored as it stands.
    pub problem: Option<String>,
}

/// A backup that goes.
#[derive(Debug, Clone)]
pub struct Removed {
    /// Its record.
    pub backup: Backup,
    /// All that is in its folder, in the order in which it goes: `backup.json`, `begin.json`, the rest.
    pub objects: Vec<Listed>,
    /// Why it cannot be restored as it stands.
    pub problem: Option<String>,
}

/// A folder without a complete backup that goes.
#[derive(Debug, Clone)]
pub struct Debris {
    /// The backup's id.
    pub id: BackupId,
    /// What is in it, but for the mark that it was given up.
    pub objects: Vec<Listed>,
    /// Whether its name must first be taken away from whoever may still be at it.
    pub must_be_claimed: bool,
    /// Whether it is a backup whose record cannot be read, and goes with that.
    pub is_whole_folder: bool,
    /// The mark, where it is old enough to go as well.
    pub mark: Option<Listed>,
}

/// WAL that goes.
#[derive(Debug, Clone, Default)]
pub struct WalPart {
    /// The objects.
    pub objects: Vec<Listed>,
    /// Their segments.
    pub ranges: Vec<Range>,
    /// Where the backups began that are removed, now or before.
    pub covered: Vec<Covered>,
    /// What runs that did not end had removed already.
    pub removed_before: Vec<Range>,
    /// Whether there are such runs, which this one carries on.
    pub carries_on: bool,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.keys().is_empty() && self.stale_files.is_empty() && !self.wal.carries_on
    }

    /// Everything that goes, and its stored bytes.
    pub fn all(&self) -> impl Iterator<Item = &Listed> {
        let removed = self.removed.iter().flat_map(|removed| &removed.objects);
        let debris = self.debris.iter().flat_map(|debris| debris.objects.iter().chain(&debris.mark));
        removed.chain(debris).chain(&self.leftovers).chain(&self.wal.objects)
    }

    /// The keys of everything that goes.
    pub fn keys(&self) -> BTreeSet<&Path> {
        self.all().map(|object| &object.key).collect()
    }
}

/// Makes the plan.
pub fn plan(present: &Present, wish: &Wish, now: Timestamp) -> Plan {
    let selection = selection(present, wish, now);
    let (mut kept, mut removed) = (Vec::new(), Vec::new());
    for candidate in &present.candidates {
        let (backup, problem) = (candidate.backup.clone(), candidate.problem.clone());
        if let Some((keeps, reasons)) = selection.get(&backup.id) {
            kept.push(Kept { backup, keeps: *keeps, reasons: reasons.clone(), problem });
        } else {
            let objects = in_order(present.folders.get(&backup.id).map_or(&[][..], Vec::as_slice));
            removed.push(Removed { backup, objects, problem });
        }
    }
    let (mut debris, under_way) = incomplete(present, now);
    let mut leftovers = leftovers(present, &kept, now);
    let mut stale_files: Vec<StaleFile> =
        present.stale_files.iter().filter(|file| file.modified < now - GRACE).cloned().collect();
    if let Wish::Delete(id) = wish {
        debris = unusable(present, id);
        (leftovers, stale_files) = (Vec::new(), Vec::new());
    }
    let mut plan = Plan {
        system_identifier: present.system_identifier,
        wish: wish.clone(),
        kept,
        removed,
        under_way,
        debris,
        leftovers,
        stale_files,
        wal: WalPart::default(),
        segment_size: present.segment_size(),
        doubts: Vec::new(),
    };
    plan.wal = wal(present, &plan, &BTreeSet::new(), now);
    plan.doubts = doubts(present, &plan, now);
    plan
}

fn selection(present: &Present, wish: &Wish, now: Timestamp) -> Selection {
    match wish {
        Wish::Policy(policy) => select(&present.candidates, policy, &present.branches(), now),
        Wish::Forget => select(&present.candidates, &Retention::default(), &[], now)
            .into_iter()
            .filter_map(|(id, (keeps, reasons))| {
                let pinned: BTreeSet<Reason> =
                    reasons.into_iter().filter(|reason| matches!(reason, Reason::Pinned(_))).collect();
                (!pinned.is_empty()).then_some((id, (keeps.min(Keeps::OwnWal), pinned)))
            })
            .collect(),
        Wish::Delete(id) => present
            .candidates
            .iter()
            .filter(|candidate| candidate.backup.id != *id)
            .map(|candidate| (candidate.backup.id.clone(), (Keeps::AllWalSince, BTreeSet::new())))
            .collect(),
    }
}

/// `backup.json`, so that the backup is no longer offered; `begin.json`; the rest.
fn in_order(objects: &[Listed]) -> Vec<Listed> {
    let mut objects = objects.to_vec();
    objects.sort_by_key(|object| match object.key.filename() {
        Some("backup.json") => 0,
        Some("begin.json") => 1,
        _ => 2,
    });
    objects
}

/// What goes of backups that are not complete, and those that are left alone.
fn incomplete(present: &Present, now: Timestamp) -> (Vec<Debris>, Vec<Incomplete>) {
    let (mut debris, mut under_way) = (Vec::new(), Vec::new());
    let is_mark = |object: &Listed| object.key.filename() == Some("backup.json");
    let is_old = |object: &Listed| object.modified < now - GRACE;
    for incomplete in &present.incomplete {
        let id = &incomplete.id;
        let rest: Vec<Listed> = incomplete.objects.iter().filter(|object| !is_mark(object)).cloned().collect();
        let mark = incomplete.objects.iter().find(|object| is_mark(object) && incomplete.is_abandoned);
        // A removal that was begun is finished, whenever that was; what was given up can no longer become a backup.
        let was_begun = present.expired.backups.contains(id) || incomplete.is_abandoned;
        if !(was_begun || incomplete.objects.iter().all(is_old)) {
            under_way.push(incomplete.clone());
            continue;
        }
        let must_be_claimed = !was_begun;
        let mark = mark.filter(|mark| is_old(mark)).cloned();
        if !rest.is_empty() || mark.is_some() {
            let (id, objects) = (id.clone(), in_order(&rest));
            debris.push(Debris { id, objects, must_be_claimed, is_whole_folder: false, mark });
        }
    }
    (debris, under_way)
}

/// The backup that is to be deleted, if its record cannot be read.
fn unusable(present: &Present, id: &BackupId) -> Vec<Debris> {
    let named = present.unusable.iter().filter(|unusable| unusable.id == *id);
    named
        .map(|unusable| Debris {
            id: unusable.id.clone(),
            objects: in_order(&unusable.objects),
            must_be_claimed: false,
            is_whole_folder: true,
            mark: None,
        })
        .collect()
}

/// What lies in the folders of backups that stay and is old and not theirs.
fn leftovers(present: &Present, kept: &[Kept], now: Timestamp) -> Vec<Listed> {
    let mut found = Vec::new();
    for kept in kept {
        let own: BTreeSet<String> = kept.backup.objects().into_iter().map(|(name, _)| name).collect();
        let folder = format!("base/{}/", kept.backup.id);
        let objects = present.folders.get(&kept.backup.id).into_iter().flatten();
        found.extend(objects.filter(|object| object.modified < now - GRACE).filter_map(|object| {
            let name = object.key.as_ref().split_once(&folder)?.1;
            (!own.contains(name)).then(|| object.clone())
        }));
    }
    found
}

/// The WAL that goes, if the backups in `refused`, which should go, turn out to stay.
pub fn wal(present: &Present, plan: &Plan, refused: &BTreeSet<BackupId>, now: Timestamp) -> WalPart {
    let Some(inventory) = &present.inventory else { return WalPart::default() };
    let gone = plan.removed.iter().filter(|removed| !refused.contains(&removed.backup.id));
    let gone = gone.map(|removed| Covered { timeline: removed.backup.timeline, start_lsn: removed.backup.start_lsn });
    let mut covered = firsts(present.expired.since.iter().copied().chain(gone).collect());
    if matches!(plan.wish, Wish::Delete(_)) {
        // Whether anything needs its WAL is a question for the policy.
        return WalPart { covered, ..WalPart::default() };
    }
    if plan.wish == Wish::Forget {
        covered.extend(inventory.timelines().into_iter().map(|timeline| Covered { timeline, start_lsn: Lsn(0) }));
        covered = firsts(covered);
    }
    let stay = plan.removed.iter().filter(|removed| refused.contains(&removed.backup.id));
    let stay = stay.map(|removed| Holding::of(&removed.backup, Keeps::OwnWal, removed.problem.is_none()));
    let kept = plan.kept.iter().map(|kept| Holding::of(&kept.backup, kept.keeps, kept.problem.is_none()));
    let begun = plan.under_way.iter().filter_map(|under_way| under_way.begin.as_ref()).map(|begin| Holding {
        timeline: begin.timeline,
        end_timeline: begin.timeline,
        start_lsn: begin.start_lsn_at_least,
        stop_lsn: None,
        keeps: Keeps::AllWalSince,
        is_whole: false,
    });
    let holdings: Vec<Holding> = kept.chain(stay).chain(begun).collect();
    let alive = inventory.newest_timeline().filter(|_| plan.wish != Wish::Forget);
    let rules = Rules { inventory, holdings: &holdings, covered: &covered, quiet_since: now - GRACE, alive };
    let pending = &present.expired.pending;
    let of_range = |range: &Range| {
        let timeline = range.timeline;
        (range.first..=range.last).map(move |number| Range { timeline, first: number, last: number })
    };
    let was_removed = |range: &Range| {
        let is_there = inventory.has(SegmentName::new(range.timeline, range.first, inventory.segment_size()));
        !is_there && !rules.is_needed(range.timeline, range.first)
    };
    let removed_before = merged(pending.iter().flat_map(of_range).filter(was_removed).collect());
    let objects: Vec<Listed> = rules.removable(&present.wal).into_iter().cloned().collect();
    let ranges = ranges(objects.iter().map(|object| &object.key), inventory);
    WalPart { objects, ranges, covered, removed_before, carries_on: !pending.is_empty() }
}

/// What somebody should look at before anything is removed.
fn doubts(present: &Present, plan: &Plan, now: Timestamp) -> Vec<String> {
    let mut doubts = present.unreadable.clone();
    let (removed, of) = (plan.removed.len(), present.candidates.len());
    let restorable = plan.kept.iter().filter(|kept| kept.problem.is_none()).count();
    match &plan.wish {
        Wish::Policy(_) => {
            doubts.extend(order(present, now));
            if removed >= FEW && removed * 2 > of {
                doubts.push(format!("the policy would remove {removed} of {of} backups at once"));
            }
            if removed > 0 && restorable == 0 {
                doubts.push("none of the backups that would stay can be restored".to_owned());
            }
        }
        Wish::Delete(id) => {
            let candidate = present.candidates.iter().find(|candidate| candidate.backup.id == *id);
            let is_sound = |kept: &Kept| kept.problem.is_none() && kept.backup.bad_pages.is_empty();
            if candidate.is_some_and(Candidate::is_whole) && restorable == 0 {
                doubts.push(format!("{id} is the only backup that can be restored"));
            } else if candidate.is_some_and(Candidate::is_sound) && !plan.kept.iter().any(is_sound) {
                doubts.push(format!("{id} is the only backup without damaged pages"));
            }
        }
        Wish::Forget => {
            if present.newest().is_some_and(|newest| newest >= now - GRACE) {
                doubts.push("something was stored for this cluster within the last two days".to_owned());
            }
        }
    }
    doubts
}

/// Backups whose recorded times cannot be right: a policy goes by them.
fn order(present: &Present, now: Timestamp) -> Vec<String> {
    let mut doubts = Vec::new();
    let backups: Vec<&Backup> = present.candidates.iter().map(|candidate| &candidate.backup).collect();
    if let Some(early) = backups.iter().find(|backup| backup.stop_time > now + CLOCKS) {
        doubts.push(format!("backup {} is recorded to have ended at {}, which is to come", early.id, early.stop_time));
    }
    for (number, later) in backups.iter().enumerate() {
        let mut before = backups.iter().take(number).rev();
        let earlier = before.find(|earlier| earlier.end_timeline() == later.end_timeline());
        if let Some(earlier) = earlier.filter(|earlier| earlier.stop_lsn > later.stop_lsn) {
            let (one, other) = (&earlier.id, &later.id);
            doubts.push(format!("backup {one} ended before {other} by the clock, and behind it by the LSN"));
        }
    }
    doubts
}

impl Removed {
    /// What the record says of it.
    pub fn record(&self) -> RemovedBackup {
        let backup = &self.backup;
        RemovedBackup {
            id: backup.id.clone(),
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            stop_time: backup.stop_time,
        }
    }
}
