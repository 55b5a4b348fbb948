//! The server that recovers: which one it is, and whether it still does.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::Notify;
use walkeep_common::cli::background::orphans_go_to_postgresql;
use walkeep_common::postgres::postmaster::PostmasterPid;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;

use crate::exit;

/// A history has a line for each ancestor; this is many thousands of them.
const HISTORY_LIMIT: u64 = 1 << 20;

/// One run of a server on the data directory that is the working directory.
#[derive(Debug, Clone)]
pub(super) struct Server(PostmasterPid);

impl Server {
    /// The server that runs now; nothing if none does.
    pub(super) fn find() -> Option<Self> {
        PostmasterPid::read(Path::new(".")).filter(|server| server.start_time != 0).map(Self)
    }

    /// What tells this run of the server from any other on this data directory, as long as the host runs.
    pub(super) fn identity(&self) -> String {
        format!("{} {}", self.0.pid, self.0.start_time)
    }

    /// Whether this run of the server goes on and is still in recovery. At its end PostgreSQL removes the signal files.
    pub(super) fn still_recovers(&self) -> bool {
        Self::find().is_some_and(|now| now.0.is_same_server(&self.0)) && exit::signal(Path::new(".")).is_some()
    }

    /// Tells when the server's first process has ended. Where that cannot be watched, it never does.
    pub(super) fn watch(&self) -> Arc<Notify> {
        let ended = Arc::new(Notify::new());
        let process = Pid::from_raw(self.0.pid).and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
        if let Some(process) = process {
            let ended = Arc::clone(&ended);
            let watch = move || {
                if poll(&mut [PollFd::new(&process, PollFlags::IN)], None).is_ok() {
                    ended.notify_one();
                }
            };
            // Without it, postmaster.pid tells of most ends as well.
            let _ = thread::Builder::new().spawn(watch);
        }
        ended
    }

    /// Whether a worker would become this server's child when the call that starts it ends.
    pub(super) fn adopts_orphans(&self) -> bool {
        orphans_go_to_postgresql(&self.0)
    }
}

/// The histories PostgreSQL has put into pg_wal: those of the timelines it follows.
pub(super) fn histories() -> Vec<TimelineHistory> {
    let entries = fs::read_dir("pg_wal").into_iter().flatten().flatten();
    let history = |entry: fs::DirEntry| {
        let WalFileName::History(timeline) = entry.file_name().to_str()?.parse().ok()? else { return None };
        let short = entry.metadata().is_ok_and(|metadata| metadata.len() <= HISTORY_LIMIT);
        let contents = fs::read(entry.path()).ok().filter(|_| short)?;
        TimelineHistory::parse(timeline, contents).ok()
    };
    entries.filter_map(history).collect()
}
