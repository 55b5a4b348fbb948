//! The beginning of a backup: an id nobody else has, and a look at who else has begun one.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::host_name;
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::repository::backup::Begin;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::repository::seal::seal;
use walkeep_common::store::Created;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::header::FORMAT_VERSION;

/// A backup that was begun longer ago, and has not ended, hardly runs any more.
const RECENT: SignedDuration = SignedDuration::from_hours(24);
/// No `begin.json` is larger.
const LIMIT: u64 = 1 << 20;

/// Claims an id with `begin.json`. The latest checkpoint before the start is a position that the start cannot precede.
///
/// # Errors
/// `Refused` or `Unavailable`.
pub(super) async fn begin(archive: &WalArchive, data_directory: &Path, control: &ControlFile) -> Result<BackupId> {
    loop {
        let id = BackupId::new(Timestamp::now(), fastrand::u16(..));
        let begin = Begin {
            walkeep: FORMAT_VERSION,
            id: id.clone(),
            system_identifier: control.system_identifier,
            started: Timestamp::now(),
            start_lsn_at_least: control.redo,
            timeline: control.timeline,
            host: host_name(),
            data_directory: data_directory.display().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let bytes = serde_json::to_vec(&begin)
            .map_err(|error| Error::new(Kind::Internal, "could not write begin.json").caused_by(error))?;
        let bytes = seal(&bytes);
        let key = archive.layout().backup_object(&id, "begin.json");
        if archive.store().create(&key, bytes.clone()).await? == Created::New {
            return Ok(id);
        }
        // Ours from an attempt whose answer was lost, or really someone else's.
        if archive.store().read(&key, bytes.len() as u64).await.is_ok_and(|found| found.as_deref() == Some(&bytes[..]))
        {
            return Ok(id);
        }
    }
}

/// Warns of backups that other hosts began not long ago and have not ended: they do each other no harm, but two may be
/// one too many. On this host there can be none, for the server admits one at a time.
///
/// # Errors
/// `Refused` or `Unavailable`.
pub(super) async fn warn_of_others(archive: &WalArchive, own: &BackupId, reporter: Reporter) -> Result<()> {
    let (store, layout) = (archive.store(), archive.layout());
    let since = BackupId::new(Timestamp::now() - RECENT, 0);
    let known = store.list_folder(&layout.backups_folder()).await?.folders;
    let ids = known.iter().filter_map(|name| name.parse::<BackupId>().ok());
    for id in ids.filter(|id| id != own && id.as_str() >= since.as_str()) {
        if store.head(&layout.backup_object(&id, "backup.json")).await?.is_some() {
            continue;
        }
        let bytes = store.read(&layout.backup_object(&id, "begin.json"), LIMIT).await?;
        let begin = bytes.and_then(|bytes| serde_json::from_slice::<Begin>(&bytes).ok());
        if let Some(begin) = begin.filter(|begin| begin.host != host_name()) {
            let started = begin.started.strftime("%F %T UTC");
            let message = format!("backup {id}, begun at {started} on host \"{}\", has not ended", begin.host);
            let hint = "If it is running, this cluster is backed up twice. Both backups will be good.";
            reporter.print(Severity::Warning, &message, Some(hint));
        }
    }
    Ok(())
}
