//! The header that every page of the write-ahead log begins with.
//!
//! Mirrors `XLogPageHeaderData` (`src/include/access/xlog_internal.h`) and `XLogReaderValidatePageHeader`
//! (src/backend/access/transam/xlogreader.c).

use super::{Reason, take};
use crate::lsn::Lsn;
use crate::wal::header::LONG_HEADER_BYTES;
use crate::wal::segment::Timeline;

/// Bytes of a page (`XLOG_BLCKSZ`, which no package changes).
pub(super) const PAGE_BYTES: usize = 8192;

/// Bytes of the header of every page but a segment's first.
pub(super) const SHORT_HEADER_BYTES: usize = 24;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG_HEADER: u16 = 0x0002;

/// The size of pages that the first page of a segment gives (`xlp_xlog_blcksz`).
pub(super) fn page_bytes(segment: &[u8]) -> Option<usize> {
    let bytes = u32::from_le_bytes(segment.get(36..40)?.try_into().ok()?);
    usize::try_from(bytes).ok()
}

/// A page, and where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page<'a> {
    pub(super) address: Lsn,
    pub(super) bytes: &'a [u8],
}

impl Page<'_> {
    /// The position `offset` bytes into the page.
    pub(super) fn lsn(self, offset: usize) -> Lsn {
        self.address.saturating_add(offset as u64)
    }
}

/// What a page says about itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageHeader {
    /// `xlp_tli`.
    pub(super) timeline: Timeline,
    /// How much of the record that an earlier page began is left (`xlp_rem_len`), if the page begins inside a record.
    pub(super) continuation: Option<u32>,
    /// The record that an earlier page began was never written to its end: what follows replaces it.
    pub(super) overwrites: bool,
    /// Where the first record or continuation begins in the page.
    pub(super) bytes: usize,
}

/// What all pages of one log have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageFormat {
    pub(super) magic: u16,
    pub(super) pg_major: u32,
}

impl PageFormat {
    /// The flag for a page that replaces a record's missing rest. 19 dropped the flag before it and moved it up.
    pub(super) fn overwrite_flag(self) -> u16 {
        if self.pg_major >= 19 { 0x0004 } else { 0x0008 }
    }

    fn all_flags(self) -> u16 {
        if self.pg_major >= 19 { 0x0007 } else { 0x000F }
    }
}

impl PageHeader {
    /// Reads the header of the page and checks what PostgreSQL checks.
    pub(super) fn parse(page: Page<'_>, format: PageFormat, first_of_segment: bool) -> Result<Self, Reason> {
        let Page { address, bytes: mut page } = page;
        let magic = u16::from_le_bytes(take(&mut page).ok_or(Reason::ShortPage)?);
        let flags = u16::from_le_bytes(take(&mut page).ok_or(Reason::ShortPage)?);
        let timeline = u32::from_le_bytes(take(&mut page).ok_or(Reason::ShortPage)?);
        let found = Lsn(u64::from_le_bytes(take(&mut page).ok_or(Reason::ShortPage)?));
        let remaining = u32::from_le_bytes(take(&mut page).ok_or(Reason::ShortPage)?);
        if magic != format.magic {
            return Err(Reason::Magic { address, magic });
        }
        if flags & !format.all_flags() != 0 || (flags & LONG_HEADER != 0) != first_of_segment {
            return Err(Reason::Flags { address, flags });
        }
        if found != address {
            return Err(Reason::Address { address, found });
        }
        Ok(Self {
            timeline: Timeline(timeline),
            continuation: (flags & FIRST_IS_CONTRECORD != 0).then_some(remaining),
            overwrites: flags & format.overwrite_flag() != 0,
            bytes: if first_of_segment { LONG_HEADER_BYTES } else { SHORT_HEADER_BYTES },
        })
    }
}
