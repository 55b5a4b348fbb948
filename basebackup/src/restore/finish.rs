//! What a restore adds to the files of the backup, and the last step that lets a server start.

use std::io::{Read as _, Write as _};
use std::path::Path;

use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::postgres::tablespace_map::{self, TablespaceLink};
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::WalArchive;

use super::configuration::ServerConfiguration;
use super::contents;
use super::destination::Destination;
use super::directories::{Directories, STAGED_CONTROL};
use super::is_same;
use super::root::Root;
use super::settings::{TARGETS, moved_files, recovery_targets, rewrite, without, without_data_directory};
use crate::files::manifest::{ManifestFile, ManifestReader, replace_file};

/// PostgreSQL's list of the links in `pg_tblspc`.
const TABLESPACE_MAP: &str = "tablespace_map";
const AUTO_CONF: &str = "postgresql.auto.conf";
const MAIN: &str = "postgresql.conf";
/// The first major that summarizes WAL.
const SUMMARIES_SINCE: u32 = 17;

/// The files that make a server recover; what a backup of a standby has of them says nothing about the restored one.
pub(super) const SIGNAL_FILES: [&str; 2] = ["recovery.signal", "standby.signal"];

/// What becomes of PostgreSQL's manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manifest {
    /// It is there for `pg_verifybackup`.
    Written,
    /// There is none.
    LeftAway,
}

/// Points `tablespace_map` to where the tablespaces are now, or PostgreSQL would link to where they were, and takes the place
/// of another data directory out of `postgresql.conf`. Stores the manifest, which says the same.
///
/// # Errors
/// `Damaged` if either is not what PostgreSQL writes; `Refused`; `Unavailable`; from the operating system.
pub(super) async fn write_manifest(
    archive: &WalArchive,
    backup: &Backup,
    destination: &Destination,
    what: Manifest,
) -> Result<()> {
    let mut manifest = contents::manifest(archive, backup).await?;
    let data = destination.data()?;
    let damaged = |name: &str, problem: &dyn std::fmt::Display| {
        contents::damaged(archive, backup, "backup_manifest.zst", &format!("{name}: {problem}"))
    };
    let map = read(data, Path::new(TABLESPACE_MAP))?;
    let rewritten = match &map {
        Some(map) => moved_map(map, backup, destination.directories())?,
        None => None,
    };
    let configuration = read(data, Path::new(MAIN))?.filter(|_| is_moved(backup, destination.directories()));
    let configuration = configuration.and_then(|contents| without_data_directory(&contents));
    for (name, contents) in [(TABLESPACE_MAP, rewritten), (MAIN, configuration)] {
        let Some(contents) = contents else { continue };
        put(destination, data, Path::new(name), &contents)?;
        let mut files = ManifestReader::new(&manifest[..]);
        let mut entry: Option<ManifestFile> = None;
        while let Some(file) = files.next_file().map_err(|error| damaged(name, &error))? {
            if file.path == Path::new(name) {
                entry = Some(file);
            }
        }
        let entry = entry.ok_or_else(|| damaged(name, &"it is not listed"))?;
        let checksum = entry.checksum.algorithm().of(&contents);
        let replacement = ManifestFile { size: contents.len() as u64, checksum, ..entry };
        manifest = replace_file(&manifest[..], Vec::new(), &replacement).map_err(|error| damaged(name, &error))?;
    }
    match what {
        Manifest::Written => put(destination, data, Path::new("backup_manifest"), &manifest),
        Manifest::LeftAway => Ok(()),
    }
}

/// Whether the data directory is another one than that of the server.
fn is_moved(backup: &Backup, directories: &Directories) -> bool {
    !is_same(Path::new(&backup.data_directory), &directories.data)
}

/// The map with every path as it is now; nothing if that is what it says already.
fn moved_map(map: &[u8], backup: &Backup, directories: &Directories) -> Result<Option<Vec<u8>>> {
    let damaged = |problem: String| {
        Error::new(Kind::Damaged, format!("\"{TABLESPACE_MAP}\" of backup {} cannot be used: {problem}", backup.id))
    };
    let links = tablespace_map::parse(map, backup.pg_major()).map_err(|error| damaged(error.to_string()))?;
    let moved: Vec<TablespaceLink> = links
        .into_iter()
        .map(|link| match directories.tablespaces.get(&link.oid) {
            Some(path) => Ok(TablespaceLink { path: path.clone(), ..link }),
            None => Err(damaged(format!("tablespace {} in it is not in backup.json", link.oid))),
        })
        .collect::<Result<_>>()?;
    let written = tablespace_map::write(&moved, backup.pg_major());
    let written = written.map_err(|error| Error::new(Kind::Usage, "cannot map tablespaces").caused_by(error))?;
    Ok((written != map).then_some(written))
}

/// Makes what `pg_wal` needs, and puts the segments there that are kept with the backup.
///
/// # Errors
/// `Damaged` if one is missing or not what was stored; `Refused`; `Unavailable`; from the operating system.
pub(super) async fn write_wal(archive: &WalArchive, backup: &Backup, destination: &Destination) -> Result<()> {
    let (mode, owner) = (destination.mode, destination.owner);
    if destination.directories().wal.is_none() {
        destination.data()?.make_directory(Path::new("pg_wal"), mode, owner)?;
    }
    let (status_root, status) = destination.in_wal("archive_status")?;
    status_root.make_directory(&status, mode, owner)?;
    if backup.pg_major() >= SUMMARIES_SINCE {
        let (root, path) = destination.in_wal("summaries")?;
        root.make_directory(&path, mode, owner)?;
    }
    for text in &backup.kept_wal {
        let damaged = |problem: &str| contents::damaged(archive, backup, &format!("wal/{text}.zst"), problem);
        let name: WalFileName = text.parse().map_err(|_| damaged("it is no segment"))?;
        let (root, path) = destination.in_wal(text)?;
        let create = || {
            root.remove_file(&path)?;
            root.create_file(&path, 0, destination.file_mode(), owner)
        };
        let key = archive.layout().backup_wal(&backup.id, name);
        let fetched = archive.fetch_object(&key, name, create).await?.ok_or_else(|| damaged("it is missing"))?;
        fetched.file.sync_all().context("synchronize", &root.path().join(&path))?;
        root.synchronize(path.parent().unwrap_or(Path::new("")))?;
        // Unfinished, and never to be archived from here: its timeline's own server does that when it is full.
        put(destination, status_root, &status.join(format!("{text}.done")), b"")?;
    }
    status_root.synchronize(&status)
}

/// Writes the recovery settings and the signal file.
///
/// # Errors
/// From the operating system.
pub(super) fn write_settings(
    backup: &Backup,
    destination: &Destination,
    settings: &[(String, String)],
    elsewhere: Option<&ServerConfiguration>,
    signal_file: &str,
) -> Result<()> {
    let data = destination.data()?;
    let main = read(data, Path::new(MAIN))?;
    // An empty target takes another file's away, but only ahead of the real one: behind it, it would count as a second.
    let others = main.as_deref().map_or_else(|| TARGETS.to_vec(), recovery_targets).into_iter();
    let others = others.filter(|target| settings.iter().all(|(name, _)| name != target));
    let others = others.map(|target| (target.to_owned(), String::new()));
    let directories = destination.directories();
    let old = main.as_deref().filter(|_| elsewhere.is_none() && is_moved(backup, directories));
    let auto_conf = Path::new(AUTO_CONF);
    let before = read(data, auto_conf)?.unwrap_or_default();
    let old_directory = Path::new(&backup.data_directory);
    let moved = old.map_or_else(Vec::new, |old| moved_files(&[&before, old], old_directory, &directories.data));
    let settings: Vec<(String, String)> = others.chain(settings.iter().cloned()).chain(moved).collect();
    // What was set by ALTER SYSTEM would count for more than what is set there.
    let before =
        without(&before, |name| elsewhere.is_some_and(|elsewhere| elsewhere.sets.iter().any(|set| set == name)));
    put(destination, data, auto_conf, &rewrite(&before, &settings))?;
    for name in SIGNAL_FILES {
        data.remove_file(Path::new(name))?;
    }
    put(destination, data, Path::new(signal_file), b"")?;
    Ok(())
}

/// The last step: from now on a server can start.
///
/// # Errors
/// From the operating system.
pub(super) fn publish_control(destination: &Destination) -> Result<()> {
    let data = destination.data()?;
    data.rename(Path::new(STAGED_CONTROL), Path::new("global/pg_control"))?;
    data.synchronize(Path::new("global"))
}

/// Reads a file of the data directory; nothing if there is none.
fn read(root: &Root, path: &Path) -> Result<Option<Vec<u8>>> {
    if !root.exists(path)? {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let _ = root.open_to_read(path)?.read_to_end(&mut bytes).context("read file", &root.path().join(path))?;
    Ok(Some(bytes))
}

/// Puts a file in the place of another, if there is one.
fn put(destination: &Destination, root: &Root, path: &Path, bytes: &[u8]) -> Result<()> {
    root.remove_file(path)?;
    let mut file = root.create_file(path, 0, destination.file_mode(), destination.owner)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).context("write file", &root.path().join(path))
}
