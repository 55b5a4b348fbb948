//! The windows in which recovery is possible, from what the backups and the archive say.

use jiff::Timestamp;
use serde::Serialize;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::segment::{Timeline, segment_of};
use walkeep_common::wal_archive::inventory::{Beyond, Inventory};

/// An unbroken stretch of one timeline's history that backups make reachable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The timeline recovered to.
    pub timeline: Timeline,
    /// The oldest backup that reaches it.
    pub first_backup: String,
    /// The end of that backup: the earliest position.
    pub from_lsn: Lsn,
    /// When that was.
    pub from_time: Timestamp,
    /// The end of the archived WAL.
    pub to_lsn: Lsn,
    /// The last segment that can be replayed.
    pub last_segment: String,
    /// The segment that is missing behind it, although later WAL is or must have been there.
    pub hole: Option<String>,
    /// The segment behind it, where that was removed because no policy kept it.
    pub expired: Option<String>,
    /// The segment inside which the timeline begins, not archived yet.
    pub awaited: Option<String>,
}

/// The windows of every timeline, by timeline, then position. A window only reaches a timeline through backups taken on
/// it or on its ancestors before they were left.
pub fn windows(backups: &[Backup], inventory: &Inventory) -> Vec<Window> {
    let size = inventory.segment_size();
    let mut windows: Vec<Window> = Vec::new();
    let timelines = inventory.timelines();
    for timeline in timelines.iter().copied().filter(|&timeline| inventory.has_history(timeline)) {
        let history = inventory.history(timeline);
        let mut usable: Vec<&Backup> =
            backups.iter().filter(|backup| history.passes_through(backup.end_timeline(), backup.stop_lsn)).collect();
        usable.sort_by_key(|backup| backup.stop_lsn);
        for backup in usable {
            let mut reach = inventory.reach(&history, segment_of(backup.start_lsn, size));
            let mut to_lsn = reach.end_lsn(size);
            if backup.kept_wal.contains(&reach.missing.to_string()) {
                // The backup brings its last segment itself; what is archived behind it goes on from there.
                let kept = reach.end;
                reach = inventory.reach(&history, kept + 1);
                to_lsn = if reach.end == kept + 1 { backup.stop_lsn } else { reach.end_lsn(size) };
            }
            // A backup whose own WAL is not all there reaches nothing.
            let Some(last) = reach.end.checked_sub(1).filter(|_| to_lsn >= backup.stop_lsn) else { continue };
            let same = |window: &Window| window.timeline == timeline && window.to_lsn == to_lsn;
            if windows.iter().any(same) {
                continue;
            }
            windows.push(Window {
                timeline,
                first_backup: backup.id.to_string(),
                from_lsn: backup.stop_lsn,
                from_time: backup.stop_time,
                to_lsn,
                last_segment: history.segment_name(last, size).to_string(),
                hole: (reach.beyond == Beyond::Wal).then(|| reach.missing.to_string()),
                expired: (reach.beyond == Beyond::Expired).then(|| reach.missing.to_string()),
                awaited: matches!(reach.beyond, Beyond::Fork(_)).then(|| reach.missing.to_string()),
            });
        }
    }
    windows
}
