//! The server of a drill: started, watched through its log, ended.

use std::fs::File;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::isolation::Isolation;
use super::log::Log;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a server may take to shut down in order.
const SHUTDOWN: Duration = Duration::from_secs(600);
/// And in haste.
const LAST_SHUTDOWN: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    pub(super) log: Log,
}

/// How waiting for a server has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// It takes connections.
    Ready,
    /// It has ended.
    Ended(ExitStatus),
}

impl Server {
    /// Starts it; what it says goes to `log`. It is to end with the thread that starts it, which must therefore be one that
    /// stays: the main one.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn start(isolation: &Isolation, postgres: &Path, data: &Path, home: &Path, log: &Path) -> Result<Self> {
        let file = File::create(log).context("create file", log)?;
        let mut command = isolation.command(postgres, data, home);
        let child = command.stderr(file).spawn().context("start", postgres)?;
        Ok(Self { child, log: Log::new(log) })
    }

    /// Waits until recovery is over.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) async fn wait_until_open(&mut self) -> Result<Wait> {
        loop {
            // What it said last is read after it has ended.
            let ended = self.child.try_wait().context("wait for", Path::new("postgres"))?;
            if self.log.read_on()?.is_ready {
                return Ok(Wait::Ready);
            }
            if let Some(status) = ended {
                return Ok(Wait::Ended(status));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Shuts it down in order.
    ///
    /// # Errors
    /// `Unavailable` if it does not end.
    pub(super) async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::INT);
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().context("wait for", Path::new("postgres"))? {
                return Ok(status);
            }
            if begun.elapsed() > SHUTDOWN {
                return Err(Error::new(Kind::Unavailable, "the server of the drill does not shut down"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

/// Whatever the drill fails with, its server does not stay.
impl Drop for Server {
    fn drop(&mut self) {
        let begun = Instant::now();
        self.signal(Signal::QUIT);
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > LAST_SHUTDOWN {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// A setting of the original that recovery needs, as `pg_controldata` prints it.
pub(super) fn control_setting(controldata: &str, name: &str) -> Option<String> {
    let line = controldata.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_in_what_pg_controldata_prints() {
        let control = "max_connections setting:              100\nmax_prepared_xacts setting:           5\n";
        assert_eq!(control_setting(control, "max_prepared_xacts").as_deref(), Some("5"));
        assert_eq!(control_setting(control, "max_locks_per_xact"), None);
    }
}
