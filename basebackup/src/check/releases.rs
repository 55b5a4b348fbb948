//! Releases of PostgreSQL with bugs that reach into backups and WAL archives, and the end of each major's life.

use jiff::Timestamp;
use jiff::civil::{Date, date};

use crate::session::ServerVersion;

/// A bug that a minor release has mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bug {
    major: u32,
    /// The first minor release without it.
    fixed_in: u32,
    /// What it does.
    pub(super) problem: &'static str,
}

const CONTRECORD: &str = "after a crash of the primary, archived WAL may break off in a record that goes on in the next \
                          segment, and recovery stops there";
const CONCURRENTLY: &str =
    "indexes made with CREATE INDEX or REINDEX CONCURRENTLY may be damaged, and are so in every backup";
const VISIBILITY: &str = "not every change of a visibility map is registered in the WAL: incremental backups miss it, and a check \
                          of pages can take it for damage";

/// From the release notes, newest mending first. One entry per major and bug.
const BUGS: [Bug; 5] = [
    Bug { major: 18, fixed_in: 6, problem: VISIBILITY },
    Bug { major: 17, fixed_in: 11, problem: VISIBILITY },
    Bug { major: 14, fixed_in: 4, problem: CONCURRENTLY },
    Bug { major: 14, fixed_in: 1, problem: CONTRECORD },
    Bug { major: 13, fixed_in: 5, problem: CONTRECORD },
];

/// When each major's last minor release came out, or will.
const LAST_RELEASES: [(u32, Date); 7] = [
    (13, date(2025, 11, 13)),
    (14, date(2026, 11, 12)),
    (15, date(2027, 11, 11)),
    (16, date(2028, 11, 9)),
    (17, date(2029, 11, 8)),
    (18, date(2030, 11, 14)),
    (19, date(2031, 11, 13)),
];

impl Bug {
    /// What to do about it.
    pub(super) fn fix(self) -> String {
        format!("Update to PostgreSQL {}.{} or later.", self.major, self.fixed_in)
    }
}

/// The bug of this release that was mended last: whoever updates for it is rid of the others too.
pub(super) fn known_bug(version: ServerVersion) -> Option<Bug> {
    let minor = version.0 % 10_000;
    BUGS.into_iter().find(|bug| bug.major == version.major() && minor < bug.fixed_in)
}

/// Whether this major gets no more fixes.
pub(super) fn is_unsupported(version: ServerVersion, now: Timestamp) -> bool {
    let today = now.to_zoned(jiff::tz::TimeZone::UTC).date();
    LAST_RELEASES.into_iter().any(|(major, last)| major == version.major() && today > last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mended_bug_of_a_release_is_named() {
        for (version, fix) in [
            (17_00_10, Some("Update to PostgreSQL 17.11 or later.")),
            (17_00_11, None),
            (18_00_05, Some("Update to PostgreSQL 18.6 or later.")),
            (14_00_00, Some("Update to PostgreSQL 14.4 or later.")),
            (14_00_04, None),
            (13_00_04, Some("Update to PostgreSQL 13.5 or later.")),
            (15_00_00, None),
        ] {
            assert_eq!(known_bug(ServerVersion(version)).map(Bug::fix).as_deref(), fix, "{version}");
        }
    }

    #[test]
    fn a_majors_life_ends_with_its_last_release() {
        let at = |day: &str| format!("{day}T00:00:00Z").parse::<Timestamp>().unwrap();
        assert!(is_unsupported(ServerVersion(13_00_23), at("2026-01-01")));
        assert!(!is_unsupported(ServerVersion(15_00_18), at("2027-11-11")));
        assert!(is_unsupported(ServerVersion(15_00_18), at("2027-11-12")));
        assert!(!is_unsupported(ServerVersion(20_00_00), at("2027-11-12")));
    }
}
