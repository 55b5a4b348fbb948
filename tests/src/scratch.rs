//! Directories of a test, gone when it ends.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::user;

/// A directory of the unprivileged user that any user can enter, removed on drop unless `WALKEEP_KEEP` is set.
#[derive(Debug)]
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    /// Creates `/tmp/walkeep-NAME-XXXXXX`. Short on purpose: the path of a Unix socket may have 107 bytes.
    pub fn new(name: &str) -> Self {
        let prefix = format!("walkeep-{name}-");
        let mut directory =
            tempfile::Builder::new().prefix(&prefix).rand_bytes(6).tempdir_in("/tmp").expect("a directory in /tmp");
        directory.disable_cleanup(std::env::var_os("WALKEEP_KEEP").is_some());
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("chmod");
        user::give(directory.path());
        Self { directory }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves the directory to the caller.
    pub fn keep(self) -> PathBuf {
        self.directory.keep()
    }

    /// Creates a directory in it that only the unprivileged user can enter.
    pub fn create_private(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir(&path).expect("create a directory");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("chmod");
        user::give(&path);
        path
    }

    /// Writes a file in it that the unprivileged user owns.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).expect("write a file");
        user::give(&path);
        path
    }
}
