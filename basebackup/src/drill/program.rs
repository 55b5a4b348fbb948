//! PostgreSQL's own programs, run on a restored copy: they end with the drill, and what they print is bounded.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::binaries::Binaries;
use super::checks::{Outcome, Said};

/// Lines of a program's output that go into the record.
const SHOWN_LINES: usize = 10;
/// How far one came that has told nothing.
const NOTHING: &str = "nothing";
/// More of it is not read.
const MOST_BYTES: u64 = 16 << 20;

/// One run.
#[derive(Debug)]
pub(super) struct Program<'p> {
    pub(super) name: &'static str,
    pub(super) words: &'p [&'p str],
    /// What to say if it finds nothing wrong.
    pub(super) well: &'static str,
    /// For libpq.
    pub(super) options: &'p str,
    /// When it is ended.
    pub(super) limit: Option<Duration>,
}

impl Program<'_> {
    /// Runs it; what it prints goes through a file in `home`.
    ///
    /// # Errors
    /// From the operating system; `Unavailable` if a signal ended it.
    pub(super) async fn run(&self, binaries: &Binaries, home: &Path) -> Result<Said> {
        let Some(path) = binaries.program(self.name) else {
            return Ok((Outcome::Skipped, format!("{} is not installed", self.name)));
        };
        let output = home.join(format!("{}.out", self.name));
        let file = File::create(&output).context("create file", &output)?;
        let errors = file.try_clone().context("open file", &output)?;
        let mut command = Command::new(&path);
        let _ = command.args(self.words).env_clear().env("LC_ALL", "C").env("HOME", home);
        let _ = command.env("PGOPTIONS", self.options).current_dir(home);
        let _ = command.stdin(Stdio::null()).stdout(file).stderr(errors).kill_on_drop(true);
        let mut child = command.spawn().context("run", &path)?;
        let limit = self.limit.unwrap_or(Duration::MAX);
        let ended = if let Ok(ended) = timeout(limit, child.wait()).await {
            Some(ended.context("run", &path)?)
        } else {
            child.kill().await.context("end", &path)?;
            None
        };
        let said = read(&output)?;
        self.judge(ended, &said)
    }

    fn judge(&self, ended: Option<ExitStatus>, said: &str) -> Result<Said> {
        let is_progress = |line: &&str| line.contains(" relations (") && line.contains(" pages (");
        let lines: Vec<&str> = said.lines().filter(|line| !is_progress(line)).take(SHOWN_LINES).collect();
        let how_far = said.lines().rfind(is_progress).map_or(NOTHING, str::trim);
        let found = lines.join("\n");
        Ok(match ended {
            Some(status) if status.success() => (Outcome::Passed, self.well.to_owned()),
            Some(status) if status.code().is_none() => {
                return Err(Error::new(Kind::Unavailable, format!("{} was ended by a signal: {status}", self.name)));
            }
            Some(_) if said.contains("extension \"amcheck\" is not available") => (Outcome::Skipped, found),
            Some(_) => (Outcome::Failed, found),
            None if found.is_empty() && (how_far == NOTHING || how_far.starts_with("0/")) => {
                (Outcome::Skipped, format!("its time was up after {how_far}"))
            }
            None if found.is_empty() => {
                (Outcome::Passed, format!("ended when its time was up, after {how_far}: nothing was found so far"))
            }
            None => (Outcome::Failed, format!("ended when its time was up, after {how_far}:\n{found}")),
        })
    }
}

fn read(path: &Path) -> Result<String> {
    let file = File::open(path).context("open file", path)?;
    let mut bytes = Vec::new();
    let _ = file.take(MOST_BYTES).read_to_end(&mut bytes).context("read file", path)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
