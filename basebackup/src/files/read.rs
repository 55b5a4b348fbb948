//! One file of a live data directory, read for the backup.
//!
//! The server may write, extend, truncate or drop the file meanwhile. Its size is fixed when it is opened; where a
//! relation turns out shorter the rest is zeros, and the WAL repairs it (`sendFile`, src/backend/backup/basebackup.c).
//! What the WAL does not repair, configuration for one, is small and read whole before its size is said.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{Advice, CWD, FileType, Mode, OFlags, fadvise, fstat, openat};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::attributes::{Attributes, Facts};
use super::checksum::{Checksum, ChecksumAlgorithm, Hasher};
use super::relation::FileKind;
use super::settle::{BadPage, PageChecks, Settling};

/// The most bytes delivered at once: a multiple of every block size.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The largest file besides relations that is read whole.
pub const WHOLE_FILE_BYTES: u64 = 16 << 20;

/// What was delivered of one file.
#[derive(Debug, Clone)]
pub struct FileSummary {
    /// Bytes delivered.
    pub size: u64,
    /// The checksum for the backup manifest; none for CRC-32C, which is computed where the pack is written.
    pub checksum: Option<Checksum>,
    /// Damaged pages, in order.
    pub bad_pages: Vec<BadPage>,
    /// Bytes at the end of a relation that are no whole page, and so not checked. None without page checks.
    pub partial_page_bytes: u64,
}

/// Reads files one after the other, with one buffer for all of them.
#[derive(Debug)]
pub struct FileReader {
    data_directory: PathBuf,
    page_checks: Option<PageChecks>,
    checksums: ChecksumAlgorithm,
    buffer: Vec<u8>,
}

/// A file being read.
#[derive(Debug)]
pub struct OpenFile<'r> {
    file: File,
    path: PathBuf,
    attributes: Attributes,
    size: u64,
    /// Bytes delivered so far.
    offset: u64,
    /// The part of the latest chunk that was not in the page cache.
    fetched: Range<u64>,
    contents: Contents,
    buffer: &'r mut Vec<u8>,
    page_checks: Option<(PageChecks, u32)>,
    /// The manifest's checksum, unless the index has it too.
    checksum: Option<Hasher>,
    bad_pages: Vec<BadPage>,
    partial_page_bytes: u64,
}

/// Where the bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contents {
    /// All of them are in the buffer.
    Buffered,
    /// The file.
    Streamed,
    /// Nowhere: the file ended early, the rest is zeros.
    Ended,
}

impl FileReader {
    /// `page_checks` is none where the cluster has no data checksums.
    pub fn new(data_directory: &Path, page_checks: Option<PageChecks>, checksums: ChecksumAlgorithm) -> Self {
        Self { data_directory: data_directory.to_owned(), page_checks, checksums, buffer: Vec::new() }
    }

    /// Opens a file by its path relative to the data directory; nothing if it is gone.
    ///
    /// # Errors
    /// Any other failure of the operating system, with the path; `Invalid` if it is no regular file any more.
    pub fn open(&mut self, path: &Path, kind: FileKind) -> Result<Option<OpenFile<'_>>> {
        let path = self.data_directory.join(path);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(CWD, &path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(Error::io("open file", &path, errno.into())),
        };
        let facts = examine(&file, &path)?;
        if facts.file_type != FileType::RegularFile {
            return Err(Error::new(Kind::Invalid, format!("\"{}\" is no regular file any more", path.display())));
        }
        // The kernel must not read ahead, or what comes next would look as if the server had it in the cache. A chunk is
        // read in one request. Advice that cannot be taken changes nothing.
        let _ = fadvise(&file, 0, None, Advice::Random);
        let (size, contents) = match kind {
            FileKind::Other if facts.size <= WHOLE_FILE_BYTES => {
                read_whole(&file, &path, facts.size, &mut self.buffer)?
            }
            FileKind::Other | FileKind::Relation(_) => (facts.size, Contents::Streamed),
        };
        if contents == Contents::Streamed {
            self.buffer.resize(CHUNK_BYTES, 0);
        }
        let page_checks = match kind {
            FileKind::Relation(relation) => {
                self.page_checks.map(|checks| (checks, relation.first_block(checks.segment_blocks)))
            }
            FileKind::Other => None,
        };
        let checksum = (self.checksums != ChecksumAlgorithm::Crc32c).then(|| Hasher::new(self.checksums));
        Ok(Some(OpenFile {
            file,
            path,
            attributes: facts.attributes,
            size,
            offset: 0,
            fetched: 0..0,
            contents,
            buffer: &mut self.buffer,
            page_checks,
            checksum,
            bad_pages: Vec::new(),
            partial_page_bytes: 0,
        }))
    }
}

impl OpenFile<'_> {
    /// Exactly how many bytes [`next_chunk`](Self::next_chunk) will deliver in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Owner, mode and time when the file was opened.
    pub fn attributes(&self) -> Attributes {
        self.attributes
    }

    /// Delivers the next bytes, at most [`CHUNK_BYTES`]; nothing at the end.
    ///
    /// # Errors
    /// Any failure to read, with the path.
    pub fn next_chunk(&mut self) -> Result<Option<&[u8]>> {
        let remaining = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX);
        let length = remaining.min(CHUNK_BYTES);
        if length == 0 {
            return Ok(None);
        }
        let start =
            if self.contents == Contents::Buffered { usize::try_from(self.offset).unwrap_or(usize::MAX) } else { 0 };
        if self.contents != Contents::Buffered {
            self.fill(length)?;
        }
        let internal = || Error::new(Kind::Internal, "the buffer is shorter than the file it holds");
        let chunk = self.buffer.get(start..start.saturating_add(length)).ok_or_else(internal)?;
        if let Some(checksum) = &mut self.checksum {
            checksum.update(chunk);
        }
        // What the backup brought into the page cache leaves it again: it belongs to the server. What was there before
        // stays.
        if !self.fetched.is_empty() {
            let length = NonZeroU64::new(self.fetched.end - self.fetched.start);
            let _ = fadvise(&self.file, self.fetched.start, length, Advice::DontNeed);
        }
        self.fetched = 0..0;
        self.offset += length as u64;
        Ok(Some(chunk))
    }

    /// What has been delivered, after the last chunk.
    ///
    /// # Errors
    /// `Internal` if there are bytes left to deliver.
    pub fn finish(self) -> Result<FileSummary> {
        if self.offset != self.size {
            let (path, offset, size) = (self.path.display(), self.offset, self.size);
            return Err(Error::new(Kind::Internal, format!("\"{path}\" was left after {offset} of {size} bytes")));
        }
        Ok(FileSummary {
            size: self.size,
            checksum: self.checksum.map(Hasher::finish),
            bad_pages: self.bad_pages,
            partial_page_bytes: self.partial_page_bytes,
        })
    }

    /// Puts the next `length` bytes at the beginning of the buffer.
    fn fill(&mut self, length: usize) -> Result<()> {
        let Some(wanted) = self.buffer.get_mut(..length) else {
            return Err(Error::new(Kind::Internal, "the buffer is shorter than a chunk"));
        };
        let mut read = 0;
        if self.contents == Contents::Streamed {
            let cached = read_cached(&self.file, wanted, self.offset);
            let (_, rest) = wanted.split_at_mut_checked(cached).unwrap_or_default();
            let start = self.offset + cached as u64;
            let fetched = read_at(&self.file, rest, start).context("read file", &self.path)?;
            self.fetched = start..start + fetched as u64;
            read = cached + fetched;
            if let Some((checks, first_block)) = self.page_checks {
                let block_bytes = checks.block_size.bytes();
                let (contents, _) = wanted.split_at_mut_checked(read).unwrap_or_default();
                let (pages, partial) = contents.split_at_mut_checked(read - read % block_bytes).unwrap_or_default();
                self.partial_page_bytes += partial.len() as u64;
                let chunk_block = self.offset / block_bytes as u64;
                let chunk_block = first_block.wrapping_add(u32::try_from(chunk_block).unwrap_or(u32::MAX));
                let (file, offset) = (&self.file, self.offset);
                let reread = |at: usize, page: &mut [u8]| read_at(file, page, offset + at as u64);
                let mut settling = Settling { checks, first_block: chunk_block, bad_pages: &mut self.bad_pages };
                let sound = settling.settle(pages, reread, |ms| sleep(Duration::from_millis(ms)));
                if let Some(end) = sound.context("read file", &self.path)? {
                    read = end;
                }
            }
        }
        if read < length {
            self.contents = Contents::Ended;
            wanted.get_mut(read..).unwrap_or_default().fill(0);
        }
        Ok(())
    }
}

/// Reads a small file to its end. One that outgrows the limit meanwhile is streamed after all, up to the size it has
/// by then.
fn read_whole(file: &File, path: &Path, expected: u64, buffer: &mut Vec<u8>) -> Result<(u64, Contents)> {
    use std::io::Read as _;
    buffer.clear();
    // Otherwise the buffer doubles as it grows.
    buffer.reserve(usize::try_from(expected).unwrap_or(0).saturating_add(1));
    let mut limited = file.take(WHOLE_FILE_BYTES + 1);
    let read = limited.read_to_end(buffer).context("read file", path)? as u64;
    if read <= WHOLE_FILE_BYTES {
        Ok((read, Contents::Buffered))
    } else {
        Ok((examine(file, path)?.size, Contents::Streamed))
    }
}

fn examine(file: &File, path: &Path) -> Result<Facts> {
    fstat(file).map(Facts::from).map_err(|errno| Error::io("examine", path, errno.into()))
}

/// Reads from `offset` on what is in the page cache, up to the first page that is not; returns how many bytes there were.
/// Where a file system cannot tell, there are none. A page that the kernel is busy with for a moment is refused like one that
/// is not there, so that each refusal is met twice before it is believed.
fn read_cached(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let (mut read, mut refusals) = (0, 0);
    while refusals < 2
        && let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty())
    {
        match preadv2(file, &mut [IoSliceMut::new(rest)], offset + read as u64, ReadWriteFlags::NOWAIT) {
            Ok(bytes) if bytes > 0 => (read, refusals) = (read + bytes, 0),
            _ => refusals += 1,
        }
    }
    read
}

/// Fills the buffer from `offset` on, as far as the file goes; returns how many bytes there were.
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(bytes) => {
                read += bytes;
                offset += bytes as u64;
                buffer = buffer.get_mut(bytes..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
