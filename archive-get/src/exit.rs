//! What PostgreSQL is told, by who asks.
//!
//! A recovering server takes 1 to 125 for the end of WAL and opens the database; anything above stops it. On a standby
//! the former makes it look elsewhere and ask again, the latter takes it down (`RestoreArchivedFile`,
//! src/backend/access/transam/xlogarchive.c). So the same failure needs another code on each.

use std::path::Path;

use walkeep_common::config::StandbyOutage;
use walkeep_common::error::Kind;

/// Fetched.
pub(crate) const DONE: u8 = 0;
/// Certainly not in the archive.
pub(crate) const NOT_ARCHIVED: u8 = 1;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A standby, or a program or person without a server.
    Standby,
    /// A server in archive recovery: it must not come to an early end.
    Recovery,
}

impl Asker {
    /// From the signal files in the data directory, which is the working directory.
    pub(crate) fn find(data_directory: &Path, name: &str, path: &Path) -> Self {
        let server = if is_by_hand(name, path) { None } else { signal(data_directory) };
        if server == Some(Signal::Recovery) { Self::Recovery } else { Self::Standby }
    }

    /// The exit code of a failure.
    pub(crate) fn code(self, kind: Kind, outage: StandbyOutage) -> u8 {
        let (standby, recovery) = match kind {
            Kind::NotFound => (NOT_ARCHIVED, NOT_ARCHIVED),
            Kind::Unavailable | Kind::Missing | Kind::Internal => (101, 201),
            Kind::Hole => (102, 202),
            Kind::Damaged => (103, 203),
            Kind::Usage | Kind::Refused | Kind::Conflict | Kind::Invalid => (104, 204),
        };
        let fatal = kind == Kind::Unavailable && outage == StandbyOutage::Fatal;
        if self == Self::Recovery || fatal { recovery } else { standby }
    }
}

/// What a server was told to do by the file it finds in its data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// `standby.signal`: follow another server, or the archive, until promoted.
    Standby,
    /// `recovery.signal`: recover up to a target, or to the end of the archive, and open.
    Recovery,
}

/// The signal file in a data directory; nothing outside of archive recovery. `standby.signal` wins, as in PostgreSQL.
pub(crate) fn signal(data_directory: &Path) -> Option<Signal> {
    let there = |name: &str| data_directory.join(name).symlink_metadata().is_ok();
    if there("standby.signal") {
        return Some(Signal::Standby);
    }
    there("recovery.signal").then_some(Signal::Recovery)
}

/// Whether a file is asked for under its own name, as pg_rewind and people do; a server asks for `RECOVERYXLOG`.
pub(crate) fn is_by_hand(name: &str, path: &Path) -> bool {
    path.file_name().is_some_and(|file| file == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recovering_server_is_never_told_a_code_it_takes_for_the_end_of_wal() {
        for kind in [
            Kind::Usage,
            Kind::Refused,
            Kind::Conflict,
            Kind::Damaged,
            Kind::Invalid,
            Kind::Hole,
            Kind::Unavailable,
            Kind::Missing,
            Kind::Internal,
        ] {
            assert!(Asker::Recovery.code(kind, StandbyOutage::Retry) > 200, "{kind:?}");
            let standby = Asker::Standby.code(kind, StandbyOutage::Retry);
            assert!((101..=104).contains(&standby), "{kind:?}: the standby must stay up");
        }
        assert_eq!(Asker::Standby.code(Kind::Unavailable, StandbyOutage::Fatal), 201);
        assert_eq!(Asker::Recovery.code(Kind::NotFound, StandbyOutage::Retry), 1);
    }

    #[test]
    fn the_signal_files_say_who_asks() {
        let directory = tempfile::tempdir().unwrap();
        let (name, asked) = ("000000010000000000000001", Path::new("pg_wal/RECOVERYXLOG"));
        assert_eq!(Asker::find(directory.path(), name, asked), Asker::Standby);
        std::fs::write(directory.path().join("recovery.signal"), "").unwrap();
        assert_eq!(Asker::find(directory.path(), name, asked), Asker::Recovery);
        assert_eq!(Asker::find(directory.path(), name, &Path::new("/x").join(name)), Asker::Standby);
        std::fs::write(directory.path().join("standby.signal"), "").unwrap();
        assert_eq!(Asker::find(directory.path(), name, asked), Asker::Standby);
    }
}
