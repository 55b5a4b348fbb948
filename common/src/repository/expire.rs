//! `expire/<id>.json`: what one run of `expire` or `delete` removed. Written before anything is, never changed. With these
//! records an interrupted run is finished, a gap in the archive is told from damage, and WAL of abandoned branches is known
//! to be nobody's any more.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::layout::BackupId;
use super::seal::{self, Seal, seal};
use crate::lsn::Lsn;
use crate::wal::segment::{SegmentName, SegmentSize, Timeline};
use crate::wal_object::header::{FORMAT_VERSION, text_or_number};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpireRecord {
    /// The format's version.
    pub walkeep: u32,
    /// Its id.
    pub id: BackupId,
    /// The cluster's system identifier.
    #[serde(with = "text_or_number")]
    pub system_identifier: u64,
    /// When it was written.
    pub created: Timestamp,
    /// The host.
    pub host: String,
    /// The user of that host.
    pub user: String,
    /// The program's version.
    pub version: String,
    /// What was to be kept, by the names of the settings; nothing where a backup was named to be deleted.
    pub policy: BTreeMap<String, u32>,
    /// Backups that were left.
    pub kept: Vec<BackupId>,
    /// Backups that were removed.
    pub removed: Vec<RemovedBackup>,
    /// Backups that were never completed, or could not be read, and were removed.
    pub abandoned: Vec<BackupId>,
    /// Objects that belonged to nothing and were removed.
    pub leftovers: Vec<String>,
    /// WAL that was removed.
    pub wal: Vec<WalRange>,
    /// Objects in all.
    pub objects: u64,
    /// Their stored bytes.
    pub stored_size: u64,
    /// All WAL that was removed up to and with this run.
    pub expired_wal: Vec<WalRange>,
    /// Where the backups began that were removed up to and with this run: per timeline the first.
    pub expired_since: Vec<Covered>,
}

/// A backup that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedBackup {
    /// Its id.
    pub id: BackupId,
    /// The timeline of its start.
    pub timeline: Timeline,
    /// Where it began.
    pub start_lsn: Lsn,
    /// Where it ended.
    pub stop_lsn: Lsn,
    /// When it ended.
    pub stop_time: Timestamp,
}

/// `expire/<id>.done`: the run has ended. Only then is a segment that it removed, and that is gone, known not to be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpireDone {
    /// The format's version.
    pub walkeep: u32,
    /// The record's id.
    pub id: BackupId,
    /// The cluster's system identifier.
    #[serde(with = "text_or_number")]
    pub system_identifier: u64,
    /// When it ended.
    pub finished: Timestamp,
    /// Objects that were deleted.
    pub objects: u64,
    /// Their stored bytes.
    pub stored_size: u64,
    /// Keys that the store did not delete.
    pub refused: Vec<String>,
}

/// Consecutive segments, first and last by their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The first one.
    pub first: String,
    /// The last one.
    pub last: String,
}

/// Where a removed backup began: WAL behind it was kept for it, and is not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Covered {
    /// The timeline.
    pub timeline: Timeline,
    /// The position.
    pub start_lsn: Lsn,
}

/// Consecutive segments of one timeline, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The timeline.
    pub timeline: Timeline,
    /// The first segment's number.
    pub first: u64,
    /// The last segment's number.
    pub last: u64,
}

/// What all runs so far have removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// WAL, by runs that ended.
    pub wal: Vec<Range>,
    /// WAL that runs meant to remove which did not end: what of it is gone was removed, or lost.
    pub pending: Vec<Range>,
    /// Backups that such runs meant to remove, and may be removing now.
    pub being_removed: BTreeSet<BackupId>,
    /// Where removed backups began.
    pub since: Vec<Covered>,
    /// Backups that the newest records removed.
    pub backups: BTreeSet<BackupId>,
    /// Backups that the newest record left.
    pub kept: BTreeSet<BackupId>,
    /// The ids of all records.
    pub records: BTreeSet<BackupId>,
    /// Records that cannot be read, and why.
    pub unreadable: Vec<(String, String)>,
}

impl Expired {
    /// Adds what a newer record says, of a run that ended or not.
    pub fn add(&mut self, record: &ExpireRecord, is_done: bool, size: SegmentSize) {
        let numbers = |ranges: &[WalRange]| ranges.iter().filter_map(|range| range.numbers(size)).collect::<Vec<_>>();
        if is_done {
            self.wal.extend(numbers(&record.expired_wal));
            self.wal = merged(std::mem::take(&mut self.wal));
            // It has carried on what runs before it left open.
            self.pending.clear();
            self.being_removed.clear();
        } else {
            self.being_removed.extend(record.removed.iter().map(|removed| removed.id.clone()));
            self.pending.extend(numbers(&record.wal));
        }
        self.since.extend(&record.expired_since);
        self.since = firsts(std::mem::take(&mut self.since));
        self.backups.extend(record.removed.iter().map(|removed| removed.id.clone()));
        self.kept = record.kept.iter().cloned().collect();
    }
}

impl ExpireDone {
    /// The object's bytes, with their checksum.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map(|json| seal(&json))
    }
}

impl ExpireRecord {
    /// The object's bytes, with their checksum.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map(|json| seal(&json))
    }

    /// Reads the object.
    ///
    /// # Errors
    /// Why it is not what was written.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if seal::check(bytes) != Seal::Intact {
            return Err("it was changed since it was written".to_owned());
        }
        let record: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.walkeep > FORMAT_VERSION {
            return Err(format!("it has format {}, newer than this program reads; upgrade Walkeep", record.walkeep));
        }
        Ok(record)
    }
}

/// The first position of each timeline.
pub fn firsts(mut covered: Vec<Covered>) -> Vec<Covered> {
    covered.sort_unstable();
    covered.dedup_by_key(|covered| covered.timeline);
    covered
}

impl WalRange {
    /// By names.
    pub fn new(range: Range, size: SegmentSize) -> Self {
        let name = |number| SegmentName::new(range.timeline, number, size).to_string();
        Self { first: name(range.first), last: name(range.last) }
    }

    fn numbers(&self, size: SegmentSize) -> Option<Range> {
        let (first, last): (SegmentName, SegmentName) = (self.first.parse().ok()?, self.last.parse().ok()?);
        let range = Range { timeline: first.timeline, first: first.number(size)?, last: last.number(size)? };
        (first.timeline == last.timeline && range.first <= range.last).then_some(range)
    }
}

/// The same ranges, in order, with what touches made one.
pub fn merged(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut merged: Vec<Range> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.timeline == range.timeline && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_add_up_to_what_is_gone() {
        let size = SegmentSize::try_from(1 << 24).unwrap();
        let range = |first: &str, last: &str| WalRange { first: first.to_owned(), last: last.to_owned() };
        let record = |removed: &[WalRange], since: u64| ExpireRecord {
            walkeep: FORMAT_VERSION,
            id: BackupId::new(Timestamp::UNIX_EPOCH, 1),
            system_identifier: 7,
            created: Timestamp::UNIX_EPOCH,
            host: String::new(),
            user: String::new(),
            version: String::new(),
            policy: BTreeMap::from([("keep_full".to_owned(), 1)]),
            kept: Vec::new(),
            removed: Vec::new(),
            abandoned: Vec::new(),
            leftovers: Vec::new(),
            wal: Vec::new(),
            objects: 1,
            stored_size: 1,
            expired_wal: removed.to_vec(),
            expired_since: vec![Covered { timeline: Timeline(1), start_lsn: Lsn(since) }],
        };
        let mut expired = Expired::default();
        let first = record(&[range("000000010000000000000001", "000000010000000000000004")], 50);
        assert_eq!(ExpireRecord::parse(&first.to_bytes().unwrap()), Ok(first.clone()));
        assert!(ExpireRecord::parse(&serde_json::to_vec(&first).unwrap()).is_err(), "without its checksum");
        expired.add(&first, true, size);
        let mut interrupted = record(&[range("000000010000000000000005", "000000010000000000000009")], 60);
        interrupted.wal.clone_from(&interrupted.expired_wal);
        expired.add(&interrupted, false, size);
        assert_eq!(expired.wal, [Range { timeline: Timeline(1), first: 1, last: 4 }]);
        assert_eq!(expired.pending, [Range { timeline: Timeline(1), first: 5, last: 9 }]);
        expired.add(&record(&[range("000000010000000000000005", "000000010000000000000007")], 90), true, size);
        expired.add(&record(&[range("000000020000000000000007", "000000010000000000000009")], 70), true, size);
        assert!(expired.pending.is_empty(), "carried on");
        assert_eq!(expired.wal, [Range { timeline: Timeline(1), first: 1, last: 7 }]);
        assert_eq!(expired.since, [Covered { timeline: Timeline(1), start_lsn: Lsn(50) }]);
    }
}
