//! The WAL a backup needs: seen to be in the repository before the backup may call itself one.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use walkeep_common::cli::{Reporter, Severity, host_name};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::store::Created;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, segment_before, segment_of};
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::encode::{Description, encode};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the operator is told what is being waited for.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// The WAL between a backup's start and its end.
#[derive(Debug)]
pub(super) struct NeededWal {
    segments: Vec<SegmentName>,
}

impl NeededWal {
    /// From the segment that holds `start` to the one that holds the byte before `stop`, as recovery along `history`
    /// reads them. Names are computed here, for `pg_walfile_name` means another segment on a boundary from 17 on.
    pub(super) fn new(history: &TimelineHistory, start: Lsn, stop: Lsn, size: SegmentSize) -> Self {
        let numbers = segment_of(start, size)..=segment_before(stop, size).max(segment_of(start, size));
        Self { segments: numbers.map(|number| history.segment_name(number, size)).collect() }
    }

    pub(super) fn first(&self) -> String {
        self.segments.first().map(ToString::to_string).unwrap_or_default()
    }

    pub(super) fn last(&self) -> String {
        self.segments.last().map(ToString::to_string).unwrap_or_default()
    }

    /// The last segment, which on a standby nobody may finish for a long time.
    pub(super) fn split_last(mut self) -> (Self, Option<SegmentName>) {
        let last = self.segments.pop();
        (self, last)
    }

    /// Waits until the server has archived every segment, and sees each one's header and length.
    ///
    /// # Errors
    /// `Unavailable` when the time is up; whatever looking fails with.
    pub(super) async fn wait_until_archived(
        &self,
        archive: &WalArchive,
        limit: Duration,
        reporter: Reporter,
    ) -> Result<()> {
        let begun = Instant::now();
        let mut told = begun;
        for &segment in &self.segments {
            let name = WalFileName::Segment(segment);
            let mut pause = FIRST_PAUSE;
            while archive.header(name).await?.is_none() {
                if begun.elapsed() >= limit {
                    return Err(not_archived(name, limit));
                }
                if told.elapsed() >= REPORT_EVERY {
                    told = Instant::now();
                    reporter.print(Severity::Info, &format!("waiting for \"{name}\" to be archived"), None);
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        Ok(())
    }
}

fn not_archived(name: WalFileName, limit: Duration) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("WAL segment \"{name}\", which the backup needs, was not archived within {} s", limit.as_secs()),
    )
    .hint("Look for failures of archive_command in the server's log and in pg_stat_archiver; it must archive to the same repository.")
}

/// Keeps the unfinished last segment of a standby's backup with the backup itself.
///
/// # Errors
/// `Invalid` if the segment is not in `pg_wal`; whatever storing it fails with.
pub(super) async fn keep_with_backup(
    archive: &WalArchive,
    id: &BackupId,
    data_directory: &Path,
    segment: SegmentName,
    size: SegmentSize,
) -> Result<()> {
    let path = data_directory.join("pg_wal").join(segment.to_string());
    let file = File::open(&path).context("open file", &path).map_err(|error| error.with_kind(Kind::Invalid))?;
    let name = WalFileName::Segment(segment);
    let description = Description {
        name: name.to_string(),
        system_identifier: archive.layout().system_identifier(),
        timeline: segment.timeline,
        start_lsn: segment.start(size),
        pg_major: None,
        segment_size: Some(size),
        modified: Timestamp::now(),
        archived: Timestamp::now(),
        host: host_name(),
    };
    const LEVEL: i32 = 3;
    let encoded = encode(file, size.bytes(), LEVEL, description)?;
    let payload = object_store::PutPayload::from_iter([encoded.header_bytes, encoded.frames]);
    match archive.store().create(&archive.layout().backup_wal(id, name), payload).await? {
        // The folder is ours: what exists is what an earlier attempt of this put stored.
        Created::New | Created::Exists => Ok(()),
    }
}
