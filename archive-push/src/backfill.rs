//! What a promotion leaves behind: segments of the old timelines that the lost primary had not archived.
//!
//! A standby with `archive_mode = on` marks the segments it receives as done without archiving them
//! (`XLogWalRcvClose`, src/backend/replication/walreceiver.c), so after its promotion nobody else would. They are
//! pushed before the history of the new timeline is: an archive that knows the new timeline has its whole past.
//!
//! It is a race: the first checkpoint after the promotion recycles those segments, renaming them to names that are
//! still to come (`RemoveOldXlogFiles`, src/backend/access/transam/xlog.c). Their contents stay until the new name's
//! turn comes, so all files are opened at once, and told by what they hold where their names say otherwise.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::repository::layout::WalObject;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_of};
use walkeep_common::wal_archive::{LeftTimelines, WalArchive};

use crate::source::{Source, read_header};

/// How often `pg_wal` is gone through while files are being renamed in it.
const SCANS: u32 = 5;

/// Pushes, oldest first, what the archive lacks of the ancestors of `history` and is still in `pg_wal`: their own
/// histories, and their complete segments up to the points where they were left.
///
/// # Errors
/// Those of pushing. What was pushed before stays, so that the next call goes on from there.
pub(crate) async fn backfill(
    archive: &WalArchive,
    pg_wal: &Path,
    history: &TimelineHistory,
    size: SegmentSize,
    level: i32,
) -> Result<()> {
    for ancestor in history.ancestors() {
        push_history(archive, pg_wal, ancestor.timeline, level).await?;
    }
    let mut archived: BTreeMap<String, BTreeSet<SegmentName>> = BTreeMap::new();
    for (segment, source) in complete_segments(pg_wal, history, size)? {
        let Some(directory) = archive.layout().wal_directory(source.name) else { continue };
        let known = match archived.entry(directory.to_string()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(archived_segments(archive, &directory).await?),
        };
        if !known.contains(&segment) {
            push_segment(archive, &source, level).await?;
        }
    }
    Ok(())
}

/// Pushes a timeline's history unless it is archived; timeline 1 has none.
///
/// # Errors
/// Those of pushing.
pub(crate) async fn push_history(archive: &WalArchive, pg_wal: &Path, timeline: Timeline, level: i32) -> Result<()> {
    let name = WalFileName::History(timeline);
    let path = pg_wal.join(name.to_string());
    if timeline == Timeline(1) || archive.store().head(&archive.layout().wal(name)).await?.is_some() || !path.exists() {
        return Ok(());
    }
    let source = Source::open(&path)?;
    archive.keep(name, &source.encode(level)?, &LeftTimelines::default()).await.map(drop)
}

async fn push_segment(archive: &WalArchive, source: &Source, level: i32) -> Result<()> {
    let encoded = match source.encode(level) {
        Ok(encoded) => encoded,
        // PostgreSQL has begun to use the file again.
        Err(error) if error.kind() == Kind::Invalid => return Ok(()),
        Err(error) => return Err(error),
    };
    tracing::warn!("WAL segment \"{}\" was not archived before the promotion; archiving it now", source.name);
    archive.keep(source.name, &encoded, &LeftTimelines::default()).await.map(drop)
}

/// The segments in `pg_wal` that lie wholly before the point at which their timeline was left, in order, open.
fn complete_segments(
    pg_wal: &Path,
    history: &TimelineHistory,
    size: SegmentSize,
) -> Result<BTreeMap<SegmentName, Source>> {
    let mut segments = BTreeMap::new();
    for _ in 0..SCANS {
        let mut renamed = false;
        for entry in std::fs::read_dir(pg_wal).context("read directory", pg_wal)? {
            let path = entry.context("read directory", pg_wal)?.path();
            let Some(called) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let Ok(file) = File::open(&path) else {
                renamed = true;
                continue;
            };
            let Some(segment) = held_segment(&file, &path, called, size) else { continue };
            let wanted = segment.number(size).is_some_and(|number| history.needs_whole(segment.timeline, number, size));
            if !wanted || segments.contains_key(&segment) {
                continue;
            }
            let source = Source::of_file(file, &path, WalFileName::Segment(segment));
            if let Ok(source) = source.and_then(|source| Ok(source.is_written_to_its_end()?.then_some(source)))
                && let Some(source) = source
            {
                let _ = segments.insert(segment, source);
            }
        }
        if !renamed {
            break;
        }
    }
    Ok(segments)
}

/// The segment a file holds. Its name says so unless it was recycled; the first segment of a timeline carries the old
/// timeline in its first page, so the name comes first.
fn held_segment(file: &File, path: &Path, called: SegmentName, size: SegmentSize) -> Option<SegmentName> {
    let header = read_header(file, path).ok()?;
    match header.check_name(called) {
        Ok(()) => Some(called),
        Err(_) => Some(SegmentName::new(header.timeline, segment_of(header.page_address, size), size)),
    }
}

async fn archived_segments(
    archive: &WalArchive,
    directory: &object_store::path::Path,
) -> Result<BTreeSet<SegmentName>> {
    let level = archive.store().list_folder(directory).await?;
    let objects = level.objects.iter().filter_map(|object| WalObject::parse(object.key.filename()?));
    Ok(objects
        .filter_map(|object| match object {
            WalObject { name: WalFileName::Segment(segment), kept_aside: None } => Some(segment),
            _ => None,
        })
        .collect())
}

/// Reads the history that is about to be pushed.
///
/// # Errors
/// `Invalid` if it is not one.
pub(crate) fn read_history(path: &Path, timeline: Timeline) -> Result<TimelineHistory> {
    let text = std::fs::read_to_string(path).context("read file", path)?;
    TimelineHistory::parse(timeline, &text)
        .map_err(|error| Error::new(Kind::Invalid, format!("will not archive \"{}\"", path.display())).caused_by(error))
}
