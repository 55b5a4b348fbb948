//! The backups in a repository: what their own last objects say, with no index to go stale.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::repository::backup::{Backup, BackupRecord, Begin};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::retry::Patience;
use walkeep_common::store::Store;
use walkeep_common::wal_archive::{WalArchive, system_identifiers};

/// A `backup.json` of a cluster with many bad pages or packs is still far below this.
const RECORD_LIMIT: u64 = 256 * 1024 * 1024;
/// How many records are read at the same time.
const READS: usize = 16;

/// Every backup of one cluster.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Complete backups, oldest first by their recorded times.
    pub backups: Vec<Backup>,
    /// Backups that were begun and have no last object: running, or dead.
    pub unfinished: Vec<Unfinished>,
    /// Complete backups whose last object was changed since it was written.
    pub altered: BTreeSet<BackupId>,
    /// Backups whose last object cannot be read, and why.
    pub unusable: Vec<(BackupId, String)>,
    /// Backups that can never be completed: what is left of them is debris.
    pub abandoned: Vec<BackupId>,
}

/// A backup that was begun.
#[derive(Debug, Clone)]
pub struct Unfinished {
    /// Its id.
    pub id: BackupId,
    /// Its first object, if that is there and can be read.
    pub begin: Option<Begin>,
}

enum Entry {
    Complete { backup: Box<Backup>, is_altered: bool },
    Unfinished(Unfinished),
    Unusable(BackupId, String),
    Abandoned(BackupId),
}

impl Catalog {
    /// Reads the backups in the archive's folder.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`. A backup that cannot be read is not an error: it is listed as unusable.
    pub async fn load(archive: &WalArchive) -> Result<Self> {
        let level = archive.store().list_folder(&archive.layout().backups_folder()).await?;
        let ids = level.folders.iter().filter_map(|name| name.parse::<BackupId>().ok());
        let entries: Vec<Entry> =
            stream::iter(ids).map(|id| load_entry(archive, id)).buffer_unordered(READS).try_collect().await?;
        let mut catalog = Self::default();
        for entry in entries {
            match entry {
                Entry::Complete { backup, is_altered } => {
                    catalog.altered.extend(is_altered.then(|| backup.id.clone()));
                    catalog.backups.push(*backup);
                }
                Entry::Unfinished(unfinished) => catalog.unfinished.push(unfinished),
                Entry::Unusable(id, problem) => catalog.unusable.push((id, problem)),
                Entry::Abandoned(id) => catalog.abandoned.push(id),
            }
        }
        catalog.backups.sort_by(|a, b| (a.stop_time, a.stop_lsn, &a.id).cmp(&(b.stop_time, b.stop_lsn, &b.id)));
        catalog.unfinished.sort_by(|a, b| a.id.cmp(&b.id));
        catalog.unusable.sort();
        Ok(catalog)
    }

    /// The ids of all there are, whatever their state.
    pub fn ids(&self) -> impl Iterator<Item = &BackupId> {
        let complete = self.backups.iter().map(|backup| &backup.id);
        let unfinished = self.unfinished.iter().map(|unfinished| &unfinished.id);
        let unusable = self.unusable.iter().map(|(id, _)| id);
        complete.chain(unfinished).chain(unusable).chain(&self.abandoned)
    }

    /// The backup with this id.
    ///
    /// # Errors
    /// `NotFound`, or `Damaged` where its last object cannot be read.
    pub fn find(&self, id: &BackupId) -> Result<&Backup> {
        if let Some(backup) = self.backups.iter().find(|backup| backup.id == *id) {
            return Ok(backup);
        }
        if let Some((_, problem)) = self.unusable.iter().find(|(unusable, _)| unusable == id) {
            return Err(Error::new(Kind::Damaged, format!("base backup {id} cannot be used: {problem}")));
        }
        if self.unfinished.iter().any(|unfinished| unfinished.id == *id) {
            return Err(Error::new(Kind::NotFound, format!("base backup {id} was never completed")));
        }
        Err(Error::new(Kind::NotFound, format!("there is no base backup {id}"))
            .hint("basebackup list shows the backups there are."))
    }
}

async fn load_entry(archive: &WalArchive, id: BackupId) -> Result<Entry> {
    let (store, layout) = (archive.store(), archive.layout());
    let bytes = match store.read(&layout.backup_object(&id, "backup.json"), RECORD_LIMIT).await {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            let begin = store.read(&layout.backup_object(&id, "begin.json"), RECORD_LIMIT).await;
            let begin = match begin {
                Err(error) if error.kind() == Kind::Damaged => None,
                begin => begin?.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
            };
            return Ok(Entry::Unfinished(Unfinished { id, begin }));
        }
        Err(error) if error.kind() == Kind::Damaged => return Ok(Entry::Unusable(id, error.to_string())),
        Err(error) => return Err(error),
    };
    Ok(match BackupRecord::parse(&bytes, &id) {
        Ok(BackupRecord::Complete(backup)) if backup.system_identifier == layout.system_identifier() => {
            Entry::Complete { is_altered: !backup.is_as_written(&bytes), backup }
        }
        Ok(BackupRecord::Complete(_)) => Entry::Unusable(id, "it belongs to another cluster".to_owned()),
        Ok(BackupRecord::Abandoned) => Entry::Abandoned(id),
        Err(error) => Entry::Unusable(id, error.to_string()),
    })
}

/// Opens the archive of every cluster in the repository under the configured name, or only of the one asked for.
///
/// # Errors
/// `NotFound` if there is nothing; `Refused`; `Unavailable`.
pub async fn archives(config: &Config, asked_for: Option<u64>, patience: Patience) -> Result<Vec<WalArchive>> {
    let store = Store::open(config, patience)?;
    let mut found = system_identifiers(&store, &config.cluster).await?;
    found.retain(|&found| asked_for.is_none_or(|wanted| wanted == found));
    if found.is_empty() {
        let what = asked_for.map_or(String::new(), |wanted| format!(" of the cluster with system identifier {wanted}"));
        return Err(Error::new(
            Kind::NotFound,
            format!("there is nothing{what} in \"{}/{}\"", config.repository, config.cluster),
        )
        .hint("Check \"repository\" and \"cluster\"."));
    }
    found
        .into_iter()
        .map(|system_identifier| WalArchive::open(config, system_identifier, HostMemory::none(), patience))
        .collect()
}
