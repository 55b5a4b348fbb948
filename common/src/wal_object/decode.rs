//! From an object back to the WAL file: nothing is good until every hash and size has been seen to match.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};
use zstd::stream::write::Decoder as ZstdDecoder;

use super::encode::hexadecimal;
use super::header::{Header, InvalidHeader};

/// The bytes are not the WAL object they should be, or the file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The header is not one.
    #[error(transparent)]
    Header(#[from] InvalidHeader),
    /// The object's length differs from what its header says.
    #[error("the object is {found} bytes long, {expected} according to its header")]
    Length {
        /// According to the header.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The compressed frames do not have the SHA-256 in the header.
    #[error("the stored bytes do not match their SHA-256")]
    StoredHash,
    /// zstd refuses the frames.
    #[error("the stored bytes do not decompress")]
    Frames(#[source] io::Error),
    /// The file does not have the size in the header.
    #[error("the file is {found} bytes long, {expected} according to its header")]
    Size {
        /// According to the header.
        expected: u64,
        /// As found; the count stops when it is exceeded.
        found: u64,
    },
    /// The file does not have the BLAKE3 hash in the header.
    #[error("the decompressed file does not match its BLAKE3 hash")]
    PlainHash,
    /// The destination could not be written.
    #[error("could not write the file")]
    Write(#[source] io::Error),
}

/// Decodes one object fed in pieces, writing the file to `W` as it goes.
pub struct Decoder<W: Write> {
    header: Header,
    header_bytes: usize,
    stored_hash: Sha256,
    stored_size: u64,
    frames: ZstdDecoder<'static, Plain<W>>,
}

impl<W: Write> std::fmt::Debug for Decoder<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("header", &self.header).finish_non_exhaustive()
    }
}

impl<W: Write> Decoder<W> {
    /// Begins with a header that was read already and is `header_bytes` long in the object.
    ///
    /// # Errors
    /// `Frames` if zstd lacks memory.
    pub fn new(header: Header, header_bytes: usize, file: W) -> Result<Self, DecodeError> {
        let plain = Plain { file, hash: blake3::Hasher::new(), size: 0, limit: header.size, failure: None };
        let frames = ZstdDecoder::new(plain).map_err(DecodeError::Frames)?;
        Ok(Self { header, header_bytes, stored_hash: Sha256::new(), stored_size: 0, frames })
    }

    /// Takes the next bytes after the header.
    pub fn feed(&mut self, stored: &[u8]) -> Result<(), DecodeError> {
        self.stored_size += stored.len() as u64;
        if self.stored_size > self.header.stored_size {
            return Err(self.wrong_length());
        }
        self.stored_hash.update(stored);
        let written = self.frames.write_all(stored);
        self.explain(written)
    }

    /// Ends the object: returns the destination once everything matches.
    pub fn finish(mut self) -> Result<(Header, W), DecodeError> {
        if self.stored_size != self.header.stored_size {
            return Err(self.wrong_length());
        }
        let flushed = self.frames.flush();
        self.explain(flushed)?;
        if hexadecimal(&self.stored_hash.clone().finalize()) != self.header.sha256 {
            return Err(DecodeError::StoredHash);
        }
        let plain = self.frames.into_inner();
        if plain.size != self.header.size {
            return Err(DecodeError::Size { expected: self.header.size, found: plain.size });
        }
        if plain.hash.finalize().to_hex().as_str() != self.header.blake3 {
            return Err(DecodeError::PlainHash);
        }
        Ok((self.header, plain.file))
    }

    fn wrong_length(&self) -> DecodeError {
        DecodeError::Length {
            expected: self.header.object_size(self.header_bytes),
            found: self.stored_size.saturating_add(self.header_bytes as u64),
        }
    }

    /// The writer below zstd remembers its own failures, for zstd's interface hands both kinds out as one.
    fn explain(&mut self, result: io::Result<()>) -> Result<(), DecodeError> {
        let Err(error) = result else { return Ok(()) };
        match self.frames.get_mut().failure.take() {
            Some(PlainFailure::TooLong) => {
                Err(DecodeError::Size { expected: self.header.size, found: self.header.size + 1 })
            }
            Some(PlainFailure::Write) => Err(DecodeError::Write(error)),
            None => Err(DecodeError::Frames(error)),
        }
    }
}

/// Hashes what zstd yields and passes it on, but never more than the header promised.
struct Plain<W> {
    file: W,
    hash: blake3::Hasher,
    size: u64,
    limit: u64,
    failure: Option<PlainFailure>,
}

enum PlainFailure {
    TooLong,
    Write,
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.size += bytes.len() as u64;
        if self.size > self.limit {
            self.failure = Some(PlainFailure::TooLong);
            return Err(io::Error::other("longer than its header says"));
        }
        self.file.write_all(bytes).inspect_err(|_| self.failure = Some(PlainFailure::Write))?;
        let _ = self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().inspect_err(|_| self.failure = Some(PlainFailure::Write))
    }
}
