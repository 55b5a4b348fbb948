//! zstd's seekable format: a table of the frames, in a skippable frame that ends the pack.
//!
//! Mirrors zstd's `contrib/seekable_format/zstd_seekable_compression_format.md`, version 0.1.0, always with checksums.

use std::ops::Range;

use zstd::zstd_safe;

use super::frames::{MAX_FRAME_BYTES, MAX_FRAMES};

/// Bytes at the end of a pack that say how long the table is: see [`table_bytes`].
pub const FOOTER_BYTES: usize = 9;

const HEADER_BYTES: usize = 8;
const ENTRY_BYTES: usize = 12;
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// `Seek_Table_Descriptor`: each entry has a checksum. The other bits are reserved or unused.
const DESCRIPTOR: u8 = 0x80;

/// One frame of a pack, as the table describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where the frame begins in the pack.
    pub stored_offset: u64,
    /// How long it is there.
    pub stored_bytes: u32,
    /// Where its content begins in the plain stream.
    pub plain_offset: u64,
    /// How long the content is.
    pub plain_bytes: u32,
    /// The low half of XXH64 of the content: the same four bytes that end the frame.
    pub checksum: u32,
}

impl Frame {
    /// Where the frame lies in the pack.
    pub fn stored(&self) -> Range<u64> {
        self.stored_offset..self.stored_offset + u64::from(self.stored_bytes)
    }

    /// Which part of the plain stream it holds.
    pub fn plain(&self) -> Range<u64> {
        self.plain_offset..self.plain_offset + u64::from(self.plain_bytes)
    }
}

/// The frames of a pack, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeekTable {
    frames: Vec<Frame>,
}

/// The bytes are not the seek table of a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSeekTable {
    /// The end of the object is something else: cut short, or not a pack.
    #[error("does not end in a zstd seek table")]
    Footer,
    /// The table is not as long as its footer or its header says.
    #[error("a seek table of {found} bytes, expected {expected}")]
    Length {
        /// By the number of frames.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// An entry no frame of a pack can have.
    #[error("seek table entry {number} says {stored_bytes} bytes stored, {plain_bytes} plain")]
    Entry {
        /// The frame's number, from 0.
        number: usize,
        /// As found.
        stored_bytes: u32,
        /// As found.
        plain_bytes: u32,
    },
    /// The frames and the table do not make up the object.
    #[error("seek table for an object of {expected} bytes, found {found}")]
    ObjectSize {
        /// By the table.
        expected: u64,
        /// The object's size.
        found: u64,
    },
}

/// Returns how many bytes at the end of the object are the table, given the object's last [`FOOTER_BYTES`].
///
/// At most 1.5 GiB, for a pack of 512 TiB; 3 KiB for 1 GiB.
pub fn table_bytes(footer: &[u8; FOOTER_BYTES]) -> Result<u64, InvalidSeekTable> {
    let [a, b, c, d, descriptor, magic @ ..] = *footer;
    let count = u32::from_le_bytes([a, b, c, d]);
    if u32::from_le_bytes(magic) != SEEKABLE_MAGIC || descriptor != DESCRIPTOR || count > MAX_FRAMES {
        return Err(InvalidSeekTable::Footer);
    }
    Ok((HEADER_BYTES + FOOTER_BYTES) as u64 + u64::from(count) * ENTRY_BYTES as u64)
}

impl SeekTable {
    /// Reads the table from the end of an object, where `tail` holds at least the table and ends with the object.
    ///
    /// The table must account for every byte of the object.
    pub fn parse(tail: &[u8], object_bytes: u64) -> Result<Self, InvalidSeekTable> {
        let expected = table_bytes(tail.last_chunk().ok_or(InvalidSeekTable::Footer)?)?;
        let start = usize::try_from(expected).ok().and_then(|bytes| tail.len().checked_sub(bytes));
        let short = InvalidSeekTable::Length { expected, found: tail.len() as u64 };
        let entries = entries(start.and_then(|start| tail.get(start..)).ok_or(short)?, expected)?;

        let mut table = Self { frames: Vec::with_capacity(entries.len()) };
        for (number, entry) in entries.iter().enumerate() {
            let [s0, s1, s2, s3, p0, p1, p2, p3, checksum @ ..] = *entry;
            let stored_bytes = u32::from_le_bytes([s0, s1, s2, s3]);
            let plain_bytes = u32::from_le_bytes([p0, p1, p2, p3]);
            let stored_max = zstd_safe::compress_bound(MAX_FRAME_BYTES);
            if !(1..=MAX_FRAME_BYTES).contains(&(plain_bytes as usize))
                || !(1..=stored_max).contains(&(stored_bytes as usize))
            {
                return Err(InvalidSeekTable::Entry { number, stored_bytes, plain_bytes });
            }
            table.push(stored_bytes, plain_bytes, u32::from_le_bytes(checksum));
        }
        let expected = table.stored_bytes() + expected;
        if expected != object_bytes {
            return Err(InvalidSeekTable::ObjectSize { expected, found: object_bytes });
        }
        Ok(table)
    }

    /// Adds the next frame.
    pub(super) fn push(&mut self, stored_bytes: u32, plain_bytes: u32, checksum: u32) {
        let (stored_offset, plain_offset) = (self.stored_bytes(), self.plain_bytes());
        self.frames.push(Frame { stored_offset, stored_bytes, plain_offset, plain_bytes, checksum });
    }

    /// Returns the table as it ends a pack: a skippable frame.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a pack has at most MAX_FRAMES frames: the cutter makes no more, the parser takes no more"
    )]
    pub fn to_bytes(&self) -> Vec<u8> {
        let count = self.frames.len() as u32;
        let content_bytes = (self.frames.len() * ENTRY_BYTES + FOOTER_BYTES) as u32;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + content_bytes as usize);
        bytes.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&content_bytes.to_le_bytes());
        for frame in &self.frames {
            bytes.extend_from_slice(&frame.stored_bytes.to_le_bytes());
            bytes.extend_from_slice(&frame.plain_bytes.to_le_bytes());
            bytes.extend_from_slice(&frame.checksum.to_le_bytes());
        }
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.push(DESCRIPTOR);
        bytes.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        bytes
    }

    /// The frames, in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The number of the frame that holds this position of the plain stream; none at its end and beyond.
    pub fn frame_at(&self, plain_offset: u64) -> Option<usize> {
        let after = self.frames.partition_point(|frame| frame.plain().end <= plain_offset);
        (after < self.frames.len()).then_some(after)
    }

    /// The length of the plain stream.
    pub fn plain_bytes(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.plain().end)
    }

    /// The length of all frames as stored, without the table.
    pub fn stored_bytes(&self) -> u64 {
        self.frames.last().map_or(0, |frame| frame.stored().end)
    }
}

/// Sees that header and footer of the table agree, and returns the entries between them.
fn entries(table: &[u8], expected: u64) -> Result<&[[u8; ENTRY_BYTES]], InvalidSeekTable> {
    let not_a_table = InvalidSeekTable::Footer;
    let ([m0, m1, m2, m3, l0, l1, l2, l3], content) = table.split_first_chunk().ok_or(not_a_table.clone())?;
    let (entries, _footer) = content.split_last_chunk::<FOOTER_BYTES>().ok_or(not_a_table.clone())?;
    if u32::from_le_bytes([*m0, *m1, *m2, *m3]) != SKIPPABLE_MAGIC {
        return Err(not_a_table);
    }
    let found = u64::from(u32::from_le_bytes([*l0, *l1, *l2, *l3])) + HEADER_BYTES as u64;
    if found != expected {
        return Err(InvalidSeekTable::Length { expected, found });
    }
    Ok(entries.as_chunks().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SeekTable {
        let mut table = SeekTable::default();
        table.push(100, 1000, 7);
        table.push(200, 1000, 8);
        table.push(300, 10, 9);
        table
    }

    #[test]
    fn a_table_is_read_back_from_the_end_of_an_object() {
        let table = table();
        let bytes = table.to_bytes();
        assert_eq!(table_bytes(bytes.last_chunk().unwrap()), Ok(bytes.len() as u64));
        let size = 600 + bytes.len() as u64;
        assert_eq!(SeekTable::parse(&bytes, size).unwrap(), table);
        let tail = [&[1, 2, 3][..], &bytes].concat();
        assert_eq!(SeekTable::parse(&tail, size).unwrap(), table);
        assert_eq!((table.plain_bytes(), table.stored_bytes()), (2010, 600));
    }

    #[test]
    fn a_position_is_found_in_its_frame() {
        let table = table();
        let cases = [(0, Some(0)), (999, Some(0)), (1000, Some(1)), (2000, Some(2)), (2009, Some(2)), (2010, None)];
        for (offset, frame) in cases {
            assert_eq!(table.frame_at(offset), frame, "at {offset}");
        }
        assert_eq!(SeekTable::default().frame_at(0), None);
    }

    #[test]
    fn a_table_that_does_not_account_for_the_object_is_refused() {
        let bytes = table().to_bytes();
        let size = 600 + bytes.len() as u64;
        for wrong in [0, size - 1, size + 1, u64::MAX] {
            assert_eq!(
                SeekTable::parse(&bytes, wrong),
                Err(InvalidSeekTable::ObjectSize { expected: size, found: wrong })
            );
        }
        for start in 1..bytes.len() {
            assert!(SeekTable::parse(&bytes[start..], size).is_err(), "without its first {start} bytes");
            assert!(SeekTable::parse(&bytes[..start], size).is_err(), "cut to {start} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_in_the_table_is_refused_or_shows_in_the_frames() {
        let bytes = table().to_bytes();
        let size = 600 + bytes.len() as u64;
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(read) = SeekTable::parse(&damaged, size) {
                    // The stored sizes are bound by their sum; these two are compared with each frame when it is read.
                    let seen = |table: &SeekTable| -> Vec<_> {
                        table.frames().iter().map(|frame| (frame.plain_bytes, frame.checksum)).collect()
                    };
                    assert_ne!(seen(&read), seen(&table()), "bit {bit} of byte {at}");
                }
            }
        }
    }

    #[test]
    fn an_entry_beyond_the_limits_is_refused() {
        for (stored, plain) in [(0, 5), (5, 0), (5, (4 << 20) + 1), (u32::MAX, 5)] {
            let mut table = table();
            table.push(stored, plain, 0);
            let bytes = table.to_bytes();
            let parsed = SeekTable::parse(&bytes, table.stored_bytes() + bytes.len() as u64);
            assert!(matches!(parsed, Err(InvalidSeekTable::Entry { number: 3, .. })), "{parsed:?}");
        }
    }

    #[test]
    fn a_footer_that_claims_too_much_is_refused_before_anything_is_fetched() {
        let footer = |count: u32| {
            let [a, b, c, d] = count.to_le_bytes();
            [a, b, c, d, 0x80, 0xB1, 0xEA, 0x92, 0x8F]
        };
        assert_eq!(table_bytes(&footer(MAX_FRAMES)), Ok(17 + 12 * 0x0800_0000));
        assert_eq!(table_bytes(&footer(MAX_FRAMES + 1)), Err(InvalidSeekTable::Footer));
        assert_eq!(table_bytes(&[0; 9]), Err(InvalidSeekTable::Footer));
    }
}
