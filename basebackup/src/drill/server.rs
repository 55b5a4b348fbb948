//! The server of a drill: started, watched through its log, ended.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::isolation::Isolation;

const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a server may take to shut down in order.
const SHUTDOWN: Duration = Duration::from_secs(600);
/// And in haste.
const LAST_SHUTDOWN: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    log: PathBuf,
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
    /// Starts it; what it says goes to `log`.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn start(isolation: &Isolation, postgres: &Path, data: &Path, home: &Path, log: &Path) -> Result<Self> {
        let file = File::create(log).context("create file", log)?;
        let mut command = isolation.command(postgres, data, home);
        let child = command.stderr(file).spawn().context("start", postgres)?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until recovery is over.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) async fn wait_until_open(&mut self) -> Result<Wait> {
        loop {
            if self.text()?.contains("database system is ready to accept connections") {
                return Ok(Wait::Ready);
            }
            if let Some(status) = self.child.try_wait().context("wait for", Path::new("postgres"))? {
                return Ok(Wait::Ended(status));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Everything it has said so far.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn text(&self) -> Result<String> {
        /// Nobody reads more of a log; its end has what matters.
        const MOST: u64 = 4 << 20;
        let file = File::open(&self.log).context("open file", &self.log)?;
        let length = file.metadata().context("look at", &self.log)?.len();
        let mut bytes = Vec::new();
        if length > MOST {
            let mut end = vec![0; usize::try_from(MOST).unwrap_or(0)];
            file.read_exact_at(&mut end, length - MOST).context("read file", &self.log)?;
            bytes = end;
        } else {
            let _ = (&file).read_to_end(&mut bytes).context("read file", &self.log)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
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

/// The lines of a log that say that something is wrong, as the server of a drill writes them.
pub(super) fn complaints(log: &str) -> Vec<String> {
    const SEVERE: [&str; 2] = [" PANIC:  ", " FATAL:  "];
    const DAMAGE: [&str; 6] = [
        "invalid page",
        "WAL contains references to invalid pages",
        "could not access status of transaction",
        "page verification failed",
        "incorrect resource manager data checksum",
        "could not read block",
    ];
    let is_complaint =
        |line: &&str| SEVERE.iter().any(|word| line.contains(word)) || DAMAGE.iter().any(|words| line.contains(words));
    log.lines().filter(is_complaint).map(str::to_owned).collect()
}

/// What recovery says where it stopped: "recovery stopping before commit of transaction 740, time …".
pub(super) fn stopped_at(log: &str) -> Option<String> {
    log.lines().find_map(|line| line.split_once("LOG:  recovery stopping ").map(|(_, rest)| rest.to_owned()))
}

/// A setting of the original that recovery needs, as `pg_controldata` prints it.
pub(super) fn control_setting(controldata: &str, name: &str) -> Option<String> {
    let line = controldata.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next().map(str::to_owned)
}

/// The last lines of a log, for whoever must find out what went wrong.
pub(super) fn last_lines(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

/// Copies a log to where it outlives the drill.
///
/// # Errors
/// From the operating system.
pub(super) fn keep_log(log: &Path, to: &Path) -> Result<()> {
    fs::copy(log, to).map(drop).context("write file", to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tells_what_is_wrong_and_where_recovery_stopped() {
        let log = "2026 [1] LOG:  starting PostgreSQL\n2026 [2] LOG:  recovery stopping before commit of transaction 7\n\
                   2026 [2] WARNING:  page verification failed, calculated checksum 1 but expected 2\n\
                   2026 [2] FATAL:  x\n2026 [1] LOG:  done\n";
        assert_eq!(complaints(log).len(), 2);
        assert_eq!(stopped_at(log).as_deref(), Some("before commit of transaction 7"));
        assert_eq!(last_lines(log, 1), "2026 [1] LOG:  done");
        let control = "max_connections setting:              100\nmax_prepared_xacts setting:           5\n";
        assert_eq!(control_setting(control, "max_prepared_xacts").as_deref(), Some("5"));
    }
}
