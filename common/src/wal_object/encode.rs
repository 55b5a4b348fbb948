//! From a WAL file to its object: read once, hashed and compressed on the way.

use std::io::{Read, Write as _};

use bytes::Bytes;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use zstd::stream::write::Encoder;

use super::header::{FORMAT_VERSION, Header};
use crate::error::{Error, Kind, Result};
use crate::lsn::Lsn;
use crate::wal::segment::{SegmentSize, Timeline};

const READ_BYTES: usize = 256 * 1024;

/// What the header says about the file besides what its bytes say.
#[derive(Debug, Clone)]
pub struct Description {
    /// The name PostgreSQL gave it.
    pub name: String,
    /// The cluster it belongs to.
    pub system_identifier: u64,
    /// The timeline in its name.
    pub timeline: Timeline,
    /// The position of its first byte; segments only.
    pub start_lsn: Option<Lsn>,
    /// The PostgreSQL major that wrote it, if known.
    pub pg_major: Option<u32>,
    /// The cluster's segment size; segments only.
    pub segment_size: Option<SegmentSize>,
    /// When PostgreSQL last wrote it.
    pub modified: Timestamp,
    /// When it is archived: now.
    pub archived: Timestamp,
    /// The host it is archived from.
    pub host: String,
}

/// A WAL file ready to be stored.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// What the header says.
    pub header: Header,
    /// The header as stored.
    pub header_bytes: Bytes,
    /// The compressed frames that follow it.
    pub frames: Bytes,
}

/// Compresses exactly `size` bytes of `file` into one zstd frame. Only the compressed bytes are held in memory.
///
/// # Errors
/// `Invalid` if the file ends early: it is not the file that was looked at before; `Unavailable` on I/O errors.
pub fn encode(mut file: impl Read, size: u64, level: i32, description: Description) -> Result<Encoded> {
    let unreadable = |error: std::io::Error| {
        Error::new(Kind::Unavailable, format!("could not read file \"{}\"", description.name)).caused_by(error)
    };
    // Compression into memory can fail only for lack of memory.
    let compression = |error: std::io::Error| Error::new(Kind::Unavailable, "could not compress").caused_by(error);

    // WAL compresses to about a quarter; growing once is cheaper than reserving a whole segment.
    let mut encoder =
        Encoder::new(Vec::with_capacity(usize::try_from(size / 3).unwrap_or(0)), level).map_err(compression)?;
    // Without the checksum, a flipped bit decodes to other data without an error.
    encoder.include_checksum(true).map_err(compression)?;
    encoder.include_contentsize(true).map_err(compression)?;
    encoder.set_pledged_src_size(Some(size)).map_err(compression)?;

    let mut plain_hash = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES.min(usize::try_from(size).unwrap_or(READ_BYTES).max(1))];
    let mut remaining = size;
    while remaining > 0 {
        let want = buffer.len().min(usize::try_from(remaining).unwrap_or(usize::MAX));
        let read = match file.read(&mut buffer[..want]) {
            Ok(0) => {
                let read = size - remaining;
                return Err(Error::new(
                    Kind::Invalid,
                    format!("file \"{}\" ended after {read} of {size} bytes", description.name),
                ));
            }
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unreadable(error)),
        };
        let _ = plain_hash.update(read);
        encoder.write_all(read).map_err(compression)?;
        remaining -= read.len() as u64;
    }
    let frames = Bytes::from(encoder.finish().map_err(compression)?);

    let header = Header {
        walkeep: FORMAT_VERSION,
        name: description.name,
        size,
        stored_size: frames.len() as u64,
        blake3: plain_hash.finalize().to_hex().to_string(),
        sha256: hexadecimal(&Sha256::digest(&frames)),
        system_identifier: description.system_identifier,
        timeline: description.timeline,
        start_lsn: description.start_lsn,
        pg_major: description.pg_major,
        segment_size: description.segment_size,
        level,
        modified: description.modified,
        archived: description.archived,
        host: description.host,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let header_bytes = header
        .to_bytes()
        .map_err(|error| Error::new(Kind::Internal, "could not write the object's header").caused_by(error))?;
    Ok(Encoded { header, header_bytes: header_bytes.into(), frames })
}

/// Lower-case hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
