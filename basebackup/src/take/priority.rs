//! Less of everything for a backup that has time: processor and disk go to the server first.

use std::process::Command;

use walkeep_common::cli::{Reporter, Severity};

/// The lowest priority there is for the processor.
const NICE: i32 = 19;

/// Lowers the priority of this thread and of all that it starts: called before there are others.
///
/// The class of input and output is set by `ionice`, for there is no safe way to the system call; only schedulers that
/// know classes heed it (BFQ, mq-deadline).
pub fn lower(reporter: Reporter) {
    if let Err(error) = rustix::process::nice(NICE) {
        reporter.print(Severity::Warning, &format!("could not lower the priority: {error}"), None);
    }
    let ionice = Command::new("ionice").args(["-c", "3", "-p", &std::process::id().to_string()]).status();
    if !ionice.is_ok_and(|status| status.success()) {
        let hint = "It is part of util-linux. Reading can be limited with --max-rate all the same.";
        reporter.print(Severity::Warning, "could not lower the priority of reading with ionice", Some(hint));
    }
}
