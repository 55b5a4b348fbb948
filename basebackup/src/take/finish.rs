//! The last objects of a backup: index, manifest, and the record that makes it exist.

use bytes::Bytes;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{Backup, StoredObject};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::store::Created;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::encode::hexadecimal;

use super::copy::StoredPack;
use crate::files::manifest::{ManifestWriter, WalRange};
use crate::pack::index::IndexWriter;

/// The index and the manifest compress well at any level; they are small.
const LEVEL: i32 = 3;

/// Stores the index of all packs.
///
/// # Errors
/// `Refused` or `Unavailable`.
pub(super) async fn store_index(archive: &WalArchive, id: &BackupId, packs: &[StoredPack]) -> Result<StoredObject> {
    let mut index = IndexWriter::new(Vec::new(), LEVEL).map_err(internal)?;
    for entry in packs.iter().flat_map(|pack| &pack.contents.index) {
        index.write(entry).map_err(internal)?;
    }
    let (bytes, summary) = index.finish().map_err(internal)?;
    put(archive, id, "files.ndjson.zst", bytes.into()).await?;
    Ok(StoredObject { size: summary.stored_bytes, sha256: hexadecimal(&summary.sha256) })
}

/// Stores PostgreSQL's manifest of all packs.
///
/// # Errors
/// `Refused` or `Unavailable`.
pub(super) async fn store_manifest(
    archive: &WalArchive,
    id: &BackupId,
    pg_major: u32,
    packs: &[StoredPack],
    ranges: &[WalRange],
) -> Result<StoredObject> {
    use sha2::Digest as _;
    let mut frame = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(internal)?;
    frame.include_checksum(true).map_err(internal)?;
    let system_identifier = archive.layout().system_identifier();
    let mut manifest = ManifestWriter::new(frame, pg_major, system_identifier).map_err(internal)?;
    for file in packs.iter().flat_map(|pack| &pack.contents.manifest) {
        manifest.file(file).map_err(internal)?;
    }
    let bytes = manifest.finish(ranges).and_then(zstd::stream::write::Encoder::finish).map_err(internal)?;
    let stored = StoredObject { size: bytes.len() as u64, sha256: hexadecimal(&sha2::Sha256::digest(&bytes)) };
    put(archive, id, "backup_manifest.zst", bytes.into()).await?;
    Ok(stored)
}

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
    put(archive, &backup.id, "backup.json", bytes.into()).await
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
