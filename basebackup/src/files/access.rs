//! Who may read what.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use walkeep_common::error::Error;

use super::attributes::Attributes;

/// Who reads the files: this process.
#[derive(Debug)]
pub(super) struct Reader {
    uid: u32,
    groups: HashSet<u32>,
}

impl Reader {
    pub(super) fn current() -> Self {
        use rustix::process::{Gid, getegid, geteuid, getgroups};
        let mut groups: HashSet<u32> = getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect();
        groups.insert(getegid().as_raw());
        Self { uid: geteuid().as_raw(), groups }
    }

    /// Whether owner and permission bits alone allow reading.
    pub(super) fn may_read(&self, file: &Attributes) -> bool {
        let needed = match file {
            _ if self.uid == 0 => return true,
            file if file.uid == self.uid => 0o400,
            file if self.groups.contains(&file.gid) => 0o040,
            _ => 0o004,
        };
        file.mode & needed != 0
    }
}

/// An error about a path, with what to do where a permission is missing.
pub(super) fn failure(action: &str, path: &Path, errno: Errno) -> Error {
    let error = Error::io(action, path, io::Error::from(errno));
    if errno != Errno::ACCESS && errno != Errno::PERM {
        return error;
    }
    error.hint(
        "A base backup must be able to read every file: run it as the user that PostgreSQL runs as, \
         and give files of other owners to that user.",
    )
}
