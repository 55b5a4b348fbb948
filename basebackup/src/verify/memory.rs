//! The last verification on this host: noted here, and told by `basebackup status`. The repository is only read.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walkeep_common::host::HostMemory;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal_archive::WalArchive;

use super::Verdict;

const FACT: &str = "verified";

/// A verification that came to a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// When it ended.
    pub finished: Timestamp,
    /// What came out.
    pub verdict: Verdict,
    /// Objects that are damaged or missing.
    pub findings: usize,
    /// The backups that were verified.
    pub backups: Vec<BackupId>,
    /// Whether all archived WAL was.
    pub all_wal: bool,
    /// The share of packs and WAL files that was read.
    pub read_share: f64,
}

impl Verified {
    /// Notes it as the last one.
    pub fn note(&self, memory: &HostMemory, archive: &WalArchive) {
        if let Ok(json) = serde_json::to_string(self) {
            memory.note(FACT, &subject(archive), &json);
        }
    }

    /// The last one.
    pub fn recall(memory: &HostMemory, archive: &WalArchive) -> Option<Self> {
        serde_json::from_str(&memory.recall(FACT, &subject(archive))?).ok()
    }
}

fn subject(archive: &WalArchive) -> String {
    format!("{} {}", archive.store().place(), archive.layout().folder())
}
