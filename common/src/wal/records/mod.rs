//! The records in a chain of WAL segments: when transactions ended, where restore points are, where the log ends.
//!
//! Follows `XLogDecodeNextRecord` and `XLogFindNextRecord` (src/backend/access/transam/xlogreader.c), PostgreSQL 13 to
//! 19: where recovery would find no further record, [`Walker`] finds none. Checksums of records are verified; what they
//! do to blocks is not looked at. Pure: segments in, events out.

mod end;
mod event;
mod page;
mod record;
mod tablespace;
#[cfg(test)]
mod tests;

pub use self::end::{EndOfWal, InvalidWal, Reason};
pub use self::event::{Event, EventKind};
pub use self::tablespace::{CreatedTablespace, SpansSegments, keep_tablespaces_in_place};

use self::page::{PAGE_BYTES, Page, PageFormat, PageHeader};
use self::record::{HEADER_BYTES, Operation, Record};
use super::header::SegmentHeader;
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

    /// The end of the last record read. Before there is one, it is where the first one begins, or the start of the first
    /// segment as long as that is not known.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Where the last record read begins; nothing before there is one.
    pub fn last_record(&self) -> Option<Lsn> {
        self.previous
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
            let page = Page { address: start.saturating_add((number * PAGE_BYTES) as u64), bytes: page };
            if let Err(reason) = self.read_page(&log, page, &mut on_event) {
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

    fn read_page(&mut self, log: &Log, page: Page<'_>, on_event: &mut impl FnMut(Event)) -> Result<(), Reason> {
        let first_of_segment = page.address.0.is_multiple_of(log.segment_size.bytes());
        let header = PageHeader::parse(page, log.format, first_of_segment)?;
        if header.timeline < self.timeline {
            let (address, before, found) = (page.address, self.timeline, header.timeline);
            return Err(Reason::Timeline { address, before, found });
        }
        self.timeline = header.timeline;
        match self.finish_record(log, page, header, on_event)? {
            Some(offset) => self.read_records(log, page, offset, on_event),
            None => Ok(()),
        }
    }

    /// Reads the rest of the record that an earlier page began. Returns where the next record begins in the page;
    /// nothing if this one goes on behind it.
    fn finish_record(
        &mut self,
        log: &Log,
        page: Page<'_>,
        header: PageHeader,
        on_event: &mut impl FnMut(Event),
    ) -> Result<Option<usize>, Reason> {
        let contents = page.bytes.get(header.bytes..).ok_or(Reason::ShortPage)?;
        let continuation = header.continuation.map(|bytes| bytes as usize);
        let no_continuation = Reason::Continuation { address: page.address };
        match std::mem::replace(&mut self.state, State::BetweenRecords) {
            State::Unaligned => {
                let passed_over = align(continuation.unwrap_or(0).min(contents.len()));
                if passed_over == contents.len() {
                    self.state = State::Unaligned;
                    return Ok(None);
                }
                self.position = page.lsn(header.bytes + passed_over);
                Ok(Some(header.bytes + passed_over))
            }
            State::BetweenRecords if continuation.is_some() => Err(no_continuation),
            State::BetweenRecords => Ok(Some(header.bytes)),
            // A crash cut the record short, and the server went on in this page (`CreateOverwriteContrecordRecord`).
            State::InsideRecord(_) if header.overwrites => Ok(Some(header.bytes)),
            State::InsideRecord(mut partial) => {
                let missing = partial.total_bytes - partial.bytes.len();
                if continuation != Some(missing) {
                    return Err(no_continuation);
                }
                let Some(rest) = contents.get(..missing) else {
                    partial.bytes.extend_from_slice(contents);
                    self.state = State::InsideRecord(partial);
                    return Ok(None);
                };
                partial.bytes.extend_from_slice(rest);
                let next = header.bytes + align(missing);
                self.read_record(log, &partial.bytes, partial.start, page.lsn(next), on_event)?;
                Ok(Some(next))
            }
            State::Ended(reason) => Err(reason),
        }
    }

    /// Reads the records that begin in the page, from `offset` on.
    fn read_records(
        &mut self,
        log: &Log,
        page: Page<'_>,
        mut offset: usize,
        on_event: &mut impl FnMut(Event),
    ) -> Result<(), Reason> {
        while offset < page.bytes.len() && self.position < self.next_segment {
            let start = page.lsn(offset);
            let rest = page.bytes.get(offset..).unwrap_or_default();
            let total_bytes =
                record::total_length(rest).filter(|&length| length >= HEADER_BYTES).ok_or(Reason::Length { start })?;
            self.check_previous(rest, start)?;
            let Some(record) = rest.get(..total_bytes) else {
                self.state = State::InsideRecord(PartialRecord { start, total_bytes, bytes: rest.to_vec() });
                return Ok(());
            };
            offset += align(total_bytes);
            self.read_record(log, record, start, page.lsn(offset), on_event)?;
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
