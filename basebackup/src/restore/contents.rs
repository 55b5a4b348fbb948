//! What a backup consists of: the index of its packs and PostgreSQL's manifest, each as `backup.json` describes it.

use std::collections::HashSet;
use std::io::Read as _;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{Backup, StoredObject};
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::encode::hexadecimal;

use crate::pack::index::{IndexEntry, IndexReader};

/// No manifest is larger than this, whatever its compressed size.
const MANIFEST_LIMIT: u64 = 16 << 30;

/// Reads the index: every member of every pack, in their order.
///
/// # Errors
/// `Damaged` if it is not what was stored; `Refused`; `Unavailable`.
pub async fn index(archive: &WalArchive, backup: &Backup) -> Result<Vec<IndexEntry>> {
    let name = "files.ndjson.zst";
    let stored = object(archive, backup, name, &backup.index).await?;
    let damaged = |problem: String| damaged(archive, backup, name, &problem);
    let invalid = |error: crate::pack::index::IndexError| damaged(error.to_string());
    let mut reader = IndexReader::new(&stored[..]).map_err(|error| damaged(error.to_string()))?;
    let mut entries: Vec<IndexEntry> = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(invalid)? {
        entries.push(entry);
    }
    let _ = reader.finish().map_err(invalid)?;
    let mut paths = HashSet::with_capacity(entries.len());
    for entry in &entries {
        if !paths.insert(&entry.path) {
            return Err(damaged(format!("it lists \"{}\" twice", entry.path)));
        }
        if entry.pack as usize > backup.packs.len() {
            return Err(damaged(format!("it places \"{}\" in pack {}, which does not exist", entry.path, entry.pack)));
        }
    }
    Ok(entries)
}

/// Reads PostgreSQL's manifest.
///
/// # Errors
/// As [`index`].
pub async fn manifest(archive: &WalArchive, backup: &Backup) -> Result<Vec<u8>> {
    let name = "backup_manifest.zst";
    let stored = object(archive, backup, name, &backup.manifest).await?;
    let damaged = |error: std::io::Error| damaged(archive, backup, name, &error.to_string());
    let mut manifest = Vec::new();
    let plain = zstd::stream::read::Decoder::new(&stored[..]).map_err(damaged)?;
    let _ = plain.take(MANIFEST_LIMIT).read_to_end(&mut manifest).map_err(damaged)?;
    Ok(manifest)
}

/// Reads an object that `backup.json` describes.
///
/// # Errors
/// `Damaged` if it is not what was stored; `Refused`; `Unavailable`.
pub async fn object(archive: &WalArchive, backup: &Backup, name: &str, expected: &StoredObject) -> Result<Bytes> {
    let key = archive.layout().backup_object(&backup.id, name);
    let stored = archive.store().read(&key, expected.size).await?;
    let stored = stored.ok_or_else(|| damaged(archive, backup, name, "it is missing"))?;
    if stored.len() as u64 != expected.size || hexadecimal(&Sha256::digest(&stored)) != expected.sha256 {
        return Err(damaged(archive, backup, name, "it is not what backup.json describes"));
    }
    Ok(stored)
}

/// That an object of the backup is not what was stored.
pub fn damaged(archive: &WalArchive, backup: &Backup, name: &str, problem: &str) -> Error {
    let key = archive.layout().backup_object(&backup.id, name);
    Error::new(Kind::Damaged, format!("object \"{}\" is damaged: {problem}", archive.store().url_of(&key)))
        .hint("Look for an earlier version of it in the bucket, or restore another backup.")
}
