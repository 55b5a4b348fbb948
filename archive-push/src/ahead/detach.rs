//! Becoming a process of one's own: nothing of PostgreSQL's is kept open, and no signal to it arrives here.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;

use walkeep_common::cli::background;

/// Leaves the session of the caller, closes what was inherited, and takes over the socket that came as standard input.
///
/// It comes first in the life of the process: whatever is open then was opened by someone else.
///
/// # Errors
/// From the operating system.
pub(crate) fn detach() -> io::Result<UnixListener> {
    background::detach()?;
    let stdin = io::stdin();
    let listener = UnixListener::from(stdin.as_fd().try_clone_to_owned()?);
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(listener)
}
