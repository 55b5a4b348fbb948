//! Processes that outlive the call that started them: what they leave behind, and where there may be none.

use std::fs;
use std::io;

use crate::postgres::postmaster::PostmasterPid;

/// What PostgreSQL's first process is called.
const SERVER_PROGRAMS: [&str; 2] = ["postgres", "postmaster"];

/// Those above are for the use of programs among themselves.
const LAST_SIGNAL: libc::c_int = libc::SIGSYS;

/// Leaves the session of the caller, whose group of processes PostgreSQL signals as a whole, and closes what was inherited
/// but standard input, output and error.
///
/// It comes first in the life of the process: whatever is open then was opened by someone else.
///
/// # Errors
/// From the operating system.
pub fn detach() -> io::Result<()> {
    // Fails only for the leader of a group of processes, which has none to leave.
    let _ = rustix::process::setsid();
    default_signals();
    close_inherited()
}

fn close_inherited() -> io::Result<()> {
    let open: Vec<i32> =
        fs::read_dir("/proc/self/fd")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        // One was the listing's own and is closed already.
        let _ = nix::unistd::close(descriptor);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "no safe interface resets a signal")]
fn default_signals() {
    // What PostgreSQL ignores, its children inherit as ignored. Writing to a closed socket shall fail and not kill.
    for signal in (1..=LAST_SIGNAL).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: SIG_DFL installs no handler, and no other thread runs yet. For what cannot be set it fails.
        let _ = unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Whether a process that outlives its parent would become PostgreSQL's child, as where PostgreSQL is the first process
/// of a container. The postmaster takes a child it does not know and that ends by a signal for a crashed backend, and
/// restarts all others (`CleanupBackend`, src/backend/postmaster/postmaster.c). Where it cannot be seen who the first
/// process is, it is taken to be so.
pub fn orphans_go_to_postgresql(server: &PostmasterPid) -> bool {
    // In a namespace of processes that /proc does not show, nothing is known.
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    let shows_ours = fs::read_link("/proc/self").is_ok_and(|shown| shown.as_os_str() == own.as_str());
    let first = fs::read_to_string("/proc/1/comm").ok().filter(|_| shows_ours);
    server.pid == 1 || first.is_none_or(|name| SERVER_PROGRAMS.contains(&name.trim()))
}
