//! Independent zstd frames: a plain stream is cut into them, threads compress them, and each opens on its own.
//!
//! Every frame says its plain size and ends in a checksum of its plain bytes. Reading is strict: whatever is not
//! exactly one such frame is refused, and never more than [`MAX_FRAME_BYTES`] are allocated for it.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};
use std::{fmt, io, mem};

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe;

use super::buffers::Buffers;

/// The most plain bytes that a frame of a pack may have.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;

/// The most frames that zstd's seekable format allows, which bounds a pack at 512 TiB of plain bytes.
pub const MAX_FRAMES: u32 = 0x0800_0000;

/// RFC 8878, section 3.1.1: `Magic_Number`, little-endian.
const FRAME_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// `Frame_Header_Descriptor`: the checksum flag, and the two bits that say how long a dictionary id follows.
const CHECKSUM_FLAG: u8 = 0b100;
const DICTIONARY_ID_FLAG: u8 = 0b011;

/// A frame could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// Nothing to compress, or more than fits into a frame.
    #[error("{0} bytes to compress in a frame")]
    Size(usize),
    /// zstd failed: out of memory, or a level it does not have.
    #[error("zstd failed")]
    Zstd(#[source] io::Error),
}

/// Stored bytes are not one intact frame of a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrame {
    /// Another format, a skippable frame, a frame without a checksum, or one that needs a dictionary.
    #[error("not a zstd frame with a checksum")]
    Header,
    /// The frame does not say its plain size, or one that no frame of a pack has.
    #[error("a frame that does not say a plain size of 1 to {MAX_FRAME_BYTES} bytes")]
    PlainSize,
    /// The frame ends before or after the stored bytes do.
    #[error("a frame of {frame:?} bytes where {stored} are stored")]
    StoredSize {
        /// Where the frame ends; none when it is cut short or unreadable.
        frame: Option<usize>,
        /// How many bytes there are.
        stored: usize,
    },
    /// The frame does not decompress, or its checksum differs.
    #[error("a damaged frame: {0}")]
    Content(String),
    /// The frame is intact but not the one that the seek table has here.
    #[error("not the frame that the seek table describes")]
    Misplaced,
}

/// A piece of the plain stream, to be compressed on any thread.
#[derive(Debug, PartialEq, Eq)]
pub struct PlainFrame {
    /// Its place in the stream, from 0.
    pub number: u32,
    /// 1 to [`MAX_FRAME_BYTES`] bytes.
    pub bytes: Vec<u8>,
}

/// A compressed frame, to be stored in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFrame {
    /// Its place in the stream, from 0.
    pub number: u32,
    /// How many bytes it decompresses to.
    pub plain_bytes: u32,
    /// The frame as stored.
    pub bytes: Bytes,
}

/// Cuts a stream into frames.
#[derive(Debug)]
pub struct FrameCutter {
    buffers: Buffers,
    number: u32,
    plain_bytes: u64,
    pending: Vec<u8>,
}

/// The stream needs more frames than the format has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pack of more than {MAX_FRAMES} frames")]
pub struct TooManyFrames;

impl FrameCutter {
    /// Appends to the stream and returns the frames that are complete.
    ///
    /// A full frame is held back until more follows, so up to the next multiple of its size nothing comes.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<Vec<PlainFrame>, TooManyFrames> {
        let mut frames = Vec::new();
        self.plain_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.pending.len() == self.buffers.size() {
                frames.extend(self.cut()?);
            }
            if self.pending.capacity() == 0 {
                self.pending = self.buffers.take();
            }
            let room = self.buffers.size() - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
        }
        Ok(frames)
    }

    /// Returns the last frame, if anything is left for it.
    pub fn finish(mut self) -> Result<Option<PlainFrame>, TooManyFrames> {
        self.cut()
    }

    /// How many bytes were appended so far.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    fn cut(&mut self) -> Result<Option<PlainFrame>, TooManyFrames> {
        let bytes = mem::take(&mut self.pending);
        if bytes.is_empty() {
            return Ok(None);
        }
        if self.number == MAX_FRAMES {
            return Err(TooManyFrames);
        }
        let number = self.number;
        self.number += 1;
        Ok(Some(PlainFrame { number, bytes }))
    }
}

thread_local! {
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::new(Decompressor::default());
}

/// Compressors of one level. There are as many as threads compress at the same time, whatever threads those are: each holds
/// megabytes of tables, at high levels tens of them.
pub struct Compressors {
    level: i32,
    idle: Mutex<Vec<Compressor<'static>>>,
    plain: Buffers,
    stored: Buffers,
}

impl fmt::Debug for Compressors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressors").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Compressors {
    /// None so far: each is made when it is needed.
    pub fn new(level: i32) -> Self {
        let plain = frame_bytes(level);
        Self {
            level,
            idle: Mutex::default(),
            plain: Buffers::new(plain),
            stored: Buffers::new(zstd_safe::compress_bound(plain)),
        }
    }

    /// Cuts a stream into frames for these compressors.
    pub fn cutter(&self) -> FrameCutter {
        FrameCutter { buffers: self.plain.clone(), number: 0, plain_bytes: 0, pending: Vec::new() }
    }

    /// Plain bytes in every frame of a pack but the last, which may have fewer.
    pub fn frame_bytes(&self) -> usize {
        self.plain.size()
    }

    /// Bytes that one of them holds at work, found out with one frame.
    pub fn bytes_each(&self) -> Result<usize, CompressError> {
        self.with_one(|compressor| {
            let _ = compressor.compress(&vec![0; self.frame_bytes()])?;
            Ok(compressor.context_mut().sizeof())
        })
    }

    /// Compresses a frame, with content size and checksum.
    pub fn compress(&self, frame: PlainFrame) -> Result<StoredFrame, CompressError> {
        let plain = &frame.bytes;
        let plain_bytes = u32::try_from(plain.len()).ok().filter(|_| (1..=self.frame_bytes()).contains(&plain.len()));
        let plain_bytes = plain_bytes.ok_or(CompressError::Size(plain.len()))?;
        let mut stored = self.stored.take();
        let _ = self.with_one(|compressor| compressor.compress_to_buffer(plain, &mut stored))?;
        self.plain.keep(frame.bytes);
        Ok(StoredFrame { number: frame.number, plain_bytes, bytes: self.stored.share(stored) })
    }

    /// Lends an idle compressor, or a new one.
    fn with_one<T>(&self, work: impl FnOnce(&mut Compressor<'static>) -> io::Result<T>) -> Result<T, CompressError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let found = idle().pop();
        let mut compressor = found.map_or_else(|| compressor(self.level), Ok).map_err(CompressError::Zstd)?;
        let done = work(&mut compressor).map_err(CompressError::Zstd);
        idle().push(compressor);
        done
    }
}

/// The quick levels are quicker by a tenth on what stays in a processor's own cache, and compress pages as well there. The
/// thorough ones find more in more.
fn frame_bytes(level: i32) -> usize {
    const LAST_QUICK: i32 = 5;
    if level <= LAST_QUICK { MAX_FRAME_BYTES / 4 } else { MAX_FRAME_BYTES }
}

fn compressor(level: i32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    compressor.include_checksum(true)?;
    compressor.include_contentsize(true)?;
    Ok(compressor)
}

/// Decompresses exactly one frame into `plain`, whose former content is dropped.
///
/// After an error `plain` holds nothing of use.
pub fn decompress_frame(stored: &[u8], plain: &mut Vec<u8>) -> Result<(), InvalidFrame> {
    let plain_bytes = frame_plain_bytes(stored)?;
    let end = zstd_safe::find_frame_compressed_size(stored).ok();
    if end != Some(stored.len()) {
        return Err(InvalidFrame::StoredSize { frame: end, stored: stored.len() });
    }
    plain.clear();
    plain.reserve_exact(plain_bytes);
    // zstd compares the content size and the checksum in the frame with what comes out.
    let written = DECOMPRESSOR
        .with_borrow_mut(|decompressor| decompressor.decompress_to_buffer(stored, plain))
        .map_err(|error| InvalidFrame::Content(error.to_string()))?;
    if written == plain_bytes { Ok(()) } else { Err(InvalidFrame::PlainSize) }
}

/// Reads the plain size in a frame's header, having seen that it is a kind of frame this format has.
fn frame_plain_bytes(stored: &[u8]) -> Result<usize, InvalidFrame> {
    match stored {
        [a, b, c, d, descriptor, ..]
            if [*a, *b, *c, *d] == FRAME_MAGIC
                && descriptor & (CHECKSUM_FLAG | DICTIONARY_ID_FLAG) == CHECKSUM_FLAG => {}
        _ => return Err(InvalidFrame::Header),
    }
    match zstd_safe::get_frame_content_size(stored) {
        Ok(Some(size)) => usize::try_from(size)
            .ok()
            .filter(|size| (1..=MAX_FRAME_BYTES).contains(size))
            .ok_or(InvalidFrame::PlainSize),
        Ok(None) => Err(InvalidFrame::PlainSize),
        Err(_) => Err(InvalidFrame::Header),
    }
}

/// Returns the checksum at a frame's end: the low half of XXH64 of its plain bytes.
pub fn frame_checksum(stored: &[u8]) -> Option<u32> {
    stored.last_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compress_frame(plain: &[u8], level: i32) -> Result<Bytes, CompressError> {
        let frame = PlainFrame { number: 0, bytes: plain.to_vec() };
        Compressors::new(level).compress(frame).map(|stored| stored.bytes)
    }

    #[test]
    fn compressors_are_used_again_and_say_what_they_hold() {
        let compressors = Compressors::new(3);
        let low = compressors.bytes_each().unwrap();
        compressors.compress(PlainFrame { number: 0, bytes: vec![1; 1000] }).unwrap();
        assert_eq!(compressors.idle.lock().unwrap().len(), 1);
        let high = Compressors::new(19).bytes_each().unwrap();
        assert!((1 << 18..8 << 20).contains(&low) && (32 << 20..256 << 20).contains(&high), "{low}, {high}");
    }

    #[test]
    fn a_stream_is_cut_into_full_frames_and_a_rest() {
        for (level, size) in [(-1, MAX_FRAME_BYTES / 4), (3, MAX_FRAME_BYTES / 4), (19, MAX_FRAME_BYTES)] {
            let mut cutter = Compressors::new(level).cutter();
            assert_eq!(cutter.append(&vec![1; size]).unwrap(), []);
            let frames = cutter.append(&vec![2; size + 7]).unwrap();
            assert_eq!(cutter.plain_bytes(), 2 * size as u64 + 7);
            let last = cutter.finish().unwrap().unwrap();
            let shape: Vec<_> = frames.iter().chain([&last]).map(|frame| (frame.number, frame.bytes.len())).collect();
            assert_eq!(shape, [(0, size), (1, size), (2, 7)]);
        }
        assert!(Compressors::new(3).cutter().finish().unwrap().is_none());
    }

    #[test]
    fn a_frame_comes_back_as_it_went_in() {
        let mut plain = vec![9; 3];
        for level in [-1, 1, 3, 19, 3] {
            for size in [1, 4096, frame_bytes(level)] {
                let bytes: Vec<u8> = (0..size).map(|at| (at / 7).to_le_bytes()[0]).collect();
                let stored = compress_frame(&bytes, level).unwrap();
                decompress_frame(&stored, &mut plain).unwrap();
                assert!(plain == bytes, "level {level}, {size} bytes");
            }
        }
        assert!(matches!(compress_frame(&[], 3), Err(CompressError::Size(0))));
        assert!(matches!(compress_frame(&vec![0; MAX_FRAME_BYTES + 1], 3), Err(CompressError::Size(_))));
    }

    #[test]
    fn whatever_is_not_one_frame_of_ours_is_refused() {
        let mut plain = Vec::new();
        let frame = compress_frame(b"PostgreSQL", 3).unwrap();
        for end in 0..frame.len() {
            assert!(decompress_frame(&frame[..end], &mut plain).is_err(), "cut at {end}");
        }
        let twice = [&frame[..], &frame].concat();
        assert_eq!(
            decompress_frame(&twice, &mut plain),
            Err(InvalidFrame::StoredSize { frame: Some(frame.len()), stored: twice.len() })
        );
        let skippable = [0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0];
        assert_eq!(decompress_frame(&skippable, &mut plain), Err(InvalidFrame::Header));
        let unchecked = zstd::bulk::compress(b"PostgreSQL", 3).unwrap();
        assert_eq!(decompress_frame(&unchecked, &mut plain), Err(InvalidFrame::Header));
    }

    #[test]
    fn a_frame_that_claims_to_be_huge_allocates_nothing() {
        let mut bomb = Compressor::new(19).unwrap();
        bomb.include_checksum(true).unwrap();
        let stored = bomb.compress(&vec![0; MAX_FRAME_BYTES + 1]).unwrap();
        let mut plain = Vec::new();
        assert_eq!(decompress_frame(&stored, &mut plain), Err(InvalidFrame::PlainSize));
        assert_eq!(plain.capacity(), 0);
    }
}
