//! The beginning of a backup: an id nobody else has.

use std::path::Path;

use jiff::Timestamp;
use walkeep_common::cli::host_name;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::repository::backup::Begin;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::repository::seal::seal;
use walkeep_common::store::Created;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::header::FORMAT_VERSION;

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
