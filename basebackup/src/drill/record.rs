//! The record of a drill: what was done, on what, with what result. Kept in the repository, never changed.

use std::fmt::Write as _;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::repository::seal::seal;
use walkeep_common::store::Created;
use walkeep_common::wal_archive::WalArchive;

use super::checks::{Check, Outcome};
use crate::list::time;
use crate::output::bytes;
pub(super) use crate::output::seconds;

/// No record is larger than this.
const LIMIT: u64 = 4 << 20;
/// Earlier drills that a report shows.
const SHOWN: usize = 50;

/// What came out of a drill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// The database was restored, started, and stood every check.
    Passed,
    /// The backup or its WAL is bad, or an objective was missed.
    Failed,
}

/// A part of the drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Phase {
    /// Its name.
    pub(super) name: String,
    /// How long it took.
    pub(super) seconds: f64,
    /// Whether somebody who restores in earnest waits for it.
    pub(super) counts: bool,
}

/// The whole drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The format's version.
    pub(super) walkeep: u32,
    /// The drill's id.
    pub(super) id: BackupId,
    pub(super) verdict: Verdict,
    /// Why it failed, before any check could say.
    pub(super) problem: Option<String>,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    /// Where it was performed, and by whom.
    pub(super) host: String,
    pub(super) user: String,
    /// The host's operating system and its size.
    #[serde(default)]
    pub(super) environment: String,
    pub(super) version: String,
    /// What was restored.
    pub(super) repository: String,
    pub(super) cluster: String,
    pub(super) system_identifier: String,
    pub(super) backup: Option<BackupId>,
    pub(super) selection: String,
    /// What was drawn at random comes from this.
    #[serde(default)]
    pub(super) seed: Option<u32>,
    pub(super) postgresql: Option<String>,
    pub(super) databases: usize,
    pub(super) restored_bytes: u64,
    pub(super) timeline: Option<u32>,
    pub(super) target: String,
    /// Where recovery stopped, in PostgreSQL's words.
    pub(super) stopped: Option<String>,
    pub(super) replayed_segments: u64,
    pub(super) replayed_bytes: u64,
    #[serde(default)]
    pub(super) replayed_segments_per_second: Option<f64>,
    /// The newest commit that was recovered.
    pub(super) last_commit: Option<Timestamp>,
    /// How it was kept apart.
    pub(super) network: Option<String>,
    pub(super) scratch: String,
    /// Whether it was left there.
    #[serde(default)]
    pub(super) kept: bool,
    pub(super) phases: Vec<Phase>,
    pub(super) checks: Vec<Check>,
    /// From the start of the restore to the first connection.
    pub(super) rto_seconds: Option<f64>,
    /// From the newest commit that was recovered to the start of the drill.
    pub(super) rpo_seconds: Option<f64>,
    pub(super) rto_objective_seconds: Option<f64>,
    pub(super) rpo_objective_seconds: Option<f64>,
}

impl Record {
    /// Stores the record, create-only.
    ///
    /// # Errors
    /// `Refused` without the right to; `Unavailable`.
    pub(super) async fn store(&self, archive: &WalArchive) -> Result<()> {
        let json = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::new(Kind::Internal, "could not write the record").caused_by(error))?;
        let key = archive.layout().drill(&self.id);
        match archive.store().create(&key, seal(&json)).await? {
            Created::New | Created::Exists => Ok(()),
        }
    }

    /// Earlier records, oldest first; those that cannot be read are left out.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub(super) async fn earlier(archive: &WalArchive) -> Result<Vec<Self>> {
        let mut listed = archive.store().list(&archive.layout().drills_folder()).await?;
        listed.sort_by_key(|object| object.modified);
        let newest = listed.split_off(listed.len().saturating_sub(SHOWN));
        let read = stream::iter(newest).map(|object| async move { archive.store().read(&object.key, LIMIT).await });
        let read: Vec<_> = read.buffered(8).try_collect().await?;
        let mut records: Vec<Self> =
            read.into_iter().flatten().filter_map(|bytes| serde_json::from_slice(&bytes).ok()).collect();
        records.sort_by_key(|record| record.started);
        Ok(records)
    }

    /// How the backup was chosen.
    pub(super) fn selected(&self) -> String {
        let seed = self.seed.map_or_else(String::new, |seed| format!(", seed {seed}"));
        format!("{}{seed}", self.selection)
    }

    /// How much WAL, and how fast.
    pub(super) fn replayed(&self) -> String {
        let rate = self.replayed_segments_per_second;
        let rate = rate.map_or_else(String::new, |rate| format!(", {rate:.1} segments a second"));
        let segments = if self.replayed_segments == 1 { "segment" } else { "segments" };
        format!("{} {segments}, {}{rate}", self.replayed_segments, bytes(self.replayed_bytes))
    }

    /// For the terminal.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12} {value}");
        };
        line("Drill", format!("{}  {}", self.id, if self.verdict == Verdict::Passed { "PASSED" } else { "FAILED" }));
        if let Some(problem) = &self.problem {
            line("Problem", problem.clone());
        }
        if let Some(backup) = &self.backup {
            line("Backup", format!("{backup} ({}), {} restored", self.selected(), bytes(self.restored_bytes)));
        }
        line("Target", self.target.clone());
        if let Some(last) = self.last_commit {
            line("Last commit", time(last));
        }
        if self.replayed_segments > 0 {
            line("Replayed", self.replayed());
        }
        for phase in &self.phases {
            let note = if phase.counts { "" } else { " (not part of the time to recover)" };
            line("Phase", format!("{:<28} {}{note}", phase.name, seconds(phase.seconds)));
        }
        for check in &self.checks {
            line("Check", format!("{:<28} {}  {}", check.name, word(check.outcome), check.detail.replace('\n', " | ")));
        }
        line("RTO", objective(self.rto_seconds, self.rto_objective_seconds));
        line("RPO", objective(self.rpo_seconds, self.rpo_objective_seconds));
        if let Some(network) = &self.network {
            line("Network", network.clone());
        }
        text
    }
}

/// What a drill runs on: operating system, processors, memory.
pub(super) fn environment() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map_or(std::env::consts::OS, |name| name.trim_matches('"'));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next());
    let memory = memory.and_then(|kibibytes| kibibytes.parse::<u64>().ok()).unwrap_or(0) << 10;
    format!("{name}, {}, {processors} processors, {} of memory", std::env::consts::ARCH, bytes(memory))
}

/// A measure beside what it must not exceed.
pub(super) fn objective(measured: Option<f64>, wanted: Option<f64>) -> String {
    let Some(measured) = measured else { return "not measured".to_owned() };
    match wanted {
        None => seconds(measured),
        Some(wanted) => {
            let kept = if measured <= wanted { "kept" } else { "MISSED" };
            format!("{} of {}: {kept}", seconds(measured), seconds(wanted))
        }
    }
}

/// What came out, in one word of the same width.
pub(super) fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed ",
        Outcome::Warning => "WARNING",
        Outcome::Failed => "FAILED ",
        Outcome::Skipped => "skipped",
    }
}
