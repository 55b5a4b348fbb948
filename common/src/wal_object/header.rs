//! The header in front of a WAL object: a zstd skippable frame, so that zstd itself passes over it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::lsn::Lsn;
use crate::wal::segment::{SegmentSize, Timeline};

/// The most a header takes, and so what one range read must fetch to get it.
pub const MAX_BYTES: u64 = 4096;

/// The version of the object format this program writes, and the newest it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The first of the magic numbers zstd reserves for skippable frames.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
const FRAME_HEADER_BYTES: usize = 8;
const CRC_BYTES: usize = 4;

/// What is known about an archived WAL file without decompressing it. Fields unknown to this program are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The format's version.
    pub walkeep: u32,
    /// The name PostgreSQL gave the file.
    pub name: String,
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the compressed frames after the header.
    pub stored_size: u64,
    /// BLAKE3 of the file: its identity, whatever the compression.
    pub blake3: String,
    /// SHA-256 of the compressed frames: anyone can check them without decompressing.
    pub sha256: String,
    /// The cluster it belongs to. Written as text, since many JSON readers round numbers above 2^53.
    #[serde(with = "text_or_number")]
    pub system_identifier: u64,
    /// The timeline in its name.
    pub timeline: Timeline,
    /// The position of its first byte; segments only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_lsn: Option<Lsn>,
    /// The PostgreSQL major that wrote it, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pg_major: Option<u32>,
    /// The cluster's segment size; segments only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_size: Option<SegmentSize>,
    /// The zstd level.
    pub level: i32,
    /// When PostgreSQL last wrote the file.
    pub modified: Timestamp,
    /// When it was archived.
    pub archived: Timestamp,
    /// The host it was archived from.
    pub host: String,
    /// The program's version.
    pub version: String,
}

/// The bytes are not the header of a WAL object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// Nothing at all.
    #[error("the object is empty")]
    Empty,
    /// It ends before the header does.
    #[error("the object is cut off in its header")]
    Short,
    /// It does not begin as a WAL object.
    #[error("the object does not begin with a Walkeep header")]
    Magic,
    /// The header says it is larger than any header is.
    #[error("the object's header is damaged: impossible size")]
    Size,
    /// The checksum does not match.
    #[error("the object's header is damaged: its checksum does not match")]
    Checksum,
    /// The contents are not what a header holds.
    #[error("the object's header is damaged: {0}")]
    Contents(String),
    /// Written by a newer program.
    #[error("the object has format {0}, newer than this program reads; upgrade Walkeep")]
    Newer(u32),
}

/// The one field that decides whether the others can be understood.
#[derive(Deserialize)]
struct Version {
    walkeep: u32,
}

impl Header {
    /// Returns the header as stored.
    ///
    /// # Errors
    /// Where the contents do not fit into [`MAX_BYTES`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, InvalidHeader> {
        let json = serde_json::to_vec(self).map_err(|error| InvalidHeader::Contents(error.to_string()))?;
        let size = json.len() + CRC_BYTES;
        let frame_size = u32::try_from(size).map_err(|_| InvalidHeader::Size)?;
        if (FRAME_HEADER_BYTES + size) as u64 > MAX_BYTES {
            return Err(InvalidHeader::Size);
        }
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + size);
        bytes.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&frame_size.to_le_bytes());
        bytes.extend_from_slice(&json);
        bytes.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
        Ok(bytes)
    }

    /// Reads the header from an object's first bytes; also returns how long it is.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), InvalidHeader> {
        let length = Self::length(bytes)?;
        let content = bytes.get(FRAME_HEADER_BYTES..length).ok_or(InvalidHeader::Short)?;
        let (json, crc) = content.split_last_chunk::<CRC_BYTES>().ok_or(InvalidHeader::Size)?;
        if crc32c::crc32c(json) != u32::from_le_bytes(*crc) {
            return Err(InvalidHeader::Checksum);
        }
        let contents = |error: serde_json::Error| InvalidHeader::Contents(error.to_string());
        let version: Version = serde_json::from_slice(json).map_err(contents)?;
        if version.walkeep > FORMAT_VERSION {
            return Err(InvalidHeader::Newer(version.walkeep));
        }
        Ok((serde_json::from_slice(json).map_err(contents)?, length))
    }

    /// How long the header is that begins with `bytes`, of which eight are enough.
    pub fn length(bytes: &[u8]) -> Result<usize, InvalidHeader> {
        if bytes.is_empty() {
            return Err(InvalidHeader::Empty);
        }
        let field = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
        if field(0).ok_or(InvalidHeader::Short)? != SKIPPABLE_MAGIC {
            return Err(InvalidHeader::Magic);
        }
        let size = field(4).ok_or(InvalidHeader::Short)? as usize;
        let length = FRAME_HEADER_BYTES + size;
        if size < CRC_BYTES || length as u64 > MAX_BYTES { Err(InvalidHeader::Size) } else { Ok(length) }
    }

    /// The whole object's size: header and frames.
    pub fn object_size(&self, header_bytes: usize) -> u64 {
        (header_bytes as u64).saturating_add(self.stored_size)
    }
}

/// 64-bit identifiers are written as text and read as either.
pub mod text_or_number {
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes the number as text.
    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    /// Reads text or a number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Number(u64),
            Text(String),
        }
        match Value::deserialize(deserializer)? {
            Value::Number(number) => Ok(number),
            Value::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}
