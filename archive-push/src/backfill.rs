//! What a promotion leaves behind: segments of the old timelines that the lost primary had not archived.
//!
//! A standby with `archive_mode = on` marks the segments it receives as done without archiving them
//! (`XLogWalRcvClose`, src/backend/replication/walreceiver.c), so after its promotion nobody else would. They are
//! pushed before the history of the new timeline is: an archive that knows the new timeline has its whole past.
//!
//! It is a race: the first checkpoint after the promotion recycles those segments, renaming them to names that are
//! still to come (`RemoveOldXlogFiles`, src/backend/access/transam/xlog.c). Their contents stay until the new name's
//! turn comes, so all files are opened at once, and told by what they hold where their names say otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::repository::layout::WalObject;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_of};
use walkeep_common::wal_archive::source::{Source, read_header};
use walkeep_common::wal_archive::{LeftTimelines, WalArchive};

/// How often `pg_wal` is gone through while files are being renamed in it.
const SCANS: u32 = 5;
/// Files held open at a time, unless the process may have no more than a few times as many.
const MOST_OPEN: usize = 500;

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
    let mut missing = BTreeSet::new();
    visit_held_segments(pg_wal, history, size, |segment, _, _| {
        let _ = missing.insert(segment);
        Ok(())
    })?;
    let directory = |&segment: &SegmentName| archive.layout().wal_directory(WalFileName::Segment(segment));
    for directory in missing.iter().filter_map(directory).collect::<BTreeSet<_>>() {
        for segment in archived_segments(archive, &directory).await? {
            let _ = missing.remove(&segment);
        }
    }
    while !missing.is_empty() {
        let sources = open_segments(pg_wal, history, size, &missing)?;
        if sources.is_empty() {
            break;
        }
        for (segment, source) in sources {
            let _ = missing.remove(&segment);
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
    if timeline == Timeline(1) || archive.store().head(&archive.layout().wal(name)).await?.is_some() {
        return Ok(());
    }
    if !path.exists() {
        tracing::warn!("timeline history \"{name}\" is neither in the archive nor in pg_wal; recovery will need it");
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
    tracing::info!("WAL segment \"{}\" was not archived before the promotion; archiving it now", source.name);
    archive.keep(source.name, &encoded, &LeftTimelines::default()).await.map(drop)
}

/// The missing segments, in order, open, so that recycling cannot take them away any more; as many as one may hold open.
fn open_segments(
    pg_wal: &Path,
    history: &TimelineHistory,
    size: SegmentSize,
    missing: &BTreeSet<SegmentName>,
) -> Result<BTreeMap<SegmentName, Source>> {
    let mut sources = BTreeMap::new();
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    let most = MOST_OPEN.min(limit.unwrap_or(MOST_OPEN) / 4).max(1);
    visit_held_segments(pg_wal, history, size, |segment, path, file| {
        if missing.contains(&segment) && sources.len() < most {
            let source = Source::of_file(file, path, WalFileName::Segment(segment))?;
            if source.is_written_to_its_end()? {
                let _ = sources.insert(segment, source);
            }
        }
        Ok(())
    })?;
    Ok(sources)
}

/// Visits the files in `pg_wal` that hold a segment which lies wholly before the point at which its timeline was left;
/// all of them again where files were renamed meanwhile.
fn visit_held_segments(
    pg_wal: &Path,
    history: &TimelineHistory,
    size: SegmentSize,
    mut visit: impl FnMut(SegmentName, &Path, File) -> Result<()>,
) -> Result<()> {
    for _ in 0..SCANS {
        let mut renamed = false;
        for entry in std::fs::read_dir(pg_wal).context("read directory", pg_wal)? {
            let path = entry.context("read directory", pg_wal)?.path();
            let Some(called) = path.file_name().and_then(|name| name.to_str()?.parse().ok()) else { continue };
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    renamed = true;
                    continue;
                }
                Err(error) => return Err(Error::io("open WAL file", &path, error)),
            };
            let Some(segment) = held_segment(&file, &path, called, size)? else { continue };
            if segment.number(size).is_some_and(|number| history.needs_whole(segment.timeline, number, size)) {
                visit(segment, &path, file)?;
            }
        }
        if !renamed {
            return Ok(());
        }
    }
    Err(Error::new(Kind::Unavailable, format!("\"{}\" changes too fast to be read", pg_wal.display())))
}

/// The segment a file holds. Its name says so unless it was recycled; the first segment of a timeline carries the old
/// timeline in its first page, so the name comes first.
fn held_segment(file: &File, path: &Path, called: SegmentName, size: SegmentSize) -> Result<Option<SegmentName>> {
    let header = match read_header(file, path) {
        Ok(header) => header,
        // Prepared for use and not yet used.
        Err(error) if error.kind() == Kind::Invalid => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(match header.check_name(called) {
        Ok(()) => called,
        Err(_) => SegmentName::new(header.timeline, segment_of(header.page_address, size), size),
    }))
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
    let contents = std::fs::read(path).context("read file", path)?;
    TimelineHistory::parse(timeline, contents)
        .map_err(|error| Error::new(Kind::Invalid, format!("will not archive \"{}\"", path.display())).caused_by(error))
}
