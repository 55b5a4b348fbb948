//! The server that recovers: which one it is, and whether it still does.

use std::fs;
use std::path::Path;

use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;

use crate::exit;

/// A history has a line for each ancestor; this is many thousands of them.
const HISTORY_LIMIT: u64 = 1 << 20;

/// One run of a server on the data directory that is the working directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// The first three lines of `postmaster.pid`: process, data directory and time of start (src/include/utils/pidfile.h).
    identity: String,
}

impl Server {
    /// The server that runs now; nothing if none does.
    pub(super) fn find() -> Option<Self> {
        let text = fs::read_to_string("postmaster.pid").ok()?;
        let lines: Vec<&str> = text.lines().take(3).collect();
        (lines.len() == 3).then(|| Self { identity: lines.join("\n") })
    }

    /// What tells this run of the server from any other on this host.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// Whether this run of the server goes on and is still in recovery. At its end PostgreSQL removes the signal files.
    pub(super) fn still_recovers(&self) -> bool {
        Self::find().as_ref() == Some(self) && exit::signal(Path::new(".")).is_some()
    }

    /// Whether an orphan would become a child of PostgreSQL's: as the first process of a container it would take the end
    /// of a process it does not know for the crash of one of its own (`CleanupBackend`,
    /// src/backend/postmaster/postmaster.c). Where that cannot be seen it is taken to be so.
    pub(super) fn adopts_orphans(&self) -> bool {
        let shown = fs::read_link("/proc/self").ok();
        let ours = rustix::process::getpid().as_raw_pid().to_string();
        let first = fs::read_to_string("/proc/1/comm").ok().filter(|_| shown == Some(ours.into()));
        let is_first = self.identity.lines().next() == Some("1");
        is_first || first.is_none_or(|name| ["postgres", "postmaster"].contains(&name.trim()))
    }
}

/// The histories PostgreSQL has put into pg_wal: those of the timelines it follows.
pub(super) fn histories() -> Vec<TimelineHistory> {
    let entries = fs::read_dir("pg_wal").into_iter().flatten().flatten();
    let history = |entry: fs::DirEntry| {
        let WalFileName::History(timeline) = entry.file_name().to_str()?.parse().ok()? else { return None };
        let short = entry.metadata().is_ok_and(|metadata| metadata.len() <= HISTORY_LIMIT);
        let text = fs::read_to_string(entry.path()).ok().filter(|_| short)?;
        TimelineHistory::parse(timeline, &text).ok()
    };
    entries.filter_map(history).collect()
}
