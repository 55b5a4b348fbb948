//! The checksums a backup manifest can carry (`pg_checksum_type`, src/include/common/checksum_helper.h).

use std::fmt;

use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

/// How the files in a manifest are checksummed (`--manifest-checksums`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    /// Not at all.
    None,
    /// CRC-32C, pg_basebackup's default.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// The checksum of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// None was asked for.
    None,
    /// CRC-32C.
    Crc32c(u32),
    /// SHA-224.
    Sha224([u8; 28]),
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-384.
    Sha384([u8; 48]),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl ChecksumAlgorithm {
    /// Every algorithm.
    pub const ALL: [Self; 6] = [Self::None, Self::Crc32c, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name in a manifest and on pg_basebackup's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }

    /// The checksum of some bytes.
    pub fn of(self, bytes: &[u8]) -> Checksum {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl Checksum {
    /// Reads a checksum as a manifest has it; nothing if it is not one of this algorithm.
    pub fn parse(algorithm: &str, hexadecimal: &str) -> Option<Self> {
        Some(match algorithm {
            "CRC32C" => Self::Crc32c(u32::from_le_bytes(decode_hex(hexadecimal)?)),
            "SHA224" => Self::Sha224(decode_hex(hexadecimal)?),
            "SHA256" => Self::Sha256(decode_hex(hexadecimal)?),
            "SHA384" => Self::Sha384(decode_hex(hexadecimal)?),
            "SHA512" => Self::Sha512(decode_hex(hexadecimal)?),
            _ => return None,
        })
    }

    /// What it was computed with.
    pub fn algorithm(&self) -> ChecksumAlgorithm {
        match self {
            Self::None => ChecksumAlgorithm::None,
            Self::Crc32c(_) => ChecksumAlgorithm::Crc32c,
            Self::Sha224(_) => ChecksumAlgorithm::Sha224,
            Self::Sha256(_) => ChecksumAlgorithm::Sha256,
            Self::Sha384(_) => ChecksumAlgorithm::Sha384,
            Self::Sha512(_) => ChecksumAlgorithm::Sha512,
        }
    }
}

/// Prints the bytes in hexadecimal as a manifest has them. A CRC-32C is printed as it lies in the memory of the
/// machines PostgreSQL mostly runs on, its lowest byte first.
impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Crc32c(crc) => write_hex(f, &crc.to_le_bytes()),
            Self::Sha224(digest) => write_hex(f, digest),
            Self::Sha256(digest) => write_hex(f, digest),
            Self::Sha384(digest) => write_hex(f, digest),
            Self::Sha512(digest) => write_hex(f, digest),
        }
    }
}

/// A checksum being computed.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// None was asked for.
    None,
    /// CRC-32C of the bytes so far.
    Crc32c(u32),
    /// SHA-224.
    Sha224(Sha224),
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-384.
    Sha384(Sha384),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Begins with no bytes.
    pub fn new(algorithm: ChecksumAlgorithm) -> Self {
        match algorithm {
            ChecksumAlgorithm::None => Self::None,
            ChecksumAlgorithm::Crc32c => Self::Crc32c(0),
            ChecksumAlgorithm::Sha224 => Self::Sha224(Sha224::new()),
            ChecksumAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            ChecksumAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            ChecksumAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Self::Sha224(digest) => digest.update(bytes),
            Self::Sha256(digest) => digest.update(bytes),
            Self::Sha384(digest) => digest.update(bytes),
            Self::Sha512(digest) => digest.update(bytes),
        }
    }

    /// The checksum of all bytes.
    pub fn finish(self) -> Checksum {
        match self {
            Self::None => Checksum::None,
            Self::Crc32c(crc) => Checksum::Crc32c(crc),
            Self::Sha224(digest) => Checksum::Sha224(digest.finalize().into()),
            Self::Sha256(digest) => Checksum::Sha256(digest.finalize().into()),
            Self::Sha384(digest) => Checksum::Sha384(digest.finalize().into()),
            Self::Sha512(digest) => Checksum::Sha512(digest.finalize().into()),
        }
    }
}

/// Writes bytes as lower-case hexadecimal digits.
pub(super) fn write_hex(out: &mut impl fmt::Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
}

/// Reads an exact number of bytes from hexadecimal digits.
pub(super) fn decode_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    decode_hex_bytes(text)?.try_into().ok()
}

/// Reads bytes from hexadecimal digits.
pub(super) fn decode_hex_bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes.filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_printed_as_postgresql_does_and_read_back() {
        assert_eq!(Checksum::Crc32c(0x0502_4464).to_string(), "64440205");
        assert_eq!(ChecksumAlgorithm::Crc32c.of(b"").to_string(), "00000000");
        // The standard check value of CRC-32C is E3069283.
        assert_eq!(ChecksumAlgorithm::Crc32c.of(b"123456789").to_string(), "839206e3");
        assert!(ChecksumAlgorithm::Sha256.of(b"abc").to_string().starts_with("ba7816bf8f01cfea"));
        for algorithm in ChecksumAlgorithm::ALL.into_iter().skip(1) {
            let checksum = algorithm.of(b"some bytes");
            assert_eq!(checksum.algorithm(), algorithm);
            assert_eq!(Checksum::parse(algorithm.name(), &checksum.to_string()), Some(checksum));
        }
    }

    #[test]
    fn what_is_no_checksum_is_refused() {
        for (algorithm, text) in [
            ("CRC32C", ""),
            ("CRC32C", "0011223"),
            ("CRC32C", "0011223344"),
            ("CRC32C", "0011223g"),
            ("SHA256", "00112233"),
            ("crc32c", "00112233"),
            ("NONE", ""),
            ("MD5", "00112233"),
            ("CRC32C", "+1+1+1+1"),
        ] {
            assert_eq!(Checksum::parse(algorithm, text), None, "{algorithm} {text:?}");
        }
    }
}
