//! What a pack holds: files and directories under paths relative to the data directory.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

/// Linux's `PATH_MAX` without the terminating zero: no longer path can be opened in one call.
pub const MAX_PATH_BYTES: usize = 4095;

/// The path of a member, relative to the data directory: any bytes a file system allows, but never a way out.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberPath(Box<[u8]>);

/// The bytes are not a path that may be created below a data directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// Nothing at all, or more than the operating system takes.
    #[error("a path of {0} bytes, expected 1 to {MAX_PATH_BYTES}")]
    Length(usize),
    /// Absolute, with `.`, `..` or an empty component, or with a zero byte.
    #[error("\"{0}\" is not a plain relative path")]
    NotPlain(String),
}

impl MemberPath {
    /// Checks that the bytes are a relative path without empty, `.` and `..` components and zero bytes.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Result<Self, InvalidPath> {
        let bytes = bytes.into();
        if bytes.is_empty() || bytes.len() > MAX_PATH_BYTES {
            return Err(InvalidPath::Length(bytes.len()));
        }
        // An absolute path begins with an empty component.
        let plain = |component: &[u8]| !matches!(component, b"" | b"." | b"..");
        if bytes.contains(&0) || !bytes.split(|byte| *byte == b'/').all(plain) {
            return Err(InvalidPath::NotPlain(bytes.escape_ascii().to_string()));
        }
        Ok(Self(bytes))
    }

    /// The path as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the operating system takes it.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

/// For messages only: whatever a terminal would not show as it is becomes an escape sequence.
impl fmt::Display for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match str::from_utf8(&self.0) {
            Ok(path) if !path.contains(char::is_control) => f.write_str(path),
            _ => self.0.escape_ascii().fmt(f),
        }
    }
}

impl fmt::Debug for MemberPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file of exactly this many bytes.
    File {
        /// Bytes of content.
        size: u64,
    },
    /// A directory.
    Directory,
}

impl MemberKind {
    /// Bytes of content; none for a directory.
    pub fn size(self) -> u64 {
        match self {
            Self::File { size } => size,
            Self::Directory => 0,
        }
    }
}

/// Whose a member is. Shared by the members, for a data directory has one owner, rarely two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The user's name; empty where it has none.
    pub user: String,
    /// The group's name; empty where it has none.
    pub group: String,
}

/// A file or directory about to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where it lies, relative to the data directory.
    pub path: MemberPath,
    /// File or directory.
    pub kind: MemberKind,
    /// Permission bits; everything above `0o7777` is dropped.
    pub mode: u32,
    /// Time of last modification; kept to the second.
    pub modified: Timestamp,
    /// Whose it is.
    pub owner: Arc<Owner>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_lead_out_of_the_data_directory() {
        for path in ["", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", "a//b", "a/", "./a", ".", "a/.", "a\0b"] {
            assert!(MemberPath::new(path.as_bytes()).is_err(), "{path:?}");
        }
        assert!(MemberPath::new(vec![b'a'; MAX_PATH_BYTES + 1]).is_err());
    }

    #[test]
    fn a_message_shows_odd_bytes_escaped() {
        let shown = |path: &[u8]| MemberPath::new(path).unwrap().to_string();
        assert_eq!(shown("café 1".as_bytes()), "café 1");
        assert_eq!(shown(b"a\nb\x1b[m"), "a\\nb\\x1b[m");
        assert_eq!(shown(b"a\xff"), "a\\xff");
    }

    #[test]
    fn any_other_bytes_are_a_path() {
        for path in [&b"base/1/1259"[..], b"-rf", b"#1", b" ", b"a\nb", b"\xff\xfe", b"...", b"a..b/.x", b"\\x"] {
            assert_eq!(MemberPath::new(path).unwrap().as_path(), Path::new(OsStr::from_bytes(path)));
        }
    }
}
