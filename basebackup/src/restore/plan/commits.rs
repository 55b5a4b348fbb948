//! Where a target lies in the archived WAL: whether a transaction ended behind the time, or a record begins behind the
//! position, for only there recovery stops.
//!
//! Headers of WAL objects say when PostgreSQL last wrote each segment, which brackets where to look; the records of
//! commits and aborts decide.

use std::ops::Range;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::records::{Event, EventKind, InvalidWal, Progress, Walker};
use walkeep_common::wal::segment::{SegmentName, SegmentSize, segment_of, segment_start};
use walkeep_common::wal_archive::WalArchive;

use crate::restore::target::Bound;

/// How many segments are read from one place at most.
pub const MOST_SEGMENTS: u64 = 64;
/// How many bytes of segments are fetched ahead at most.
const FETCHED_AHEAD: u64 = 64 << 20;

/// The end of a transaction in the WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Where its record begins.
    pub lsn: Lsn,
    /// When it ended.
    pub time: Timestamp,
}

/// What the archived WAL says about a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Recovery stops before this transaction's end.
    Stops(TransactionEnd),
    /// Recovery stops before this transaction's end at the latest; the clock was set back, and an earlier one may be
    /// behind the target as well.
    StopsAtLatest(TransactionEnd),
    /// No transaction ended behind the target; this was the last one.
    AfterLast(TransactionEnd),
    /// No transaction ended at all, in none of the segments.
    NothingEnded,
    /// A record begins at the target position or behind it.
    Reached,
    /// No record begins at the target position or behind it; the last one begins here.
    BehindLast(Lsn),
    /// Nothing was found in as many segments as are read.
    Undecided,
    /// The records are those of a PostgreSQL newer than this program.
    UnknownVersion,
}

/// How the reading of segments ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walked {
    /// With the last record that was wanted, which begins here; nothing where none begins in what was read.
    To(Option<Lsn>),
    /// At once: the records are those of a newer PostgreSQL.
    UnknownVersion,
}

/// A stretch of archived WAL along one history.
#[derive(Debug)]
pub struct ArchivedWal<'a> {
    /// Where it is.
    pub archive: &'a WalArchive,
    /// Which segment is on which timeline.
    pub history: &'a TimelineHistory,
    /// The cluster's segment size.
    pub size: SegmentSize,
    /// The numbers of the segments, all archived.
    pub segments: Range<u64>,
}

impl ArchivedWal<'_> {
    /// Looks for the first end of a transaction that recovery to `target` stops at.
    ///
    /// # Errors
    /// `Damaged`, `Refused`, `Unavailable`.
    pub async fn find_time(&self, target: Timestamp, bound: Bound) -> Result<Verdict> {
        let behind = |end: &TransactionEnd| match bound {
            Bound::Inclusive => end.time > target,
            Bound::Exclusive => end.time >= target,
        };
        // A record that begins in one segment and ends in the next needs both.
        let first = self.first_written_after(target).await?;
        let from = first.saturating_sub(1).max(self.segments.start);
        let window = from..self.segments.end.min(from + MOST_SEGMENTS);
        if first < self.segments.end {
            let mut found = None;
            let walked = self.walk(window, |end| {
                found = Some(end).filter(behind);
                found.is_none()
            });
            if walked.await? == Walked::UnknownVersion {
                return Ok(Verdict::UnknownVersion);
            }
            if let Some(found) = found {
                return Ok(Verdict::Stops(found));
            }
        }
        for window in windows_from_end(&self.segments) {
            let mut ends = Vec::new();
            let walked = self.walk(window, |end| {
                ends.push(end);
                true
            });
            if walked.await? == Walked::UnknownVersion {
                return Ok(Verdict::UnknownVersion);
            }
            if let Some(found) = ends.iter().find(|end| behind(end)) {
                return Ok(Verdict::StopsAtLatest(*found));
            }
            if let Some(last) = ends.last() {
                return Ok(Verdict::AfterLast(*last));
            }
        }
        let all_read = self.segments.end - self.segments.start <= MOST_SEGMENTS;
        Ok(if all_read { Verdict::NothingEnded } else { Verdict::Undecided })
    }

    /// Whether a record begins at `target` or behind it, for recovery stops at such a one and fails without. Only the
    /// last segment leaves room for doubt.
    ///
    /// # Errors
    /// As [`ArchivedWal::find_time`].
    pub async fn find_position(&self, target: Lsn) -> Result<Verdict> {
        let last = self.segments.end.saturating_sub(1);
        if segment_of(target, self.size) < last {
            return Ok(Verdict::Reached);
        }
        // A record that begins in the segment before may end in the last one.
        let window = last.saturating_sub(1).max(self.segments.start)..self.segments.end;
        Ok(match self.walk(window, |_| true).await? {
            Walked::To(Some(record)) if record >= target => Verdict::Reached,
            Walked::To(Some(record)) => Verdict::BehindLast(record),
            Walked::To(None) => Verdict::Undecided,
            Walked::UnknownVersion => Verdict::UnknownVersion,
        })
    }

    /// When PostgreSQL last wrote the last segment.
    ///
    /// # Errors
    /// As [`ArchivedWal::find_time`].
    pub async fn last_written(&self) -> Result<Option<Timestamp>> {
        match self.segments.end.checked_sub(1).filter(|number| self.segments.contains(number)) {
            Some(last) => self.written(last).await.map(Some),
            None => Ok(None),
        }
    }

    /// The first segment that was written after `target`, by bisection: the times ascend but for jumps of the clock.
    async fn first_written_after(&self, target: Timestamp) -> Result<u64> {
        let Range { mut start, mut end } = self.segments.clone();
        while start < end {
            let middle = start + (end - start) / 2;
            if self.written(middle).await? > target {
                end = middle;
            } else {
                start = middle + 1;
            }
        }
        Ok(start)
    }

    async fn written(&self, number: u64) -> Result<Timestamp> {
        let name = self.name(number);
        let header = self.archive.header(WalFileName::Segment(name)).await?;
        header.map(|header| header.modified).ok_or_else(|| disappeared(name))
    }

    fn name(&self, number: u64) -> SegmentName {
        self.history.segment_name(number, self.size)
    }

    /// Reads the segments in order and hands on the ends of transactions, as long as `go_on` says so.
    async fn walk(&self, window: Range<u64>, mut go_on: impl FnMut(TransactionEnd) -> bool) -> Result<Walked> {
        let mut walker = Walker::new(segment_start(window.start, self.size));
        let ahead = usize::try_from(FETCHED_AHEAD / self.size.bytes()).unwrap_or(1).clamp(1, 4);
        let mut segments = stream::iter(window).map(|number| self.fetch(number)).buffered(ahead);
        while let Some((name, segment)) = segments.try_next().await? {
            let mut more = true;
            let progress = walker.feed(&segment, |event: Event| {
                if let EventKind::Commit { time, .. } | EventKind::Abort { time, .. } = event.kind {
                    more = more && go_on(TransactionEnd { lsn: event.start, time });
                }
            });
            let progress = match progress {
                Err(InvalidWal::UnknownVersion(_)) => return Ok(Walked::UnknownVersion),
                progress => progress.map_err(|problem| {
                    Error::new(Kind::Damaged, format!("could not read the records of \"{name}\"")).caused_by(problem)
                })?,
            };
            if !more || matches!(progress, Progress::Ended(_)) {
                break;
            }
        }
        Ok(Walked::To(walker.last_record()))
    }

    async fn fetch(&self, number: u64) -> Result<(SegmentName, Vec<u8>)> {
        let name = self.name(number);
        let fetched = self.archive.fetch(WalFileName::Segment(name), || Ok(Vec::new())).await?;
        fetched.map(|fetched| (name, fetched.file)).ok_or_else(|| disappeared(name))
    }
}

fn disappeared(name: SegmentName) -> Error {
    Error::new(Kind::Unavailable, format!("\"{name}\" disappeared from the archive while it was looked at"))
}

/// The last segments, in growing windows, the last window first. Windows share a segment, so that no record that goes
/// on from one into the next is overlooked.
fn windows_from_end(segments: &Range<u64>) -> Vec<Range<u64>> {
    let first = segments.end.saturating_sub(MOST_SEGMENTS).max(segments.start);
    let (mut windows, mut end, mut count) = (Vec::new(), segments.end, 1);
    while end > first {
        let start = end.saturating_sub(count).max(first);
        windows.push(start..(end + 1).min(segments.end));
        (end, count) = (start, count * 2);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_segments_are_read_backwards_in_growing_windows() {
        assert_eq!(windows_from_end(&(3..10)), [9..10, 7..10, 3..8]);
        assert_eq!(windows_from_end(&(3..4)), vec![3..4; 1]);
        assert!(windows_from_end(&(3..3)).is_empty());
        let windows = windows_from_end(&(0..1000));
        assert_eq!((windows[0].clone(), windows.last().unwrap().start), (999..1000, 1000 - MOST_SEGMENTS));
    }
}
