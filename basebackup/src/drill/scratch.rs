//! Where a drill takes place: a directory of its own, which goes when the drill is over. What a drill that was killed has
//! left is cleared away by the next one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::postgres::postmaster::PostmasterPid;

const PREFIX: &str = "walkeep-drill-";
/// Held locked as long as the drill lives.
const LOCK: &str = "lock";
/// How long what is given up may go on writing.
const LAST_WRITE: Duration = Duration::from_secs(10);
/// How long a server that lost its drill may take to end.
const LAST_SERVER: Duration = Duration::from_secs(30);

/// The directory of one drill.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    _lock: File,
    keep: bool,
}

impl Scratch {
    /// Makes a directory below `parent`, after what dead drills have left there is cleared away.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn create(parent: &Path, keep: bool, reporter: Reporter) -> Result<Self> {
        let parent = fs::canonicalize(parent).context("find directory", parent)?;
        clear(&parent, reporter)?;
        let path = parent.join(format!("{PREFIX}{:08x}", fastrand::u32(..)));
        fs::DirBuilder::new().mode(0o700).create(&path).context("create directory", &path)?;
        let lock = path.join(LOCK);
        let file = File::create_new(&lock).context("create file", &lock)?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .context("lock", &lock)?;
        Ok(Self { path, _lock: file, keep })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The data directory in it.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// What its server says.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("server.log")
    }

    /// Copies the server's log, if there is one, to where it outlives the drill.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn keep_log(&self, to: &Path) -> Result<()> {
        if self.log().exists() { fs::copy(self.log(), to).map(drop).context("write file", to) } else { Ok(()) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let begun = Instant::now();
        // A restore that is given up may still be writing its last file.
        while !self.keep
            && let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            if begun.elapsed() > LAST_WRITE {
                tracing::warn!("could not remove \"{}\": {error}", self.path.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Clears away what drills of this user have left that are dead: nobody holds their lock.
fn clear(parent: &Path, reporter: Reporter) -> Result<()> {
    for entry in fs::read_dir(parent).context("read directory", parent)? {
        let path = entry.context("read directory", parent)?.path();
        let is_ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
            && path.symlink_metadata().is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw());
        // Without a lock file it is being made, or somebody keeps it.
        let Some(lock) = is_ours.then(|| File::open(path.join(LOCK)).ok()).flatten() else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let message = format!("a drill that did not end in order left \"{}\": it is removed", path.display());
        reporter.print(Severity::Warning, &message, None);
        end_server(&path.join("data"))?;
        fs::remove_dir_all(&path).context("remove directory", &path)?;
    }
    Ok(())
}

/// Ends the server on a data directory that no drill looks after any more.
fn end_server(data: &Path) -> Result<()> {
    let Some(pid) = PostmasterPid::read(data).and_then(|found| Pid::from_raw(found.pid)) else { return Ok(()) };
    let is_its_own = || {
        let directory = fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero()));
        directory.is_ok_and(|directory| directory == data) && test_kill_process(pid).is_ok()
    };
    let begun = Instant::now();
    while is_its_own() {
        let signal = if begun.elapsed() > LAST_SERVER / 2 { Signal::KILL } else { Signal::QUIT };
        let _ = kill_process(pid, signal);
        if begun.elapsed() > LAST_SERVER {
            return Err(Error::new(Kind::Conflict, format!("process {pid:?} of a dead drill does not end"))
                .hint("End it, and run the drill again."));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
