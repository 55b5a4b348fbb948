//! Starting a worker.

use std::env;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use walkeep_common::config::Config;
use walkeep_common::wal::name::WalFileName;

use super::data_directory::DataDirectory;

/// Starts a worker for the socket, which takes the place of whatever had its name before. It listens from now on, so
/// that the next call finds it however long the worker takes to begin.
///
/// # Errors
/// From the operating system.
pub(crate) fn start(
    socket: &Path,
    data: &DataDirectory,
    config: &Config,
    pushed: Option<WalFileName>,
) -> io::Result<()> {
    let new = socket.with_extension(std::process::id().to_string());
    let listener = UnixListener::bind(&new)?;
    // The name may lead to another worker's socket by the time this one looks.
    let inode = fs::symlink_metadata(&new)?.ino();
    let started = fs::rename(&new, socket).and_then(|()| {
        let mut worker = Command::new(env::current_exe()?);
        let _ = worker.arg("--push-ahead").arg(socket).arg("--inode").arg(inode.to_string()).arg(data.path());
        if let Some(pushed) = pushed {
            let _ = worker.arg("--pushed").arg(pushed.to_string());
        }
        let flags = config.flags();
        if let Some(file) = flags.config {
            let _ = worker.arg("--config").arg(file);
        }
        let _ = worker.args(flags.repository.iter().flat_map(|url| ["--repository", url]));
        let _ = worker.args(flags.cluster.iter().flat_map(|name| ["--cluster", name]));
        if rustix::process::geteuid().is_root() {
            let _ = worker.arg("--allow-root");
        }
        worker.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    if started.is_err() {
        let _ = fs::remove_file(&new);
        let _ = fs::remove_file(socket);
    }
    started.map(drop)
}

/// Notes beside the socket why its worker could not begin.
pub(crate) fn note_failure(socket: &Path, problem: &str) {
    if let Err(error) = fs::write(failure_of(socket), problem) {
        tracing::debug!(%error, "could not note why the worker does not begin");
    }
}

/// Why a worker could not begin, if that was so a moment ago.
pub(crate) fn failed_lately(socket: &Path, memory: Duration) -> Option<String> {
    let path = failure_of(socket);
    let age = fs::metadata(&path).ok()?.modified().ok()?.elapsed().ok()?;
    if age < memory { fs::read_to_string(path).ok() } else { None }
}

fn failure_of(socket: &Path) -> PathBuf {
    socket.with_extension("failed")
}
