//! The directories a restore writes into, and whether it may: looked at before anything is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::postgres::postmaster::PostmasterPid;
use walkeep_common::repository::backup::Backup;

use super::recovery::InPlace;
use super::root::{DirectoryEntry, EntryKind, Root};
use crate::pack::index::IndexEntry;
use crate::pack::member::MemberPath;

/// `pg_control` until everything else is durable: a server finds none and refuses to start.
pub const STAGED_CONTROL: &str = "global/pg_control.walkeep";
/// What is written before all others.
const EARLY_FILES: [&str; 2] = ["PG_VERSION", STAGED_CONTROL];
/// What mkfs puts into every file system.
pub const LOST_AND_FOUND: &str = "lost+found";

/// Where everything goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// The data directory.
    pub data: PathBuf,
    /// The directory for WAL, if it is not in the data directory.
    pub wal: Option<PathBuf>,
    /// Each tablespace's, by its object identifier.
    pub tablespaces: BTreeMap<u32, PathBuf>,
}

/// Which of the directories something lies below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The data directory.
    Data,
    /// The directory for WAL.
    Wal,
    /// A tablespace's.
    Tablespace(u32),
}

impl Directories {
    /// Where a member goes: below which directory, and its path there; empty for the directory itself.
    pub fn locate<'p>(&self, path: &'p MemberPath) -> (Place, &'p Path) {
        let path = path.as_path();
        let whole = (Place::Data, path);
        if let Ok(below) = path.strip_prefix("pg_wal") {
            return if self.wal.is_some() { (Place::Wal, below) } else { whole };
        }
        let Ok(below) = path.strip_prefix("pg_tblspc") else { return whole };
        let Some(oid) = below.iter().next() else { return whole };
        match oid.to_str().and_then(|oid| oid.parse().ok()).filter(|oid| self.tablespaces.contains_key(oid)) {
            Some(number) => (Place::Tablespace(number), below.strip_prefix(oid).unwrap_or(below)),
            None => whole,
        }
    }

    /// Whether the backup has a tablespace that stays in the data directory.
    pub fn in_place(&self, entries: &[IndexEntry]) -> InPlace {
        let is = |entry: &IndexEntry| {
            let (place, path) = self.locate(&entry.path);
            place == Place::Data && path.parent() == Some(Path::new("pg_tblspc"))
        };
        if entries.iter().any(|entry| entry.contents.is_none() && is(entry)) { InPlace::Some } else { InPlace::None }
    }

    /// Every directory and what it is for.
    pub fn all(&self) -> impl Iterator<Item = (Place, &Path)> {
        let wal = self.wal.iter().map(|path| (Place::Wal, path.as_path()));
        let tablespaces = self.tablespaces.iter().map(|(oid, path)| (Place::Tablespace(*oid), path.as_path()));
        std::iter::once((Place::Data, self.data.as_path())).chain(wal).chain(tablespaces)
    }

    /// Refuses directories in which something is.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn refuse_used(&self) -> Result<()> {
        self.refuse_running_server()?;
        for (place, path) in self.all() {
            if let Some(first) = first_entry(path)?
                && !(place == Place::Data && is_only_begun(path)?)
            {
                return Err(not_empty(place, path, &first));
            }
        }
        Ok(())
    }

    /// Refuses to restore over anything but an earlier state of the same cluster, with no server on it.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn refuse_foreign(&self, backup: &Backup) -> Result<()> {
        self.refuse_running_server()?;
        // Directories elsewhere belong to the cluster only if it says so itself: what is in one that was chosen by its
        // name alone may be another server's.
        for (place, path) in self.all().filter(|(place, _)| *place != Place::Data) {
            let linked = fs::canonicalize(self.data.join(link_to(place))).ok();
            let same = linked.is_some() && linked == fs::canonicalize(path).ok();
            if let Some(first) = first_entry(path)?.filter(|_| !same) {
                return Err(not_empty(place, path, &first));
            }
        }
        if first_entry(&self.data)?.is_none() || is_only_begun(&self.data)? {
            return Ok(());
        }
        let refused = |problem: String| {
            Error::new(Kind::Conflict, format!("will not restore over \"{}\": {problem}", self.data.display()))
                .hint("--delta is for a directory with an earlier state of the same cluster.")
        };
        let version = fs::read_to_string(self.data.join("PG_VERSION"));
        let version = version.map_err(|_| refused("there is no PG_VERSION in it".to_owned()))?;
        if version.trim() != backup.pg_major().to_string() {
            return Err(refused(format!(
                "it is of PostgreSQL {}, the backup of {}",
                version.trim(),
                backup.pg_major()
            )));
        }
        let control = ["global/pg_control", STAGED_CONTROL].into_iter().find_map(|name| {
            let bytes = fs::read(self.data.join(name)).ok()?;
            ControlFile::parse(&bytes).ok()
        });
        match control.map(|control| control.system_identifier) {
            Some(found) if found == backup.system_identifier => Ok(()),
            Some(found) => {
                Err(refused(format!("its system identifier is {found}, the backup's {}", backup.system_identifier)))
            }
            None => Err(refused("its pg_control cannot be read".to_owned())),
        }
    }

    /// Refuses a data directory that a server may be running on.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn refuse_running_server(&self) -> Result<()> {
        let path = self.data.join("postmaster.pid");
        if !path.exists() {
            return Ok(());
        }
        if PostmasterPid::read(&self.data).is_some_and(|found| !found.may_be_running()) {
            return Ok(());
        }
        Err(Error::new(Kind::Conflict, format!("a server may be running on \"{}\"", self.data.display()))
            .hint(format!("Stop it first. If there certainly is none, remove \"{}\".", path.display())))
    }
}

/// The link in the data directory that leads to a directory elsewhere.
pub fn link_to(place: Place) -> PathBuf {
    match place {
        Place::Data => PathBuf::new(),
        Place::Wal => "pg_wal".into(),
        Place::Tablespace(oid) => Path::new("pg_tblspc").join(oid.to_string()),
    }
}

fn not_empty(place: Place, path: &Path, first: &Path) -> Error {
    let found = format!("directory \"{}\" is not empty: \"{}\" is in it", path.display(), first.display());
    Error::new(Kind::Conflict, found).hint(match place {
        Place::Data => "Name another directory, empty it, or say --delta to restore over the same cluster's files.",
        Place::Wal => "Name another directory with --waldir, or empty it.",
        Place::Tablespace(_) => {
            "Give the tablespace another directory: --tablespace-mapping OLDDIR=NEWDIR, where OLDDIR is the one it had. \
             That one may belong to a server that still runs."
        }
    })
}

/// The first thing in a directory; nothing if it is empty or does not exist.
///
/// # Errors
/// From the operating system.
pub fn first_entry(path: &Path) -> Result<Option<PathBuf>> {
    let Some(root) = existing(path)? else { return Ok(None) };
    let mut names = root.entries(Path::new(""))?.into_iter().map(|entry| entry.name);
    Ok(names.find(|name| name != Path::new(LOST_AND_FOUND)))
}

/// Whether a directory holds only what a restore makes before everything else: it was interrupted there, and nothing
/// of anyone's is lost with it.
fn is_only_begun(directory: &Path) -> Result<bool> {
    let Some(root) = existing(directory)? else { return Ok(true) };
    only_early(&root, Path::new(""))
}

fn only_early(root: &Root, path: &Path) -> Result<bool> {
    for DirectoryEntry { name, kind, .. } in root.entries(path)? {
        let below = path.join(name);
        let early = match kind {
            EntryKind::Directory if below == Path::new(LOST_AND_FOUND) => true,
            EntryKind::Directory => {
                ["global", "pg_tblspc"].map(Path::new).contains(&&*below) && only_early(root, &below)?
            }
            EntryKind::File => EARLY_FILES.iter().any(|name| below == Path::new(name) || below == early_name(name)),
            EntryKind::Other => below == Path::new("pg_wal") || path == Path::new("pg_tblspc"),
        };
        if !early {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a file that is written before all others is called until it is durable.
pub fn early_name(name: &str) -> PathBuf {
    format!("{name}.new").into()
}

/// Opens a directory if it exists.
fn existing(path: &Path) -> Result<Option<Root>> {
    match fs::symlink_metadata(path) {
        Ok(_) => Root::open(path).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("look at", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interrupted_start_of_a_restore_leaves_is_no_ones() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let directories = Directories { data: place.path().to_owned(), wal: None, tablespaces: BTreeMap::new() };
        for directory in ["global", "pg_tblspc"] {
            fs::create_dir(at(directory)).unwrap();
        }
        for link in ["pg_wal", "pg_tblspc/16384"] {
            std::os::unix::fs::symlink("/nowhere", at(link)).unwrap();
        }
        for file in ["PG_VERSION", "PG_VERSION.new", STAGED_CONTROL, "global/pg_control.walkeep.new"] {
            fs::write(at(file), "").unwrap();
            directories.refuse_used().unwrap();
        }
        for file in ["global/1262", "global/pg_control", "backup_label", "pg_tblspc/PG_VERSION"] {
            fs::write(at(file), "").unwrap();
            assert_eq!(directories.refuse_used().unwrap_err().kind(), Kind::Conflict, "{file}");
            fs::remove_file(at(file)).unwrap();
        }
    }
}
