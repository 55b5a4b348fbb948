//! A file of `pg_wal` that is to be archived: opened once, and seen to be what its name says before anything is stored.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext as _, Kind, Result};
use crate::host::host_name;
use crate::lsn::Lsn;
use crate::postgres::control::{self, ControlFile};
use crate::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use crate::wal::history::TimelineHistory;
use crate::wal::name::WalFileName;
use crate::wal::segment::SegmentSize;
use crate::wal_archive::LeftTimelines;
use crate::wal_object::encode::{Description, Encoded, encode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Histories and backup history files are a few lines of text.
const TEXT_LIMIT: u64 = 1024 * 1024;

/// A WAL file that is what its name says.
#[derive(Debug)]
pub struct Source {
    /// What it is called in the archive.
    pub name: WalFileName,
    /// The cluster it belongs to.
    pub system_identifier: u64,
    /// That cluster's segment size; unknown for files of text in a data directory without it.
    pub segment_size: Option<SegmentSize>,
    /// The PostgreSQL that wrote it, if this version of Walkeep knows it.
    pub pg_major: Option<u32>,
    path: PathBuf,
    file: File,
    /// What it was when it was opened.
    pub before: Stamp,
    start_lsn: Option<Lsn>,
}

/// What changes when a file is written or another takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Its number in its file system.
    pub inode: u64,
    /// In bytes.
    pub size: u64,
    /// When it was last written.
    pub modified: Timestamp,
}

impl Source {
    /// Opens and checks the file at `path`, which is relative to the working directory as PostgreSQL means it.
    ///
    /// # Errors
    /// `Invalid` if it is not a WAL file of this cluster; `Unavailable` on I/O errors.
    pub fn open(path: &Path) -> Result<Self> {
        let (name, file) = Self::named(path)?;
        Self::of_file(file, path, name)
    }

    /// As [`Source::open`], of a cluster whose control file was read.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_of(path: &Path, control: &ControlFile) -> Result<Self> {
        let (name, file) = Self::named(path)?;
        Self::checked(file, path, name, Some(control))
    }

    fn named(path: &Path) -> Result<(WalFileName, File)> {
        let name: WalFileName = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::new(Kind::Invalid, format!("\"{}\" does not name a file", path.display())))?
            .parse()
            .map_err(|error| {
                Error::new(Kind::Invalid, "will not archive this file")
                    .caused_by(error)
                    .hint("PostgreSQL passes the file's path in place of %p: archive_command = 'archive-push %p'.")
            })?;
        let file = File::open(path).map_err(|error| unreadable("open WAL file", path, error))?;
        Ok((name, file))
    }

    /// Checks that an open file is the WAL file `name`, whatever it is called by now.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn of_file(file: File, path: &Path, name: WalFileName) -> Result<Self> {
        let control = control::of_wal_file(path)?;
        Self::checked(file, path, name, control.as_ref())
    }

    fn checked(file: File, path: &Path, name: WalFileName, control: Option<&ControlFile>) -> Result<Self> {
        let before = Stamp::of(&file, path)?;
        let mut source = Self {
            name,
            system_identifier: 0,
            segment_size: None,
            pg_major: None,
            path: path.to_owned(),
            file,
            before,
            start_lsn: None,
        };
        match name {
            WalFileName::Segment(_) | WalFileName::Partial(_) => source.check_segment(control)?,
            WalFileName::History(_) | WalFileName::Backup { .. } => source.check_text(control)?,
        }
        Ok(source)
    }

    fn check_segment(&mut self, control: Option<&ControlFile>) -> Result<()> {
        let invalid = |problem: String| {
            Error::new(Kind::Invalid, format!("will not archive \"{}\": {problem}", self.path.display()))
        };
        let header = read_header(&self.file, &self.path)?;
        let segment = self.name.segment().ok_or_else(|| invalid("it has no position".to_owned()))?;
        header.check_name(segment).map_err(|error| invalid(error.to_string()))?;
        let whole = header.segment_size.bytes();
        let partial = matches!(self.name, WalFileName::Partial(_));
        if self.before.size != whole && !(partial && self.before.size < whole) {
            return Err(invalid(format!("it is {} bytes long, a whole segment has {whole}", self.before.size)));
        }
        if let Some(control) = control.filter(|control| control.system_identifier != header.system_identifier) {
            return Err(invalid(format!(
                "it belongs to the cluster with system identifier {}, this data directory to {}",
                header.system_identifier, control.system_identifier
            ))
            .hint(
                "A segment was copied here from another cluster; remove it from pg_wal together with its .ready file.",
            ));
        }
        if header.pg_major.is_none() {
            tracing::warn!(
                "WAL file \"{}\" has the unknown page magic {:04X}: it is archived, but this version of Walkeep does \
                 not know its PostgreSQL",
                self.name,
                header.magic
            );
        }
        self.system_identifier = header.system_identifier;
        self.segment_size = Some(header.segment_size);
        self.pg_major = header.pg_major;
        self.start_lsn = segment.start(header.segment_size);
        Ok(())
    }

    fn check_text(&mut self, control: Option<&ControlFile>) -> Result<()> {
        let shown = self.path.display();
        let invalid = |problem: String| Error::new(Kind::Invalid, format!("will not archive \"{shown}\": {problem}"));
        let Some(control) = control else {
            return Err(invalid(
                "it does not say which cluster it belongs to, and global/pg_control cannot be read".into(),
            )
            .hint("Run archive-push in the data directory, as PostgreSQL does, or give the file's absolute path."));
        };
        if self.before.size == 0 || self.before.size > TEXT_LIMIT {
            return Err(invalid(format!("it is {} bytes long", self.before.size)));
        }
        let mut text = Vec::new();
        let _ = (&self.file)
            .take(TEXT_LIMIT)
            .read_to_end(&mut text)
            .map_err(|error| unreadable("read WAL file", &self.path, error))?;
        if let WalFileName::History(timeline) = self.name {
            let _ = TimelineHistory::parse(timeline, &text).map_err(|error| invalid(error.to_string()))?;
        }
        self.system_identifier = control.system_identifier;
        self.segment_size = control.segment_size;
        Ok(())
    }

    /// Compresses the file, and sees afterwards that it was the same file all the while: PostgreSQL renames and
    /// overwrites segments to use them again.
    ///
    /// # Errors
    /// `Invalid` if it changed; `Unavailable` on I/O errors.
    pub fn encode(&self, level: i32) -> Result<Encoded> {
        (&self.file).rewind().context("read WAL file", &self.path)?;
        let is_segment = self.start_lsn.is_some();
        let description = Description {
            name: self.name.to_string(),
            system_identifier: self.system_identifier,
            timeline: self.name.timeline(),
            start_lsn: self.start_lsn,
            pg_major: self.pg_major,
            segment_size: self.segment_size.filter(|_| is_segment),
            modified: self.before.modified,
            archived: Timestamp::now(),
            host: host_name(),
        };
        let encoded = encode(&self.file, self.before.size, level, description)?;
        if Stamp::of(&self.file, &self.path)? != self.before {
            return Err(Error::new(
                Kind::Invalid,
                format!("WAL file \"{}\" changed while it was read", self.path.display()),
            ));
        }
        Ok(encoded)
    }

    /// The hash that identifies the file's contents.
    ///
    /// # Errors
    /// `Unavailable` on I/O errors.
    pub fn blake3(&self) -> Result<String> {
        (&self.file).rewind().context("read WAL file", &self.path)?;
        let mut hasher = blake3::Hasher::new();
        let _ = hasher.update_reader(&self.file).context("read WAL file", &self.path)?;
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The file's size in bytes.
    pub fn size(&self) -> u64 {
        self.before.size
    }

    /// Whether the file's name still leads to the file that was opened, unchanged.
    pub fn is_unchanged(&self) -> bool {
        File::open(&self.path).is_ok_and(|file| Stamp::of(&file, &self.path).is_ok_and(|stamp| stamp == self.before))
    }

    /// Whether the last page belongs to this segment, or is empty as after a forced switch. A file that was recycled
    /// or is still being received has something else there.
    ///
    /// # Errors
    /// `Unavailable` on I/O errors.
    pub fn is_written_to_its_end(&self) -> Result<bool> {
        const PAGE_BYTES: u64 = 8192;
        let Some(start) = self.start_lsn else { return Ok(true) };
        let offset = self.before.size.saturating_sub(PAGE_BYTES);
        let mut page = vec![0; 16];
        self.file.read_exact_at(&mut page, offset).map_err(|error| unreadable("read WAL file", &self.path, error))?;
        let address = page.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
        Ok(address == 0 || address == start.0 + offset)
    }

    /// The directory the file is in: `pg_wal`.
    pub fn directory(&self) -> &Path {
        self.path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// The histories beside the file: what this server knows about the timelines it has left.
    pub fn left_timelines(&self) -> LeftTimelines {
        let histories = std::fs::read_dir(self.directory()).into_iter().flatten().flatten().filter_map(|entry| {
            let Ok(WalFileName::History(timeline)) = entry.file_name().to_str()?.parse() else { return None };
            TimelineHistory::parse(timeline, std::fs::read(entry.path()).ok()?).ok()
        });
        LeftTimelines::new(histories.collect())
    }
}

impl Stamp {
    fn of(file: &File, path: &Path) -> Result<Self> {
        let metadata = file.metadata().map_err(|error| unreadable("examine WAL file", path, error))?;
        if !metadata.is_file() {
            return Err(Error::new(Kind::Invalid, format!("\"{}\" is not a regular file", path.display())));
        }
        let nanoseconds = i32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        let modified = Timestamp::new(metadata.mtime(), nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Self { inode: metadata.ino(), size: metadata.size(), modified })
    }
}

/// Reads the header of a segment's first page.
///
/// # Errors
/// `Invalid` if it is not one; `Unavailable` on I/O errors.
pub fn read_header(file: &File, path: &Path) -> Result<SegmentHeader> {
    let mut first = vec![0; LONG_HEADER_BYTES];
    match file.read_exact_at(&mut first, 0) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(unreadable("read WAL file", path, error)),
        Err(_) => first.clear(),
        Ok(()) => {}
    }
    SegmentHeader::parse(&first)
        .map_err(|error| Error::new(Kind::Invalid, format!("will not archive \"{}\"", path.display())).caused_by(error))
}

/// A file that is not there, or closed to us, is not a WAL file we could archive later.
fn unreadable(action: &str, path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::IsADirectory | ErrorKind::NotADirectory => {
            Kind::Invalid
        }
        _ => Kind::Unavailable,
    };
    let closed = error.kind() == ErrorKind::PermissionDenied;
    let error = Error::io(action, path, error).with_kind(kind);
    if closed { error.hint("Everything in pg_wal must belong to the user that PostgreSQL runs as.") } else { error }
}
