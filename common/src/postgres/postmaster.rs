//! `postmaster.pid`: whether a server runs on a data directory, and whether it is shutting down.
//!
//! Mirrors the lines of src/include/utils/pidfile.h.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The lines of `postmaster.pid` the programs look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostmasterPid {
    /// Line 1: the postmaster's process.
    pub pid: i32,
    /// Line 3: when it started, in seconds since 1970. With the process, what tells one run of a server from another.
    pub start_time: i64,
    /// Line 8: `starting`, `stopping`, `ready`, `standby`; empty while it is not known yet.
    pub status: String,
}

impl PostmasterPid {
    /// Reads the file below a data directory; nothing if there is none or it is being written.
    pub fn read(data_directory: &Path) -> Option<Self> {
        // The second line is the directory's name, in whatever encoding that is.
        let contents = std::fs::read(data_directory.join("postmaster.pid")).ok()?;
        let text = String::from_utf8_lossy(&contents);
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok()?;
        let start_time = lines.nth(1).and_then(|line| line.trim().parse().ok()).unwrap_or_default();
        Some(Self { pid, start_time, status: lines.nth(4).unwrap_or_default().trim().to_owned() })
    }

    /// Whether this is the same run of the same server, whatever its status.
    pub fn is_same_server(&self, other: &Self) -> bool {
        (self.pid, self.start_time) == (other.pid, other.start_time)
    }

    /// Whether the server was told to shut down and waits for the archiver.
    pub fn is_stopping(&self) -> bool {
        self.status == "stopping"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eighth_line_is_the_status() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("postmaster.pid"),
            b"123\n/d\xe4ten\n1\n5432\n/tmp\nlocalhost\n  99 1\nstopping\n",
        )
        .unwrap();
        let pid = PostmasterPid::read(directory.path()).unwrap();
        assert_eq!((pid.pid, pid.start_time, pid.is_stopping()), (123, 1, true));
        assert_eq!(PostmasterPid::read(Path::new("/nonexistent")), None);
    }
}
