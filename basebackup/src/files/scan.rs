//! The list of what a base backup copies from a live data directory.
//!
//! The server creates and drops files while the list is made and while it is used: what is gone by then is no error,
//! because the WAL since the start of the backup says so too. Every other failure is one, and names the path.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, Kind, Result};

use super::attributes::{Attributes, Facts};
use super::relation::{FileKind, Place};
use super::tablespace::Tablespace;
use super::walk::Walk;

/// What must be known of the server before its files can be told apart.
#[derive(Debug, Clone, Copy)]
pub struct ScanOptions<'a> {
    /// The server's major version.
    pub pg_major: u32,
    /// `catalog_version_no` of `pg_control`: with the major it names the server's directory in a tablespace.
    pub catalog_version: u32,
    /// OID and `pg_tablespace_location` of every row of `pg_tablespace` but `pg_default` and `pg_global`.
    pub tablespaces: &'a BTreeMap<u32, PathBuf>,
    /// The setting of that name, where the server has it (before 15).
    pub stats_temp_directory: Option<&'a Path>,
}

/// What a base backup copies, in the order of the paths; `global/pg_control` is not listed, because it is copied last
/// and in its own way. Takes about 60 bytes for each file.
#[derive(Debug)]
pub struct Scan {
    /// The data directory first, under an empty path.
    directories: Vec<Directory>,
    files: Vec<Entry>,
    /// The names of all files, one behind the other.
    names: Vec<u8>,
    total_bytes: u64,
    pub(super) tablespaces: Vec<Tablespace>,
    pub(super) wal_link: Option<PathBuf>,
    pub(super) warnings: Vec<Warning>,
}

/// A directory to be made by a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Path relative to the data directory.
    pub path: PathBuf,
    /// Owner, mode and time.
    pub attributes: Attributes,
    pub(super) place: Place,
}

/// A file to be copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Path relative to the data directory. Any bytes a file system allows.
    pub path: PathBuf,
    /// Size when it was listed, in bytes.
    pub size: u64,
    /// Owner, mode and time when it was listed.
    pub attributes: Attributes,
    /// Whether it holds pages of a relation.
    pub kind: FileKind,
}

/// Something in the data directory that is no part of a base backup, as with pg_basebackup, and may surprise its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A symbolic link that is neither `pg_wal` nor a tablespace. What it points to is not in the backup.
    SymbolicLink {
        /// Path relative to the data directory.
        path: PathBuf,
        /// Where it points.
        target: PathBuf,
    },
    /// A socket, FIFO or device.
    SpecialFile {
        /// Path relative to the data directory.
        path: PathBuf,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SymbolicLink { path, target } => {
                write!(f, "skipping symbolic link \"{}\" to \"{}\"", path.display(), target.display())
            }
            Self::SpecialFile { path } => write!(f, "skipping special file \"{}\"", path.display()),
        }
    }
}

/// A file as it is kept: 40 bytes and its name.
#[derive(Debug)]
struct Entry {
    size: u64,
    modified: i64,
    name_start: u64,
    directory: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    name_length: u16,
}

/// Lists what a base backup of the data directory copies. Reads only names and attributes.
///
/// # Errors
/// `Refused` if something in it may not be read, `Invalid` if its tablespaces are not those of the catalog; otherwise
/// the operating system's answer, with the path.
pub fn scan(data_directory: &Path, options: &ScanOptions<'_>) -> Result<Scan> {
    Walk::begin(data_directory, options)?.run()
}

impl Scan {
    pub(super) fn new() -> Self {
        Self {
            directories: Vec::new(),
            files: Vec::new(),
            names: Vec::new(),
            total_bytes: 0,
            tablespaces: Vec::new(),
            wal_link: None,
            warnings: Vec::new(),
        }
    }

    /// Adds a directory and returns its index.
    pub(super) fn add_directory(&mut self, directory: Directory) -> Result<u32> {
        let index = u32::try_from(self.directories.len());
        self.directories.push(directory);
        index.map_err(|_| Error::new(Kind::Internal, "more directories than can be counted"))
    }

    /// Adds a file of a directory added before.
    pub(super) fn add_file(&mut self, directory: u32, name: &[u8], facts: &Facts) -> Result<()> {
        let too_long = |_| Error::new(Kind::Internal, "a file name of more than 65535 bytes");
        let Attributes { mode, uid, gid, modified } = facts.attributes;
        let entry = Entry {
            size: facts.size,
            modified,
            name_start: self.names.len() as u64,
            directory,
            uid,
            gid,
            // Masked with 07777.
            mode: u16::try_from(mode).unwrap_or(0),
            name_length: u16::try_from(name.len()).map_err(too_long)?,
        };
        self.total_bytes = self.total_bytes.saturating_add(entry.size);
        self.names.extend_from_slice(name);
        self.files.push(entry);
        Ok(())
    }

    pub(super) fn directory(&self, index: u32) -> Option<&Directory> {
        self.directories.get(index as usize)
    }

    /// Owner, mode and time of the data directory itself.
    pub fn root(&self) -> Option<Attributes> {
        self.directories.first().map(|root| root.attributes)
    }

    /// The directories in it, each after the one that holds it. `pg_tblspc/<oid>` stands for the tablespace's own
    /// directory, `pg_wal` for a directory even where it is a link.
    pub fn directories(&self) -> &[Directory] {
        self.directories.get(1..).unwrap_or_default()
    }

    /// How many files there are.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// The sum of the files' sizes when they were listed.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The file of this number, counted from 0.
    pub fn file(&self, index: usize) -> Option<File> {
        let entry = self.files.get(index)?;
        let directory = self.directory(entry.directory)?;
        let start = usize::try_from(entry.name_start).ok()?;
        let name = self.names.get(start..start + usize::from(entry.name_length))?;
        Some(File {
            path: directory.path.join(OsStr::from_bytes(name)),
            size: entry.size,
            attributes: Attributes {
                mode: entry.mode.into(),
                uid: entry.uid,
                gid: entry.gid,
                modified: entry.modified,
            },
            kind: directory.place.file_kind(name),
        })
    }

    /// All files, in the order of their paths.
    pub fn files(&self) -> impl Iterator<Item = File> {
        (0..self.files.len()).filter_map(|index| self.file(index))
    }

    /// The tablespaces, by OID.
    pub fn tablespaces(&self) -> &[Tablespace] {
        &self.tablespaces
    }

    /// Where `pg_wal` points, if it is a symbolic link.
    pub fn wal_link(&self) -> Option<&Path> {
        self.wal_link.as_deref()
    }

    /// What was left out and may surprise.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }
}

#[cfg(test)]
mod tests;
