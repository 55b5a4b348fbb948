//! `postmaster.pid`: whether a server runs on a data directory, and whether it is shutting down.
//!
//! Mirrors the lines of src/include/utils/pidfile.h.

use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

/// By how many seconds the two clocks that are compared may differ.
const CLOCK_DIFFERENCE: i64 = 10;

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

    /// Whether the server may be running still. Its number may have gone to another process since: one that was begun later,
    /// and is not a server. In a container that says nothing, for the number may be that of a server in another one.
    pub fn may_be_running(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid.abs()) else { return true };
        if test_kill_process(pid) == Err(Errno::SRCH) {
            return false;
        }
        let is_server = |name: &str| name.contains("postgres") || name.contains("postmaster");
        if !sees_all_processes() {
            return true;
        }
        match (process_name(pid), process_start(pid)) {
            (Some(name), Some(start)) => is_server(&name) || start <= self.start_time + CLOCK_DIFFERENCE,
            _ => true,
        }
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

/// Whether this process is in the first namespace of processes (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
fn sees_all_processes() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new("pid:[4026531836]"))
}

/// What a process calls itself (proc(5)).
fn process_name(pid: Pid) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()
}

/// When it was begun, in seconds since 1970 (proc(5): `btime`, and the 22nd field of `stat`).
fn process_start(pid: Pid) -> Option<i64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The second field, a name in parentheses, may hold anything.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let system = std::fs::read_to_string("/proc/stat").ok()?;
    let booted: i64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    booted.checked_add_unsigned(ticks / rustix::param::clock_ticks_per_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_another_process_has_got_since_is_no_server() {
        let own = i32::try_from(std::process::id()).unwrap();
        let now = process_start(Pid::from_raw(own).unwrap()).unwrap();
        let running = |pid, start_time| PostmasterPid { pid, start_time, status: String::new() }.may_be_running();
        assert_eq!(running(own, now - 60), !sees_all_processes());
        // Begun before: as the first process of the host is, beside a server that is the first of a container.
        assert!(running(own, now + 60) && running(own, now) && running(1, now));
        assert!(!running(i32::MAX, now));
    }

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
