//! The log of a drill's server, read as it grows: what it says of recovery, and what it complains of.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use walkeep_common::error::{IoContext as _, Result};
use walkeep_common::lsn::Lsn;

/// Complaints that are told one by one.
const TOLD: usize = 20;
/// Lines that are kept to show where a recovery failed.
const LAST_LINES: usize = 6;
const CHUNK_BYTES: usize = 256 * 1024;
/// No line of a server's log matters behind this.
const LONGEST_LINE: usize = 64 * 1024;

/// Messages that speak of damage, whatever their severity.
const DAMAGE: [&str; 12] = [
    "invalid page",
    "WAL contains references to invalid pages",
    "could not access status of transaction",
    "page verification failed",
    "incorrect resource manager data checksum",
    "could not read block",
    "could not open file",
    "missing chunk number",
    "unexpected chunk",
    "compressed data is corrupt",
    "compressed pglz data is corrupt",
    "invalid memory alloc request",
];

/// What is said of a client that was ended in the middle of its work, as pg_amcheck is when its time is up
/// (`ProcessInterrupts`, src/backend/tcop/postgres.c).
const CLIENT_LOST: &str = "connection to client lost";

/// What a server has said so far.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    read: u64,
    line: Vec<u8>,
    last: VecDeque<String>,
    pub(super) said: Said,
}

/// What matters of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// It takes connections.
    pub(super) is_ready: bool,
    /// Recovery became consistent.
    pub(super) is_consistent: bool,
    /// Where it stopped at a target, in its words: "before commit of transaction 740, time …".
    pub(super) stopped: Option<String>,
    /// Where the last record begins that was replayed.
    pub(super) redo_done: Option<Lsn>,
    /// The first lines that say that something is wrong.
    pub(super) complaints: Vec<String>,
    /// How many there are.
    pub(super) count: usize,
}

impl Log {
    /// Of the server that writes to `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: 0, line: Vec::new(), last: VecDeque::new(), said: Said::default() }
    }

    /// Reads what has come since the last time.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn read_on(&mut self) -> Result<&Said> {
        let file = File::open(&self.path).context("open file", &self.path)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let count = file.read_at(&mut chunk, self.read).context("read file", &self.path)?;
            if count == 0 {
                return Ok(&self.said);
            }
            self.read += count as u64;
            for part in chunk.get(..count).unwrap_or_default().split_inclusive(|&byte| byte == b'\n') {
                let room = LONGEST_LINE.saturating_sub(self.line.len());
                self.line.extend(part.iter().take(room));
                if part.ends_with(b"\n") {
                    let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end().to_owned();
                    self.said.note(&line);
                    self.last.push_back(line);
                    if self.last.len() > LAST_LINES {
                        let _ = self.last.pop_front();
                    }
                }
            }
        }
    }

    /// Its last lines, for whoever must find out what went wrong.
    pub(super) fn last_lines(&self) -> String {
        self.last.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

impl Said {
    /// Takes in a line, as `log_line_prefix` of a drill has it: time, process id, severity, message.
    fn note(&mut self, line: &str) {
        let Some((severity, message)) = line.split_once("] ").and_then(|(_, rest)| rest.split_once(":  ")) else {
            return;
        };
        // What was run, and for whom, is quoted in lines of their own.
        if matches!(severity, "STATEMENT" | "QUERY" | "CONTEXT" | "DETAIL" | "HINT" | "LOCATION") {
            return;
        }
        self.is_ready |= message.contains("database system is ready to accept connections");
        self.is_consistent |= message.contains("consistent recovery state reached");
        if let Some(stopped) = message.strip_prefix("recovery stopping ") {
            self.stopped.get_or_insert_with(|| stopped.to_owned());
        }
        if let Some(end) = message.strip_prefix("redo done at ") {
            self.redo_done = end.split(' ').next().and_then(|end| end.parse().ok());
        }
        let is_fatal = matches!(severity, "PANIC" | "FATAL") && message != CLIENT_LOST;
        if is_fatal || DAMAGE.iter().any(|words| message.contains(words)) {
            self.count += 1;
            if self.complaints.len() < TOLD {
                self.complaints.push(line.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_what_is_wrong_and_where_recovery_stopped() {
        let mut said = Said::default();
        for line in [
            "2026-11-22 10:00:00.000 UTC [1] LOG:  starting PostgreSQL 15.18",
            "2026-11-22 10:00:00.000 UTC [2] LOG:  consistent recovery state reached at 0/3000100",
            "2026-11-22 10:00:00.000 UTC [2] LOG:  recovery stopping before commit of transaction 7",
            "2026-11-22 10:00:00.000 UTC [2] LOG:  redo done at 0/4000028 system usage: CPU: user: 0.00 s",
            "2026-11-22 10:00:00.000 UTC [2] WARNING:  page verification failed, calculated checksum 1 but expected 2",
            "2026-11-22 10:00:00.000 UTC [3] ERROR:  division by zero",
            "2026-11-22 10:00:00.000 UTC [3] STATEMENT:  select 'invalid page'",
            "2026-11-22 10:00:00.000 UTC [4] FATAL:  connection to client lost",
            "2026-11-22 10:00:00.000 UTC [2] FATAL:  x",
        ] {
            said.note(line);
        }
        assert_eq!(said.complaints.len(), 2);
        assert!(said.is_consistent && !said.is_ready);
        assert_eq!(said.stopped.as_deref(), Some("before commit of transaction 7"));
        assert_eq!(said.redo_done, Some(Lsn(0x0400_0028)));
    }
}
