//! What there is, from listings and the few small objects that say what the rest means.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use object_store::path::Path;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{Backup, Begin};
use walkeep_common::repository::expire::Expired;
use walkeep_common::repository::layout::{BackupId, Layout, WalObject};
use walkeep_common::store::{Listed, StaleFile};
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_of};
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::inventory::Inventory;

use super::policy::{Branch, Candidate};
use crate::catalog::Catalog;
use crate::list::segment_size;
use crate::pins::Pins;

/// Everything of one cluster that a plan is made from.
#[derive(Debug, Clone)]
pub struct Present {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// Every backup there is anything of.
    pub ids: BTreeSet<BackupId>,
    /// Complete backups, oldest first.
    pub candidates: Vec<Candidate>,
    /// Folders of backups that are not complete.
    pub incomplete: Vec<Incomplete>,
    /// Backups whose record cannot be read, why, and what lies in their folders.
    pub unusable: Vec<Unusable>,
    /// What lies in the folders of complete backups, by backup.
    pub folders: BTreeMap<BackupId, Vec<Listed>>,
    /// All of `wal/`.
    pub wal: Vec<Listed>,
    /// The same as timelines; nothing if there is no WAL.
    pub inventory: Option<Inventory>,
    /// What was removed before.
    pub expired: Expired,
    /// Files of a local repository that were being written when something was killed.
    pub stale_files: Vec<StaleFile>,
    /// What cannot be read although a plan depends on it.
    pub unreadable: Vec<String>,
}

/// A folder below `base/` whose backup is not complete.
#[derive(Debug, Clone)]
pub struct Incomplete {
    /// The backup's id.
    pub id: BackupId,
    /// Its first object, where that is there and can be read.
    pub begin: Option<Begin>,
    /// Whether it can never be completed.
    pub is_abandoned: bool,
    /// What lies in it.
    pub objects: Vec<Listed>,
}

/// A backup whose record cannot be read.
#[derive(Debug, Clone)]
pub struct Unusable {
    /// Its id.
    pub id: BackupId,
    /// Why.
    pub problem: String,
    /// What lies in its folder.
    pub objects: Vec<Listed>,
}

impl Incomplete {
    /// When something was stored here last.
    pub fn newest(&self) -> Option<Timestamp> {
        self.objects.iter().map(|object| object.modified).max()
    }
}

/// Looks at one cluster.
///
/// # Errors
/// `Unavailable`, also where two listings contradict each other; `Refused`.
pub async fn gather(archive: &WalArchive, now: Timestamp) -> Result<Present> {
    let (store, layout) = (archive.store(), archive.layout());
    let (catalog, mut folders) = backups(archive).await?;
    let ids: BTreeSet<BackupId> = catalog.ids().cloned().collect();
    let pins = Pins::load(archive).await?;
    let size = segment_size(archive, &catalog).await?;
    let expired = match size {
        Some(size) => archive.expired(size).await?,
        None => Expired::default(),
    };
    let (mut wal, mut inventory) = (Vec::new(), None);
    if let Some(size) = size {
        wal = store.list(&layout.wal_folder()).await?;
        check_wal_listing(archive, &wal).await?;
        inventory = Some(archive.inventory_of(size, &wal).await?);
    }
    let mut unreadable = unreadable(&catalog, &pins, &expired, inventory.as_ref());
    unreadable.extend(unplaced(archive, &catalog, &expired, &pins, now).await?);

    let mut incomplete = Vec::new();
    let unfinished = catalog.unfinished.iter().map(|unfinished| (&unfinished.id, unfinished.begin.clone(), false));
    for (id, begin, is_abandoned) in unfinished.chain(catalog.abandoned.iter().map(|id| (id, None, true))) {
        let objects = folders.remove(id).unwrap_or_default();
        if !is_abandoned && begin.is_none() && objects.iter().any(|object| object.key.filename() == Some("begin.json"))
        {
            unreadable.push(format!("begin.json of backup {id} cannot be read"));
        }
        incomplete.push(Incomplete { id: id.clone(), begin, is_abandoned, objects });
    }
    let candidates = catalog.backups.into_iter().map(|backup| {
        let objects = folders.get(&backup.id).map_or(&[][..], Vec::as_slice);
        let being_removed = expired.being_removed.contains(&backup.id);
        let problem = being_removed.then(|| "its removal was begun".to_owned());
        let problem = problem.or_else(|| problem_of(&backup, layout, objects, inventory.as_ref()));
        Candidate { problem, pins: pins.of(&backup.id, now), backup }
    });
    let candidates: Vec<Candidate> = candidates.collect();
    let unusable = catalog.unusable.into_iter().map(|(id, problem)| {
        let objects = folders.remove(&id).unwrap_or_default();
        Unusable { id, problem, objects }
    });
    let unusable = unusable.collect();
    Ok(Present {
        system_identifier: layout.system_identifier(),
        ids,
        candidates,
        incomplete,
        unusable,
        folders,
        wal,
        inventory,
        expired,
        stale_files: store.stale_files(layout.folder())?,
        unreadable,
    })
}

impl Present {
    /// The timelines that recovery can follow, with the times of what was archived of them last, histories included.
    pub fn branches(&self) -> Vec<Branch> {
        let Some(inventory) = &self.inventory else { return Vec::new() };
        let Some(newest_timeline) = inventory.newest_timeline() else { return Vec::new() };
        let (current, size) = (inventory.history(newest_timeline), inventory.segment_size());
        let is_apart = |segment: SegmentName| match current.switch_point(segment.timeline) {
            Some(left) => segment.number(size).is_some_and(|number| number > segment_of(left, size)),
            None => true,
        };
        let mut times: BTreeMap<Timeline, (Timestamp, Option<Timestamp>)> = BTreeMap::new();
        for object in &self.wal {
            let name = object.key.filename().and_then(WalObject::parse).map(|parsed| parsed.name);
            let segment = name.and_then(WalFileName::segment);
            let timeline = match name {
                Some(WalFileName::History(timeline)) => timeline,
                _ => match segment {
                    Some(segment) => segment.timeline,
                    None => continue,
                },
            };
            let (newest, apart) = times.entry(timeline).or_insert((object.modified, None));
            *newest = (*newest).max(object.modified);
            if segment.is_some_and(is_apart) {
                *apart = (*apart).max(Some(object.modified));
            }
        }
        let known = times.into_iter().filter(|(timeline, _)| inventory.has_history(*timeline));
        known
            .map(|(timeline, (newest, apart))| Branch {
                history: inventory.history(timeline),
                newest,
                apart,
                is_newest: timeline == newest_timeline,
            })
            .collect()
    }

    /// The cluster's segment size, where it is known.
    pub fn segment_size(&self) -> Option<SegmentSize> {
        self.inventory.as_ref().map(Inventory::segment_size)
    }

    /// When anything of the cluster was stored last, by the store's clock.
    pub fn newest(&self) -> Option<Timestamp> {
        let incomplete = self.incomplete.iter().flat_map(|incomplete| &incomplete.objects);
        let all = self.wal.iter().chain(self.folders.values().flatten()).chain(incomplete);
        all.map(|object| object.modified).max()
    }
}

/// The objects below `base/` by backup; what lies elsewhere is none of ours.
fn by_folder(layout: &Layout, listed: Vec<Listed>) -> BTreeMap<BackupId, Vec<Listed>> {
    let depth = layout.backups_folder().parts().count();
    let mut folders: BTreeMap<BackupId, Vec<Listed>> = BTreeMap::new();
    for object in listed {
        let id = object.key.parts().nth(depth).and_then(|part| part.as_ref().parse().ok());
        if let (Some(id), true) = (id, object.key.parts().count() > depth + 1) {
            folders.entry(id).or_default().push(object);
        }
    }
    folders
}

/// The backups, and what lies in their folders. Two listings of different kinds must show the same backups: one that ends too
/// early is no answer.
///
/// # Errors
/// `Unavailable` if they do not; `Refused`.
async fn backups(archive: &WalArchive) -> Result<(Catalog, BTreeMap<BackupId, Vec<Listed>>)> {
    let (store, layout) = (archive.store(), archive.layout());
    let mut disagreed = None;
    // A backup may begin, or be removed, between the two.
    for _ in 0..2 {
        let catalog = Catalog::load(archive).await?;
        let folders = by_folder(layout, store.list(&layout.backups_folder()).await?);
        let one: BTreeSet<&BackupId> = catalog.ids().collect();
        let other: BTreeSet<&BackupId> = folders.keys().collect();
        let differing =
            one.symmetric_difference(&other).filter(|id| !is_empty_folder(archive, &layout.backup_folder(id)));
        disagreed = differing.map(|id| (*id).clone()).next();
        if disagreed.is_none() {
            return Ok((catalog, folders));
        }
    }
    let what = disagreed.map_or_else(String::new, |id| format!(" about backup {id}"));
    Err(disagreement(archive, &layout.backups_folder(), &what))
}

/// A directory of a local repository without anything in it, which one kind of listing shows. Object stores have none.
fn is_empty_folder(archive: &WalArchive, folder: &Path) -> bool {
    let Some(root) = archive.store().directory() else { return false };
    std::fs::read_dir(root.join(folder.as_ref())).is_ok_and(|mut entries| entries.next().is_none())
}

fn disagreement(archive: &WalArchive, folder: &Path, what: &str) -> Error {
    let url = archive.store().url_of(folder);
    Error::new(Kind::Unavailable, format!("two listings of \"{url}\" disagree{what}"))
        .hint("Nothing was removed. Run it again; if it stays so, the store's listings are incomplete.")
}

/// Every folder of WAL that one kind of listing shows must have something in the other.
///
/// # Errors
/// `Unavailable` if one has not; `Refused`.
async fn check_wal_listing(archive: &WalArchive, wal: &[Listed]) -> Result<()> {
    let parent = archive.layout().wal_folder();
    let listed: BTreeSet<&str> = wal.iter().filter_map(|object| object.key.as_ref().rsplit('/').nth(1)).collect();
    for name in archive.store().list_folder(&parent).await?.folders {
        let folder = parent.clone().join(name.as_str());
        if !listed.contains(name.as_str()) && !is_empty_folder(archive, &folder) {
            return Err(disagreement(archive, &folder, ""));
        }
    }
    Ok(())
}

/// Backups of which the last run said that they stay, or that are pinned, and that no listing shows.
///
/// # Errors
/// `Unavailable` if one is there all the same; `Refused`.
async fn unplaced(
    archive: &WalArchive,
    catalog: &Catalog,
    expired: &Expired,
    pins: &Pins,
    now: Timestamp,
) -> Result<Vec<String>> {
    let listed: BTreeSet<&BackupId> = catalog.ids().collect();
    let pinned = pins.pinned(now);
    let mut lost = Vec::new();
    for id in expired.kept.union(&pinned).filter(|id| !listed.contains(id) && !expired.backups.contains(*id)) {
        let key = archive.layout().backup_object(id, "backup.json");
        if archive.store().head(&key).await?.is_some() {
            return Err(disagreement(archive, &archive.layout().backups_folder(), &format!(" about backup {id}")));
        }
        if pinned.contains(id) {
            lost.push(format!(
                "backup {id} is pinned and is not there (if it is gone for good: basebackup unpin {id})"
            ));
        }
    }
    Ok(lost)
}

fn unreadable(catalog: &Catalog, pins: &Pins, expired: &Expired, inventory: Option<&Inventory>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let unusable = |(id, problem): &(BackupId, String)| {
        format!("backup {id} cannot be used: {problem} (to remove it: basebackup delete {id} --force)")
    };
    found.extend(catalog.unusable.iter().map(unusable));
    found.extend(catalog.altered.iter().map(|id| format!("backup.json of {id} was changed since it was written")));
    let objects = pins.unreadable.iter().chain(&expired.unreadable);
    found.extend(objects.map(|(object, problem)| format!("\"{object}\" cannot be read: {problem}")));
    let Some(inventory) = inventory else { return found };
    for timeline in inventory.timelines() {
        if let Some(problem) = inventory.history_problem(timeline) {
            found.push(format!("the history of timeline {timeline} cannot be used: {problem}"));
        } else if !inventory.has_history(timeline) {
            found.push(format!(
                "the history of timeline {timeline} is not archived (archive-push it from pg_wal of a server that has it)"
            ));
        }
    }
    found
}

/// What listings say is missing of a backup.
pub(super) fn problem_of(
    backup: &Backup,
    layout: &Layout,
    objects: &[Listed],
    inventory: Option<&Inventory>,
) -> Option<String> {
    let size_of = |name: &str| {
        let key = layout.backup_object(&backup.id, name);
        objects.iter().find(|object| object.key == key).map(|object| object.size)
    };
    if backup.kind != "full" {
        return Some(format!("it is of the type \"{}\", which this program does not restore", backup.kind));
    }
    // Nobody who restores reads begin.json.
    for (name, size) in backup.objects().into_iter().filter(|(name, _)| name != "begin.json") {
        match size_of(&name) {
            Some(found) if size.is_none_or(|size| size == found) => {}
            Some(_) => return Some(format!("{name} does not have the size it was stored with")),
            None => return Some(format!("{name} is missing")),
        }
    }
    let inventory = inventory?;
    let history: TimelineHistory = inventory.history(backup.end_timeline());
    let missing = crate::verify::needed(backup, &history).find(|segment| !inventory.has(*segment));
    missing.map(|segment| format!("WAL segment {segment}, which it needs, is missing"))
}
