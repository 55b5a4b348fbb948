//! `identity.json`: what lives in a cluster's folder. Created once, read as evidence that this is the right place.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::wal::segment::SegmentSize;
use crate::wal_object::header::{FORMAT_VERSION, text_or_number};

/// What lives in one folder of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The repository format's version.
    pub walkeep: u32,
    /// The cluster's system identifier, also the folder's name.
    #[serde(with = "text_or_number")]
    pub system_identifier: u64,
    /// The cluster's WAL segment size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segment_size: Option<SegmentSize>,
    /// The PostgreSQL major, as far as it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pg_major: Option<u32>,
    /// When the folder was begun.
    pub created: Timestamp,
}

/// The object is not an identity this program can work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// Not the JSON it must be.
    #[error("identity.json is damaged: {0}")]
    Contents(String),
    /// Written by a newer program.
    #[error("the repository has format {0}, newer than this program reads; upgrade Walkeep")]
    Newer(u32),
    /// It names another cluster than its folder.
    #[error("identity.json names system identifier {found}, its folder {expected}")]
    Other {
        /// The folder's.
        expected: u64,
        /// The object's.
        found: u64,
    },
}

impl Identity {
    /// The identity of a cluster whose folder begins now.
    pub fn new(
        system_identifier: u64,
        segment_size: Option<SegmentSize>,
        pg_major: Option<u32>,
        now: Timestamp,
    ) -> Self {
        Self { walkeep: FORMAT_VERSION, system_identifier, segment_size, pg_major, created: now }
    }

    /// The object's bytes: one line of JSON.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads the identity found in the folder of `system_identifier`.
    pub fn parse(bytes: &[u8], system_identifier: u64) -> Result<Self, InvalidIdentity> {
        let identity: Self =
            serde_json::from_slice(bytes).map_err(|error| InvalidIdentity::Contents(error.to_string()))?;
        if identity.walkeep > FORMAT_VERSION {
            return Err(InvalidIdentity::Newer(identity.walkeep));
        }
        if identity.system_identifier != system_identifier {
            let found = identity.system_identifier;
            return Err(InvalidIdentity::Other { expected: system_identifier, found });
        }
        Ok(identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_of_its_folder_and_of_a_known_format() {
        let identity = Identity::new(7, None, Some(15), "2026-11-22T06:45:00Z".parse().unwrap());
        let bytes = identity.to_bytes().unwrap();
        assert_eq!(Identity::parse(&bytes, 7).unwrap(), identity);
        assert_eq!(Identity::parse(&bytes, 8), Err(InvalidIdentity::Other { expected: 8, found: 7 }));
        assert!(matches!(Identity::parse(b"", 7), Err(InvalidIdentity::Contents(_))));
        let newer = Identity { walkeep: 2, ..identity };
        assert_eq!(Identity::parse(&newer.to_bytes().unwrap(), 7), Err(InvalidIdentity::Newer(2)));
    }
}
