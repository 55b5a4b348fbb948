//! Does what a plan says, in an order that leaves only complete backups listed wherever it is interrupted.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use object_store::path::Path;
use walkeep_common::cli::host_name;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::repository::backup::BackupRecord;
use walkeep_common::repository::expire::{ExpireRecord, Range, WalRange, merged};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::store::Created;
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
    pub refused: Vec<(Path, Error)>,
    /// Unfinished backups that were completed meanwhile, and stay.
    pub completed: Vec<BackupId>,
}

impl Done {
    async fn delete(&mut self, archive: &WalArchive, objects: &[&walkeep_common::store::Listed]) -> Result<bool> {
        let keys: Vec<Path> = objects.iter().map(|object| object.key.clone()).collect();
        let refused = archive.store().delete(&keys).await?;
        let kept: BTreeSet<&Path> = refused.iter().map(|(key, _)| key).collect();
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
    let pinned = Pins::load(archive).await?.pinned(now);
    if let Some(removed) = plan.removed.iter().find(|removed| pinned.contains(&removed.backup.id)) {
        let message = format!("backup {} was pinned meanwhile", removed.backup.id);
        return Err(Error::new(Kind::Conflict, message).hint("Nothing was removed. Run it again."));
    }
    let stored = archive.note_expired(&record(present, plan, now)).await?;
    check_clock(stored)?;
    let mut done = Done::default();
    let mut refused = BTreeSet::new();
    for removed in &plan.removed {
        if !remove(archive, removed, &mut done).await? {
            refused.insert(removed.backup.id.clone());
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
    Ok(done)
}

/// What the clocks say of ages is the only thing between a backup under way and debris.
fn check_clock(stored: Timestamp) -> Result<()> {
    let skew = Timestamp::now().duration_since(stored).abs();
    if skew <= MOST_SKEW {
        return Ok(());
    }
    let message = format!("this host's clock and the store's differ by {} minutes", skew.as_mins());
    Err(Error::new(Kind::Refused, message)
        .hint("Nothing was removed. Set the clock of this host (timedatectl, chronyc tracking)."))
}

fn record(present: &Present, plan: &Plan, now: Timestamp) -> ExpireRecord {
    let size = plan.segment_size;
    let named =
        |ranges: &[Range]| ranges.iter().filter_map(|range| Some(WalRange::new(*range, size?))).collect::<Vec<_>>();
    let all_wal = merged(present.expired.wal.iter().chain(&plan.wal.ranges).copied().collect());
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

/// Removes a complete backup; false if it stays whole, because the object that makes it one may not be deleted.
async fn remove(archive: &WalArchive, removed: &Removed, done: &mut Done) -> Result<bool> {
    let mut objects = removed.objects.iter();
    // One at a time: without the first nobody takes what is left for a backup.
    for object in objects.by_ref().take(2) {
        let is_deleted = done.delete(archive, &[object]).await?;
        if !is_deleted && object.key.filename() == Some("backup.json") {
            return Ok(false);
        }
    }
    let _ = done.delete(archive, &objects.collect::<Vec<_>>()).await?;
    Ok(true)
}

/// Removes what is left of a backup that was never completed. Whoever may still be at it fails with its own last put.
async fn sweep(archive: &WalArchive, debris: &Debris, done: &mut Done) -> Result<()> {
    let (store, layout) = (archive.store(), archive.layout());
    let mut objects: Vec<walkeep_common::store::Listed> = debris.objects.clone();
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
