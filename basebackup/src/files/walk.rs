//! The walk through a data directory and its tablespaces that fills a [`Scan`].
//!
//! Mirrors `sendDir` and `sendTablespace` (src/backend/backup/basebackup.c). It descends with a stack of its own and
//! one open directory at a time: nothing in a data directory, however deep, exhausts memory or descriptors.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use walkeep_common::error::{Error, Kind, Result};

use super::access::{Reader, failure};
use super::attributes::{Attributes, Facts};
use super::exclude::Exclusions;
use super::relation::{Fork, Place, RelationFile, is_temporary_relation, parse_number};
use super::scan::{Directory, Scan, ScanOptions, Warning};
use super::tablespace::{self, Tablespace, TablespaceLocation};

/// A walk on its way.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    data_directory: &'a Path,
    root: OwnedFd,
    /// `TABLESPACE_VERSION_DIRECTORY`.
    version_directory: String,
    exclusions: Exclusions,
    reader: Reader,
    /// Directories not to be entered from outside, by device and inode: a tablespace inside the data directory is
    /// copied once, under its OID, and the data directory inside a tablespace not at all.
    closed: HashSet<(u64, u64)>,
    scan: Scan,
    stack: Vec<Level>,
}

/// A directory half-way through.
#[derive(Debug)]
struct Level {
    directory: u32,
    entries: std::vec::IntoIter<Listed>,
}

/// An entry of a directory.
#[derive(Debug)]
struct Listed {
    name: Box<[u8]>,
    facts: Facts,
}

/// Whether the last component of a path may be a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LastLink {
    Follow,
    Refuse,
}

impl<'a> Walk<'a> {
    /// Opens the data directory and finds its tablespaces.
    pub(super) fn begin(data_directory: &'a Path, options: &ScanOptions<'_>) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, data_directory, flags, Mode::empty())
            .map_err(|errno| failure("open directory", data_directory, errno))?;
        let mut walk = Self {
            data_directory,
            root,
            version_directory: format!("PG_{}_{}", options.pg_major, options.catalog_version),
            exclusions: Exclusions::new(options.pg_major, data_directory, options.stats_temp_directory),
            reader: Reader::current(),
            closed: HashSet::new(),
            scan: Scan::new(),
            stack: Vec::new(),
        };
        walk.find_tablespaces()?;
        tablespace::compare(data_directory, &walk.scan.tablespaces, options.tablespaces)?;
        walk.leave_out_unknown_tablespaces(options.tablespaces);
        Ok(walk)
    }

    /// Lists everything.
    pub(super) fn run(mut self) -> Result<Scan> {
        let root = self.root.try_clone().map_err(|error| Error::io("open directory", self.data_directory, error))?;
        let facts = self.examine(&root, Path::new(""))?;
        self.closed.insert(facts.identity);
        self.push(root, PathBuf::new(), Place::Root)?;
        while let Some(level) = self.stack.last_mut() {
            let directory = level.directory;
            match level.entries.next() {
                Some(entry) => self.visit(directory, &entry)?,
                None => drop(self.stack.pop()),
            }
        }
        Ok(self.scan)
    }

    /// Decides about one entry.
    fn visit(&mut self, parent: u32, entry: &Listed) -> Result<()> {
        let internal = || Error::new(Kind::Internal, "a directory was forgotten while its entries were listed");
        let parent_directory = self.scan.directory(parent).ok_or_else(internal)?;
        let (place, path) = (parent_directory.place, parent_directory.path.join(OsStr::from_bytes(&entry.name)));
        let (name, file_type) = (entry.name.as_ref(), entry.facts.file_type);
        let directory_or_link = matches!(file_type, FileType::Directory | FileType::Symlink);

        if directory_or_link && place == Place::Root && name == b"pg_wal" {
            return self.add_wal_directory(path, entry);
        }
        if directory_or_link && self.exclusions.keeps_empty(name, &path) {
            let attributes = self.as_directory(entry);
            return self.add_directory(path, attributes, Place::Other);
        }
        if directory_or_link
            && place == Place::Tablespaces
            && let Some(oid) = parse_number(name)
        {
            // One that was created after the walk began is created again by the WAL, and must not be there before.
            let known = self.scan.tablespaces.iter().any(|tablespace| tablespace.oid == oid);
            return if known { self.enter_tablespace(path) } else { Ok(()) };
        }
        match file_type {
            FileType::Directory if self.closed.contains(&entry.facts.identity) => {
                self.add_directory(path, entry.facts.attributes, Place::Other)
            }
            FileType::Directory => self.enter(path, place.enter(name), LastLink::Refuse),
            FileType::RegularFile if place == Place::Global && name == b"pg_control" => Ok(()),
            FileType::RegularFile => {
                if self.reader.may_read(&entry.facts.attributes) || self.can_be_opened(&path)? {
                    self.scan.add_file(parent, name, &entry.facts)?;
                }
                Ok(())
            }
            FileType::Symlink => {
                if let Some(target) = self.read_link(&path)? {
                    if place.holds_data(name) {
                        return Err(self.link_to_data(&path, &target));
                    }
                    self.scan.warnings.push(Warning::SymbolicLink { path, target });
                }
                Ok(())
            }
            _ => {
                self.scan.warnings.push(Warning::SpecialFile { path });
                Ok(())
            }
        }
    }

    /// PostgreSQL follows such a link. A backup without what is behind it would come back with databases missing.
    fn link_to_data(&self, path: &Path, target: &Path) -> Error {
        let message = format!(
            "\"{}\" is a symbolic link, and what it points to, \"{}\", would not be in the backup",
            self.data_directory.join(path).display(),
            target.display()
        );
        Error::new(Kind::Invalid, message).hint(
            "Stop PostgreSQL, move the files back to where the link is, and use a tablespace instead (CREATE TABLESPACE), \
             or a bind mount.",
        )
    }

    /// `pg_wal` is an empty directory in a backup, with the directories the server wants to find there.
    fn add_wal_directory(&mut self, path: PathBuf, entry: &Listed) -> Result<()> {
        if entry.facts.file_type == FileType::Symlink {
            self.scan.wal_link = self.read_link(&path)?;
        }
        let attributes = self.as_directory(entry);
        self.add_directory(path, attributes, Place::Other)?;
        for path in self.exclusions.wal_directories() {
            self.add_directory(PathBuf::from(path), attributes, Place::Other)?;
        }
        Ok(())
    }

    /// The directory behind the entry of a tablespace, and in it only what belongs to this server.
    fn enter_tablespace(&mut self, path: PathBuf) -> Result<()> {
        let Some(location) = self.open_directory(&path, LastLink::Follow)? else { return Ok(()) };
        let attributes = self.examine(&location, &path)?.attributes;
        let version = path.join(&self.version_directory);
        self.add_directory(path, attributes, Place::Other)?;
        // A link is followed here because the server follows it.
        self.enter(version, Place::TablespaceVersion, LastLink::Follow)
    }

    /// Lists a directory and puts it on the stack; one that is gone is passed over.
    fn enter(&mut self, path: PathBuf, place: Place, last_link: LastLink) -> Result<()> {
        match self.open_directory(&path, last_link)? {
            Some(directory) => self.push(directory, path, place),
            None => Ok(()),
        }
    }

    fn push(&mut self, directory: OwnedFd, path: PathBuf, place: Place) -> Result<()> {
        let attributes = self.examine(&directory, &path)?.attributes;
        let entries = self.list(directory, &path, place)?.into_iter();
        let directory = self.scan.add_directory(Directory { path, attributes, place })?;
        self.stack.push(Level { directory, entries });
        Ok(())
    }

    fn add_directory(&mut self, path: PathBuf, attributes: Attributes, place: Place) -> Result<()> {
        self.scan.add_directory(Directory { path, attributes, place }).map(drop)
    }

    /// The entries of a directory that are not left out by name, sorted.
    fn list(&self, directory: OwnedFd, path: &Path, place: Place) -> Result<Vec<Listed>> {
        let failed = |errno| self.failed("read directory", path, errno);
        let mut stream = Dir::new(directory).map_err(failed)?;
        let mut names: Vec<Box<[u8]>> = Vec::new();
        while let Some(entry) = stream.read() {
            let entry = match entry {
                // Removed while it was being read.
                Err(Errno::NOENT) => break,
                entry => entry.map_err(failed)?,
            };
            let name = entry.file_name().to_bytes();
            let temporary = place == Place::Database && is_temporary_relation(name);
            if !matches!(name, b"." | b"..") && !temporary && !self.exclusions.leaves_out(name) {
                names.push(name.into());
            }
        }
        if place == Place::Database {
            leave_out_unlogged(&mut names);
        }
        names.sort_unstable();
        let directory = stream.fd().map_err(failed)?;
        let listed = names.into_iter().map(|name| {
            match statat(directory, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Ok(Some(Listed { name, facts: stat.into() })),
                Err(Errno::NOENT) => Ok(None),
                Err(errno) => Err(self.failed("examine", &path.join(OsStr::from_bytes(&name)), errno)),
            }
        });
        listed.filter_map(Result::transpose).collect()
    }

    /// Reads `pg_tblspc` before anything else, so that tablespaces inside the data directory are known when the walk
    /// comes by.
    fn find_tablespaces(&mut self) -> Result<()> {
        let path = Path::new("pg_tblspc");
        let directory = self.open_directory(path, LastLink::Refuse)?;
        let directory = directory.ok_or_else(|| self.failed("open directory", path, Errno::NOENT))?;
        for Listed { name, facts } in self.list(directory, path, Place::Tablespaces)? {
            let (Some(oid), path) = (parse_number(&name), path.join(OsStr::from_bytes(&name))) else { continue };
            let location = match facts.file_type {
                FileType::Symlink => self.read_link(&path)?.map(TablespaceLocation::Link),
                FileType::Directory => Some(TablespaceLocation::InPlace),
                _ => None,
            };
            let Some(location) = location else { continue };
            let version = path.join(&self.version_directory);
            let is_present = self.open_directory(&version, LastLink::Follow)?.is_some();
            if is_present && location != TablespaceLocation::InPlace {
                self.close(&path)?;
                self.close(&version)?;
            }
            self.scan.tablespaces.push(Tablespace { oid, location, is_present });
        }
        self.scan.tablespaces.sort_unstable_by_key(|tablespace| tablespace.oid);
        Ok(())
    }

    /// Entries of `pg_tblspc` that no tablespace has any more, and that lead to nothing of this server's.
    fn leave_out_unknown_tablespaces(&mut self, catalog: &BTreeMap<u32, PathBuf>) {
        let Scan { tablespaces, warnings, .. } = &mut self.scan;
        tablespaces.retain(|tablespace| {
            let is_known = catalog.contains_key(&tablespace.oid);
            if let (false, TablespaceLocation::Link(target)) = (is_known, &tablespace.location) {
                let path = Path::new("pg_tblspc").join(tablespace.oid.to_string());
                warnings.push(Warning::SymbolicLink { path, target: target.clone() });
            }
            is_known
        });
    }

    /// Lets a directory be entered only by the path given here.
    fn close(&mut self, path: &Path) -> Result<()> {
        match statat(&self.root, path, AtFlags::empty()) {
            Ok(stat) => {
                self.closed.insert(Facts::from(stat).identity);
                Ok(())
            }
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("examine", path, errno)),
        }
    }

    fn examine(&self, directory: &OwnedFd, path: &Path) -> Result<Facts> {
        fstat(directory).map(Facts::from).map_err(|errno| self.failed("examine", path, errno))
    }

    fn open_directory(&self, path: &Path, last_link: LastLink) -> Result<Option<OwnedFd>> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, last_link == LastLink::Refuse);
        match openat(&self.root, path, flags, Mode::empty()) {
            Ok(directory) => Ok(Some(directory)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("open directory", path, errno)),
        }
    }

    /// Asks the operating system where permission bits say no: an access control list may say yes. Nothing is left
    /// for the copy to find out hours later.
    fn can_be_opened(&self, path: &Path) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match openat(&self.root, path, flags, Mode::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed("open file", path, errno)),
        }
    }

    fn read_link(&self, path: &Path) -> Result<Option<PathBuf>> {
        match readlinkat(self.root.as_fd(), path, Vec::new()) {
            Ok(target) => Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("read symbolic link", path, errno)),
        }
    }

    /// The attributes of a directory, or those the server would give one in the place of a link
    /// (`convert_link_to_directory`).
    fn as_directory(&self, entry: &Listed) -> Attributes {
        let attributes = entry.facts.attributes;
        match (entry.facts.file_type, self.scan.root()) {
            (FileType::Symlink, Some(root)) => Attributes { mode: root.mode & 0o750, ..attributes },
            _ => attributes,
        }
    }

    fn failed(&self, action: &str, path: &Path, errno: Errno) -> Error {
        failure(action, &self.data_directory.join(path), errno)
    }
}

/// Takes out every fork of unlogged relations but the one they are reset to: the server empties them when it starts
/// from a backup. A relation is unlogged when it has an init fork.
fn leave_out_unlogged(names: &mut Vec<Box<[u8]>>) {
    let parsed = names.iter().filter_map(|name| RelationFile::parse(name));
    let unlogged: HashSet<u32> =
        parsed.filter(|file| file.fork == Fork::Init && file.segment == 0).map(|file| file.number).collect();
    if !unlogged.is_empty() {
        names.retain(|name| {
            RelationFile::parse(name).is_none_or(|file| file.fork == Fork::Init || !unlogged.contains(&file.number))
        });
    }
}
