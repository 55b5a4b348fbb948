//! The newest drills: what their records say, without reading the older ones.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walkeep_common::error::{Kind, Result};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal_archive::WalArchive;

/// No record is larger than this.
const LIMIT: u64 = 4 << 20;
/// So many are read in search of one that was passed.
const READ: usize = 10;

/// What a monitor must know of a drill; its record has more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DrillSummary {
    pub(crate) id: BackupId,
    pub(crate) verdict: DrillVerdict,
    pub(crate) problem: Option<String>,
    pub(crate) finished: Timestamp,
    pub(crate) host: String,
    pub(crate) backup: Option<BackupId>,
    pub(crate) target: String,
    pub(crate) rto_seconds: Option<f64>,
    pub(crate) rpo_seconds: Option<f64>,
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DrillVerdict {
    Passed,
    Failed,
}

/// The last drill, and the last one that was passed if it is among the newest few.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Drills {
    #[serde(rename = "last_drill")]
    pub(crate) last: Option<DrillSummary>,
    #[serde(rename = "last_passed_drill")]
    pub(crate) last_passed: Option<DrillSummary>,
}

impl Drills {
    /// Lists the records and reads the newest, further back only until one says "passed".
    pub(crate) async fn look(archive: &WalArchive) -> Result<Self> {
        let mut listed = archive.store().list(&archive.layout().drills_folder()).await?;
        listed.sort_by(|a, b| (a.modified, &a.key).cmp(&(b.modified, &b.key)));
        let mut drills = Self::default();
        for object in listed.iter().rev().take(READ) {
            let bytes = match archive.store().read(&object.key, LIMIT).await {
                Err(error) if error.kind() == Kind::Damaged => None,
                read => read?,
            };
            let drill = bytes.and_then(|bytes| serde_json::from_slice::<DrillSummary>(&bytes).ok());
            let Some(drill) = drill else { continue };
            if drill.verdict == DrillVerdict::Passed {
                drills.last_passed = Some(drill.clone());
            }
            let _ = drills.last.get_or_insert(drill);
            if drills.last_passed.is_some() {
                break;
            }
        }
        Ok(drills)
    }
}
