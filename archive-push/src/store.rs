//! Storing one file that was read and compressed, with whatever must be in the archive before it.

use std::path::Path;
use std::time::Duration;

use walkeep_common::error::Result;
use walkeep_common::host::HostMemory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::source::Source;
use walkeep_common::wal_archive::{Kept, WalArchive};
use walkeep_common::wal_object::encode::Encoded;

use crate::backfill;

/// What the host remembers having seen a timeline's history in the archive under.
const HISTORY_FACT: &str = "history";
/// How long it relies on that.
const HISTORY_MEMORY: Duration = Duration::from_secs(60 * 60);

/// Stores the file. [`WalArchive::prepare_to_write`] comes first.
///
/// # Errors
/// As [`WalArchive::keep`], and those of reading and storing what comes before it.
pub(crate) async fn store(
    source: &Source,
    path: &Path,
    encoded: &Encoded,
    archive: &WalArchive,
    memory: &HostMemory,
    level: i32,
) -> Result<Kept> {
    complete_the_past(source, path, archive, memory, level).await?;
    archive.keep(source.name, encoded, &source.left_timelines()).await
}

/// Before a new timeline's history comes what the archive lacks of its past; before a segment of a later timeline its
/// history.
async fn complete_the_past(
    source: &Source,
    path: &Path,
    archive: &WalArchive,
    memory: &HostMemory,
    level: i32,
) -> Result<()> {
    match source.name {
        WalFileName::History(timeline) => {
            let Some(size) = source.segment_size else { return Ok(()) };
            let history = backfill::read_history(path, timeline)?;
            backfill::backfill(archive, source.directory(), &history, size, level).await
        }
        WalFileName::Segment(segment) if segment.timeline > Timeline(1) => {
            let subject = format!("{} {}", archive.store().place(), archive.layout().folder());
            let fact = format!("{HISTORY_FACT}-{}", segment.timeline);
            if memory.age(&fact, &subject).is_some_and(|age| age < HISTORY_MEMORY) {
                return Ok(());
            }
            backfill::push_history(archive, source.directory(), segment.timeline, level).await?;
            memory.note(&fact, &subject, "");
            Ok(())
        }
        _ => Ok(()),
    }
}
