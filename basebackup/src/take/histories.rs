//! The timeline histories without which a backup cannot be recovered along its timeline.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use jiff::Timestamp;
use walkeep_common::cli::{Reporter, Severity, host_name};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::{Kept, LeftTimelines, WalArchive};
use walkeep_common::wal_object::encode::{Description, encode};

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
    let local = read(data_directory, timeline)?.map(|(text, _)| text);
    let local = local.and_then(|text| TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text)).ok());
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
    data_directory: &Path,
    history: &TimelineHistory,
    first: Timeline,
    reporter: Reporter,
) -> Result<()> {
    let ancestors = history.ancestors().iter().map(|ancestor| ancestor.timeline);
    for timeline in ancestors.chain([history.timeline()]).filter(|&timeline| timeline > Timeline(1)) {
        let name = WalFileName::History(timeline);
        if let Some((text, modified)) = read(data_directory, timeline)? {
            // Another history under the same number would be a conflict: found now, not in a recovery.
            if keep(archive, timeline, &text, modified).await? == Kept::New {
                let message = format!("timeline history \"{name}\" was not archived so far; it is now");
                reporter.print(Severity::Info, &message, None);
            }
        } else if archive.store().head(&archive.layout().wal(name)).await?.is_none() && timeline >= first {
            return Err(nowhere(timeline));
        }
    }
    Ok(())
}

async fn keep(archive: &WalArchive, timeline: Timeline, text: &[u8], modified: Timestamp) -> Result<Kept> {
    const LEVEL: i32 = 3;
    let name = WalFileName::History(timeline);
    let parsed = TimelineHistory::parse(timeline, &String::from_utf8_lossy(text));
    let _ =
        parsed.map_err(|error| Error::new(Kind::Invalid, format!("will not archive \"{name}\"")).caused_by(error))?;
    let description = Description {
        name: name.to_string(),
        system_identifier: archive.layout().system_identifier(),
        timeline,
        start_lsn: None,
        pg_major: None,
        segment_size: None,
        modified,
        archived: Timestamp::now(),
        host: host_name(),
    };
    let encoded = encode(text, text.len() as u64, LEVEL, description)?;
    archive.keep(name, &encoded, &LeftTimelines::default()).await
}

/// The bytes of a history in `pg_wal`, and when they were written; nothing if it is not there.
fn read(data_directory: &Path, timeline: Timeline) -> Result<Option<(Vec<u8>, Timestamp)>> {
    let path = data_directory.join("pg_wal").join(WalFileName::History(timeline).to_string());
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes.context("read file", &path)?,
    };
    let modified = fs::metadata(&path).and_then(|metadata| metadata.modified()).context("examine", &path)?;
    Ok(Some((bytes, Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH))))
}

fn nowhere(timeline: Timeline) -> Error {
    let name = WalFileName::History(timeline);
    Error::new(Kind::Invalid, format!("\"{name}\" is neither in pg_wal nor in the archive"))
        .hint("Without it nothing can be recovered to this timeline. Copy it from another server into pg_wal.")
}
