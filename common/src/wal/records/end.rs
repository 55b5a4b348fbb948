//! Where a log ends and why, and which bytes are no part of it.

use super::page::PAGE_BYTES;
use crate::lsn::Lsn;
use crate::wal::header::InvalidHeader;
use crate::wal::segment::Timeline;

/// Where a log ends, in the bytes at hand, and what was found there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no valid WAL record after {lsn}: {reason}")]
pub struct EndOfWal {
    /// The end of the last valid record.
    pub lsn: Lsn,
    /// What was found instead of another record.
    pub reason: Reason,
}

/// Why there is no further record. In a segment that the server filled to its end every one of these is damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The bytes end inside a page header.
    #[error("page is cut short")]
    ShortPage,
    /// Zeros, or no page of this major.
    #[error("invalid magic number {magic:04X} in the page at {address}")]
    Magic {
        /// Where the page lies.
        address: Lsn,
        /// `xlp_magic` as found.
        magic: u16,
    },
    /// Flags that no page at this place can have.
    #[error("invalid info bits {flags:04X} in the page at {address}")]
    Flags {
        /// Where the page lies.
        address: Lsn,
        /// `xlp_info` as found.
        flags: u16,
    },
    /// A page of another place: the file was recycled, and not written so far.
    #[error("unexpected page address {found} in the page at {address}")]
    Address {
        /// Where the page lies.
        address: Lsn,
        /// `xlp_pageaddr` as found.
        found: Lsn,
    },
    /// Timelines never go backwards along a log.
    #[error("out-of-sequence timeline {found} (after {before}) in the page at {address}")]
    Timeline {
        /// Where the page lies.
        address: Lsn,
        /// `xlp_tli` of the page before.
        before: Timeline,
        /// `xlp_tli` as found.
        found: Timeline,
    },
    /// The page begins with the rest of a record, or of another one than was begun, or does not though one was begun.
    #[error("the page at {address} does not continue the log before it")]
    Continuation {
        /// Where the page lies.
        address: Lsn,
    },
    /// Shorter than a record header: zeros, in the last segment of a running server.
    #[error("invalid record length at {start}")]
    Length {
        /// Where the record begins.
        start: Lsn,
    },
    /// The record does not follow the one before: it is left from an earlier use of the file.
    #[error("incorrect prev-link {found} in the record at {start}")]
    PreviousLink {
        /// Where the record begins.
        start: Lsn,
        /// `xl_prev` as found.
        found: Lsn,
    },
    /// The record was not written to its end, or was damaged later.
    #[error("incorrect checksum of the record at {start}")]
    Checksum {
        /// Where the record begins.
        start: Lsn,
    },
    /// The checksum is right, but the parts do not add up.
    #[error("invalid contents of the record at {start}")]
    Contents {
        /// Where the record begins.
        start: Lsn,
    },
}

/// The bytes are not the segment that comes next. The walker is as before, and takes the right one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWal {
    /// They are no segment at all.
    #[error(transparent)]
    Header(#[from] InvalidHeader),
    /// They were written by a PostgreSQL newer than this program, whose records it cannot read.
    #[error("unknown page magic {0:04X}: records of this PostgreSQL version cannot be read")]
    UnknownVersion(u16),
    /// They are another part of the log.
    #[error("it starts at {found}, expected the segment that starts at {expected}")]
    NotNext {
        /// Where the next segment starts.
        expected: Lsn,
        /// Where this one starts.
        found: Lsn,
    },
    /// They come from another cluster, another major, or one with another segment size than the segments before.
    #[error("it belongs to another log than the segments before it")]
    OtherLog,
    /// The server was built with another `XLOG_BLCKSZ`, whose pages cannot be read.
    #[error("it has WAL pages of {0} bytes, expected {PAGE_BYTES}")]
    PageSize(usize),
    /// They are not one whole segment.
    #[error("it has {found} bytes, expected a whole segment of {expected}")]
    Size {
        /// The segment size in the header.
        expected: u64,
        /// How many bytes there are.
        found: usize,
    },
}
