//! PostgreSQL's own list of a backup's files, `backup_manifest`.
//!
//! Written as the server of the same major writes it (src/backend/backup/backup_manifest.c), so that pg_verifybackup
//! and pg_combinebackup take it, and read as strictly: every file in it is something a restore creates or checks. Only
//! one entry is held at a time, whatever the size of the database.

mod line;
mod read;
mod replace;
mod write;

use std::io;
use std::path::PathBuf;

use walkeep_common::lsn::Lsn;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::segment::Timeline;

pub use self::read::ManifestReader;
pub use self::replace::replace_file;
pub use self::write::ManifestWriter;
use super::checksum::Checksum;

const FILES: &str = "\"Files\": [";
const WAL_RANGES: &str = "\"WAL-Ranges\": [";
const END_OF_LIST: &str = "],";

/// The entry of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Path relative to the data directory; a tablespace's files are below `pg_tblspc/<oid>`.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last modification, in seconds since 1970 (UTC).
    pub modified: i64,
    /// Checksum of the contents.
    pub checksum: Checksum,
}

/// WAL of one timeline that recovery from the backup must replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: Timeline,
    /// Its first position.
    pub start: Lsn,
    /// The position after its last.
    pub end: Lsn,
}

/// The bytes are not a backup manifest, or not an intact one.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The source or the destination failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not what must stand there.
    #[error("invalid backup manifest: line {number}: {problem}")]
    Line {
        /// Counted from 1.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// It ends before its end.
    #[error("invalid backup manifest: it ends after line {0}")]
    Truncated(u64),
    /// Its bytes are not those its checksum was computed of.
    #[error("invalid backup manifest: its checksum does not match")]
    Checksum,
    /// The file whose entry was to be replaced is not listed.
    #[error("the backup manifest does not list \"{0}\"")]
    NotListed(PathBuf),
}

/// The start and end of a backup do not lie on one history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a backup from {start} on timeline {start_timeline} to {end} does not lie on the history of timeline {timeline}"
)]
pub struct InvalidRanges {
    start: Lsn,
    start_timeline: Timeline,
    end: Lsn,
    timeline: Timeline,
}

/// The WAL a backup needs, newest timeline first (`AddWALInfoToBackupManifest`). `history` is that of the timeline the
/// backup ended on.
pub fn wal_ranges(
    history: &TimelineHistory,
    start_timeline: Timeline,
    start: Lsn,
    end: Lsn,
) -> Result<Vec<WalRange>, InvalidRanges> {
    let invalid = || InvalidRanges { start, start_timeline, end, timeline: history.timeline() };
    let mut ranges = Vec::new();
    let mut range_end = end;
    // Each timeline begins where the one before it was left.
    let newest_first = history.ancestors().iter().rev().map(|ancestor| (ancestor.timeline, ancestor.switch_point));
    let mut timeline = history.timeline();
    for (parent, begin) in newest_first.take_while(|(parent, _)| *parent >= start_timeline) {
        if begin > range_end {
            return Err(invalid());
        }
        ranges.push(WalRange { timeline, start: begin, end: range_end });
        (timeline, range_end) = (parent, begin);
    }
    if timeline != start_timeline || start > range_end {
        return Err(invalid());
    }
    ranges.push(WalRange { timeline, start, end: range_end });
    Ok(ranges)
}

#[cfg(test)]
mod tests;
