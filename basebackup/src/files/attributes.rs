//! Owner, mode and time of a file or directory.

use rustix::fs::{FileType, Stat};

/// What a restore gives back to a file or directory besides its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits (`07777`).
    pub mode: u32,
    /// The owner's numeric id.
    pub uid: u32,
    /// The group's numeric id.
    pub gid: u32,
    /// Time of the last modification, in seconds since 1970 (UTC).
    pub modified: i64,
}

/// What a file, directory or link is found to be: the part of `stat` that a backup needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) file_type: FileType,
    /// Device and inode.
    pub(super) identity: (u64, u64),
    /// Size in bytes.
    pub(super) size: u64,
    pub(super) attributes: Attributes,
}

impl From<Stat> for Facts {
    fn from(stat: Stat) -> Self {
        Self {
            file_type: FileType::from_raw_mode(stat.st_mode),
            identity: (stat.st_dev, stat.st_ino),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            attributes: Attributes {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid,
                gid: stat.st_gid,
                modified: stat.st_mtime,
            },
        }
    }
}
