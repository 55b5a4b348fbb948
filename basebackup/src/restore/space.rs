//! Whether what is restored fits: bytes and files, by file system.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use walkeep_common::error::{Error, Kind, Result};

use super::directories::{Directories, LOST_AND_FOUND, Place};
use super::root::{EntryKind, Root};
use crate::output::bytes;
use crate::pack::index::IndexEntry;

/// What file systems give files in.
const BLOCK_BYTES: u64 = 4096;
/// File systems that may compress: ZFS, btrfs and bcachefs (`f_type` of statfs(2)).
const COMPRESSING: [rustix::fs::FsWord; 3] = [0x2fc1_2fc1, 0x9123_683e, 0xca45_1a4e];
/// About what a file's line in PostgreSQL's manifest takes.
const MANIFEST_LINE_BYTES: u64 = 200;

/// Space on one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Space {
    /// A directory on it.
    pub directory: PathBuf,
    /// Bytes that will be written.
    pub needed: u64,
    /// Bytes that are free, or become so.
    pub free: u64,
    /// Files and directories that will be made.
    pub files_needed: u64,
    /// How many more there can be; nothing where the file system sets no limit.
    pub files_free: Option<u64>,
    /// Whether the file system may compress what is written.
    pub may_compress: bool,
}

/// What files take up, directories included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// On the disk.
    pub bytes: u64,
    /// How many they are.
    pub files: u64,
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
    }
}

impl Space {
    /// What is needed and what there is.
    pub fn to_text(&self) -> String {
        let (needed, free) = (bytes(self.needed), bytes(self.free));
        let files = match self.files_free.filter(|&free| self.files_needed > free) {
            Some(free) => format!("; {} files needed, {free} free", self.files_needed),
            None => String::new(),
        };
        format!("{needed} needed, {free} free{files} with \"{}\"", self.directory.display())
    }

    /// What to say where it is too little, unless the file system compresses well.
    pub fn doubt(&self) -> Option<String> {
        let (needed, free) = (bytes(self.needed), bytes(self.free));
        let directory = self.directory.display();
        (self.needed > self.free).then(|| {
            format!(
                "{needed} needed for \"{directory}\", and {free} free: enough only if its file system compresses that \
                 well"
            )
        })
    }

    /// Why it cannot be enough.
    fn problem(&self) -> Option<String> {
        let directory = self.directory.display();
        if self.needed > self.free && !self.may_compress {
            let (needed, free) = (bytes(self.needed), bytes(self.free));
            return Some(format!(
                "not enough space for \"{directory}\": {needed} needed, {free} free on its file system"
            ));
        }
        let free = self.files_free.filter(|&free| self.files_needed > free)?;
        let needed = self.files_needed;
        Some(format!("not enough inodes for \"{directory}\": {needed} files, and {free} free on its file system"))
    }
}

/// Compares what will be made with what is free, by file system. Files of databases that are left out are made as well, with
/// nothing in them. What `replaced` says of a directory becomes free first.
///
/// # Errors
/// From the operating system.
pub fn spaces<'e>(
    directories: &Directories,
    entries: impl Iterator<Item = &'e IndexEntry>,
    is_left_out: impl Fn(&IndexEntry) -> bool,
    kept_wal: Usage,
    replaced: &BTreeMap<Place, Usage>,
) -> Result<Vec<Space>> {
    let mut needed: BTreeMap<Place, Usage> = BTreeMap::new();
    for entry in entries {
        // A directory takes up a block as well.
        let size = entry.contents.as_ref().map_or(BLOCK_BYTES, |contents| contents.size);
        let size = if is_left_out(entry) { 0 } else { size };
        let usage = Usage { bytes: size.next_multiple_of(BLOCK_BYTES), files: 1 };
        *needed.entry(directories.locate(&entry.path).0).or_default() += usage;
        *needed.entry(Place::Data).or_default() += Usage { bytes: MANIFEST_LINE_BYTES, files: 0 };
    }
    let wal = if directories.wal.is_some() { Place::Wal } else { Place::Data };
    *needed.entry(wal).or_default() += kept_wal;
    let mut spaces: BTreeMap<u64, Space> = BTreeMap::new();
    for (place, path) in directories.all() {
        let (directory, metadata) = nearest_existing(path)?;
        let failed = |error: rustix::io::Errno| Error::io("look at", directory, error.into());
        let stat = rustix::fs::statvfs(directory).map_err(failed)?;
        let kind = rustix::fs::statfs(directory).map_err(failed)?.f_type;
        let space = spaces.entry(metadata.dev()).or_insert_with(|| Space {
            directory: path.to_owned(),
            needed: 0,
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            files_needed: 0,
            files_free: (stat.f_files > 0).then_some(stat.f_favail),
            may_compress: COMPRESSING.contains(&kind),
        });
        let needed = needed.get(&place).copied().unwrap_or_default();
        let replaced = replaced.get(&place).copied().unwrap_or_default();
        space.needed += needed.bytes;
        space.free += replaced.bytes;
        space.files_needed += needed.files;
        space.files_free = space.files_free.map(|free| free + replaced.files);
    }
    Ok(spaces.into_values().collect())
}

/// Refuses what will not fit. Where the file system may compress, nobody knows how many bytes do.
///
/// # Errors
/// `Unavailable`, with both numbers.
pub fn refuse_too_little(spaces: &[Space]) -> Result<()> {
    match spaces.iter().find_map(Space::problem) {
        Some(problem) => Err(Error::new(Kind::Unavailable, problem)
            .hint("Make room, or spread the backup with --tablespace-mapping and --waldir.")),
        None => Ok(()),
    }
}

/// What of the existing directories is replaced. In a tablespace's, other majors and other clusters may have directories
/// beside those of the backup, which stay.
///
/// # Errors
/// From the operating system.
pub fn replaced(directories: &Directories, entries: &[IndexEntry]) -> Result<BTreeMap<Place, Usage>> {
    let mut own: HashSet<(Place, &Path)> = HashSet::new();
    for entry in entries {
        let (place, below) = directories.locate(&entry.path);
        own.extend(below.iter().next().map(|first| (place, Path::new(first))));
    }
    let mut replaced = BTreeMap::new();
    for (place, path) in directories.all().filter(|(_, path)| path.exists()) {
        let root = Root::open(path)?;
        let is_ours = |name: &Path| !matches!(place, Place::Tablespace(_)) || own.contains(&(place, name));
        let _ = replaced.insert(place, used_below(&root, Path::new(""), &is_ours)?);
    }
    Ok(replaced)
}

/// What the files below a directory take up, as far as it is asked for in the directory itself.
fn used_below(root: &Root, path: &Path, is_counted: &dyn Fn(&Path) -> bool) -> Result<Usage> {
    let mut total = Usage::default();
    for entry in root.entries(path)? {
        if entry.name == Path::new(LOST_AND_FOUND) || !is_counted(&entry.name) {
            continue;
        }
        total += match entry.kind {
            EntryKind::Directory => used_below(root, &path.join(entry.name), &|_| true)?,
            EntryKind::Other => Usage::default(),
            EntryKind::File => Usage { bytes: entry.allocated, files: 0 },
        };
        total += Usage { bytes: 0, files: 1 };
    }
    Ok(total)
}

fn nearest_existing(path: &Path) -> Result<(&Path, fs::Metadata)> {
    for directory in path.ancestors() {
        match fs::metadata(directory) {
            Ok(metadata) => return Ok((directory, metadata)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("look at", directory, error)),
        }
    }
    Err(Error::new(Kind::NotFound, format!("no directory above \"{}\" exists", path.display())))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::pack::member::MemberPath;

    fn directory(path: &[u8]) -> IndexEntry {
        IndexEntry {
            path: MemberPath::new(path).unwrap(),
            pack: 1,
            mode: 0o700,
            modified: Timestamp::UNIX_EPOCH,
            uid: 1,
            gid: 1,
            contents: None,
        }
    }

    #[test]
    fn only_what_is_the_backups_own_counts_as_replaced_in_a_tablespace() {
        let scratch = tempfile::tempdir().unwrap();
        for file in ["data/base/1", "space/PG_15_202209061/5/1", "space/PG_14_202107181/5/1"] {
            let path = scratch.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; 50_000]).unwrap();
        }
        let directories = Directories {
            data: scratch.path().join("data"),
            wal: None,
            tablespaces: BTreeMap::from([(16384, scratch.path().join("space"))]),
        };
        let replaced = replaced(&directories, &[directory(b"pg_tblspc/16384/PG_15_202209061")]).unwrap();
        let (data, space) = (replaced[&Place::Data], replaced[&Place::Tablespace(16384)]);
        assert!(space.bytes >= 50_000 && space.bytes == data.bytes, "{replaced:?}");
        assert_eq!((data.files, space.files), (2, 3));
    }

    #[test]
    fn too_few_bytes_or_inodes_are_refused_and_what_compresses_is_doubted() {
        let enough = Space {
            directory: "/data".into(),
            needed: 1 << 30,
            free: 1 << 30,
            files_needed: 1000,
            files_free: Some(1000),
            may_compress: false,
        };
        let said =
            |space: &Space| refuse_too_little(&[enough.clone(), space.clone()]).map_err(|error| error.to_string());
        assert_eq!((said(&enough), enough.doubt()), (Ok(()), None));
        let small = Space { needed: (1 << 30) + 1, ..enough.clone() };
        assert!(said(&small).unwrap_err().contains("not enough space for \"/data\""));
        let compressing = Space { may_compress: true, ..small.clone() };
        assert_eq!(said(&compressing), Ok(()));
        assert!(compressing.doubt().unwrap().contains("compresses"));
        let few = Space { files_free: Some(999), may_compress: true, ..enough.clone() };
        assert!(said(&few).unwrap_err().contains("not enough inodes"));
        assert!(few.to_text().contains("1000 files needed, 999 free"), "{}", few.to_text());
        assert_eq!(said(&Space { files_free: None, ..few }), Ok(()));
    }
}
