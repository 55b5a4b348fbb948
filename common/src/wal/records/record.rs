//! One record: its header, its checksum, and where its main data lies.
//!
//! Mirrors src/include/access/xlogrecord.h, and `ValidXLogRecord` and `DecodeXLogRecord`
//! (src/backend/access/transam/xlogreader.c).

use super::{Reason, take};
use crate::lsn::Lsn;

/// Bytes of the header (`SizeOfXLogRecord`); also the length of the shortest record.
pub(super) const HEADER_BYTES: usize = 24;

/// Where `xl_crc` lies: the last field of the header, and where the part of the header that it covers ends.
pub(super) const CRC_AT: usize = 20;

/// The first field of a record, which says its length, is always on one page: records begin at multiples of 8.
pub(super) fn total_length(start_of_record: &[u8]) -> Option<usize> {
    let length = u32::from_le_bytes(*start_of_record.first_chunk()?);
    usize::try_from(length).ok()
}

/// `xl_prev`: where the record before this one begins.
pub(super) fn previous(start_of_record: &[u8]) -> Option<Lsn> {
    start_of_record.get(8..16)?.try_into().ok().map(u64::from_le_bytes).map(Lsn)
}

/// A record whose checksum is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    /// `xl_xid`.
    pub(super) xid: u32,
    /// `xl_info`.
    pub(super) info: u8,
    /// `xl_rmid`: the resource manager, which gives `info` its meaning.
    resource_manager: u8,
    /// What the resource manager recorded beside changes of blocks.
    pub(super) main_data: &'a [u8],
}

/// The kinds of records that are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    SegmentSwitch,
    BackupEnd,
    RestorePoint,
    /// Of a prepared transaction too.
    Commit,
    /// Of a prepared transaction too.
    Abort,
    CreateTablespace,
    Other,
}

impl<'a> Record<'a> {
    /// Reads a whole record, which begins at `start`.
    pub(super) fn parse(bytes: &'a [u8], start: Lsn, pg_major: u32) -> Result<Self, Reason> {
        let (header, fragments) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(Reason::Length { start })?;
        let (covered, expected) = header.split_at(CRC_AT);
        if crc32c::crc32c_append(crc32c::crc32c(fragments), covered).to_le_bytes() != expected {
            return Err(Reason::Checksum { start });
        }
        let [_, _, _, _, x0, x1, x2, x3, .., info, resource_manager, _, _, _, _, _, _] = *header;
        let main_data = main_data(fragments, pg_major).ok_or(Reason::Contents { start })?;
        Ok(Self { xid: u32::from_le_bytes([x0, x1, x2, x3]), info, resource_manager, main_data })
    }

    /// What the record is about. The high half of `xl_info` belongs to the resource manager: all of it is the operation
    /// in `src/include/catalog/pg_control.h`, one bit of it is a flag in src/include/access/xact.h.
    pub(super) fn operation(&self) -> Operation {
        const RM_XLOG: u8 = 0;
        const RM_XACT: u8 = 1;
        const RM_TBLSPC: u8 = 5;
        match (self.resource_manager, self.info & 0xF0, self.info & 0x70) {
            (RM_XLOG, 0x40, _) => Operation::SegmentSwitch,
            (RM_XLOG, 0x50, _) => Operation::BackupEnd,
            (RM_XLOG, 0x70, _) => Operation::RestorePoint,
            (RM_XACT, _, 0x00 | 0x30) => Operation::Commit,
            (RM_XACT, _, 0x20 | 0x40) => Operation::Abort,
            (RM_TBLSPC, 0x00, _) => Operation::CreateTablespace,
            _ => Operation::Other,
        }
    }
}

/// Steps over the fragment headers: block references, origin and top-level transaction, then the main data's own. The
/// payloads follow in the same order, so that the main data comes last. Nothing if the lengths do not add up.
fn main_data(fragments: &[u8], pg_major: u32) -> Option<&[u8]> {
    let mut rest = fragments;
    let mut block_bytes = 0;
    let mut main_bytes = 0;
    while rest.len() > block_bytes {
        let [id] = take(&mut rest)?;
        match id {
            // XLR_BLOCK_ID_DATA_SHORT, XLR_BLOCK_ID_DATA_LONG: always the last header.
            255 => {
                main_bytes = usize::from(u8::from_le_bytes(take(&mut rest)?));
                break;
            }
            254 => {
                main_bytes = usize::try_from(u32::from_le_bytes(take(&mut rest)?)).ok()?;
                break;
            }
            // XLR_BLOCK_ID_ORIGIN, XLR_BLOCK_ID_TOPLEVEL_XID
            253 => drop(take::<2>(&mut rest)?),
            252 => drop(take::<4>(&mut rest)?),
            0..=32 => block_bytes += skip_block_header(&mut rest, pg_major)?,
            _ => return None,
        }
    }
    let main_data = rest.get(block_bytes..)?;
    (main_data.len() == main_bytes).then_some(main_data)
}

/// Steps over one `XLogRecordBlockHeader` without its id. Returns how many bytes of payload belong to it.
fn skip_block_header(rest: &mut &[u8], pg_major: u32) -> Option<usize> {
    const HAS_IMAGE: u8 = 0x10;
    const SAME_RELATION: u8 = 0x80;
    const IMAGE_HAS_HOLE: u8 = 0x01;
    // BKPIMAGE_IS_COMPRESSED; 15 gave each compression method a bit of its own and this bit to BKPIMAGE_APPLY.
    let image_is_compressed: u8 = if pg_major >= 15 { 0x04 | 0x08 | 0x10 } else { 0x02 };

    let [fork_and_flags] = take(rest)?;
    let mut payload = usize::from(u16::from_le_bytes(take(rest)?));
    if fork_and_flags & HAS_IMAGE != 0 {
        payload += usize::from(u16::from_le_bytes(take(rest)?));
        let [_hole_offset_low, _hole_offset_high, image_flags] = take(rest)?;
        // The length of the hole follows only where it cannot be told from the image's own length.
        if image_flags & IMAGE_HAS_HOLE != 0 && image_flags & image_is_compressed != 0 {
            let [_hole_length_low, _hole_length_high] = take(rest)?;
        }
    }
    if fork_and_flags & SAME_RELATION == 0 {
        let _relation: [u8; 12] = take(rest)?;
    }
    let _block_number: [u8; 4] = take(rest)?;
    Some(payload)
}
