//! The WAL a backup needs: seen to be in the repository before the backup may call itself one.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::host::host_name;
use walkeep_common::lsn::Lsn;
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize};
use walkeep_common::wal_archive::source::Source;
use walkeep_common::wal_archive::{Kept, WalArchive};
use walkeep_common::wal_object::encode::{Description, encode};

use super::WAL_LEVEL;
use crate::meter::Requests;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the operator is told what is being waited for.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// How long a standby leaves its backup's segments to whoever archives.
const OTHERS_FIRST: Duration = Duration::from_secs(10);

/// How segments are waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait<'w> {
    /// At most so long.
    pub(super) limit: Duration,
    /// Who is told what is waited for.
    pub(super) reporter: Reporter,
    /// Who asks for it.
    pub(super) requests: &'w Requests,
}

/// The WAL that a standby has itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnWal<'o> {
    /// Its `pg_wal`.
    pub(super) directory: &'o Path,
    /// Its control file.
    pub(super) control: &'o ControlFile,
}

/// The WAL between a backup's start and its end.
#[derive(Debug)]
pub(super) struct NeededWal {
    segments: Vec<SegmentName>,
}

impl NeededWal {
    /// What recovery along `history` reads from `start` to `stop`.
    pub(super) fn new(history: &TimelineHistory, start: Lsn, stop: Lsn, size: SegmentSize) -> Self {
        Self { segments: history.segments(start, stop, size).collect() }
    }

    pub(super) fn first(&self) -> String {
        self.segments.first().map(ToString::to_string).unwrap_or_default()
    }

    pub(super) fn last(&self) -> String {
        self.segments.last().map(ToString::to_string).unwrap_or_default()
    }

    /// Waits until the server has archived every segment, and sees each one's header and length.
    ///
    /// # Errors
    /// `Unavailable` when the time is up; whatever looking fails with.
    pub(super) async fn wait_until_archived(&self, archive: &WalArchive, how: Wait<'_>) -> Result<()> {
        wait(archive, &self.segments, None, how).await
    }

    /// As [`Self::wait_until_archived`] for a standby's backup: nobody may finish its last segment for a long time, so
    /// unless it is archived already, it is kept with the backup. Returns the names of what is kept.
    ///
    /// # Errors
    /// As [`Self::wait_until_archived`].
    pub(super) async fn wait_or_keep_last(
        &self,
        archive: &WalArchive,
        id: &BackupId,
        own: OwnWal<'_>,
        how: Wait<'_>,
    ) -> Result<Vec<String>> {
        let Some((last, others)) = self.segments.split_last() else { return Ok(Vec::new()) };
        let is_archived = archive.header(WalFileName::Segment(*last)).await?.is_some();
        if !is_archived && keep_with_backup(archive, id, own.directory, *last).await? {
            wait(archive, others, Some(own), how).await?;
            return Ok(vec![last.to_string()]);
        }
        // The standby has recycled it, or never had it but from the archive: then it is full, and comes or is there. What
        // has its name here meanwhile may be half received, and must not be archived as the whole.
        let begun = Instant::now();
        wait(archive, others, Some(own), how).await?;
        let rest = Wait { limit: how.limit.saturating_sub(begun.elapsed()), ..how };
        wait(archive, std::slice::from_ref(last), None, rest).await?;
        Ok(Vec::new())
    }
}

/// Waits for segments in their order. What a standby has in its `pg_wal` and nobody archives for a while is archived from
/// there: the primary may be gone, and what was received before `archive_mode = always` was set counts as archived here
/// (`XLogWalRcvClose`, src/backend/replication/walreceiver.c).
async fn wait(archive: &WalArchive, segments: &[SegmentName], own: Option<OwnWal<'_>>, how: Wait<'_>) -> Result<()> {
    let begun = Instant::now();
    let mut told = Some(begun);
    for (number, &segment) in segments.iter().enumerate() {
        let name = WalFileName::Segment(segment);
        let mut pause = FIRST_PAUSE;
        let mut untried = own;
        while archive.header(name).await?.is_none() {
            if let Some(own) = untried.take_if(|_| begun.elapsed() >= OTHERS_FIRST.min(how.limit / 2)) {
                match store_own(archive, own, name).await {
                    Ok(true) => {
                        let text = format!("WAL segment \"{name}\" was not archived so far; it is now");
                        how.reporter.print(Severity::Info, &text, None);
                    }
                    Ok(false) => {}
                    // It may still come from elsewhere.
                    Err(error) => how.reporter.error(Severity::Warning, &error),
                }
                continue;
            }
            if begun.elapsed() >= how.limit {
                return Err(not_archived(name, how.limit));
            }
            if told.is_none_or(|told| told.elapsed() >= REPORT_EVERY) {
                told = Some(Instant::now());
                let missing = segments.len() - number;
                let text = format!("waiting for \"{name}\" to be archived, {number} segments are there, {missing} not");
                how.reporter.print(Severity::Info, &text, None);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = how.requests.next() => told = None,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
    Ok(())
}

fn not_archived(name: WalFileName, limit: Duration) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("WAL segment \"{name}\", which the backup needs, was not archived within {} s", limit.as_secs()),
    )
    .hint("Look for failures of archive_command in the server's log and in pg_stat_archiver; it must archive to the same repository.")
}

/// Archives a segment of `pg_wal` that was replayed to its end, as `archive-push` would; false if it is not there any more.
async fn store_own(archive: &WalArchive, own: OwnWal<'_>, name: WalFileName) -> Result<bool> {
    let path = own.directory.join(name.to_string());
    if !path.exists() {
        return Ok(false);
    }
    let source = Source::open_of(&path, own.control)?;
    if !source.is_written_to_its_end()? {
        return Ok(false);
    }
    let kept = archive.keep(name, &source.encode(WAL_LEVEL)?, &source.left_timelines()).await?;
    Ok(kept == Kept::New)
}

/// The header of a file that holds this segment; nothing if it holds another one, as one does that waits to be used again.
fn header_of(file: &File, path: &Path, segment: SegmentName) -> Result<Option<SegmentHeader>> {
    let mut first = vec![0; LONG_HEADER_BYTES];
    file.read_exact_at(&mut first, 0).context("read file", path)?;
    Ok(SegmentHeader::parse(&first).ok().filter(|header| header.check_name(segment).is_ok()))
}

/// Stores a segment of `pg_wal` with the backup, if it is there. Its tail may still be written or be left over from an
/// older segment; replay of the backup ends before.
async fn keep_with_backup(archive: &WalArchive, id: &BackupId, pg_wal: &Path, segment: SegmentName) -> Result<bool> {
    let path = pg_wal.join(segment.to_string());
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file.context("open file", &path)?,
    };
    let Some(header) = header_of(&file, &path, segment)? else { return Ok(false) };
    let name = WalFileName::Segment(segment);
    let now = Timestamp::now();
    let description = Description {
        name: name.to_string(),
        system_identifier: header.system_identifier,
        timeline: segment.timeline,
        start_lsn: segment.start(header.segment_size),
        pg_major: header.pg_major,
        segment_size: Some(header.segment_size),
        modified: now,
        archived: now,
        host: host_name(),
    };
    let encoded = encode(&file, header.segment_size.bytes(), WAL_LEVEL, description)?;
    // Recycled while it was read, it has another name, and soon other contents.
    let inode = |file: &File| file.metadata().map(|metadata| metadata.ino()).ok();
    let is_still_there = File::open(&path).is_ok_and(|now| inode(&now) == inode(&file));
    if !is_still_there || header_of(&file, &path, segment)? != Some(header) {
        return Ok(false);
    }
    let payload = object_store::PutPayload::from_iter([encoded.header_bytes, encoded.frames]);
    // The folder is ours: what exists there is what an earlier attempt of this put stored.
    archive.store().create(&archive.layout().backup_wal(id, name), payload).await.map(|_| true)
}
