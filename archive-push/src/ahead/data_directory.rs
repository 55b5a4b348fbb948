//! The data directory a WAL file belongs to: looked at, never written to.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use walkeep_common::postgres::postmaster::PostmasterPid;
use walkeep_common::wal::name::WalFileName;

/// More names than any number of uploads needs ahead.
const MOST_NAMES: usize = 4096;

/// A data directory, by its absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DataDirectory(PathBuf);

impl DataDirectory {
    /// The directory at this absolute path.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The data directory in whose `pg_wal` this file is: the working directory, as PostgreSQL calls us, or the one above
    /// `pg_wal` in an absolute path. Nothing where neither is certain.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        let directory = fs::metadata(file.parent()?).ok()?;
        let above = file.parent().and_then(Path::parent).filter(|path| path.is_absolute()).map(Path::to_owned);
        [env::current_dir().ok(), above].into_iter().flatten().map(Self).find(|candidate| {
            let pg_wal = fs::metadata(candidate.0.join("pg_wal"));
            pg_wal.is_ok_and(|pg_wal| (pg_wal.dev(), pg_wal.ino()) == (directory.dev(), directory.ino()))
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A file in `pg_wal`.
    pub(crate) fn wal(&self, name: WalFileName) -> PathBuf {
        self.0.join("pg_wal").join(name.to_string())
    }

    /// Whether PostgreSQL waits for this file to be archived.
    pub(crate) fn is_ready(&self, name: WalFileName) -> bool {
        self.status().join(format!("{name}.ready")).exists()
    }

    /// The files that wait to be archived, in the order in which PostgreSQL archives them: histories, then by name
    /// (`ready_file_comparator`, src/backend/postmaster/pgarch.c). Of a very long queue its beginning.
    pub(crate) fn waiting(&self) -> Vec<WalFileName> {
        let mut names: Vec<(bool, String, WalFileName)> =
            self.ready_names().map(|name| (!matches!(name, WalFileName::History(_)), name.to_string(), name)).collect();
        names.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        names.truncate(MOST_NAMES);
        names.into_iter().map(|(_, _, name)| name).collect()
    }

    /// Whether any file but this one waits to be archived.
    pub(crate) fn others_wait(&self, but: WalFileName) -> bool {
        self.ready_names().any(|name| name != but)
    }

    /// The server that runs on it.
    pub(crate) fn server(&self) -> Option<PostmasterPid> {
        PostmasterPid::read(&self.0)
    }

    fn ready_names(&self) -> impl Iterator<Item = WalFileName> + use<> {
        let entries = fs::read_dir(self.status()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok())
    }

    fn status(&self) -> PathBuf {
        self.0.join("pg_wal/archive_status")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_wait_in_the_order_in_which_postgresql_archives_them() {
        let scratch = tempfile::tempdir().unwrap();
        let status = scratch.path().join("pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        let expected = [
            "00000002.history",
            "00000003.history",
            "000000010000000000000009",
            "00000001000000000000000A.00000028.backup",
            "00000001000000000000000A.partial",
            "000000020000000000000001",
        ];
        for name in expected.iter().rev() {
            fs::write(status.join(format!("{name}.ready")), "").unwrap();
        }
        for other in ["000000010000000000000001.done", "something.ready", "000000010000000000000002"] {
            fs::write(status.join(other), "").unwrap();
        }
        let data = DataDirectory::at(scratch.path().to_owned());
        assert_eq!(data.waiting().iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
        assert!(data.others_wait(expected[0].parse().unwrap()) && data.is_ready(expected[5].parse().unwrap()));
    }

    #[test]
    fn a_file_elsewhere_than_in_pg_wal_belongs_to_no_data_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let wal = scratch.path().join("elsewhere");
        fs::create_dir_all(&wal).unwrap();
        assert_eq!(DataDirectory::of(&wal.join("000000010000000000000001")), None);
        // pg_wal is often a link to another disk.
        std::os::unix::fs::symlink(&wal, scratch.path().join("pg_wal")).unwrap();
        let found = DataDirectory::of(&scratch.path().join("pg_wal/000000010000000000000001"));
        assert_eq!(found, Some(DataDirectory::at(scratch.path().to_owned())));
    }
}
