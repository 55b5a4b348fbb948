//! The directories while they are written: made, opened, and linked to each other.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::directories::{Directories, LOST_AND_FOUND, Place, link_to};
use super::root::{EntryKind, FileOwner, Root};
use crate::pack::member::MemberPath;

/// The opened directories.
#[derive(Debug)]
pub struct Destination {
    directories: Directories,
    roots: BTreeMap<Place, Root>,
    /// Whom everything is given to; none where it is this process's own.
    pub owner: Option<FileOwner>,
    /// Permission bits of the data directory; those of files follow from them.
    pub mode: u32,
}

impl Destination {
    /// Opens the directories, and makes those that do not exist.
    ///
    /// # Errors
    /// From the operating system; `Conflict` if two names lead to one directory, or another restore writes into one.
    pub fn open(directories: Directories, mode: u32, owner: Option<FileOwner>) -> Result<Self> {
        let mut roots = BTreeMap::new();
        for (place, path) in directories.all() {
            make_with_parents(path, 0o700, owner)?;
            let root = Root::open(path)?;
            for other in roots.values() {
                refuse_same(&root, other)?;
            }
            root.lock()?;
            let _ = roots.insert(place, root);
        }
        Ok(Self { directories, roots, owner, mode })
    }

    /// Gives the directories themselves their modes and owner.
    ///
    /// # Errors
    /// From the operating system.
    pub fn set_modes(&self) -> Result<()> {
        self.roots.values().try_for_each(|root| root.set_own_attributes(self.mode, self.owner))
    }

    /// Where everything goes.
    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// The data directory.
    ///
    /// # Errors
    /// `Internal`: it was opened.
    pub fn data(&self) -> Result<&Root> {
        self.root(Place::Data)
    }

    /// One of the directories.
    ///
    /// # Errors
    /// `Internal` for one that there is not.
    pub fn root(&self, place: Place) -> Result<&Root> {
        self.roots.get(&place).ok_or_else(|| Error::new(Kind::Internal, format!("no directory for {place:?}")))
    }

    /// Every directory.
    pub fn roots(&self) -> impl Iterator<Item = (Place, &Root)> {
        self.roots.iter().map(|(place, root)| (*place, root))
    }

    /// Where a member goes.
    ///
    /// # Errors
    /// As [`Destination::root`].
    pub fn locate<'p>(&self, path: &'p MemberPath) -> Result<(&Root, &'p Path)> {
        let (place, below) = self.directories.locate(path);
        Ok((self.root(place)?, below))
    }

    /// The directory for WAL, and `name`'s path in it.
    ///
    /// # Errors
    /// As [`Destination::root`].
    pub fn in_wal(&self, name: &str) -> Result<(&Root, PathBuf)> {
        match self.roots.get(&Place::Wal) {
            Some(root) => Ok((root, name.into())),
            None => Ok((self.data()?, Path::new("pg_wal").join(name))),
        }
    }

    /// Whether something in the data directory is one of the links to the others.
    pub fn is_link(&self, path: &Path) -> bool {
        self.directories.all().any(|(place, _)| place != Place::Data && link_to(place) == path)
    }

    /// Permission bits of the files that the restore itself writes.
    pub fn file_mode(&self) -> u32 {
        self.mode & 0o640 | 0o600
    }

    /// Links the data directory to the others, in place of whatever is there. From now on they are known to be its own.
    ///
    /// # Errors
    /// From the operating system.
    pub fn link(&self) -> Result<()> {
        let data = self.data()?;
        let elsewhere = self.directories.all().filter(|(place, _)| *place != Place::Data);
        for (place, path) in elsewhere {
            let link = link_to(place);
            if let Some(parent) = link.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                data.make_directory(parent, self.mode, self.owner)?;
            }
            match data.read_link(&link)? {
                Some(found) if found == path => continue,
                Some(_) => data.remove_file(&link)?,
                None if data.exists(&link)? => {
                    empty(data, &link)?;
                    data.remove_directory(&link)?;
                }
                None => {}
            }
            data.link(&link, path, self.owner)?;
        }
        Ok(())
    }
}

/// Removes a directory's contents; what is mounted in it is emptied and stays.
///
/// # Errors
/// From the operating system.
pub fn empty(root: &Root, path: &Path) -> Result<()> {
    root.make_writable(path)?;
    for entry in root.entries(path)? {
        let below = path.join(&entry.name);
        if entry.kind == EntryKind::Directory {
            if !(path.as_os_str().is_empty() && entry.name == Path::new(LOST_AND_FOUND)) {
                empty(root, &below)?;
                root.remove_directory(&below)?;
            }
        } else {
            root.remove_file(&below)?;
        }
    }
    Ok(())
}

/// Makes a directory and those above it that do not exist, all of them the owner's: in one of root's own the server
/// would find nothing.
///
/// # Errors
/// From the operating system.
pub fn make_with_parents(path: &Path, mode: u32, owner: Option<FileOwner>) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_with_parents(parent, mode, owner)?;
    }
    fs::DirBuilder::new().mode(0o700).create(path).context("create directory", path)?;
    Root::open(path)?.set_own_attributes(mode, owner)?;
    if let Some(parent) = path.parent() {
        Root::open(parent)?.synchronize(Path::new(""))?;
    }
    Ok(())
}

fn refuse_same(root: &Root, other: &Root) -> Result<()> {
    if root.identity()? != other.identity()? {
        return Ok(());
    }
    let (one, two) = (root.path().display(), other.path().display());
    Err(Error::new(Kind::Conflict, format!("\"{one}\" and \"{two}\" are the same directory")))
}
