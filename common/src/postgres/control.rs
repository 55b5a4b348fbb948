//! `global/pg_control`: the identity and state of a cluster.
//!
//! Mirrors `ControlFileData` (src/include/catalog/pg_control.h), PostgreSQL 13 to 19. Later majors are read as far
//! as the fields that never moved.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::error::{Error, IoContext as _, Kind, Result};
use crate::lsn::Lsn;
use crate::wal::segment::{SegmentSize, Timeline};

/// Bytes PostgreSQL writes and reads (`PG_CONTROL_FILE_SIZE`).
pub const FILE_BYTES: usize = 8192;

/// What the programs need from `pg_control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity, drawn at initdb.
    pub system_identifier: u64,
    /// `pg_control_version`, 1300 for PostgreSQL 13 to 16.
    pub version: u32,
    /// `catalog_version_no`: also part of the name of a tablespace's subdirectory.
    pub catalog_version: u32,
    /// `state`: 1 and 2 mean shut down.
    pub state: u32,
    /// When it was last written (`time`), in seconds since 1970.
    pub modified: i64,
    /// Position of the latest checkpoint's record.
    pub checkpoint: Lsn,
    /// Redo position of the latest checkpoint.
    pub redo: Lsn,
    /// Timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// The end of what recovery must replay on a standby (`minRecoveryPoint`); none for an unknown version.
    pub min_recovery_point: Option<Lsn>,
    /// The WAL segment size; none for an unknown version.
    pub segment_size: Option<SegmentSize>,
    /// `data_checksum_version`: 0 off, 1 on, anything else in between; none for an unknown version.
    pub data_checksums: Option<u32>,
}

/// Where the fields that moved lie in one `pg_control_version`.
struct Offsets {
    min_recovery_point: usize,
    segment_size: usize,
    data_checksums: usize,
    crc: usize,
}

fn offsets(version: u32) -> Option<Offsets> {
    let offsets = |min_recovery_point, segment_size, data_checksums, crc| Offsets {
        min_recovery_point,
        segment_size,
        data_checksums,
        crc,
    };
    match version {
        1300 | 1700 => Some(offsets(136, 228, 252, 288)),
        1800 => Some(offsets(136, 228, 252, 292)),
        1902 => Some(offsets(144, 240, 264, 304)),
        1905 => Some(offsets(144, 240, 268, 308)),
        _ => None,
    }
}

/// The bytes are not a valid `pg_control`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidControlFile {
    /// Too short.
    #[error("shorter than a control file")]
    Short,
    /// The checksum does not match: torn by a concurrent write, or damaged.
    #[error("incorrect checksum in control file")]
    Checksum,
}

impl ControlFile {
    /// Reads the fields and checks the CRC where the version is known.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidControlFile> {
        let version = u32_at(bytes, 8)?;
        let offsets = offsets(version);
        if let Some(offsets) = &offsets {
            let covered = bytes.get(..offsets.crc).ok_or(InvalidControlFile::Short)?;
            if crc32c::crc32c(covered) != u32_at(bytes, offsets.crc)? {
                return Err(InvalidControlFile::Checksum);
            }
        }
        let moved = |pick: fn(&Offsets) -> usize| offsets.as_ref().map(pick);
        Ok(Self {
            system_identifier: u64_at(bytes, 0)?,
            version,
            catalog_version: u32_at(bytes, 12)?,
            state: u32_at(bytes, 16)?,
            modified: u64_at(bytes, 24)?.cast_signed(),
            checkpoint: Lsn(u64_at(bytes, 32)?),
            redo: Lsn(u64_at(bytes, 40)?),
            timeline: Timeline(u32_at(bytes, 48)?),
            min_recovery_point: moved(|o| o.min_recovery_point).map(|at| u64_at(bytes, at)).transpose()?.map(Lsn),
            segment_size: match moved(|o| o.segment_size) {
                Some(at) => SegmentSize::try_from(u64::from(u32_at(bytes, at)?)).ok(),
                None => None,
            },
            data_checksums: moved(|o| o.data_checksums).map(|at| u32_at(bytes, at)).transpose()?,
        })
    }

    /// Reads `global/pg_control` below a data directory, again and again while a concurrent write tears it.
    ///
    /// # Errors
    /// As [`read_bytes`].
    pub fn read(data_directory: &Path) -> Result<Self> {
        read_bytes(data_directory).map(|(_, control)| control)
    }
}

/// The control file of the cluster that a file in `pg_wal` belongs to: in the working directory, which is PostgreSQL's
/// data directory, else above the file, whose path people and other programs give.
///
/// # Errors
/// `Invalid` if the two are of different clusters: the file would be filed under the wrong one.
pub fn of_wal_file(path: &Path) -> Result<Option<ControlFile>> {
    let here = ControlFile::read(Path::new(".")).ok();
    // In an absolute path `pg_wal` may be a link to another disk, above which there is nothing.
    let named = path.parent().and_then(Path::parent).filter(|_| path.is_absolute()).map(Path::to_owned);
    let found = path.parent().map(|directory| directory.join(".."));
    let above = [named, found].into_iter().flatten().find_map(|directory| ControlFile::read(&directory).ok());
    match (here, above) {
        (Some(here), Some(above)) if here.system_identifier != above.system_identifier => Err(Error::new(
            Kind::Invalid,
            format!(
                "\"{}\" belongs to the cluster {}, the working directory to {}",
                path.display(),
                above.system_identifier,
                here.system_identifier
            ),
        )
        .hint("Run it in the data directory of the file's cluster.")),
        (here, above) => Ok(here.or(above)),
    }
}

/// Reads `global/pg_control` until its checksum is right: PostgreSQL writes it in place, and a reader may see half
/// of a write (`get_controlfile`, src/common/controldata_utils.c, retries in the same way).
///
/// # Errors
/// `NotFound` or `Refused` from the operating system; `Invalid` if it stays torn.
pub fn read_bytes(data_directory: &Path) -> Result<(Vec<u8>, ControlFile)> {
    const ATTEMPTS: u32 = 20;
    let path = data_directory.join("global/pg_control");
    let mut attempt = 1;
    loop {
        let mut bytes = Vec::with_capacity(FILE_BYTES);
        let file = File::open(&path).context("open file", &path)?;
        let _ = file.take(FILE_BYTES as u64).read_to_end(&mut bytes).context("read file", &path)?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(problem) if attempt == ATTEMPTS => {
                return Err(
                    Error::new(Kind::Invalid, format!("could not use file \"{}\"", path.display())).caused_by(problem)
                );
            }
            Err(_) => sleep(Duration::from_millis(10)),
        }
        attempt += 1;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, InvalidControlFile> {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes).ok_or(InvalidControlFile::Short)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, InvalidControlFile> {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or(InvalidControlFile::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u32) -> Vec<u8> {
        let mut bytes = vec![0; FILE_BYTES];
        bytes[0..8].copy_from_slice(&7_710_887_969_738_885_802_u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&version.to_le_bytes());
        bytes[48..52].copy_from_slice(&3u32.to_le_bytes());
        if let Some(offsets) = offsets(version) {
            bytes[offsets.segment_size..offsets.segment_size + 4].copy_from_slice(&(1u32 << 24).to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..offsets.crc]);
            bytes[offsets.crc..offsets.crc + 4].copy_from_slice(&crc.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn every_known_version_is_read_and_its_checksum_checked() {
        for version in [1300, 1700, 1800, 1902, 1905] {
            let mut bytes = file(version);
            let control = ControlFile::parse(&bytes).unwrap();
            assert_eq!((control.system_identifier, control.timeline), (7_710_887_969_738_885_802, Timeline(3)));
            assert_eq!(control.segment_size.unwrap().bytes(), 1 << 24);
            bytes[100] ^= 1;
            assert_eq!(ControlFile::parse(&bytes), Err(InvalidControlFile::Checksum));
        }
    }

    #[test]
    fn a_newer_version_is_read_as_far_as_nothing_moved() {
        let control = ControlFile::parse(&file(2100)).unwrap();
        assert_eq!((control.timeline, control.segment_size), (Timeline(3), None));
        assert_eq!(ControlFile::parse(&[0; 20]), Err(InvalidControlFile::Short));
    }
}
