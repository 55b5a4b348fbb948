//! What one run would do to one cluster: a pure function of what there is, what is asked for, and the time.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use object_store::path::Path;
use walkeep_common::config::Retention;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::expire::{Covered, Range, RemovedBackup, firsts};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::store::{Listed, StaleFile};
use walkeep_common::wal::segment::SegmentSize;

use super::gather::{Incomplete, Present};
use super::policy::{Candidate, Keeps, Reason, Selection, select};
use super::wal::{Holding, Rules, ranges};

/// Nothing that belongs to no complete backup is touched before nobody has stored anything beside it for so long: it may be
/// a backup under way, on any host.
pub const GRACE: SignedDuration = SignedDuration::from_hours(48);
/// Removing more than half of the backups is no cause to stop as long as it is not as many.
const FEW: usize = 3;

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
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.keys().is_empty() && self.stale_files.is_empty()
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
        // A removal that was begun is finished, whenever that was.
        let was_begun = present.expired.backups.contains(id);
        if !(was_begun || incomplete.objects.iter().all(is_old)) {
            under_way.extend((!incomplete.is_abandoned).then(|| incomplete.clone()));
            continue;
        }
        let must_be_claimed = !incomplete.is_abandoned && !was_begun;
        let mark = mark.filter(|mark| is_old(mark)).cloned();
        if !rest.is_empty() || mark.is_some() {
            debris.push(Debris { id: id.clone(), objects: in_order(&rest), must_be_claimed, mark });
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
    let kept = plan.kept.iter().map(|kept| Holding::of(&kept.backup, kept.keeps));
    let begun = plan.under_way.iter().filter_map(|under_way| under_way.begin.as_ref()).map(|begin| Holding {
        timeline: begin.timeline,
        end_timeline: begin.timeline,
        start_lsn: begin.start_lsn_at_least,
        stop_lsn: None,
        keeps: Keeps::AllWalSince,
    });
    let holdings: Vec<Holding> =
        kept.chain(stay.map(|removed| Holding::of(&removed.backup, Keeps::OwnWal))).chain(begun).collect();
    let rules = Rules { inventory, holdings: &holdings, covered: &covered, quiet_since: now - GRACE };
    let objects: Vec<Listed> = rules.removable(&present.wal).into_iter().cloned().collect();
    let ranges = ranges(objects.iter().map(|object| &object.key), inventory);
    WalPart { objects, ranges, covered }
}

/// What somebody should look at before anything is removed.
fn doubts(present: &Present, plan: &Plan, now: Timestamp) -> Vec<String> {
    let mut doubts = present.unreadable.clone();
    let (removed, of) = (plan.removed.len(), present.candidates.len());
    let restorable = plan.kept.iter().filter(|kept| kept.problem.is_none()).count();
    match &plan.wish {
        Wish::Policy(_) => {
            if removed >= FEW && removed * 2 > of {
                doubts.push(format!("the policy would remove {removed} of {of} backups at once"));
            }
            if removed > 0 && restorable == 0 {
                doubts.push("none of the backups that would stay can be restored".to_owned());
            }
        }
        Wish::Delete(id) => {
            let candidate = present.candidates.iter().find(|candidate| candidate.backup.id == *id);
            if candidate.is_some_and(Candidate::is_whole) && restorable == 0 {
                doubts.push(format!("{id} is the only backup that can be restored"));
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
