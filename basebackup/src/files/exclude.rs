//! Names that pg_basebackup leaves out, or keeps as empty directories.
//!
//! Mirrors `excludeDirContents`, `excludeFiles` and `sendDir` (src/backend/backup/basebackup.c; before 15 under
//! src/backend/replication), PostgreSQL 13 to 19.

use std::path::{Path, PathBuf};

/// `PG_TEMP_FILES_DIR` and `PG_TEMP_FILE_PREFIX`: sorts and hashes that spilled to disk.
const TEMPORARY_PREFIX: &[u8] = b"pgsql_tmp";

/// The relation cache; a copy in the making carries a process id behind this name.
const RELATION_CACHE_PREFIX: &[u8] = b"pg_internal.init";

/// State of the running server that must not reach a restored one, and files the backup brings itself.
const LEFT_OUT: [&[u8]; 7] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
];

/// Directories whose contents the server makes anew. Replication slots, for one, would keep WAL for nobody.
const KEPT_EMPTY: [&[u8]; 7] =
    [b"pg_stat_tmp", b"pg_replslot", b"pg_dynshmem", b"pg_notify", b"pg_serial", b"pg_snapshots", b"pg_subtrans"];

/// What is not copied from the data directory of one major.
#[derive(Debug, Clone)]
pub(super) struct Exclusions {
    pg_major: u32,
    statistics: Option<PathBuf>,
}

impl Exclusions {
    /// `stats_temp_directory` is the setting of that name, which 15 removed; it matters where it lies in the data
    /// directory.
    pub(super) fn new(pg_major: u32, data_directory: &Path, stats_temp_directory: Option<&Path>) -> Self {
        let statistics = stats_temp_directory.filter(|_| pg_major < 15).and_then(|setting| {
            let inside = if setting.is_absolute() { setting.strip_prefix(data_directory).ok()? } else { setting };
            // Paths in a scan have no leading "./".
            Some(inside.strip_prefix("./").unwrap_or(inside).to_owned())
        });
        Self { pg_major, statistics }
    }

    /// Tells whether an entry of this name is left out, in whichever directory it lies.
    pub(super) fn leaves_out(&self, name: &[u8]) -> bool {
        name.starts_with(TEMPORARY_PREFIX)
            || name.starts_with(RELATION_CACHE_PREFIX)
            || LEFT_OUT.contains(&name)
            || self.pg_major >= 15 && name == b".DS_Store"
    }

    /// Tells whether the directory `name`, at `path` in the data directory, is kept without its contents.
    pub(super) fn keeps_empty(&self, name: &[u8], path: &Path) -> bool {
        KEPT_EMPTY.contains(&name) || self.statistics.as_deref() == Some(path)
    }

    /// The directories in `pg_wal` that the server expects to find.
    pub(super) fn wal_directories(&self) -> &'static [&'static str] {
        if self.pg_major >= 17 { &["pg_wal/archive_status", "pg_wal/summaries"] } else { &["pg_wal/archive_status"] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exclusions(pg_major: u32, stats_temp_directory: Option<&str>) -> Exclusions {
        Exclusions::new(pg_major, Path::new("/data"), stats_temp_directory.map(Path::new))
    }

    #[test]
    fn temporary_and_running_state_is_left_out() {
        let exclusions = exclusions(17, None);
        for name in [
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "pgsql_tmp",
            "pgsql_tmp42.0",
            "pg_internal.init",
            "pg_internal.init.4711",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            ".DS_Store",
        ] {
            assert!(exclusions.leaves_out(name.as_bytes()), "{name}");
        }
        for name in [
            "PG_VERSION",
            "postgresql.auto.conf",
            "backup_label.old",
            "tablespace_map.old",
            "current_logfiles",
            "pgsql",
            "pg_control",
            "pg_filenode.map",
            "recovery.signal",
            "standby.signal",
            "postmaster.pid.old",
            "backup_manifest2",
            "",
        ] {
            assert!(!exclusions.leaves_out(name.as_bytes()), "{name}");
        }
        assert!(!self::exclusions(14, None).leaves_out(b".DS_Store"));
    }

    #[test]
    fn the_statistics_directory_of_old_majors_is_kept_empty() {
        for setting in ["/data/stats/tmp", "stats/tmp", "./stats/tmp"] {
            assert!(exclusions(14, Some(setting)).keeps_empty(b"tmp", Path::new("stats/tmp")), "{setting}");
            assert!(!exclusions(15, Some(setting)).keeps_empty(b"tmp", Path::new("stats/tmp")), "{setting}");
        }
        assert!(!exclusions(14, Some("/run/stats/tmp")).keeps_empty(b"tmp", Path::new("stats/tmp")));
        assert!(exclusions(14, None).keeps_empty(b"pg_replslot", Path::new("pg_replslot")));
        assert!(!exclusions(14, None).keeps_empty(b"pg_stat", Path::new("pg_stat")));
    }
}
