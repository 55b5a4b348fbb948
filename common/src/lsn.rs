//! Log sequence numbers: byte positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log (`XLogRecPtr`, src/include/access/xlogdefs.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// The text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid LSN \"{0}\": expected two hexadecimal numbers separated by a slash, as in \"0/16B3748\"")]
pub struct InvalidLsn(String);

impl Lsn {
    /// The position `bytes` further on, or the last one there is.
    #[must_use]
    pub fn saturating_add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Prints as PostgreSQL of this major writes LSNs into text files: 19 pads the low half with zeros.
    pub fn to_text(self, pg_major: u32) -> String {
        if pg_major >= 19 { format!("{:X}/{:08X}", self.0 >> 32, self.0 & 0xFFFF_FFFF) } else { self.to_string() }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let invalid = || InvalidLsn(text.to_owned());
        let half = |digits: &str| {
            let hexadecimal = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if hexadecimal { u64::from_str_radix(digits, 16).map_err(|_| invalid()) } else { Err(invalid()) }
        };
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_each_major_gets_its_own() {
        let lsn: Lsn = "0/02000028".parse().unwrap();
        assert_eq!(lsn, "0/2000028".parse().unwrap());
        assert_eq!(lsn.to_text(18), "0/2000028");
        assert_eq!(lsn.to_text(19), "0/02000028");
        assert_eq!("FFFFFFFF/FFFFFFFF".parse::<Lsn>().unwrap().0, u64::MAX);
    }

    #[test]
    fn what_is_no_lsn_is_refused() {
        for text in ["", "/", "1", "0/", "/0", "0/123456789", "+1/0", "0/0/0", "G/0", " 0/1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
