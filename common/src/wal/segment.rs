//! Segments: the pieces of fixed size the write-ahead log is kept in, and their numbers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;

/// A branch of the cluster's history (`TimeLineID`). Written in hexadecimal in file names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a WAL segment: a power of two from 1 MiB to 1 GiB, chosen at initdb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

/// The number is not a size a segment can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid WAL segment size {0}: expected a power of two from 1 MiB to 1 GiB")]
pub struct InvalidSegmentSize(u64);

impl SegmentSize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Segments per 4 GiB, the span of the middle field of a segment's name (`XLogSegmentsPerXLogId`).
    pub fn segments_per_id(self) -> u64 {
        0x1_0000_0000 / self.0
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = InvalidSegmentSize;

    fn try_from(bytes: u64) -> Result<Self, InvalidSegmentSize> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        if valid { Ok(Self(bytes)) } else { Err(InvalidSegmentSize(bytes)) }
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> Self {
        size.0
    }
}

/// The name of a segment: 24 upper-case hexadecimal digits, timeline then position.
///
/// The position is kept as written, since its meaning needs the segment size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline, first 8 digits.
    pub timeline: Timeline,
    /// The 4 GiB span of the log, middle 8 digits.
    pub id: u32,
    /// The segment within that span, last 8 digits.
    pub part: u32,
}

/// The text is not the name of a segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the name of a WAL segment (24 hexadecimal digits)")]
pub struct InvalidSegmentName(String);

impl SegmentName {
    /// The name of segment `number` of a timeline (`XLogFileName`).
    pub fn new(timeline: Timeline, number: u64, size: SegmentSize) -> Self {
        let per_id = size.segments_per_id();
        #[expect(clippy::cast_possible_truncation, reason = "segment numbers are at most 2^64 / 1 MiB, ids 2^32")]
        Self { timeline, id: (number / per_id) as u32, part: (number % per_id) as u32 }
    }

    /// The segment number, or nothing if the last field is too large for this size.
    pub fn number(self, size: SegmentSize) -> Option<u64> {
        let per_id = size.segments_per_id();
        (u64::from(self.part) < per_id).then(|| u64::from(self.id) * per_id + u64::from(self.part))
    }

    /// The position of the segment's first byte.
    pub fn start(self, size: SegmentSize) -> Option<Lsn> {
        self.number(size).map(|number| segment_start(number, size))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.id, self.part)
    }
}

impl FromStr for SegmentName {
    type Err = InvalidSegmentName;

    fn from_str(text: &str) -> Result<Self, InvalidSegmentName> {
        let invalid = || InvalidSegmentName(text.to_owned());
        if text.len() != 24 {
            return Err(invalid());
        }
        let field = |from: usize| text.get(from..from + 8).and_then(hexadecimal_u32).ok_or_else(invalid);
        Ok(Self { timeline: Timeline(field(0)?), id: field(8)?, part: field(16)? })
    }
}

/// Reads eight upper-case hexadecimal digits, the only spelling PostgreSQL writes.
pub(crate) fn hexadecimal_u32(digits: &str) -> Option<u32> {
    let upper_case = digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    upper_case.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// The number of the segment that holds the byte at `lsn` (`XLByteToSeg`).
pub fn segment_of(lsn: Lsn, size: SegmentSize) -> u64 {
    lsn.0 / size.bytes()
}

/// The number of the segment that holds the byte before `lsn`: the last one needed to read up to `lsn` (`XLByteToPrevSeg`).
pub fn segment_before(lsn: Lsn, size: SegmentSize) -> u64 {
    lsn.0.saturating_sub(1) / size.bytes()
}

/// The position of the first byte of segment `number`.
pub fn segment_start(number: u64, size: SegmentSize) -> Lsn {
    Lsn(number.saturating_mul(size.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(mib: u64) -> SegmentSize {
        SegmentSize::try_from(mib << 20).unwrap()
    }

    #[test]
    fn numbers_carry_over_into_the_middle_field_for_every_segment_size() {
        for (mib, last) in [(1, 0xFFF), (16, 0xFF), (64, 0x3F), (1024, 3)] {
            let name = SegmentName { timeline: Timeline(17), id: 4, part: last };
            let number = name.number(size(mib)).unwrap();
            let next = SegmentName::new(Timeline(17), number + 1, size(mib));
            assert_eq!(next.to_string(), "000000110000000500000000");
            assert_eq!(SegmentName { part: last + 1, ..name }.number(size(mib)), None);
        }
    }

    #[test]
    fn names_are_parsed_as_postgresql_writes_them_and_nothing_else() {
        let name: SegmentName = "0000000A000000010000002F".parse().unwrap();
        assert_eq!(name.timeline, Timeline(10));
        assert_eq!(name.to_string(), "0000000A000000010000002F");
        for text in [
            "",
            "0000000a000000010000002F",
            "0000000A000000010000002",
            "0000000A000000010000002FF",
            "+000000A000000010000002F",
            "é000000A00000001000000F",
        ] {
            assert!(text.parse::<SegmentName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_end_on_a_boundary_needs_the_segment_before_it() {
        let boundary = Lsn(0x1C0_0000);
        assert_eq!(segment_of(boundary, size(1)), 0x1C);
        assert_eq!(segment_before(boundary, size(1)), 0x1B);
        assert_eq!(segment_before(Lsn(boundary.0 + 1), size(1)), 0x1C);
    }

    #[test]
    fn sizes_that_initdb_refuses_are_refused() {
        for bytes in [0, 1, 1 << 19, 3 << 20, 1 << 31] {
            assert!(SegmentSize::try_from(bytes).is_err());
        }
    }
}
