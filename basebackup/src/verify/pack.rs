//! One pack, read from its first byte to its last as `zstd -dc | tar x` would: its SHA-256, every frame against the seek
//! table, and every member against the index.

use std::io::{self, Read};
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tar::{Archive, Entry, EntryType};
use walkeep_common::wal_object::encode::hexadecimal;

use crate::pack::frames::{InvalidFrame, decompress_frame, frame_checksum};
use crate::pack::index::{Contents, IndexEntry};
use crate::pack::seek_table::{Frame, SeekTable};

/// Members that are named one by one when a frame they share is damaged.
const NAMED: usize = 3;

/// Reads a whole pack from its stored bytes, which come in chunks of any size. Without members it is not compared with
/// the index, whose own damage was found before.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn check(
    chunks: impl Iterator<Item = Bytes>,
    table: &SeekTable,
    sha256: &str,
    members: Option<&[IndexEntry]>,
) -> Result<(), String> {
    let mut plain = PlainStream::new(chunks, table.frames());
    let checked = match members {
        Some(members) => check_members(&mut plain, members),
        None => io::copy(&mut plain, &mut io::sink()).map(drop).map_err(|error| not_tar(&error)),
    };
    // A frame that does not open explains everything that follows from it.
    if let Some((frame, error)) = plain.damaged.take() {
        return Err(frame_problem(&frame, &error, members.unwrap_or_default()));
    }
    checked?;
    if hexadecimal(&plain.finish()?) == sha256 {
        Ok(())
    } else {
        Err("its bytes do not have the SHA-256 of backup.json".to_owned())
    }
}

fn check_members(plain: &mut impl Read, members: &[IndexEntry]) -> Result<(), String> {
    let mut archive = Archive::new(plain);
    let mut expected = members.iter();
    for entry in archive.entries().map_err(|error| not_tar(&error))? {
        let mut entry = entry.map_err(|error| not_tar(&error))?;
        let path = path_of(&entry);
        let Some(member) = expected.next() else {
            return Err(format!("it holds \"{}\", which the index does not list", path.escape_ascii()));
        };
        if path != member.path.as_bytes() {
            let found = path.escape_ascii();
            return Err(format!("it holds \"{found}\" where the index has \"{}\"", member.path));
        }
        check_header(&entry, member)?;
        check_contents(&mut entry, member)?;
    }
    match expected.next() {
        Some(missing) => Err(format!("\"{}\" is not in it", missing.path)),
        None => Ok(()),
    }
}

fn not_tar(error: &io::Error) -> String {
    format!("it is not a sound tar stream: {error}")
}

/// A directory's path ends in a slash.
fn path_of<R: Read>(entry: &Entry<'_, R>) -> Vec<u8> {
    let mut path = entry.path_bytes().into_owned();
    if entry.header().entry_type() == EntryType::Directory && path.last() == Some(&b'/') {
        let _ = path.pop();
    }
    path
}

fn check_header<R: Read>(entry: &Entry<'_, R>, member: &IndexEntry) -> Result<(), String> {
    let header = entry.header();
    let kind_fits = match &member.contents {
        None => header.entry_type() == EntryType::Directory,
        Some(contents) => {
            header.entry_type() == EntryType::Regular
                && entry.size() == contents.size
                && entry.raw_file_position() == contents.offset
        }
    };
    if kind_fits && header.mode().is_ok_and(|mode| mode == member.mode) {
        return Ok(());
    }
    Err(format!("the tar header of \"{}\" is not what the index says", member.path))
}

fn check_contents(entry: &mut impl Read, member: &IndexEntry) -> Result<(), String> {
    let Some(Contents { size, blake3, crc32c, .. }) = &member.contents else { return Ok(()) };
    let (mut hash, mut crc, mut read) = (blake3::Hasher::new(), 0, 0);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let count = entry.read(&mut buffer).map_err(|error| not_tar(&error))?;
        if count == 0 {
            break;
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        let _ = hash.update(bytes);
        crc = crc32c::crc32c_append(crc, bytes);
        read += count as u64;
    }
    if (read, hash.finalize(), crc) == (*size, *blake3, *crc32c) {
        Ok(())
    } else {
        Err(format!("\"{}\" in it does not have the size and the checksums of the index", member.path))
    }
}

/// Names the members that a damaged frame takes with it.
fn frame_problem(frame: &Frame, error: &InvalidFrame, members: &[IndexEntry]) -> String {
    let Range { start, end } = frame.plain();
    let lost: Vec<&IndexEntry> = members
        .iter()
        .filter(|member| {
            member
                .contents
                .as_ref()
                .is_some_and(|contents| contents.offset < end && contents.offset + contents.size > start)
        })
        .collect();
    let problem = format!("{error}, at byte {}", frame.stored().start);
    let named: Vec<String> = lost.iter().take(NAMED).map(|member| format!("\"{}\"", member.path)).collect();
    match (lost.len(), lost.len().saturating_sub(NAMED)) {
        (0, _) => problem,
        (_, 0) => format!("{problem}, which takes {} with it", named.join(", ")),
        (_, more) => format!("{problem}, which takes {} and {more} more with it", named.join(", ")),
    }
}

/// The plain bytes of a pack, frame by frame as the seek table has them, while everything stored is hashed.
struct PlainStream<'t, I> {
    chunks: I,
    frames: &'t [Frame],
    hash: Sha256,
    /// Stored bytes that belong to no complete frame so far.
    waiting: BytesMut,
    plain: Vec<u8>,
    /// How much of `plain` was read.
    read: usize,
    /// The frame that did not open.
    damaged: Option<(Frame, InvalidFrame)>,
}

impl<'t, I: Iterator<Item = Bytes>> PlainStream<'t, I> {
    fn new(chunks: I, frames: &'t [Frame]) -> Self {
        Self {
            chunks,
            frames,
            hash: Sha256::new(),
            waiting: BytesMut::new(),
            plain: Vec::new(),
            read: 0,
            damaged: None,
        }
    }

    /// Opens a frame, for which more chunks are taken as they are needed.
    fn open(&mut self, frame: &Frame) -> Result<(), InvalidFrame> {
        let length = frame.stored_bytes as usize;
        while self.waiting.len() < length {
            let stored = self.waiting.len();
            let chunk = self.chunks.next().ok_or(InvalidFrame::StoredSize { frame: Some(length), stored })?;
            self.hash.update(&chunk);
            self.waiting.extend_from_slice(&chunk);
        }
        let stored = self.waiting.split_to(length);
        decompress_frame(&stored, &mut self.plain)?;
        let fits = self.plain.len() == frame.plain_bytes as usize && frame_checksum(&stored) == Some(frame.checksum);
        if fits { Ok(()) } else { Err(InvalidFrame::Misplaced) }
    }

    /// Reads what is left, and returns the SHA-256 of everything stored.
    fn finish(mut self) -> Result<[u8; 32], String> {
        if !self.frames.is_empty() {
            return Err("its tar stream ends before its last frame".to_owned());
        }
        self.chunks.by_ref().for_each(|chunk| self.hash.update(&chunk));
        Ok(self.hash.finalize().into())
    }
}

impl<I: Iterator<Item = Bytes>> Read for PlainStream<'_, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.plain.len() {
            let Some((frame, later)) = self.frames.split_first() else { return Ok(0) };
            if let Err(error) = self.open(frame) {
                self.damaged = Some((*frame, error));
                return Err(io::Error::other("a frame does not open"));
            }
            (self.frames, self.read) = (later, 0);
        }
        let count = self.plain.get(self.read..).unwrap_or_default().read(buffer)?;
        self.read += count;
        Ok(count)
    }
}
