//! Becoming a process of one's own: nothing of PostgreSQL's is kept open, and no signal to it arrives here.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;

/// Leaves the session of the caller, closes what was inherited, and takes over the socket that came as standard input.
///
/// It comes first in the life of the process: whatever is open then was opened by someone else.
///
/// # Errors
/// From the operating system.
pub(crate) fn detach() -> io::Result<UnixListener> {
    // Fails only for the leader of a group of processes, which has none to leave.
    let _ = rustix::process::setsid();
    default_signals();
    close_inherited()?;
    let stdin = io::stdin();
    let listener = UnixListener::from(stdin.as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(listener)
}

/// Those above are for the use of programs among themselves.
const LAST_SIGNAL: libc::c_int = libc::SIGSYS;

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
