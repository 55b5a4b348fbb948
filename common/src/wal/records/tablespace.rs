//! CREATE TABLESPACE in the write-ahead log, turned into one inside the data directory.
//!
//! The record holds the directory as it was on the server, and replaying it makes and fills that very directory: on a host
//! where the server itself runs, a copy that recovers would write into the server's files. An empty name in its place means
//! a directory in `pg_tblspc` itself (`create_tablespace_directories`, src/backend/commands/tablespace.c; since 15, and
//! 14.5 and 13.8).

use std::ops::Range;

use super::page::{PAGE_BYTES, SHORT_HEADER_BYTES};
use super::record::{CRC_AT, HEADER_BYTES, Operation, Record, previous, total_length};
use crate::lsn::Lsn;
use crate::wal::header::LONG_HEADER_BYTES;

/// Records begin at multiples of this (`MAXALIGN`).
const ALIGNMENT: usize = 8;
/// The shortest record: its header, that of its data, an object identifier, and the end of an empty name.
const SHORTEST: usize = HEADER_BYTES + 2 + 4 + 1;
/// The longest: with the long header of its data, an origin, a transaction, and a name of `MAXPGPATH` bytes.
const LONGEST: usize = HEADER_BYTES + 5 + 3 + 5 + 4 + 1024;

/// A tablespace that a record creates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedTablespace {
    /// Its object identifier.
    pub oid: u32,
    /// Its directory on the server.
    pub location: Vec<u8>,
}

/// Such a record goes on in the next segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record at {0} may create a tablespace and goes on in the next segment")]
pub struct SpansSegments(pub Lsn);

/// Looks through a whole segment, which begins at `start`, for records that create tablespaces, and empties the names of
/// their directories. Returns what they were.
///
/// # Errors
/// If a record cannot be changed without the next segment.
pub fn keep_tablespaces_in_place(
    segment: &mut [u8],
    start: Lsn,
    pg_major: u32,
) -> Result<Vec<CreatedTablespace>, SpansSegments> {
    let mut created = Vec::new();
    for at in (LONG_HEADER_BYTES..segment.len().saturating_sub(ALIGNMENT)).step_by(ALIGNMENT) {
        // Records begin behind the headers of pages.
        if at % PAGE_BYTES < SHORT_HEADER_BYTES {
            continue;
        }
        let lsn = start.saturating_add(at as u64);
        let length = segment.get(at..).and_then(total_length);
        let Some(length) = length.filter(|length| (SHORTEST..=LONGEST).contains(length)) else { continue };
        let (header, _) = bytes_of(segment, at, HEADER_BYTES);
        if !may_create(&header, lsn) {
            continue;
        }
        let (mut record, ranges) = bytes_of(segment, at, length);
        if record.len() < length {
            return Err(SpansSegments(lsn));
        }
        let Some(found) = empty_name(&mut record, lsn, pg_major) else { continue };
        created.push(found);
        let mut rest = record.as_slice();
        for range in ranges {
            let (bytes, behind) = rest.split_at(range.len());
            if let Some(place) = segment.get_mut(range) {
                place.copy_from_slice(bytes);
            }
            rest = behind;
        }
    }
    Ok(created)
}

/// Whether a header, of which the end may be missing, can be that of such a record.
fn may_create(header: &[u8], lsn: Lsn) -> bool {
    const RM_TBLSPC: u8 = 5;
    /// No record is longer.
    const FARTHEST: u64 = 1 << 30;
    // `xl_info`, whose low half is flags, `xl_rmid`, and padding.
    let is_of_tablespace = matches!(header.get(16..20), Some([info, RM_TBLSPC, 0, 0]) if info & 0xF0 == 0);
    let distance = previous(header).and_then(|previous| lsn.0.checked_sub(previous.0));
    is_of_tablespace
        && distance.is_some_and(|distance| (1..=FARTHEST).contains(&distance) && distance.is_multiple_of(8))
}

/// The bytes of a record, and where in the segment they are: page headers lie between them. Fewer at the segment's end.
fn bytes_of(segment: &[u8], at: usize, length: usize) -> (Vec<u8>, Vec<Range<usize>>) {
    let (mut bytes, mut ranges) = (Vec::with_capacity(length), Vec::new());
    let mut from = at;
    while bytes.len() < length && from < segment.len() {
        let end_of_page = (from / PAGE_BYTES + 1) * PAGE_BYTES;
        let to = (from + length - bytes.len()).min(end_of_page).min(segment.len());
        bytes.extend_from_slice(segment.get(from..to).unwrap_or_default());
        ranges.push(from..to);
        from = to + if to == end_of_page { SHORT_HEADER_BYTES } else { 0 };
    }
    (bytes, ranges)
}

/// Empties the name in a record, if it is one that creates a tablespace elsewhere, and gives it a new checksum.
fn empty_name(bytes: &mut [u8], start: Lsn, pg_major: u32) -> Option<CreatedTablespace> {
    let record = Record::parse(bytes, start, pg_major).ok()?;
    if record.operation() != Operation::CreateTablespace {
        return None;
    }
    let (oid, name) = record.main_data.split_first_chunk()?;
    let location = name.split(|&byte| byte == 0).next()?.to_vec();
    let name = bytes.len() - name.len()..bytes.len();
    if location.is_empty() {
        return None;
    }
    let created = CreatedTablespace { oid: u32::from_le_bytes(*oid), location };
    bytes.get_mut(name)?.fill(0);
    let (header, fragments) = bytes.split_first_chunk_mut::<HEADER_BYTES>()?;
    let (covered, checksum) = header.split_at_mut(CRC_AT);
    checksum.copy_from_slice(&crc32c::crc32c_append(crc32c::crc32c(fragments), covered).to_le_bytes());
    Some(created)
}
