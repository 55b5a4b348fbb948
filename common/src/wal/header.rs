//! The header of a segment's first page, and what it says about the segment.
//!
//! Mirrors `XLogLongPageHeaderData` (src/include/access/xlog_internal.h), PostgreSQL 13 to 19.

use super::segment::{SegmentName, SegmentSize, Timeline};
use crate::lsn::Lsn;

/// Bytes of the long header that every segment begins with.
pub const LONG_HEADER_BYTES: usize = 40;

const LONG_HEADER: u16 = 0x0002;

/// `xlp_magic` of each supported major (`XLOG_PAGE_MAGIC`). 19 changed it during its beta.
const MAGICS: [(u16, u32); 8] =
    [(0xD106, 13), (0xD10D, 14), (0xD110, 15), (0xD113, 16), (0xD116, 17), (0xD118, 18), (0xD120, 19), (0xD122, 19)];

/// What the first page of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The PostgreSQL major whose magic number it carries; none for a version newer than this program.
    pub pg_major: Option<u32>,
    /// `xlp_magic` as found.
    pub magic: u16,
    /// `xlp_tli`. The first segment of a new timeline is a copy of the old one and carries the old timeline here.
    pub timeline: Timeline,
    /// `xlp_pageaddr`: the position of this page.
    pub page_address: Lsn,
    /// `xlp_sysid`: the cluster that wrote it.
    pub system_identifier: u64,
    /// `xlp_seg_size`.
    pub segment_size: SegmentSize,
}

/// The bytes are not the beginning of a WAL segment, or not of the one their name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// Fewer bytes than a header.
    #[error("shorter than a WAL page header")]
    Short,
    /// The first page of every segment has the long header.
    #[error("does not begin with a WAL segment header (page magic {magic:04X}, flags {info:04X})")]
    NotASegment {
        /// `xlp_magic` as found.
        magic: u16,
        /// `xlp_info` as found.
        info: u16,
    },
    /// The header names a size no segment can have.
    #[error("its header says a segment size of {0} bytes, which is impossible")]
    Size(u32),
    /// The name says another position than the header.
    #[error("its header says it starts at {found}, its name says {expected}")]
    Address {
        /// Where the name places the segment.
        expected: Lsn,
        /// Where the header places it.
        found: Lsn,
    },
    /// The name cannot exist with the header's segment size.
    #[error("its name cannot exist with its segment size of {0} bytes")]
    Name(u64),
    /// The header carries a timeline newer than the name.
    #[error("its header says timeline {found}, above the {named} in its name")]
    Timeline {
        /// The timeline in the name.
        named: Timeline,
        /// The timeline in the header.
        found: Timeline,
    },
}

impl SegmentHeader {
    /// Reads the header from the first bytes of a segment.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidHeader> {
        let magic = u16::from_le_bytes(array(bytes, 0)?);
        let info = u16::from_le_bytes(array(bytes, 2)?);
        let pg_major = MAGICS.iter().find(|known| known.0 == magic).map(|known| known.1);
        // A magic number not in the table is a newer PostgreSQL's, so the flag and the sizes below must do.
        if info & LONG_HEADER == 0 || magic == 0 {
            return Err(InvalidHeader::NotASegment { magic, info });
        }
        let size = u32::from_le_bytes(array(bytes, 32)?);
        Ok(Self {
            pg_major,
            magic,
            timeline: Timeline(u32::from_le_bytes(array(bytes, 4)?)),
            page_address: Lsn(u64::from_le_bytes(array(bytes, 8)?)),
            system_identifier: u64::from_le_bytes(array(bytes, 24)?),
            segment_size: SegmentSize::try_from(u64::from(size)).map_err(|_| InvalidHeader::Size(size))?,
        })
    }

    /// Checks that the header belongs to the segment of this name (`XLogReaderValidatePageHeader`,
    /// src/backend/access/transam/xlogreader.c).
    pub fn check_name(&self, name: SegmentName) -> Result<(), InvalidHeader> {
        let expected = name.start(self.segment_size).ok_or(InvalidHeader::Name(self.segment_size.bytes()))?;
        if self.page_address != expected {
            return Err(InvalidHeader::Address { expected, found: self.page_address });
        }
        if self.timeline > name.timeline {
            return Err(InvalidHeader::Timeline { named: name.timeline, found: self.timeline });
        }
        Ok(())
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], InvalidHeader> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).ok_or(InvalidHeader::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(magic: u16, timeline: u32, address: u64, size: u32) -> Vec<u8> {
        let mut bytes = vec![0; LONG_HEADER_BYTES];
        bytes[0..2].copy_from_slice(&magic.to_le_bytes());
        bytes[2] = 2;
        bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[24..32].copy_from_slice(&42u64.to_le_bytes());
        bytes[32..36].copy_from_slice(&size.to_le_bytes());
        bytes
    }

    #[test]
    fn a_segment_is_recognised_by_address_and_timeline() {
        let name = "000000020000000000000005".parse().unwrap();
        let header = SegmentHeader::parse(&page(0xD110, 1, 5 << 24, 1 << 24)).unwrap();
        assert_eq!((header.pg_major, header.system_identifier), (Some(15), 42));
        assert_eq!(header.check_name(name), Ok(()), "the first segment of a timeline carries the old one");
        let header = SegmentHeader::parse(&page(0xD110, 3, 5 << 24, 1 << 24)).unwrap();
        assert!(matches!(header.check_name(name), Err(InvalidHeader::Timeline { .. })));
        let header = SegmentHeader::parse(&page(0xD110, 2, 6 << 24, 1 << 24)).unwrap();
        assert!(matches!(header.check_name(name), Err(InvalidHeader::Address { .. })));
    }

    #[test]
    fn a_newer_major_is_read_and_other_bytes_are_not() {
        assert_eq!(SegmentHeader::parse(&page(0xD199, 1, 0, 1 << 24)).unwrap().pg_major, None);
        assert!(SegmentHeader::parse(&[0; LONG_HEADER_BYTES]).is_err());
        assert!(SegmentHeader::parse(&page(0xD110, 1, 0, 1 << 24)[..39]).is_ok(), "the last field is not needed");
        assert_eq!(SegmentHeader::parse(&page(0xD110, 1, 0, 1 << 24)[..20]), Err(InvalidHeader::Short));
        assert!(matches!(SegmentHeader::parse(&page(0xD110, 1, 0, 12345)), Err(InvalidHeader::Size(12345))));
    }
}
