//! `files.ndjson.zst`: one line for each member of each pack.
//!
//! Written and read as a stream, so that a million files cost no memory. The lines of one pack stand together, in the
//! order of the pack; both sides insist on it, and so members cannot overlap.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read, Write};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use zstd::stream::{read, write};

use super::index_line::{parse_line, write_line};
use super::member::{InvalidPath, MemberPath};
use super::tar::{BLOCK_BYTES, padding_bytes};

/// Longer than any line: a path of 4095 bytes, each written as `\u0001`, and the rest.
const MAX_LINE_BYTES: u64 = 32 * 1024;

/// One line: a member and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Where it belongs, relative to the data directory.
    pub path: MemberPath,
    /// The number of the pack that holds it, from 1.
    pub pack: u32,
    /// Permission bits, up to `0o7777`.
    pub mode: u32,
    /// Time of last modification; written to the second.
    pub modified: Timestamp,
    /// User id of the owner. `backup.json` has the names.
    pub uid: u32,
    /// Group id of the owner.
    pub gid: u32,
    /// What a file holds; none for a directory.
    pub contents: Option<Contents>,
}

/// The content of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Where it begins in the pack's plain stream.
    pub offset: u64,
    /// How long it is.
    pub size: u64,
    /// Its BLAKE3.
    pub blake3: blake3::Hash,
    /// Its CRC-32C. `backup_manifest` prints the same number with its bytes reversed, as it lies in memory.
    pub crc32c: u32,
}

/// What `backup.json` records of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexSummary {
    /// How many members.
    pub lines: u64,
    /// The size of the object.
    pub stored_bytes: u64,
    /// SHA-256 of the object.
    pub sha256: [u8; 32],
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLine {
    /// Not JSON, a field is missing, or has the wrong type.
    #[error("{0}")]
    Json(String),
    /// A value that cannot be, or fields that do not go together.
    #[error("invalid \"{0}\"")]
    Field(&'static str),
    /// A path that must not be created.
    #[error(transparent)]
    Path(#[from] InvalidPath),
    /// Overlaps the member before it, or returns to a pack that was done.
    #[error("\"{0}\" is out of order")]
    Order(MemberPath),
    /// No end within the longest line.
    #[error("longer than {MAX_LINE_BYTES} bytes, or the index was cut")]
    Length,
}

/// The index could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The underlying reader or writer failed, or the stored bytes are not an intact zstd stream.
    #[error("could not process the stream")]
    Stream(#[from] io::Error),
    /// One line is wrong.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        reason: InvalidLine,
    },
}

/// Writes the index.
pub struct IndexWriter<W: Write> {
    stream: write::Encoder<'static, Hashing<W>>,
    order: Order,
    lines: u64,
}

impl<W: Write> IndexWriter<W> {
    /// Starts an index that is stored through `inner`, in small pieces.
    pub fn new(inner: W, level: i32) -> io::Result<Self> {
        let mut stream = write::Encoder::new(Hashing::new(inner), level)?;
        stream.include_checksum(true)?;
        Ok(Self { stream, order: Order::default(), lines: 0 })
    }

    /// Adds a line; the lines of a pack together and in the order of the pack.
    pub fn write(&mut self, entry: &IndexEntry) -> Result<(), IndexError> {
        self.lines += 1;
        self.order.accept(entry).map_err(|reason| IndexError::Line { line: self.lines, reason })?;
        let line = write_line(entry).map_err(io::Error::from)?;
        Ok(self.stream.write_all(&line)?)
    }

    /// Ends the index. An index dropped instead is cut short and reads as damaged.
    pub fn finish(self) -> io::Result<(W, IndexSummary)> {
        let hashing = self.stream.finish()?;
        let summary = hashing.summary(self.lines);
        Ok((hashing.inner, summary))
    }
}

/// Reads the index, one entry after the other.
///
/// What it returned is to be trusted only once [`finish`](Self::finish) gave the summary that `backup.json` has.
pub struct IndexReader<R: Read> {
    stream: BufReader<read::Decoder<'static, BufReader<Hashing<R>>>>,
    order: Order,
    lines: u64,
    line: Vec<u8>,
}

impl<R: Read> IndexReader<R> {
    /// Starts to read the stored bytes.
    pub fn new(stored: R) -> io::Result<Self> {
        let stream = BufReader::new(read::Decoder::new(Hashing::new(stored))?);
        Ok(Self { stream, order: Order::default(), lines: 0, line: Vec::new() })
    }

    /// Returns the next entry; none at the end.
    pub fn next_entry(&mut self) -> Result<Option<IndexEntry>, IndexError> {
        self.line.clear();
        self.stream.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        self.lines += 1;
        let entry = self.parse().map_err(|reason| IndexError::Line { line: self.lines, reason })?;
        Ok(Some(entry))
    }

    /// Reads what is left and returns what the stored bytes as a whole are.
    pub fn finish(mut self) -> Result<IndexSummary, IndexError> {
        while self.next_entry()?.is_some() {}
        let mut stored = self.stream.into_inner().finish();
        io::copy(&mut stored, &mut io::sink())?;
        Ok(stored.into_inner().summary(self.lines))
    }

    fn parse(&mut self) -> Result<IndexEntry, InvalidLine> {
        let line = self.line.strip_suffix(b"\n").ok_or(InvalidLine::Length)?;
        let entry = parse_line(line)?;
        self.order.accept(&entry)?;
        Ok(entry)
    }
}

impl<W: Write> fmt::Debug for IndexWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexWriter").field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl<R: Read> fmt::Debug for IndexReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexReader").field("lines", &self.lines).finish_non_exhaustive()
    }
}

/// Sees that the packs come one after the other, and the members of each without overlap.
#[derive(Debug, Default)]
struct Order {
    packs: HashSet<u32>,
    pack: u32,
    /// Where the last file ends in the plain stream, with its padding.
    end: u64,
}

impl Order {
    fn accept(&mut self, entry: &IndexEntry) -> Result<(), InvalidLine> {
        let out_of_order = || InvalidLine::Order(entry.path.clone());
        if entry.pack == 0 {
            return Err(InvalidLine::Field("pack"));
        }
        if entry.pack != self.pack {
            if !self.packs.insert(entry.pack) {
                return Err(out_of_order());
            }
            (self.pack, self.end) = (entry.pack, 0);
        }
        let Some(Contents { offset, size, .. }) = entry.contents else { return Ok(()) };
        if offset % BLOCK_BYTES as u64 != 0 {
            return Err(InvalidLine::Field("offset"));
        }
        // Every content has its header before it.
        if self.end.checked_add(BLOCK_BYTES as u64).is_none_or(|first| offset < first) {
            return Err(out_of_order());
        }
        let end = offset.checked_add(size).and_then(|end| end.checked_add(padding_bytes(size) as u64));
        self.end = end.ok_or(InvalidLine::Field("size"))?;
        Ok(())
    }
}

/// Passes bytes on, and hashes and counts them.
struct Hashing<T> {
    inner: T,
    sha256: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, sha256: Sha256::new(), bytes: 0 }
    }

    fn note(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    fn summary(&self, lines: u64) -> IndexSummary {
        IndexSummary { lines, stored_bytes: self.bytes, sha256: self.sha256.clone().finalize().into() }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.note(buffer.get(..written).unwrap_or(buffer));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.note(buffer.get(..read).unwrap_or(buffer));
        Ok(read)
    }
}
