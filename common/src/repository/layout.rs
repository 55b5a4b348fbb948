//! The key of every object: built and parsed here and nowhere else.

use std::fmt;
use std::str::FromStr;

use object_store::path::Path;

use crate::wal::name::WalFileName;

/// The folder beside the clusters' in which stores are probed.
pub const PROBE_FOLDER: &str = "probe";

const SUFFIX: &str = ".zst";

/// The folder of one cluster in a repository: everything with one system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    folder: Path,
    system_identifier: u64,
}

/// What an object below `wal/` is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalObject {
    /// The file it holds.
    pub name: WalFileName,
    /// What it is kept beside, if it is not the first or not the right one of that name.
    pub kept_aside: Option<KeptAside>,
}

/// Why an object does not have its file's plain name. Neither kind ever answers a request.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeptAside {
    /// A second `.partial` with other contents.
    Partial,
    /// A segment of a timeline that this server's history had left already.
    Fork,
}

/// A base backup's id: UTC time and four random hexadecimal digits. Never used for ordering.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

/// The text is not a base backup's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the id of a base backup (such as 20261122T064500Z-3fa9)")]
pub struct InvalidBackupId(String);

impl Layout {
    /// The folder of `system_identifier` below that of `cluster`.
    pub fn new(cluster: &str, system_identifier: u64) -> Self {
        Self { folder: Path::from_iter([cluster.to_owned(), system_identifier.to_string()]), system_identifier }
    }

    /// The cluster's system identifier.
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `identity.json`.
    pub fn identity(&self) -> Path {
        self.below(&["identity.json"])
    }

    /// The folder of all WAL.
    pub fn wal_folder(&self) -> Path {
        self.below(&["wal"])
    }

    /// The folder of the segments that share `name`'s timeline and high half of the LSN; none for histories.
    pub fn wal_directory(&self, name: WalFileName) -> Option<Path> {
        name.segment().map(|segment| self.below(&["wal", &wal_directory_name(&segment.to_string())]))
    }

    /// The one canonical key of a WAL file.
    pub fn wal(&self, name: WalFileName) -> Path {
        self.wal_named(name, &name.to_string())
    }

    /// The key of a `.partial` that differs from the one stored under the canonical key.
    pub fn wal_second_partial(&self, name: WalFileName, blake3: &str) -> Path {
        self.wal_named(name, &format!("{name}.{}", digest_part(blake3)))
    }

    /// The key of a segment that belongs to a branch this server's history has left.
    pub fn wal_fork(&self, name: WalFileName, blake3: &str) -> Path {
        self.wal_named(name, &format!("{name}.fork.{}", digest_part(blake3)))
    }

    fn wal_named(&self, name: WalFileName, file: &str) -> Path {
        let file = format!("{file}{SUFFIX}");
        match name.segment() {
            Some(segment) => self.below(&["wal", &wal_directory_name(&segment.to_string()), &file]),
            None => self.below(&["wal", &file]),
        }
    }

    /// The folder of all base backups.
    pub fn backups_folder(&self) -> Path {
        self.below(&["base"])
    }

    /// The folder of one base backup.
    pub fn backup_folder(&self, id: &BackupId) -> Path {
        self.below(&["base", &id.0])
    }

    /// An object of a base backup: `begin.json`, `backup.json`, `files.ndjson.zst`, `backup_manifest.zst`, `wal/…`.
    pub fn backup_object(&self, id: &BackupId, name: &str) -> Path {
        let folder = self.backup_folder(id);
        name.split('/').fold(folder, Path::join)
    }

    /// Pack `number` of a base backup, counted from 1.
    pub fn pack(&self, id: &BackupId, number: u32) -> Path {
        self.below(&["base", &id.0, &pack_name(number)])
    }

    /// A segment that is kept with a base backup.
    pub fn backup_wal(&self, id: &BackupId, name: WalFileName) -> Path {
        self.below(&["base", &id.0, "wal", &format!("{name}{SUFFIX}")])
    }

    /// The folder of all records of drills.
    pub fn drills_folder(&self) -> Path {
        self.below(&["drills"])
    }

    /// The record of a drill.
    pub fn drill(&self, id: &BackupId) -> Path {
        self.below(&["drills", &format!("{id}.json")])
    }

    /// The folder of all records of what was removed.
    pub fn expire_folder(&self) -> Path {
        self.below(&["expire"])
    }

    /// The record of what one run of `expire` or `delete` removed.
    pub fn expire(&self, id: &BackupId) -> Path {
        self.below(&["expire", &format!("{id}.json")])
    }

    /// What is stored when such a run has ended.
    pub fn expire_done(&self, id: &BackupId) -> Path {
        self.below(&["expire", &format!("{id}.done")])
    }

    /// The folder of all pins.
    pub fn pins_folder(&self) -> Path {
        self.below(&["pins"])
    }

    /// A pin, or what takes pins back.
    pub fn pin(&self, id: &BackupId) -> Path {
        self.below(&["pins", &format!("{id}.json")])
    }

    fn below(&self, parts: &[&str]) -> Path {
        let mut path = self.folder.clone();
        for part in parts {
            path = path.join(*part);
        }
        path
    }
}

/// The name of pack `number`, counted from 1.
pub fn pack_name(number: u32) -> String {
    format!("pack-{number:05}.tar{SUFFIX}")
}

/// A key under which a store is probed.
pub fn probe(random: u64) -> Path {
    Path::from_iter([PROBE_FOLDER.to_owned(), format!("{random:016x}")])
}

/// The name of the folder of a segment: timeline and high half of the LSN.
fn wal_directory_name(segment: &str) -> String {
    segment.chars().take(16).collect()
}

/// 16 digits tell any two contents of one name apart.
fn digest_part(blake3: &str) -> &str {
    blake3.get(..16).unwrap_or(blake3)
}

impl WalObject {
    /// Reads an object's file name (the last part of its key); nothing if it is not a WAL object of ours.
    pub fn parse(file: &str) -> Option<Self> {
        let text = file.strip_suffix(SUFFIX)?;
        if let Ok(name) = text.parse() {
            return Some(Self { name, kept_aside: None });
        }
        let (name, digest) = text.rsplit_once('.')?;
        if digest.len() != 16 || !digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        let (name, kept_aside) = match name.strip_suffix(".fork") {
            Some(name) => (name, KeptAside::Fork),
            None => (name, KeptAside::Partial),
        };
        Some(Self { name: name.parse().ok()?, kept_aside: Some(kept_aside) })
    }
}

impl BackupId {
    /// Makes an id from a time and random bits.
    pub fn new(time: jiff::Timestamp, random: u16) -> Self {
        Self(format!("{}-{random:04x}", time.strftime("%Y%m%dT%H%M%SZ")))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = InvalidBackupId;

    fn from_str(text: &str) -> Result<Self, InvalidBackupId> {
        let pattern = b"ddddddddTddddddZ-hhhh";
        let fits = text.len() == pattern.len()
            && text.bytes().zip(pattern).all(|(found, expected)| match expected {
                b'd' => found.is_ascii_digit(),
                b'h' => found.is_ascii_digit() || (b'a'..=b'f').contains(&found),
                other => found == *other,
            });
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidBackupId(text.to_owned())) }
    }
}

impl serde::Serialize for BackupId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for BackupId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_wal_file_has_its_place_and_its_name_is_read_back() {
        let layout = Layout::new("main", 77);
        let digest = "0123456789abcdef0123";
        for (name, key) in [
            ("00000002.history", "main/77/wal/00000002.history.zst"),
            ("000000010000000A00000005", "main/77/wal/000000010000000A/000000010000000A00000005.zst"),
            (
                "000000010000000000000005.00000028.backup",
                "main/77/wal/0000000100000000/000000010000000000000005.00000028.backup.zst",
            ),
            ("000000010000000000000007.partial", "main/77/wal/0000000100000000/000000010000000000000007.partial.zst"),
        ] {
            let name: WalFileName = name.parse().unwrap();
            let path = layout.wal(name);
            assert_eq!(path.as_ref(), key);
            let file = path.filename().unwrap();
            assert_eq!(WalObject::parse(file), Some(WalObject { name, kept_aside: None }));
        }
        let segment: WalFileName = "000000010000000000000007".parse().unwrap();
        let fork = layout.wal_fork(segment, digest);
        assert!(fork.as_ref().ends_with("000000010000000000000007.fork.0123456789abcdef.zst"));
        let parsed = WalObject::parse(fork.filename().unwrap()).unwrap();
        assert_eq!((parsed.name, parsed.kept_aside), (segment, Some(KeptAside::Fork)));
        let partial: WalFileName = "000000010000000000000007.partial".parse().unwrap();
        let second = layout.wal_second_partial(partial, digest);
        let parsed = WalObject::parse(second.filename().unwrap()).unwrap();
        assert_eq!((parsed.name, parsed.kept_aside), (partial, Some(KeptAside::Partial)));
        for foreign in ["", ".zst", "x.zst", "000000010000000000000007", "000000010000000000000007.fork.zst"] {
            assert_eq!(WalObject::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn backup_ids_are_time_and_chance() {
        let id = BackupId::new("2026-11-22T06:45:00Z".parse().unwrap(), 0x3fa9);
        assert_eq!(id.as_str(), "20261122T064500Z-3fa9");
        assert_eq!("20261122T064500Z-3fa9".parse::<BackupId>().unwrap(), id);
        for text in ["", "latest", "20261122T064500Z-3FA9", "20261122T064500Z-3fa9x", "2026112ZT064500Z-3fa9"] {
            assert!(text.parse::<BackupId>().is_err(), "{text}");
        }
    }
}
