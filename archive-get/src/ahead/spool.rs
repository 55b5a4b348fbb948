//! The directory of segments fetched ahead: where it lies, what is in it, and whose that is.
//!
//! A segment has its final name here only after every check it gets when PostgreSQL waits for it. The name ends with the
//! key of one run of one server with one configuration: what another one left is never found.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::wal::segment::{SegmentName, SegmentSize};

use super::server::Server;

/// The pipe by which the worker hears what was served; see [`super::mailbox`].
const MAILBOX: &str = "requests";
const PARTIAL: &str = ".part";

/// Variables that differ from one command to the next and mean nothing to us.
const SET_BY_SHELLS: [&str; 4] = ["_", "OLDPWD", "PWD", "SHLVL"];

/// Recovery needs room for more than what is fetched ahead: this many bytes stay free, or a tenth of a small file system.
const RESERVE_BYTES: u64 = 4 << 30;
/// And room for this many segments in any case.
const RESERVE_SEGMENTS: u64 = 4;

/// The segments fetched ahead for one run of one server.
#[derive(Debug, Clone)]
pub(super) struct Spool {
    directory: PathBuf,
    key: String,
}

/// Where a spool could be, and why it cannot.
#[derive(Debug)]
pub(super) struct NoPlace(pub(super) String);

/// What tells one run of recovery from all others.
pub(super) fn key(config: &Config, system_identifier: u64, server: &Server) -> io::Result<String> {
    let (version, data, server) = (env!("CARGO_PKG_VERSION"), data_directory_identity()?, server.identity());
    // Endpoints and credentials may come from the environment.
    let passing = |name: &OsStr| SET_BY_SHELLS.iter().any(|set| name == *set);
    let mut environment: Vec<_> = env::vars_os().filter(|(name, _)| !passing(name)).collect();
    environment.sort_unstable();
    Ok(short_hash(&format!("{version}\n{data}\n{system_identifier}\n{server}\n{config:?}\n{environment:?}")))
}

/// Finds the place of the spool for the data directory that is the working directory, whether it was created already
/// or not: on the file system of pg_wal if possible, since a file moves at no cost then, but never in the data
/// directory or in pg_wal, where whatever lies belongs to PostgreSQL and to its backups.
pub(super) fn place(configured: Option<&Path>) -> io::Result<Result<PathBuf, NoPlace>> {
    let hash = short_hash(&data_directory_identity()?);
    let (data, wal) = (fs::canonicalize(".")?, fs::canonicalize("pg_wal")?);
    let device = fs::metadata(&wal)?.dev();
    // From another file system it must be copied: still quicker than a download, but only where a spool is wanted.
    let configured = configured.map(|spool| (spool, format!("read-ahead-{hash}"), true));
    let beside = [data.parent(), wal.parent()].into_iter().flatten();
    let beside = beside.map(|parent| (parent, format!(".walkeep-{hash}"), false));

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

/// The device of a directory that is there and ours alone, or can be created.
fn usable(parent: &Path, place: &Path) -> io::Result<u64> {
    match fs::symlink_metadata(place) {
        Ok(metadata) => {
            let ours = metadata.uid() == rustix::process::geteuid().as_raw();
            if !metadata.is_dir() || !ours || metadata.mode() & 0o077 != 0 {
                return Err(io::Error::other("not a directory of this user alone"));
            }
            Ok(metadata.dev())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            rustix::fs::access(parent, Access::WRITE_OK | Access::EXEC_OK)?;
            Ok(fs::metadata(parent)?.dev())
        }
        Err(error) => Err(error),
    }
}

impl Spool {
    /// The spool in a directory that [`place`] found.
    pub(super) fn new(directory: PathBuf, key: String) -> Self {
        Self { directory, key }
    }

    /// Creates the directory unless it is there.
    pub(super) fn create(&self) -> Result<()> {
        let created = DirBuilder::new().mode(0o700).create(&self.directory);
        match created {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created.context("create directory", &self.directory),
        }
    }

    /// Where it is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// What this run's files are marked with.
    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The path of the pipe.
    pub(super) fn mailbox(&self) -> PathBuf {
        self.directory.join(MAILBOX)
    }

    /// The path of a segment that is ready.
    pub(super) fn ready(&self, name: SegmentName) -> PathBuf {
        self.directory.join(format!("{name}.{}", self.key))
    }

    /// The path of a segment that is being fetched.
    pub(super) fn partial(&self, name: SegmentName) -> PathBuf {
        self.directory.join(format!("{name}.{}{PARTIAL}", self.key))
    }

    /// Begins a segment; it is gone again unless it is finished.
    pub(super) fn begin(&self, name: SegmentName) -> Result<Unfinished> {
        let (partial, ready) = (self.partial(name), self.ready(name));
        // Always a new file, whatever still has an old one open.
        let _ = fs::remove_file(&partial);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        Ok(Unfinished { file: file.context("create file", &partial)?, partial, ready, finished: false })
    }

    /// Removes every file but those of these segments.
    pub(super) fn keep_only(&self, names: &[SegmentName]) {
        let kept = |name: &&SegmentName| [self.ready(**name), self.partial(**name)];
        let kept: Vec<PathBuf> = names.iter().flat_map(|name| kept(&name)).chain([self.mailbox()]).collect();
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if !kept.contains(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes everything, the directory included.
    pub(super) fn remove(&self) {
        self.keep_only(&[]);
        let _ = fs::remove_file(self.mailbox());
        let _ = fs::remove_dir(&self.directory);
    }

    /// Whether there is room for this many more segments besides what recovery itself needs.
    pub(super) fn has_room(&self, segments: u64, size: SegmentSize) -> bool {
        let Ok(system) = rustix::fs::statvfs(&self.directory) else { return false };
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        let reserve = RESERVE_BYTES.min(bytes(system.f_blocks) / 10).max(RESERVE_SEGMENTS * size.bytes());
        bytes(system.f_bavail) >= reserve.saturating_add(segments.saturating_mul(size.bytes()))
    }
}

/// A segment that is being fetched.
#[derive(Debug)]
pub(super) struct Unfinished {
    file: File,
    partial: PathBuf,
    ready: PathBuf,
    finished: bool,
}

impl Unfinished {
    /// Gives the segment, verified by now, its final name. Errors that a file system keeps for later come out first.
    pub(super) fn finish(mut self) -> Result<()> {
        self.file.sync_data().context("synchronize file", &self.partial)?;
        // A call that waited in vain may have removed it.
        let inode = |metadata: io::Result<Metadata>| metadata.map(|metadata| metadata.ino()).ok();
        if inode(self.file.metadata()) != inode(fs::symlink_metadata(&self.partial)) {
            let text = format!("file \"{}\" is not the one that was written", self.partial.display());
            return Err(Error::new(Kind::Missing, text));
        }
        fs::rename(&self.partial, &self.ready).context("rename file", &self.partial)?;
        self.finished = true;
        Ok(())
    }
}

impl Write for Unfinished {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// The user and the data directory, which is the working directory, by device and inode.
fn data_directory_identity() -> io::Result<String> {
    let data = fs::metadata(".")?;
    Ok(format!("{} {} {}", rustix::process::geteuid().as_raw(), data.dev(), data.ino()))
}

fn short_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().chars().take(16).collect()
}
