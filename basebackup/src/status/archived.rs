//! The repository's side: how far each timeline is archived without a hole, and what can be recovered with it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use walkeep_common::error::{Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::inventory::{Beyond, Inventory};
use walkeep_common::wal_object::header::Header;

use super::drills::Drills;
use super::server::ServerStatus;
use crate::catalog::Catalog;
use crate::list::{Window, segment_size, windows};
use crate::verify::Verified;

/// One cluster in the repository.
#[derive(Debug, Serialize)]
pub(super) struct ClusterStatus {
    #[serde(with = "walkeep_common::wal_object::header::text_or_number")]
    pub(super) system_identifier: u64,
    /// What the server adds to it, if the cluster is the server's.
    #[serde(flatten)]
    pub(super) now: Now,
    pub(super) timelines: Vec<TimelineStatus>,
    pub(super) windows: Vec<WindowStatus>,
    /// Segments that are missing although later ones are or must have been there.
    pub(super) holes: Vec<String>,
    pub(super) backups: usize,
    pub(super) unfinished_backups: Vec<BackupId>,
    pub(super) unusable_backups: Vec<BackupId>,
    pub(super) last_backup: Option<BackupSummary>,
    /// On this host.
    pub(super) last_verify: Option<Verified>,
    #[serde(flatten)]
    pub(super) drills: Drills,
    pub(super) stored_wal_bytes: u64,
    pub(super) stored_backup_bytes: u64,
}

/// What is true at this moment only.
#[derive(Debug, Default, Serialize)]
pub(super) struct Now {
    /// The timeline that counts: the newest, or of those archived the newest the server has come to.
    pub(super) current_timeline: Option<Timeline>,
    /// Whether the server is one of this cluster.
    pub(super) is_of_server: bool,
    /// WAL of the server's that is not archived without a hole.
    pub(super) behind_bytes: Option<u64>,
    /// The age of the last moment that can be recovered: no more than this would be lost. None: nothing can be.
    pub(super) rpo_seconds: Option<f64>,
}

/// How far a timeline is archived without a hole: from the last backup that reaches it, else from its first segment.
#[derive(Debug, Serialize)]
pub(super) struct TimelineStatus {
    pub(super) timeline: Timeline,
    pub(super) parent: Option<Timeline>,
    pub(super) switch_point: Option<Lsn>,
    /// Why it cannot be recovered to, or why it is not known when its last segment was written.
    pub(super) problem: Option<String>,
    pub(super) last_segment: Option<String>,
    pub(super) end_lsn: Option<Lsn>,
    /// When PostgreSQL last wrote the last segment.
    pub(super) written: Option<Timestamp>,
    /// When it was archived.
    pub(super) archived: Option<Timestamp>,
    /// The segment that is missing behind it, although there is or was more.
    pub(super) hole: Option<String>,
    /// The segment inside which the timeline begins, not archived yet.
    pub(super) awaited: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct WindowStatus {
    #[serde(flatten)]
    pub(super) window: Window,
    /// When the last segment was written: no later commit can be reached.
    pub(super) to_time: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
pub(super) struct BackupSummary {
    pub(super) id: BackupId,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) timeline: Timeline,
    pub(super) started: Timestamp,
    pub(super) finished: Timestamp,
    pub(super) host: String,
    pub(super) plain_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) bad_pages: usize,
}

/// The headers of last segments, each read once.
struct Headers<'a> {
    archive: &'a WalArchive,
    read: BTreeMap<String, Result<Option<Header>, String>>,
}

impl ClusterStatus {
    /// Looks at what is there. Of WAL only names are listed, and headers of last segments read.
    pub(super) async fn look(archive: &WalArchive, memory: &HostMemory) -> Result<Self> {
        let catalog = Catalog::load(archive).await?;
        let drills = Drills::look(archive).await?;
        let mut status = Self {
            system_identifier: archive.layout().system_identifier(),
            now: Now::default(),
            timelines: Vec::new(),
            windows: Vec::new(),
            holes: Vec::new(),
            backups: catalog.backups.len(),
            unfinished_backups: catalog.unfinished.iter().map(|unfinished| unfinished.id.clone()).collect(),
            unusable_backups: catalog.unusable.iter().map(|(id, _)| id.clone()).collect(),
            last_backup: catalog.backups.last().map(BackupSummary::of),
            last_verify: Verified::recall(memory, archive),
            drills,
            stored_wal_bytes: 0,
            stored_backup_bytes: catalog.backups.iter().map(|backup| backup.stored_size).sum(),
        };
        if let Some(size) = segment_size(archive, &catalog).await? {
            let inventory = archive.inventory(size).await?;
            status.stored_wal_bytes = inventory.stored_size();
            status.look_at_wal(archive, &inventory, &catalog.backups).await?;
        }
        Ok(status)
    }

    async fn look_at_wal(&mut self, archive: &WalArchive, inventory: &Inventory, backups: &[Backup]) -> Result<()> {
        let mut headers = Headers { archive, read: BTreeMap::new() };
        for window in windows(backups, inventory) {
            let header = headers.of(&window.last_segment).await?;
            // What a backup brings itself is not in the archive: the window is the end of the backup.
            let alone = (window.to_lsn == window.from_lsn).then_some(window.from_time);
            let written = header.ok().flatten().map(|header| header.modified.max(window.from_time));
            self.windows.push(WindowStatus { to_time: written.or(alone), window });
        }
        for timeline in inventory.timelines() {
            let mut row = row(inventory, timeline, &self.windows);
            if let Some(last) = &row.last_segment {
                match headers.of(last).await? {
                    Ok(header) => {
                        row.written = header.as_ref().map(|header| header.modified);
                        row.archived = header.as_ref().map(|header| header.archived);
                    }
                    Err(problem) => row.problem = Some(problem),
                }
            }
            self.timelines.push(row);
        }
        let of_rows = self.timelines.iter().filter_map(|row| row.hole.clone());
        let of_windows = self.windows.iter().filter_map(|window| window.window.hole.clone());
        self.holes = of_rows.chain(of_windows).collect::<BTreeSet<_>>().into_iter().collect();
        Ok(())
    }

    /// Compares with the server, if it is one of this cluster, and with the clock.
    pub(super) fn compare(&mut self, server: &ServerStatus, now: Timestamp) {
        let server = server.facts.as_ref().filter(|facts| facts.system_identifier == self.system_identifier);
        let is_known = |timeline: Timeline| server.is_none_or(|facts| timeline <= facts.timeline);
        let current = self.timelines.iter().rfind(|row| row.end_lsn.is_some() && is_known(row.timeline));
        let position = server.map(|facts| facts.position);
        let end = current.and_then(|row| row.end_lsn);
        let behind_bytes = position.zip(end).map(|(position, end)| position.0.saturating_sub(end.0));
        let last = self.windows.iter().filter(|window| Some(window.window.timeline) == current.map(|row| row.timeline));
        let last = last.max_by_key(|window| window.window.to_lsn);
        let to_time = last.and_then(|window| window.to_time);
        // A server that has written nothing since can lose nothing.
        let all_archived = last.zip(position).is_some_and(|(window, position)| position <= window.window.to_lsn);
        let age = |to: Timestamp| now.duration_since(to).max(SignedDuration::ZERO).as_secs_f64();
        self.now = Now {
            current_timeline: current.map(|row| row.timeline),
            is_of_server: server.is_some(),
            behind_bytes,
            rpo_seconds: if all_archived { Some(0.0) } else { to_time.map(age) },
        };
    }
}

/// How far a timeline goes; of its last window, or from its first segment where no backup reaches it.
fn row(inventory: &Inventory, timeline: Timeline, windows: &[WindowStatus]) -> TimelineStatus {
    let size = inventory.segment_size();
    let history = inventory.history(timeline);
    let parent = history.ancestors().last();
    let mut row = TimelineStatus {
        timeline,
        parent: parent.map(|parent| parent.timeline),
        switch_point: parent.map(|parent| parent.switch_point),
        problem: inventory.history_problem(timeline).map(str::to_owned),
        last_segment: None,
        end_lsn: None,
        written: None,
        archived: None,
        hole: None,
        awaited: None,
    };
    let of_timeline = windows.iter().map(|window| &window.window).filter(|window| window.timeline == timeline);
    if let Some(window) = of_timeline.max_by_key(|window| window.to_lsn) {
        row.last_segment = Some(window.last_segment.clone());
        row.end_lsn = Some(window.to_lsn);
        row.hole.clone_from(&window.hole);
        row.awaited.clone_from(&window.awaited);
    } else if let Some(first) = inventory.first(&history) {
        let reach = inventory.reach(&history, first);
        row.last_segment = reach.end.checked_sub(1).map(|last| history.segment_name(last, size).to_string());
        row.end_lsn = Some(reach.end_lsn(size));
        row.hole = (reach.beyond == Beyond::Wal).then(|| reach.missing.to_string());
        row.awaited = matches!(reach.beyond, Beyond::Fork(_)).then(|| reach.missing.to_string());
    }
    if row.problem.is_none() && !inventory.has_history(timeline) {
        row.problem = Some(format!("\"{}\" is not archived", WalFileName::History(timeline)));
    }
    row
}

impl BackupSummary {
    fn of(backup: &Backup) -> Self {
        Self {
            id: backup.id.clone(),
            kind: backup.kind.clone(),
            timeline: backup.end_timeline(),
            started: backup.start_time,
            finished: backup.stop_time,
            host: backup.host.clone(),
            plain_bytes: backup.plain_size,
            stored_bytes: backup.stored_size,
            bad_pages: backup.bad_pages.len(),
        }
    }
}

impl Headers<'_> {
    /// The header of a segment, nothing if it is not in the archive itself; the words of what is wrong with it.
    async fn of(&mut self, segment: &str) -> Result<Result<Option<Header>, String>> {
        if let Some(read) = self.read.get(segment) {
            return Ok(read.clone());
        }
        let Ok(name) = segment.parse::<WalFileName>() else { return Ok(Ok(None)) };
        let read = match self.archive.header(name).await {
            Err(error) if error.kind() == Kind::Damaged => Err(error.to_string()),
            header => Ok(header?),
        };
        let _ = self.read.insert(segment.to_owned(), read.clone());
        Ok(read)
    }
}
