//! The last objects of a backup, and the record that makes it exist.

use bytes::Bytes;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::repository::seal::seal;
use walkeep_common::store::Created;
use walkeep_common::wal_archive::WalArchive;

/// Makes the backup exist, after a last look at what it consists of.
///
/// # Errors
/// `Damaged` if a pack is not there as it was stored; `Conflict` if the backup was declared dead meanwhile; `Refused`;
/// `Unavailable`.
pub(super) async fn store_record(archive: &WalArchive, backup: &Backup) -> Result<()> {
    backup.check(&backup.id).map_err(|problem| Error::new(Kind::Internal, problem))?;
    let listed = archive.store().list(&archive.layout().backup_folder(&backup.id)).await?;
    for pack in &backup.packs {
        let found = listed.iter().find(|object| object.key.filename() == Some(pack.name.as_str()));
        if found.map(|object| object.size) != Some(pack.size) {
            return Err(Error::new(
                Kind::Damaged,
                format!("\"{}\" of backup {} is not in the repository as it was stored", pack.name, backup.id),
            ));
        }
    }
    let bytes = backup.to_bytes().map_err(internal)?;
    put(archive, &backup.id, "backup.json", seal(&bytes).into()).await
}

/// Stores an object under a name that `begin.json` made ours.
///
/// # Errors
/// `Conflict` if something else has it; `Refused`; `Unavailable`.
pub(super) async fn put(archive: &WalArchive, id: &BackupId, name: &str, bytes: Bytes) -> Result<()> {
    let (store, key) = (archive.store(), archive.layout().backup_object(id, name));
    if store.create(&key, bytes.clone()).await? == Created::New {
        return Ok(());
    }
    // An answer that was lost and asked for again finds our own object.
    let found = store.read(&key, bytes.len() as u64).await;
    match found {
        Ok(Some(found)) if found == bytes => store.make_durable(&key),
        Ok(_) => Err(Error::new(
            Kind::Conflict,
            format!("the backup was given up by someone else: \"{}\" is there already", store.url_of(&key)),
        )),
        Err(error) => Err(error),
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Internal, "could not write the backup's last objects").caused_by(error)
}
