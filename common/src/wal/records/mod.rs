//! The records in a chain of WAL segments: when transactions ended, where restore points are, where the log ends.
//!
//! Follows `XLogDecodeNextRecord` and `XLogFindNextRecord` (src/backend/access/transam/xlogreader.c), PostgreSQL 13 to
//! 19: where recovery would find no further record, [`Walker`] finds none. Checksums of records are verified; what they
//! do to blocks is not looked at. Pure: segments in, events out.

mod event;
mod page;
mod record;
#[cfg(test)]
mod tests;

pub use event::{Event, EventKind};

use self::page::{PAGE_BYTES, PageFormat, PageHeader};
use self::record::{HEADER_BYTES, Operation, Record};
use super::header::{InvalidHeader, SegmentHeader};
use super::segment::{SegmentSize, Timeline};
use crate::lsn::Lsn;

/// Reads the records of consecutive segments.
///
/// A record may begin in one segment and end in a later one. The first segment may begin inside a record, which is then
/// passed over. Memory: the part of the record at hand that lies in segments fed before.
#[derive(Debug)]
pub struct Walker {
    next_segment: Lsn,
    position: Lsn,
    previous: Option<Lsn>,
    timeline: Timeline,
    log: Option<Log>,
    state: State,
}

/// What all segments of one log have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Log {
    format: PageFormat,
    system_identifier: u64,
    segment_size: SegmentSize,
}

/// What the next page begins with.
#[derive(Debug)]
enum State {
    /// Possibly the rest of a record that began before the first segment.
    Unaligned,
    /// A record.
    BetweenRecords,
    /// The rest of this record.
    InsideRecord(PartialRecord),
    /// Nothing: the log ended.
    Ended(Reason),
}

/// A record that began on an earlier page.
#[derive(Debug)]
struct PartialRecord {
    start: Lsn,
    total_bytes: usize,
    bytes: Vec<u8>,
}

/// How far a segment could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Every record that ends in the segment was read. The log may go on in the next one.
    Continues,
    /// The log ends inside the segment.
    Ended(EndOfWal),
}

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

impl Walker {
    /// Starts at the beginning of the segment that starts at `start`.
    pub fn new(start: Lsn) -> Self {
        Self {
            next_segment: start,
            position: start,
            previous: None,
            timeline: Timeline(0),
            log: None,
            state: State::Unaligned,
        }
    }

    /// The end of the last record read: everything before is valid. It is the start of the first segment until a record
    /// was met.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Reads the next segment, whole, and calls `on_event` for each record of interest that ends in it. Once the log has
    /// ended, it stays so whatever is fed.
    ///
    /// # Errors
    /// The bytes are not the next segment of this log; the right one can still be fed.
    pub fn feed(&mut self, segment: &[u8], mut on_event: impl FnMut(Event)) -> Result<Progress, InvalidWal> {
        if let State::Ended(reason) = self.state {
            return Ok(Progress::Ended(EndOfWal { lsn: self.position, reason }));
        }
        let log = self.check_segment(segment)?;
        self.log = Some(log);
        let start = self.next_segment;
        self.next_segment = start.saturating_add(log.segment_size.bytes());
        for (number, page) in segment.chunks_exact(PAGE_BYTES).enumerate() {
            let address = start.saturating_add((number * PAGE_BYTES) as u64);
            if let Err(reason) = self.read_page(&log, address, page, &mut on_event) {
                self.state = State::Ended(reason);
                return Ok(Progress::Ended(EndOfWal { lsn: self.position, reason }));
            }
            if self.position >= self.next_segment {
                // After a forced switch the rest of the segment means nothing.
                break;
            }
        }
        Ok(Progress::Continues)
    }

    fn check_segment(&self, segment: &[u8]) -> Result<Log, InvalidWal> {
        let header = SegmentHeader::parse(segment)?;
        let pg_major = header.pg_major.ok_or(InvalidWal::UnknownVersion(header.magic))?;
        let log = Log {
            format: PageFormat { magic: header.magic, pg_major },
            system_identifier: header.system_identifier,
            segment_size: header.segment_size,
        };
        if self.log.is_some_and(|before| before != log) {
            return Err(InvalidWal::OtherLog);
        }
        if header.page_address != self.next_segment {
            return Err(InvalidWal::NotNext { expected: self.next_segment, found: header.page_address });
        }
        let page_bytes = page::page_bytes(segment);
        if page_bytes != Some(PAGE_BYTES) {
            return Err(InvalidWal::PageSize(page_bytes.unwrap_or(0)));
        }
        let expected = log.segment_size.bytes();
        if segment.len() as u64 != expected {
            return Err(InvalidWal::Size { expected, found: segment.len() });
        }
        Ok(log)
    }

    fn read_page(
        &mut self,
        log: &Log,
        address: Lsn,
        page: &[u8],
        on_event: &mut impl FnMut(Event),
    ) -> Result<(), Reason> {
        let first_of_segment = address.0.is_multiple_of(log.segment_size.bytes());
        let header = PageHeader::parse(page, log.format, address, first_of_segment)?;
        if header.timeline < self.timeline {
            return Err(Reason::Timeline { address, before: self.timeline, found: header.timeline });
        }
        self.timeline = header.timeline;
        let Some(first_record) = self.finish_record(log, address, page, header, on_event)? else { return Ok(()) };
        self.read_records(log, address, page, first_record, on_event)
    }

    /// Reads the rest of the record that an earlier page began. Returns where the next record begins in the page;
    /// nothing if this one fills it.
    fn finish_record(
        &mut self,
        log: &Log,
        address: Lsn,
        page: &[u8],
        header: PageHeader,
        on_event: &mut impl FnMut(Event),
    ) -> Result<Option<usize>, Reason> {
        let contents = page.get(header.bytes..).ok_or(Reason::ShortPage)?;
        match std::mem::replace(&mut self.state, State::BetweenRecords) {
            State::Unaligned => {
                let passed_over = header.continuation.map_or(0, |length| align(length as usize));
                if passed_over >= contents.len() {
                    self.state = State::Unaligned;
                    return Ok(None);
                }
                self.position = address.saturating_add((header.bytes + passed_over) as u64);
                Ok(Some(header.bytes + passed_over))
            }
            State::BetweenRecords if header.continuation.is_some() => Err(Reason::Continuation { address }),
            State::BetweenRecords => Ok(Some(header.bytes)),
            // A crash cut the record short, and the server went on in this page (`CreateOverwriteContrecordRecord`).
            State::InsideRecord(_) if header.overwrites => Ok(Some(header.bytes)),
            State::InsideRecord(mut partial) => {
                let missing = partial.total_bytes - partial.bytes.len();
                if header.continuation.map(|length| length as usize) != Some(missing) {
                    return Err(Reason::Continuation { address });
                }
                let Some(rest) = contents.get(..missing) else {
                    partial.bytes.extend_from_slice(contents);
                    self.state = State::InsideRecord(partial);
                    return Ok(None);
                };
                partial.bytes.extend_from_slice(rest);
                let next = header.bytes + align(missing);
                self.read_record(log, &partial.bytes, partial.start, address.saturating_add(next as u64), on_event)?;
                Ok(Some(next))
            }
            State::Ended(reason) => Err(reason),
        }
    }

    /// Reads the records that begin in the page, from `offset` on.
    fn read_records(
        &mut self,
        log: &Log,
        address: Lsn,
        page: &[u8],
        mut offset: usize,
        on_event: &mut impl FnMut(Event),
    ) -> Result<(), Reason> {
        while let Some(rest) = page.get(offset..).filter(|rest| !rest.is_empty() && self.position < self.next_segment) {
            let start = address.saturating_add(offset as u64);
            let total_bytes =
                record::total_length(rest).filter(|&length| length >= HEADER_BYTES).ok_or(Reason::Length { start })?;
            self.check_previous(rest, start)?;
            let Some(record) = rest.get(..total_bytes) else {
                self.state = State::InsideRecord(PartialRecord { start, total_bytes, bytes: rest.to_vec() });
                return Ok(());
            };
            offset += align(total_bytes);
            self.read_record(log, record, start, address.saturating_add(offset as u64), on_event)?;
        }
        Ok(())
    }

    fn read_record(
        &mut self,
        log: &Log,
        bytes: &[u8],
        start: Lsn,
        end: Lsn,
        on_event: &mut impl FnMut(Event),
    ) -> Result<(), Reason> {
        // Not checked before where the header itself crossed into this page.
        self.check_previous(bytes, start)?;
        let record = Record::parse(bytes, start, log.format.pg_major)?;
        let kind = EventKind::of(&record, start, log.format.pg_major)?;
        self.previous = Some(start);
        self.position = if record.operation() == Operation::SegmentSwitch { self.next_segment } else { end };
        if let Some(kind) = kind {
            on_event(Event { start, end, kind });
        }
        Ok(())
    }

    /// The first record read has nothing to be compared with, but follows something.
    fn check_previous(&self, start_of_record: &[u8], start: Lsn) -> Result<(), Reason> {
        match record::previous(start_of_record) {
            Some(found) if self.previous.map_or(found >= start, |expected| found != expected) => {
                Err(Reason::PreviousLink { start, found })
            }
            _ => Ok(()),
        }
    }
}

/// Records begin at multiples of 8 (`MAXALIGN`).
fn align(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

/// Takes the next bytes off the front, if there are as many.
fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}
