//! `begin.json` and `backup.json`: a base backup's first and last object.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::layout::BackupId;
use super::seal::{self, Seal};
use crate::lsn::Lsn;
use crate::wal::segment::{SegmentSize, Timeline};
use crate::wal_object::header::{FORMAT_VERSION, text_or_number};

/// `begin.json`: claims an id before anything else of the backup is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The format's version.
    pub walkeep: u32,
    /// The backup's id.
    pub id: BackupId,
    /// The cluster's system identifier.
    #[serde(with = "text_or_number")]
    pub system_identifier: u64,
    /// When the backup began.
    pub started: Timestamp,
    /// A position at or before the backup's start: WAL from here on is in use.
    pub start_lsn_at_least: Lsn,
    /// The timeline of that position.
    pub timeline: Timeline,
    /// The host that takes it.
    pub host: String,
    /// The data directory on that host.
    pub data_directory: String,
    /// The program's version.
    pub version: String,
}

/// `backup.json`: everything one must know of a complete base backup. Written last: a backup without it does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The format's version.
    pub walkeep: u32,
    /// The backup's id.
    pub id: BackupId,
    /// What it holds: `full`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The backup it builds on; none for a full one.
    pub parent: Option<BackupId>,
    /// The label given by the operator.
    pub label: String,
    /// The cluster's system identifier.
    #[serde(with = "text_or_number")]
    pub system_identifier: u64,
    /// The server's version, as `server_version_num` has it (150018).
    pub pg_version: u32,
    /// The cluster's WAL segment size.
    pub segment_size: SegmentSize,
    /// The timeline of its start.
    pub timeline: Timeline,
    /// The timeline of its end, if that is recorded: [`Backup::end_timeline`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeline: Option<Timeline>,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where replay must have come for the copy to be consistent.
    pub stop_lsn: Lsn,
    /// The segment `start_lsn` is in.
    pub start_wal: String,
    /// The last segment needed.
    pub stop_wal: String,
    /// The server's clock right after the start.
    pub start_time: Timestamp,
    /// The server's clock right after the end: a later transaction is not in the backup.
    pub stop_time: Timestamp,
    /// The next transaction id at the start, with its epoch.
    pub next_xid_at_start: u64,
    /// The next transaction id at the end, with its epoch.
    pub next_xid_at_stop: u64,
    /// Whether the source was a standby.
    pub from_standby: bool,
    /// The host it was taken on.
    pub host: String,
    /// The data directory on that host.
    pub data_directory: String,
    /// The data directory's permission bits, octal: `0700`, or `0750` where the group may read.
    pub data_directory_mode: String,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
    /// The databases when the backup began; empty in backups that do not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<Database>,
    /// The owner of the data directory.
    pub owner: Owner,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
    /// Pages whose checksum did not match.
    pub bad_pages: Vec<BadPage>,
    /// Members in the packs that are regular files.
    pub files: u64,
    /// The restore point written right after the end; none on a standby, or where the role may not write one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_point: Option<RestorePoint>,
    /// Bytes of the files.
    pub plain_size: u64,
    /// Bytes of the packs.
    pub stored_size: u64,
    /// The packs in order.
    pub packs: Vec<Pack>,
    /// The index: `files.ndjson.zst`.
    pub index: StoredObject,
    /// PostgreSQL's manifest: `backup_manifest.zst`.
    pub manifest: StoredObject,
    /// The server's configuration files; none if all are in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<Configuration>,
    /// Segments kept with the backup because no archive will have them in time.
    #[serde(default)]
    pub kept_wal: Vec<String>,
    /// The program's version.
    pub version: String,
    /// What the operator noted.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A name in the WAL (`pg_create_restore_point`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// What `recovery_target_name` compares.
    pub name: String,
    /// The end of its record.
    pub lsn: Lsn,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its object identifier: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// The directory it was in.
    pub location: String,
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its object identifier: the name of its directories.
    pub oid: u32,
    /// Its name.
    pub name: String,
}

/// Who owns the restored files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// The user's name, preferred where it exists.
    pub user: Option<String>,
    /// The group's name, preferred where it exists.
    pub group: Option<String>,
}

/// A page whose checksum did not match, however often it was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BadPage {
    /// The file, relative to the data directory.
    pub file: String,
    /// The block's number within the relation fork.
    pub block: u32,
    /// The relation, as `database.schema.name`, where the server could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
}

/// One pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Its object's name.
    pub name: String,
    /// Stored bytes.
    pub size: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: String,
}

/// An object beside the packs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Stored bytes.
    pub size: u64,
    /// SHA-256 of the stored bytes.
    pub sha256: String,
}

/// The server's configuration files, where any lies outside the data directory or behind a link in it:
/// `configuration.tar.zst`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The object.
    #[serde(flatten)]
    pub object: StoredObject,
    /// The server's `config_file`.
    pub config_file: String,
    /// The server's `hba_file`.
    pub hba_file: String,
    /// The server's `ident_file`.
    pub ident_file: String,
    /// The paths of the files.
    pub files: Vec<String>,
}

/// What a `backup.json` holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupRecord {
    /// A complete backup.
    Complete(Box<Backup>),
    /// A dead backup's place, taken so that it can never become complete.
    Abandoned,
}

/// The object is not a `backup.json` this program can work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBackup {
    /// Not the JSON it must be, or its fields contradict each other.
    #[error("backup.json is damaged: {0}")]
    Contents(String),
    /// Written by a newer program.
    #[error("the backup has format {0}, newer than this program reads; upgrade Walkeep")]
    Newer(u32),
}

impl BackupRecord {
    /// Reads the `backup.json` found in the folder of `id`.
    pub fn parse(bytes: &[u8], id: &BackupId) -> Result<Self, InvalidBackup> {
        #[derive(Deserialize)]
        struct Head {
            state: Option<String>,
            #[serde(default)]
            walkeep: u32,
        }
        let contents = |error: serde_json::Error| InvalidBackup::Contents(error.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(contents)?;
        if head.walkeep > FORMAT_VERSION {
            return Err(InvalidBackup::Newer(head.walkeep));
        }
        if head.state.as_deref() == Some("abandoned") {
            return Ok(Self::Abandoned);
        }
        let backup: Backup = serde_json::from_slice(bytes).map_err(contents)?;
        backup.check(id).map_err(InvalidBackup::Contents)?;
        Ok(Self::Complete(Box::new(backup)))
    }
}

impl Backup {
    /// The object's bytes.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Whether these bytes, of which this was read, are as they were written: by their checksum, or where they have none
    /// because there is nothing in them that this program would not write.
    pub fn is_as_written(&self, bytes: &[u8]) -> bool {
        match seal::check(bytes) {
            Seal::Intact => true,
            Seal::Broken => false,
            Seal::Missing => self.to_bytes().is_ok_and(|own| own == bytes),
        }
    }

    /// The PostgreSQL major it was taken from.
    pub fn pg_major(&self) -> u32 {
        self.pg_version / 10_000
    }

    /// The timeline it ended on: a standby follows its primary's promotion while its backup is taken.
    pub fn end_timeline(&self) -> Timeline {
        self.stop_timeline.unwrap_or(self.timeline)
    }

    /// The names of all its objects, in the order in which they are removed, and their stored bytes where they are recorded.
    pub fn objects(&self) -> Vec<(String, Option<u64>)> {
        let own = |name: &str, object: &StoredObject| (name.to_owned(), Some(object.size));
        let mut objects = vec![("backup.json".to_owned(), None), ("begin.json".to_owned(), None)];
        objects.push(own("files.ndjson.zst", &self.index));
        objects.push(own("backup_manifest.zst", &self.manifest));
        objects.extend(self.configuration.iter().map(|kept| own("configuration.tar.zst", &kept.object)));
        objects.extend(self.kept_wal.iter().map(|name| (format!("wal/{name}.zst"), None)));
        objects.extend(self.packs.iter().map(|pack| (pack.name.clone(), Some(pack.size))));
        objects
    }

    /// Whether the fields can be true together, and belong to the folder of `id`.
    ///
    /// # Errors
    /// What contradicts what.
    pub fn check(&self, id: &BackupId) -> Result<(), String> {
        if self.id != *id {
            return Err(format!("it names backup {}, its folder {id}", self.id));
        }
        if self.start_lsn > self.stop_lsn {
            return Err(format!("it stops at {}, before its start at {}", self.stop_lsn, self.start_lsn));
        }
        if self.end_timeline() < self.timeline {
            return Err(format!("it stops on timeline {}, before its start on {}", self.end_timeline(), self.timeline));
        }
        if self.packs.is_empty() {
            return Err("it names no pack".to_owned());
        }
        let numbered = self.packs.iter().zip(1..).all(|(pack, number)| pack.name == super::layout::pack_name(number));
        if !numbered {
            return Err("its packs are not numbered from 1".to_owned());
        }
        let sum = self.packs.iter().try_fold(0u64, |sum, pack| sum.checked_add(pack.size));
        if sum != Some(self.stored_size) {
            return Err("the sizes of its packs do not add up".to_owned());
        }
        let digests = self.packs.iter().map(|pack| &pack.sha256).chain([&self.index.sha256, &self.manifest.sha256]);
        let digests = digests.chain(self.configuration.iter().map(|kept| &kept.object.sha256));
        if digests.into_iter().any(|digest| digest.len() != 64) {
            return Err("a SHA-256 in it does not have 64 digits".to_owned());
        }
        Ok(())
    }
}
