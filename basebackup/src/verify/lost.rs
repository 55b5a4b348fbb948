//! What a missing or damaged segment takes with it.

use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::segment::{SegmentName, segment_of, segment_start};
use walkeep_common::wal_archive::inventory::Inventory;

use super::finding::{Lost, Span};

/// The backups that do not become consistent without this segment, and the moments that recovery does not reach: from
/// the segment on, up to the next backup that begins behind it. The times of the spans' beginnings are left open.
pub(super) fn with_segment(segment: SegmentName, backups: &[Backup], inventory: &Inventory) -> Lost {
    let size = inventory.segment_size();
    let Some(number) = segment.number(size) else { return Lost::default() };
    let is_needed = |backup: &&Backup| {
        let history = inventory.history(backup.end_timeline());
        needed(backup, &history).any(|needed| needed == segment)
    };
    let backups_lost = backups.iter().filter(is_needed).map(|backup| backup.id.clone()).collect();
    let recoverable = inventory.timelines().into_iter().filter(|&timeline| inventory.has_history(timeline));
    let spans = recoverable.filter_map(|timeline| {
        let history = inventory.history(timeline);
        if history.segment_name(number, size) != segment {
            return None;
        }
        let on_it = |backup: &&Backup| history.passes_through(backup.end_timeline(), backup.stop_lsn);
        let first = |backup: &Backup| segment_of(backup.start_lsn, size);
        if !backups.iter().filter(on_it).any(|backup| first(backup) <= number) {
            return None;
        }
        let next = backups.iter().filter(on_it).filter(|backup| first(backup) > number);
        let next = next.min_by_key(|backup| backup.stop_lsn);
        Some(Span {
            timeline,
            from_lsn: segment_start(number, size),
            from_time: None,
            to_lsn: next.map(|backup| backup.stop_lsn),
            to_time: next.map(|backup| backup.stop_time),
        })
    });
    Lost { backups: backups_lost, spans: spans.collect() }
}

/// The archived segments that a backup needs to become consistent. One that it brings itself is not among them.
pub(crate) fn needed<'b>(backup: &'b Backup, history: &'b TimelineHistory) -> impl Iterator<Item = SegmentName> + 'b {
    let segments = history.segments(backup.start_lsn, backup.stop_lsn, backup.segment_size);
    segments.filter(|segment| !backup.kept_wal.contains(&segment.to_string()))
}
