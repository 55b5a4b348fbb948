//! Where a spool lies, and whose it is.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use walkeep_common::config::Config;

use super::server::Server;

/// What the names of spools begin with, in the configured directory and beside a data directory.
const PREFIXES: [&str; 2] = ["read-ahead-", ".walkeep-"];

/// Where a spool could be, and why it cannot.
#[derive(Debug)]
pub(super) struct NoPlace(pub(super) String);

/// What tells one run of recovery from all others.
pub(super) fn key(config: &Config, system_identifier: u64, server: &Server) -> io::Result<String> {
    let (version, data, server) = (env!("CARGO_PKG_VERSION"), data_directory_identity()?, server.identity());
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    // Credentials may differ from call to call: they decide who may read, not what is there.
    let place = walkeep_common::store::place(config);
    Ok(short_hash(&format!("{version}\n{boot}\n{data}\n{system_identifier}\n{server}\n{config:?}\n{place}")))
}

/// Finds the place of the spool for the data directory that is the working directory, whether it was created already
/// or not: on the file system of pg_wal if possible, since a file moves at no cost then, but never in the data
/// directory or in pg_wal, where whatever lies belongs to PostgreSQL and to its backups.
pub(super) fn find(configured: Option<&Path>) -> io::Result<Result<PathBuf, NoPlace>> {
    let hash = short_hash(&data_directory_identity()?);
    let (data, wal) = (fs::canonicalize(".")?, fs::canonicalize("pg_wal")?);
    let device = fs::metadata(&wal)?.dev();
    // From another file system it must be copied: still quicker than a download, but only where a spool is wanted.
    let configured = configured.map(|spool| (spool, format!("{}{hash}", PREFIXES[0]), true));
    let beside = [data.parent(), wal.parent()].into_iter().flatten();
    let beside = beside.map(|parent| (parent, format!("{}{hash}", PREFIXES[1]), false));

    let mut elsewhere = None;
    let mut tried = Vec::new();
    for (parent, name, may_be_elsewhere) in configured.into_iter().chain(beside) {
        let Ok(parent) = fs::canonicalize(parent) else { continue };
        if parent.starts_with(&data) || parent.starts_with(&wal) {
            continue;
        }
        let place = parent.join(name);
        match usable(&parent, &place) {
            Ok(found) if found == device => return Ok(Ok(place)),
            Ok(_) if may_be_elsewhere => elsewhere = Some(place),
            Ok(_) => {}
            Err(error) => tried.push(format!("\"{}\": {error}", place.display())),
        }
    }
    Ok(elsewhere.ok_or_else(|| NoPlace(tried.join("; "))))
}

/// Whether a path is named like a spool.
pub(super) fn is_spool(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The device of a directory that is there, ours alone and can be written to, or can be created.
fn usable(parent: &Path, place: &Path) -> io::Result<u64> {
    let (directory, metadata) = match fs::symlink_metadata(place) {
        Ok(metadata) => {
            check_owner(&metadata)?;
            (place, metadata)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (parent, fs::metadata(parent)?),
        Err(error) => return Err(error),
    };
    rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK)?;
    Ok(metadata.dev())
}

/// What anybody else could write to the spool, PostgreSQL would replay.
pub(super) fn check_owner(metadata: &Metadata) -> io::Result<()> {
    let others = metadata.mode() & 0o077;
    if metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() && others == 0 {
        return Ok(());
    }
    Err(io::Error::other("not a directory of this user alone"))
}

/// The user and the data directory, which is the working directory, by device and inode.
pub(super) fn data_directory_identity() -> io::Result<String> {
    let data = fs::metadata(".")?;
    Ok(format!("{} {} {}", rustix::process::geteuid().as_raw(), data.dev(), data.ino()))
}

fn short_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().chars().take(16).collect()
}
