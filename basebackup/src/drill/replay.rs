//! The WAL that a drill's server replays, read along with it: where its records end, and which restore points are in it.
//!
//! PostgreSQL takes whatever it cannot read for the end of the WAL, opens the database there and complains of nothing. And
//! it passes restore points without a word. So a drill reads the same bytes, and compares.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::records::{Event, EventKind, Progress, Walker};
use walkeep_common::wal::segment::{SegmentSize, segment_of, segment_start};

use super::checks::{Outcome, Said};

/// Segments that wait to be read: each takes up space though its file is gone.
const WAITING: usize = 4;

/// Reads segments as they are served.
#[derive(Debug)]
pub(super) struct ReadAlong {
    segments: mpsc::Sender<File>,
    next: u64,
    reading: JoinHandle<Seen>,
}

/// What was found in what was served.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Where the record of each restore point begins.
    pub(super) points: BTreeMap<Vec<u8>, Lsn>,
    /// Where the last record begins.
    pub(super) last_record: Option<Lsn>,
    /// Where it ends.
    pub(super) end: Lsn,
    /// Why nothing follows it, inside a segment.
    pub(super) ended: Option<String>,
    /// Why it cannot be read.
    pub(super) unreadable: Option<String>,
}

impl ReadAlong {
    /// Begins at the segment with this number.
    pub(super) fn start(first: u64, size: SegmentSize) -> Self {
        let (segments, mut waiting) = mpsc::channel::<File>(WAITING);
        let reading = spawn_blocking(move || {
            let mut walker = Walker::new(segment_start(first, size));
            let mut seen = Seen { end: walker.position(), ..Seen::default() };
            let mut bytes = vec![0; usize::try_from(size.bytes()).unwrap_or(0)];
            while let Some(file) = waiting.blocking_recv() {
                if seen.unreadable.is_none() && seen.ended.is_none() {
                    seen.read(&mut walker, &file, &mut bytes);
                }
            }
            seen
        });
        Self { segments, next: first, reading }
    }

    /// Takes a segment that was served, unless it was before.
    pub(super) async fn take(&mut self, number: u64, file: File) {
        if number == self.next {
            self.next += 1;
            // A reader that has ended is noticed at the end.
            let _ = self.segments.send(file).await;
        }
    }

    /// What was found, once everything is read.
    pub(super) async fn finish(self) -> Seen {
        drop(self.segments);
        let failed = |error: tokio::task::JoinError| Seen { unreadable: Some(error.to_string()), ..Seen::default() };
        self.reading.await.unwrap_or_else(failed)
    }
}

impl Seen {
    fn read(&mut self, walker: &mut Walker, file: &File, bytes: &mut [u8]) {
        if let Err(error) = file.read_exact_at(bytes, 0) {
            self.unreadable = Some(error.to_string());
            return;
        }
        let points = &mut self.points;
        let progress = walker.feed(bytes, |Event { start, kind, .. }| {
            if let EventKind::RestorePoint { name, .. } = kind {
                let _ = points.insert(name, start);
            }
        });
        match progress {
            Ok(Progress::Continues) => {}
            Ok(Progress::Ended(end)) => self.ended = Some(end.reason.to_string()),
            Err(error) => self.unreadable = Some(error.to_string()),
        }
        (self.last_record, self.end) = (walker.last_record(), walker.position());
    }

    /// Whether a recovery that goes to the end of the archive came to it: `redo_done` is where the last replayed record
    /// begins, `last` the number of the last archived segment.
    pub(super) fn reaches_the_end(&self, redo_done: Option<Lsn>, last: u64, size: SegmentSize) -> Said {
        let archived = segment_start(last + 1, size);
        let stopped_early = redo_done.is_none() || redo_done < self.last_record;
        match (&self.unreadable, &self.ended) {
            (Some(why), _) if redo_done.is_none_or(|done| segment_of(done, size) < last) => (
                Outcome::Failed,
                format!("PostgreSQL did not come to the last archived segment, and its WAL cannot be read here: {why}"),
            ),
            (Some(_), _) => (Outcome::Passed, "consistent, and replayed to the last archived segment".to_owned()),
            (None, Some(reason)) if segment_of(self.end, size) < last => (
                Outcome::Failed,
                format!("the records end at {}, though WAL is archived up to {archived}: {reason}", self.end),
            ),
            (None, _) if stopped_early && self.last_record.is_some() => {
                let done = redo_done.map_or_else(|| "nothing was replayed".to_owned(), |done| format!("at {done}"));
                (Outcome::Failed, format!("PostgreSQL stopped early ({done}): the records go on to {}", self.end))
            }
            (None, Some(reason)) => (
                Outcome::Warning,
                format!("replayed to {}, where the records end inside the last archived segment: {reason}", self.end),
            ),
            (None, None) if self.end < segment_start(last, size) => (
                Outcome::Failed,
                format!("nothing was asked for after {}, though WAL is archived up to {archived}", self.end),
            ),
            (None, None) => {
                (Outcome::Passed, format!("consistent, and replayed to the end of the archive at {}", self.end))
            }
        }
    }

    /// Whether every restore point was replayed that backups have written between the start of the WAL and its end. Nothing
    /// where there is none.
    pub(super) fn restore_points(&self, backups: &[Backup], way: &Way<'_>) -> Option<Said> {
        let points = backups.iter().filter_map(|backup| Some((backup, backup.restore_point.as_ref()?)));
        let lies_behind = points.filter(|(backup, point)| {
            way.history.passes_through(backup.end_timeline(), point.lsn) && way.from < point.lsn && point.lsn <= way.to
        });
        let names: Vec<&str> = lies_behind.map(|(_, point)| point.name.as_str()).collect();
        if names.is_empty() {
            return None;
        }
        if let Some(why) = &self.unreadable {
            return Some((Outcome::Skipped, format!("the WAL cannot be read here: {why}")));
        }
        let is_replayed = |name: &&str| {
            let start = self.points.get(name.as_bytes());
            start.is_some_and(|start| way.redo_done.is_some_and(|done| *start <= done))
        };
        let (replayed, missing): (Vec<&str>, Vec<&str>) = names.into_iter().partition(is_replayed);
        Some(if missing.is_empty() {
            (Outcome::Passed, format!("replayed what backups have written: {}", replayed.join(", ")))
        } else {
            (Outcome::Failed, format!("not in the WAL that was replayed: {}", missing.join(", ")))
        })
    }
}

/// The WAL along which a recovery went.
#[derive(Debug)]
pub(super) struct Way<'w> {
    pub(super) history: &'w TimelineHistory,
    /// Where it began.
    pub(super) from: Lsn,
    /// Where it must have come.
    pub(super) to: Lsn,
    /// Where the last replayed record begins.
    pub(super) redo_done: Option<Lsn>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size() -> SegmentSize {
        SegmentSize::try_from(1 << 20).unwrap()
    }

    #[test]
    fn an_end_before_the_last_segment_is_no_end() {
        let seen = |end: u64, ended: Option<&str>| Seen {
            last_record: Some(Lsn(end - 0x20)),
            end: Lsn(end),
            ended: ended.map(str::to_owned),
            ..Seen::default()
        };
        let outcome = |seen: &Seen, done: u64| seen.reaches_the_end(Some(Lsn(done)), 5, size()).0;
        // Everything up to the end of segment 5.
        let whole = seen(0x60_0000, None);
        assert_eq!(outcome(&whole, 0x5F_FFE0), Outcome::Passed);
        assert_eq!(outcome(&whole, 0x5F_0000), Outcome::Failed);
        assert_eq!(whole.reaches_the_end(None, 5, size()).0, Outcome::Failed);
        // A segment before has zeros in it.
        assert_eq!(outcome(&seen(0x48_0000, Some("zeros")), 0x47_FFE0), Outcome::Failed);
        // The last one has.
        assert_eq!(outcome(&seen(0x58_0000, Some("zeros")), 0x57_FFE0), Outcome::Warning);
        // The last segments were never asked for.
        assert_eq!(outcome(&seen(0x40_0000, None), 0x3F_FFE0), Outcome::Failed);
        // Bytes that cannot be read are judged by the segment that was reached.
        let unreadable = Seen { unreadable: Some("magic".to_owned()), ..Seen::default() };
        assert_eq!(outcome(&unreadable, 0x50_0028), Outcome::Passed);
        assert_eq!(outcome(&unreadable, 0x4F_0028), Outcome::Failed);
    }
}
