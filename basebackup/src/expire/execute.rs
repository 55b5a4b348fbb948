//! Does what a plan says, in an order that leaves only complete backups listed wherever it is interrupted.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use object_store::path::Path;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::host::host_name;
use walkeep_common::repository::backup::BackupRecord;
use walkeep_common::repository::expire::{ExpireDone, ExpireRecord, Range, WalRange, merged};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::store::{Created, Listed, Undeleted};
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::header::FORMAT_VERSION;

use super::gather::Present;
use super::plan::{Debris, Plan, Removed, Wish, wal};
use crate::pins::Pins;

/// How far this host's clock may be from the store's.
const MOST_SKEW: SignedDuration = SignedDuration::from_mins(15);
/// A `backup.json` that says that the backup was given up is shorter.
const MARK_LIMIT: u64 = 256 << 20;

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// Objects that were deleted.
    pub objects: u64,
    /// Their stored bytes.
    pub stored_size: u64,
    /// What the store did not delete, and why.
    pub refused: Vec<Undeleted>,
    /// Unfinished backups that were completed meanwhile, and stay.
    pub completed: Vec<BackupId>,
}

impl Done {
    async fn delete(&mut self, archive: &WalArchive, objects: &[&Listed]) -> Result<bool> {
        let keys: Vec<Path> = objects.iter().map(|object| object.key.clone()).collect();
        let refused = archive.store().delete(&keys).await?;
        let kept: BTreeSet<&Path> = refused.iter().map(|undeleted| &undeleted.key).collect();
        for object in objects.iter().filter(|object| !kept.contains(&object.key)) {
            self.objects += 1;
            self.stored_size += object.size;
        }
        let is_all = refused.is_empty();
        self.refused.extend(refused);
        Ok(is_all)
    }
}

/// Carries out a plan that is not empty.
///
/// # Errors
/// `Conflict` if backups were pinned meanwhile, `Refused` or `Unavailable`. A second run finishes what was begun.
pub async fn execute(archive: &WalArchive, present: &Present, plan: &Plan, now: Timestamp) -> Result<Done> {
    let record = record(present, plan, now);
    let stored = archive.note_expired(&record).await?;
    if let Err(error) = nobody_else(archive, present, &record, stored).await {
        // Where it may not be deleted it stays as that of a run that did not end, which explains nothing.
        if let Err(kept) = archive.withdraw_expired(&record.id).await {
            tracing::warn!("{kept}");
        }
        return Err(error.hint("Nothing was removed. Run it again when that is over."));
    }
    let mut done = Done::default();
    let mut refused = BTreeSet::new();
    for removed in &plan.removed {
        let id = &removed.backup.id;
        if Pins::load(archive).await?.pinned(now).contains(id) {
            return Err(Error::new(Kind::Conflict, format!("backup {id} was pinned meanwhile"))
                .hint("It stays. Run it again to remove what is left."));
        }
        if !remove(archive, id, &removed.objects, &mut done).await? {
            refused.insert(id.clone());
        }
    }
    for debris in &plan.debris {
        sweep(archive, debris, &mut done).await?;
    }
    let _ = done.delete(archive, &plan.leftovers.iter().collect::<Vec<_>>()).await?;
    for file in &plan.stale_files {
        match std::fs::remove_file(&file.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => {
                removed.context("remove file", &file.path)?;
                done.objects += 1;
                done.stored_size += file.size;
            }
        }
    }
    let again = (!refused.is_empty()).then(|| wal(present, plan, &refused, now));
    let objects = &again.as_ref().unwrap_or(&plan.wal).objects;
    let _ = done.delete(archive, &objects.iter().collect::<Vec<_>>()).await?;
    let ended = ExpireDone {
        walkeep: FORMAT_VERSION,
        id: record.id,
        system_identifier: record.system_identifier,
        finished: Timestamp::now(),
        objects: done.objects,
        stored_size: done.stored_size,
        refused: done.refused.iter().map(|undeleted| undeleted.key.to_string()).collect(),
    };
    archive.note_done(&ended).await?;
    Ok(done)
}

/// Makes sure, with the record in place for others to see, that this run is alone and that its clock is right: what clocks
/// say of ages is the only thing between a backup under way and debris.
///
/// # Errors
/// `Refused` if the clocks differ; `Conflict` if something else is removing, or a backup has begun; `Unavailable`.
async fn nobody_else(archive: &WalArchive, present: &Present, record: &ExpireRecord, stored: Timestamp) -> Result<()> {
    let skew = Timestamp::now().duration_since(stored).abs();
    if skew > MOST_SKEW {
        let message = format!(
            "this host's clock and the store's differ by {} minutes (timedatectl and chronyc tracking tell which is wrong)",
            skew.as_mins()
        );
        return Err(Error::new(Kind::Refused, message));
    }
    // Whoever looks after writing sees the other, or is seen.
    let records = archive.expire_records().await?;
    if let Some(other) = records.iter().find(|id| **id != record.id && !present.expired.records.contains(id)) {
        return Err(Error::new(Kind::Conflict, format!("something else is being removed at the same time ({other})")));
    }
    let folders = archive.store().list_folder(&archive.layout().backups_folder()).await?.folders;
    let ids = folders.iter().filter_map(|name| name.parse::<BackupId>().ok());
    if let Some(begun) = ids.into_iter().find(|id| !present.ids.contains(id)) {
        return Err(Error::new(Kind::Conflict, format!("backup {begun} has begun meanwhile")));
    }
    Ok(())
}

fn record(present: &Present, plan: &Plan, now: Timestamp) -> ExpireRecord {
    let size = plan.segment_size;
    let named =
        |ranges: &[Range]| ranges.iter().filter_map(|range| Some(WalRange::new(*range, size?))).collect::<Vec<_>>();
    let gone = present.expired.wal.iter().chain(&plan.wal.removed_before).chain(&plan.wal.ranges);
    let all_wal = merged(gone.copied().collect());
    let objects = plan.all().count() + plan.stale_files.len();
    let stored_size = plan.all().map(|object| object.size).chain(plan.stale_files.iter().map(|file| file.size)).sum();
    let stale = plan.stale_files.iter().map(|file| file.path.display().to_string());
    ExpireRecord {
        walkeep: FORMAT_VERSION,
        id: BackupId::new(now, fastrand::u16(..)),
        system_identifier: present.system_identifier,
        created: now,
        host: host_name(),
        user: whoami::username().unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        policy: if let Wish::Policy(policy) = &plan.wish { policy.settings() } else { BTreeMap::new() },
        kept: plan.kept.iter().map(|kept| kept.backup.id.clone()).collect(),
        removed: plan.removed.iter().map(Removed::record).collect(),
        abandoned: plan.debris.iter().map(|debris| debris.id.clone()).collect(),
        leftovers: plan.leftovers.iter().map(|object| object.key.to_string()).chain(stale).collect(),
        wal: named(&plan.wal.ranges),
        objects: objects as u64,
        stored_size,
        expired_wal: named(&all_wal),
        expired_since: plan.wal.covered.clone(),
    }
}

/// Removes a backup; false if it stays whole, because the object that makes it one may not be deleted.
async fn remove(archive: &WalArchive, id: &BackupId, objects: &[Listed], done: &mut Done) -> Result<bool> {
    // One at a time, and by name, whatever the listing showed: without the first nobody takes what is left for a backup.
    for name in ["backup.json", "begin.json"] {
        let key = archive.layout().backup_object(id, name);
        let listed = objects.iter().find(|object| object.key == key).cloned();
        let object = listed.unwrap_or(Listed { key, size: 0, modified: Timestamp::UNIX_EPOCH });
        let is_deleted = done.delete(archive, &[&object]).await?;
        if !is_deleted && name == "backup.json" {
            return Ok(false);
        }
    }
    let rest = objects.iter().filter(|object| !matches!(object.key.filename(), Some("backup.json" | "begin.json")));
    let _ = done.delete(archive, &rest.collect::<Vec<_>>()).await?;
    Ok(true)
}

/// Removes what is left of a backup that was never completed. Whoever may still be at it fails with its own last put.
async fn sweep(archive: &WalArchive, debris: &Debris, done: &mut Done) -> Result<()> {
    let (store, layout) = (archive.store(), archive.layout());
    if debris.is_whole_folder {
        let _ = remove(archive, &debris.id, &debris.objects, done).await?;
        return Ok(());
    }
    let mut objects: Vec<Listed> = debris.objects.clone();
    if debris.must_be_claimed {
        let key = layout.backup_object(&debris.id, "backup.json");
        let mark = format!("{{\"walkeep\":{FORMAT_VERSION},\"id\":\"{}\",\"state\":\"abandoned\"}}\n", debris.id);
        if store.create(&key, mark.into_bytes()).await? == Created::Exists {
            let found = store.read(&key, MARK_LIMIT).await?;
            let found = found.map(|bytes| BackupRecord::parse(&bytes, &debris.id));
            if !matches!(found, Some(Ok(BackupRecord::Abandoned))) {
                done.completed.push(debris.id.clone());
                return Ok(());
            }
        }
        store.make_durable(&key)?;
        // Something may have been stored until now; from now on nothing makes a backup of it.
        objects = store.list(&layout.backup_folder(&debris.id)).await?;
        objects.retain(|object| object.key != key);
    }
    let is_all = done.delete(archive, &objects.iter().collect::<Vec<_>>()).await?;
    if let (true, Some(mark)) = (is_all, &debris.mark) {
        let _ = done.delete(archive, &[mark]).await?;
    }
    Ok(())
}
