//! The directory of segments fetched ahead, and what is in it.
//!
//! A segment has its final name here only after every check it gets when PostgreSQL waits for it. The name ends with the
//! key of one run of one server with one configuration, since the host was started: what another one left, and what a
//! loss of power may have left half written, is never found.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::wal::segment::{SegmentName, SegmentSize};

use super::mailbox;
use super::place::{self, check_owner};

/// The pipe by which the worker hears what was served; see [`super::mailbox`].
const MAILBOX: &str = "requests";
const PARTIAL: &str = ".part";

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

impl Spool {
    /// The spool in a directory that [`place::find`] found.
    pub(super) fn new(directory: PathBuf, key: String) -> Self {
        Self { directory, key }
    }

    /// Creates the directory unless it is there.
    pub(super) fn create(&self) -> Result<()> {
        let created = DirBuilder::new().mode(0o700).create(&self.directory);
        let created = match created {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::symlink_metadata(&self.directory).and_then(|found| check_owner(&found))
            }
            created => created,
        };
        created.context("create directory", &self.directory)
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

    /// Lets calls see that a segment is on its way, from before the store's answer on.
    pub(super) fn announce(&self, name: SegmentName) -> Announced {
        let partial = self.partial(name);
        let _ = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
        Announced { partial }
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

    /// Removes a segment that lies ready.
    pub(super) fn remove_ready(&self, name: SegmentName) {
        let _ = fs::remove_file(self.ready(name));
    }

    /// Removes the directory if there is nothing in it.
    pub(super) fn remove_if_empty(&self) {
        let _ = fs::remove_dir(&self.directory);
    }

    /// Removes everything, the directory included.
    pub(super) fn remove(&self) {
        self.keep_only(&[]);
        let _ = fs::remove_file(self.mailbox());
        self.remove_if_empty();
    }

    /// Removes the spools beside this one whose worker was killed, with nobody left to start another one.
    pub(super) fn remove_abandoned(&self) {
        let others = self.directory.parent().into_iter().filter_map(|parent| fs::read_dir(parent).ok());
        for other in others.flatten().flatten().map(|entry| entry.path()) {
            let is_other = place::is_spool(&other) && other != self.directory;
            if is_other && fs::symlink_metadata(&other).is_ok_and(|metadata| check_owner(&metadata).is_ok()) {
                let other = Self::new(other, String::new());
                if let Ok(Some(_lock)) = mailbox::lock(&other) {
                    other.remove();
                }
            }
        }
    }

    /// Whether there is room for this many more segments besides what recovery itself needs.
    pub(super) fn has_room(&self, segments: u64, size: SegmentSize) -> bool {
        let Ok(system) = rustix::fs::statvfs(&self.directory) else { return false };
        let bytes = |blocks: u64| blocks.saturating_mul(system.f_frsize);
        let reserve = RESERVE_BYTES.min(bytes(system.f_blocks) / 10).max(RESERVE_SEGMENTS * size.bytes());
        bytes(system.f_bavail) >= reserve.saturating_add(segments.saturating_mul(size.bytes()))
    }
}

/// A segment that is on its way, until this is dropped.
#[derive(Debug)]
pub(super) struct Announced {
    partial: PathBuf,
}

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.partial);
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
