//! The timeline histories without which a backup cannot be recovered along its timeline.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::source::Source;
use walkeep_common::wal_archive::{Kept, LeftTimelines, WalArchive};

use super::WAL_LEVEL;

/// The history of the timeline a backup ended on: from `pg_wal`, else from the archive.
///
/// # Errors
/// `Invalid` if it is in neither; `Damaged`; `Unavailable`.
pub(super) async fn history(
    archive: &WalArchive,
    data_directory: &Path,
    timeline: Timeline,
) -> Result<TimelineHistory> {
    if timeline == Timeline(1) {
        return Ok(TimelineHistory::without_ancestors(timeline));
    }
    let local = read(data_directory, timeline)?;
    let local = local.and_then(|contents| TimelineHistory::parse(timeline, contents).ok());
    match local {
        Some(history) => Ok(history),
        None => archive.history(timeline).await?.ok_or_else(|| nowhere(timeline)),
    }
}

/// Sees that the histories of a backup's last timeline and of its ancestors are archived, and archives from `pg_wal`
/// what is not: a standby has them from its primary, which may not have archived them so far, or never will.
///
/// # Errors
/// `Invalid` if one from the backup's first timeline on is in neither, for recovery asks for those; as pushing, so
/// `Conflict` if the archive has another history of a timeline with this number.
pub(super) async fn see_archived(
    archive: &WalArchive,
    (data_directory, control): (&Path, &ControlFile),
    history: &TimelineHistory,
    first: Timeline,
    reporter: Reporter,
) -> Result<()> {
    let ancestors = history.ancestors().iter().map(|ancestor| ancestor.timeline);
    for timeline in ancestors.chain([history.timeline()]).filter(|&timeline| timeline > Timeline(1)) {
        let name = WalFileName::History(timeline);
        if path(data_directory, timeline).exists() {
            // Another history under the same number would be a conflict: found now, not in a recovery.
            let source = Source::open_of(&path(data_directory, timeline), control)?;
            match archive.keep(name, &source.encode(WAL_LEVEL)?, &LeftTimelines::default()).await {
                Ok(Kept::New) => {
                    let message = format!("timeline history \"{name}\" was not archived so far; it is now");
                    reporter.print(Severity::Info, &message, None);
                }
                // Recovery of this backup does not ask for it.
                Err(error) if timeline < first => reporter.error(Severity::Warning, &error),
                kept => drop(kept?),
            }
        } else if archive.store().head(&archive.layout().wal(name)).await?.is_none() && timeline >= first {
            return Err(nowhere(timeline));
        }
    }
    Ok(())
}

/// A history in `pg_wal`; nothing if it is not there.
fn read(data_directory: &Path, timeline: Timeline) -> Result<Option<Vec<u8>>> {
    let path = path(data_directory, timeline);
    match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        contents => contents.context("read file", &path).map(Some),
    }
}

fn path(data_directory: &Path, timeline: Timeline) -> PathBuf {
    data_directory.join("pg_wal").join(WalFileName::History(timeline).to_string())
}

fn nowhere(timeline: Timeline) -> Error {
    let name = WalFileName::History(timeline);
    Error::new(Kind::Invalid, format!("\"{name}\" is neither in pg_wal nor in the archive"))
        .hint("Without it nothing can be recovered to this timeline. Copy it from another server into pg_wal.")
}
