//! `basebackup list`: the backups, and the windows in which recovery is possible.

mod windows;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use walkeep_common::config::Config;
use walkeep_common::error::{Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::retry::Patience;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::SegmentSize;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::inventory::Inventory;

pub use self::windows::{Window, windows};
use crate::catalog::{Catalog, archives};
use crate::cluster::ClusterArgs;
use crate::output::{Format, bytes, print, print_json, table};
use crate::pins::{Pin, Pins};

/// How long a request of a command that only reads is tried again.
pub const READ_PATIENCE: Patience = Patience::For(Duration::from_secs(60));

/// Options of `basebackup list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form of the output
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// One cluster's part of the list.
#[derive(Debug, Serialize)]
struct Cluster {
    system_identifier: String,
    backups: Vec<Backup>,
    /// By backup.
    pins: BTreeMap<String, Vec<Pin>>,
    unfinished: Vec<UnfinishedBackup>,
    unusable: Vec<UnusableBackup>,
    timelines: Vec<TimelineSummary>,
    windows: Vec<WindowSummary>,
    wal_stored_size: u64,
}

#[derive(Debug, Serialize)]
struct UnfinishedBackup {
    id: String,
    host: Option<String>,
    started: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
struct UnusableBackup {
    id: String,
    problem: String,
}

#[derive(Debug, Serialize)]
struct TimelineSummary {
    timeline: u32,
    parent: Option<u32>,
    switch_point: Option<String>,
    /// Why its history cannot be used.
    problem: Option<String>,
    runs: Vec<RunSummary>,
}

#[derive(Debug, Serialize)]
struct RunSummary {
    first: String,
    last: String,
}

#[derive(Debug, Serialize)]
struct WindowSummary {
    #[serde(flatten)]
    window: Window,
    /// When the last segment was written: no later commit can be reached.
    to_time: Option<Timestamp>,
}

/// Prints every backup and window.
///
/// # Errors
/// `NotFound` if there is nothing; `Refused`; `Unavailable`. What is damaged is listed as such.
pub async fn list(args: &ListArgs, config: &Config) -> Result<()> {
    let mut clusters = Vec::new();
    for archive in archives(config, args.cluster.identifier()?, READ_PATIENCE).await? {
        clusters.push(summarize(&archive).await?);
    }
    match args.format {
        Format::Json => print_json(&serde_json::json!({ "clusters": clusters })),
        Format::Text => print(&clusters.iter().map(text).collect::<Vec<_>>().join("\n")),
    }
}

async fn summarize(archive: &WalArchive) -> Result<Cluster> {
    let catalog = Catalog::load(archive).await?;
    let size = segment_size(archive, &catalog).await?;
    let (mut timelines, mut summaries, mut wal_stored_size) = (Vec::new(), Vec::new(), 0);
    if let Some(size) = size {
        let inventory = archive.inventory(size).await?;
        timelines = inventory.timelines().iter().map(|&timeline| timeline_summary(&inventory, timeline)).collect();
        wal_stored_size = inventory.stored_size();
        for window in windows(&catalog.backups, &inventory) {
            let last = window.last_segment.parse::<WalFileName>().ok();
            let to_time = match last {
                Some(last) => archive.header(last).await,
                None => Ok(None),
            };
            let to_time = match to_time {
                Err(error) if error.kind() == Kind::Damaged => None,
                header => header?.map(|header| header.modified),
            };
            summaries.push(WindowSummary { window, to_time });
        }
    }
    let unfinished = catalog.unfinished.into_iter().map(|unfinished| UnfinishedBackup {
        id: unfinished.id.to_string(),
        host: unfinished.begin.as_ref().map(|begin| begin.host.clone()),
        started: unfinished.begin.map(|begin| begin.started),
    });
    let unusable = catalog.unusable.into_iter();
    let (pins, now) = (Pins::load(archive).await?, Timestamp::now());
    let pins = catalog.backups.iter().map(|backup| (backup.id.to_string(), pins.of(&backup.id, now)));
    let pins = pins.filter(|(_, pins)| !pins.is_empty()).collect();
    Ok(Cluster {
        system_identifier: archive.layout().system_identifier().to_string(),
        backups: catalog.backups,
        pins,
        unfinished: unfinished.collect(),
        unusable: unusable.map(|(id, problem)| UnusableBackup { id: id.to_string(), problem }).collect(),
        timelines,
        windows: summaries,
        wal_stored_size,
    })
}

/// The cluster's segment size: from a backup of it, or from its identity.
///
/// # Errors
/// As [`WalArchive::identity`].
pub async fn segment_size(archive: &WalArchive, catalog: &Catalog) -> Result<Option<SegmentSize>> {
    match catalog.backups.last() {
        Some(backup) => Ok(Some(backup.segment_size)),
        None => Ok(archive.identity().await?.and_then(|identity| identity.segment_size)),
    }
}

fn timeline_summary(inventory: &Inventory, timeline: walkeep_common::wal::segment::Timeline) -> TimelineSummary {
    let history = inventory.history(timeline);
    let parent = history.ancestors().last();
    let name =
        |number| walkeep_common::wal::segment::SegmentName::new(timeline, number, inventory.segment_size()).to_string();
    let runs = inventory.runs(timeline);
    TimelineSummary {
        timeline: timeline.0,
        parent: parent.map(|parent| parent.timeline.0),
        switch_point: parent.map(|parent| parent.switch_point.to_string()),
        problem: inventory.history_problem(timeline).map(str::to_owned),
        runs: runs.iter().map(|run| RunSummary { first: name(run.first), last: name(run.last) }).collect(),
    }
}

fn text(cluster: &Cluster) -> String {
    let mut text = format!("Cluster {}\n\n", cluster.system_identifier);
    if cluster.backups.is_empty() {
        text.push_str("No base backups. Take one with: basebackup take\n");
    } else {
        let rows: Vec<Vec<String>> = cluster.backups.iter().map(|backup| backup_row(backup, cluster)).collect();
        let headings = ["ID", "FINISHED", "TIMELINE", "START LSN", "STOP LSN", "SIZE", "STORED", "LABEL"];
        text.push_str(&table(&headings, &rows));
    }
    for unfinished in &cluster.unfinished {
        let host = unfinished.host.as_deref().unwrap_or("unknown");
        let _ = writeln!(text, "{}  not finished: running on host \"{host}\", or dead", unfinished.id);
    }
    for unusable in &cluster.unusable {
        let _ = writeln!(text, "{}  cannot be used: {}", unusable.id, unusable.problem);
    }
    for timeline in &cluster.timelines {
        if let Some(problem) = &timeline.problem {
            let _ = writeln!(text, "timeline {} cannot be recovered to: {problem}", timeline.timeline);
        }
    }
    let _ = writeln!(text, "\nRecovery is possible to any moment in:");
    let rows: Vec<Vec<String>> = cluster.windows.iter().map(window_row).collect();
    text.push_str(&if rows.is_empty() {
        "(nothing yet: it begins with the first base backup)\n".to_owned()
    } else {
        table(&["TIMELINE", "FROM", "TO", "FROM LSN", "TO LSN", "ENDS WITH"], &rows)
    });
    let archived: usize = cluster.timelines.iter().map(|timeline| timeline.runs.len()).sum();
    let _ = writeln!(
        text,
        "\nWAL: {} in {archived} unbroken {} of segments on {} {}",
        bytes(cluster.wal_stored_size),
        if archived == 1 { "row" } else { "rows" },
        cluster.timelines.len(),
        if cluster.timelines.len() == 1 { "timeline" } else { "timelines" },
    );
    text
}

fn backup_row(backup: &Backup, cluster: &Cluster) -> Vec<String> {
    let pins = cluster.pins.get(backup.id.as_str()).into_iter().flatten().map(Pin::to_text);
    let label = std::iter::once(backup.label.clone()).chain(pins).collect::<Vec<_>>().join(", ");
    vec![
        backup.id.to_string(),
        time(backup.stop_time),
        backup.end_timeline().to_string(),
        backup.start_lsn.to_string(),
        backup.stop_lsn.to_string(),
        bytes(backup.plain_size),
        bytes(backup.stored_size),
        label,
    ]
}

fn window_row(summary: &WindowSummary) -> Vec<String> {
    let window = &summary.window;
    vec![
        window.timeline.to_string(),
        time(window.from_time),
        summary.to_time.map_or_else(String::new, time),
        window.from_lsn.to_string(),
        window.to_lsn.to_string(),
        match (&window.hole, &window.awaited) {
            (Some(missing), _) => format!("a hole: {missing} is missing"),
            (None, Some(awaited)) => format!("a promotion: {awaited} is not archived yet"),
            (None, None) if window.expired.is_some() => "expired WAL".to_owned(),
            (None, None) => "the archive".to_owned(),
        },
    ]
}

/// A moment in UTC, to the second.
pub fn time(time: Timestamp) -> String {
    time.strftime("%F %T UTC").to_string()
}
