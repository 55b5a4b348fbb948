//! The records that recovery can stop at, and what they say.
//!
//! Mirrors `recoveryStopsBefore` and `recoveryStopsAfter` (src/backend/access/transam/xlogrecovery.c; xlog.c before 15).

use jiff::Timestamp;

use super::record::{Operation, Record};
use super::{Reason, take};
use crate::lsn::Lsn;

/// A record of interest, and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Where the record begins.
    pub start: Lsn,
    /// Where it ends, rounded up to a multiple of 8: replay up to here has seen it.
    pub end: Lsn,
    /// What it says.
    pub kind: EventKind,
}

/// What a record of interest says.
///
/// Times are those of the server's clock, which can go backwards: they need not ascend along the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A transaction, prepared or not, was committed.
    Commit {
        /// What `recovery_target_xid` compares: the committed transaction, not the one that ran COMMIT PREPARED.
        xid: u32,
        /// What `recovery_target_time` compares.
        time: Timestamp,
    },
    /// A transaction, prepared or not, was rolled back. A recovery target can be an abort as well.
    Abort {
        /// As for a commit.
        xid: u32,
        /// As for a commit.
        time: Timestamp,
    },
    /// `pg_create_restore_point` was called.
    RestorePoint {
        /// What `recovery_target_name` compares, in the encoding of the database that the function was called in.
        name: Vec<u8>,
        /// When; no recovery target compares it.
        time: Timestamp,
    },
    /// A base backup of a primary was stopped: it is consistent from here on.
    BackupEnd {
        /// The backup's start position.
        start: Lsn,
    },
}

impl EventKind {
    /// What the record that begins at `start` says, if it is one of these.
    pub(super) fn of(record: &Record<'_>, start: Lsn, pg_major: u32) -> Result<Option<Self>, Reason> {
        let kind = match record.operation() {
            Operation::BackupEnd => backup_end(record.main_data),
            Operation::RestorePoint => restore_point(record.main_data),
            Operation::Commit => transaction_end(record, pg_major).map(|(xid, time)| Self::Commit { xid, time }),
            Operation::Abort => transaction_end(record, pg_major).map(|(xid, time)| Self::Abort { xid, time }),
            Operation::SegmentSwitch | Operation::CreateTablespace | Operation::Other => return Ok(None),
        };
        kind.map(Some).ok_or(Reason::Contents { start })
    }
}

/// `XLOG_BACKUP_END`
fn backup_end(mut data: &[u8]) -> Option<EventKind> {
    Some(EventKind::BackupEnd { start: Lsn(u64::from_le_bytes(take(&mut data)?)) })
}

/// `xl_restore_point` (`src/include/access/xlog_internal.h`)
fn restore_point(mut data: &[u8]) -> Option<EventKind> {
    let time = timestamp(i64::from_le_bytes(take(&mut data)?));
    let name = data.split(|&byte| byte == 0).next()?.to_vec();
    Some(EventKind::RestorePoint { name, time })
}

/// The transaction that a commit or abort record ends, and when (`ParseCommitRecord` and `ParseAbortRecord`,
/// src/backend/access/rmgrdesc/xactdesc.c). The parts come in one order in all majors; those a major does not know
/// are never flagged.
fn transaction_end(record: &Record<'_>, pg_major: u32) -> Option<(u32, Timestamp)> {
    const HAS_INFO: u8 = 0x80;
    const HAS_DATABASE: u32 = 1;
    const HAS_TWO_PHASE: u32 = 1 << 4;

    let mut data = record.main_data;
    let time = timestamp(i64::from_le_bytes(take(&mut data)?));
    if record.info & HAS_INFO == 0 {
        return Some((record.xid, time));
    }
    let parts = u32::from_le_bytes(take(&mut data)?);
    if parts & HAS_TWO_PHASE == 0 {
        return Some((record.xid, time));
    }
    if parts & HAS_DATABASE != 0 {
        let _database_and_tablespace: [u8; 8] = take(&mut data)?;
    }
    // Arrays, each behind its count: subtransactions, relations dropped, statistics dropped (15 and later; 18 widened
    // their keys), cache invalidations (commits alone have them).
    let statistics_bytes = if pg_major >= 18 { 16 } else { 12 };
    for (flag, element_bytes) in [(1 << 1, 4), (1 << 2, 12), (1 << 8, statistics_bytes), (1 << 3, 16)] {
        if parts & flag != 0 {
            let count = usize::try_from(u32::from_le_bytes(take(&mut data)?)).ok()?;
            data = data.get(count.checked_mul(element_bytes)?..)?;
        }
    }
    Some((u32::from_le_bytes(take(&mut data)?), time))
}

/// A `TimestampTz`: microseconds since 2000-01-01 00:00 UTC. Times beyond the year 9999, which PostgreSQL allows, become
/// the last one there is.
fn timestamp(microseconds: i64) -> Timestamp {
    const UNIX_MICROSECONDS_AT_2000: i64 = 946_684_800_000_000;
    let clamped = if microseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    let since_1970 = microseconds.checked_add(UNIX_MICROSECONDS_AT_2000);
    since_1970.and_then(|unix| Timestamp::from_microsecond(unix).ok()).unwrap_or(clamped)
}
