//! From compressed frames to the stored object: puts them in order, hashes them, and ends with the seek table.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::frames::{StoredFrame, frame_checksum};
use super::seek_table::SeekTable;

/// Assembles one pack from its frames.
#[derive(Debug, Default)]
pub struct PackAssembler {
    table: SeekTable,
    sha256: Sha256,
}

/// What `backup.json` records of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackSummary {
    /// The size of the object, its seek table included.
    pub stored_bytes: u64,
    /// The length of the tar stream.
    pub plain_bytes: u64,
    /// SHA-256 of the object.
    pub sha256: [u8; 32],
}

/// A frame came out of turn, or is not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("frame {found} of {bytes} bytes in the place of frame {expected}")]
pub struct UnexpectedFrame {
    /// Whose turn it is.
    pub expected: usize,
    /// The number of the frame.
    pub found: u32,
    /// Its stored bytes.
    pub bytes: usize,
}

impl PackAssembler {
    /// Takes the next frame, in the order of their numbers, and returns what is to be stored next.
    pub fn push(&mut self, frame: StoredFrame) -> Result<Bytes, UnexpectedFrame> {
        let expected = self.table.frames().len();
        let unexpected = UnexpectedFrame { expected, found: frame.number, bytes: frame.bytes.len() };
        let (Some(checksum), Ok(stored_bytes)) = (frame_checksum(&frame.bytes), u32::try_from(frame.bytes.len()))
        else {
            return Err(unexpected);
        };
        if usize::try_from(frame.number) != Ok(expected) {
            return Err(unexpected);
        }
        self.sha256.update(&frame.bytes);
        self.table.push(stored_bytes, frame.plain_bytes, checksum);
        Ok(frame.bytes)
    }

    /// Returns the seek table, which is stored last, and the pack as a whole.
    pub fn finish(mut self) -> (Bytes, PackSummary) {
        let table = self.table.to_bytes();
        self.sha256.update(&table);
        let summary = PackSummary {
            stored_bytes: self.table.stored_bytes() + table.len() as u64,
            plain_bytes: self.table.plain_bytes(),
            sha256: self.sha256.finalize().into(),
        };
        (table.into(), summary)
    }

    /// How many bytes were stored so far.
    pub fn stored_bytes(&self) -> u64 {
        self.table.stored_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_out_of_turn_is_refused() {
        let frame = |number| StoredFrame { number, plain_bytes: 1, bytes: Bytes::from_static(b"stored") };
        let mut assembler = PackAssembler::default();
        assert_eq!(assembler.push(frame(1)), Err(UnexpectedFrame { expected: 0, found: 1, bytes: 6 }));
        assembler.push(frame(0)).unwrap();
        assert_eq!(assembler.push(frame(0)), Err(UnexpectedFrame { expected: 1, found: 0, bytes: 6 }));
        assert_eq!(assembler.stored_bytes(), 6);
    }
}
