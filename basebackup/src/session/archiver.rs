//! How the server's archiver is doing, and how far the server has come.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use tokio_postgres::Row;
use walkeep_common::error::{IoContext as _, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::postgres::postmaster::PostmasterPid;

use super::Session;
use super::server::{Server, UnexpectedAnswer, lsn, timestamp, unexpected};

/// `postmaster.pid` and `pg_postmaster_start_time()` are noted at different moments of a server's start.
const START_TAKES: SignedDuration = SignedDuration::from_secs(10);

/// The archiver as it was when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archiver {
    /// When that was, by the server's clock.
    pub now: Timestamp,
    /// Up to where WAL is written; on a standby: received or replayed, whichever is more.
    pub position: Lsn,
    /// Files that wait to be archived; none where neither the role nor the operating system's user may look.
    pub queue: Option<Queue>,
    /// The last file that was archived. Of a server that does not archive this says nothing.
    pub last_archived: Option<Attempt>,
    /// The last failure, however long ago. An `archive_command` that ends with more than 125 is not counted by PostgreSQL.
    pub last_failed: Option<Attempt>,
    /// Files archived since the statistics were reset.
    pub archived_count: u64,
    /// Failures since the statistics were reset.
    pub failed_count: u64,
}

/// One run of `archive_command`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The file.
    pub file: String,
    /// When it ended.
    pub time: Timestamp,
}

/// The files in `archive_status` that end in `.ready`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    /// How many there are.
    pub files: u64,
    /// Since when the one waits that waits longest; none if nothing does.
    pub oldest: Option<Timestamp>,
}

/// Space of the file system of `pg_wal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalSpace {
    /// Bytes that PostgreSQL can still write.
    pub free_bytes: u64,
    /// Bytes in all.
    pub size_bytes: u64,
}

impl Archiver {
    /// That the latest attempt has failed.
    pub fn failure(&self) -> Option<&Attempt> {
        let archived = self.last_archived.as_ref().map(|archived| archived.time);
        self.last_failed.as_ref().filter(|failed| archived.is_none_or(|archived| failed.time > archived))
    }
}

impl Session {
    /// Reads the archiver's state.
    ///
    /// # Errors
    /// `Unavailable` if the connection is lost, `Refused` without the right to look.
    pub async fn archiver(&self, server: &Server) -> Result<Archiver> {
        let row = self.query_one("read the archiver's statistics", STATISTICS_SQL, &[]).await?;
        let mut archiver = archiver(&row).map_err(|error| unexpected(&error))?;
        archiver.queue = if row.try_get("may_list").unwrap_or(false) {
            let row = self.query_one("look at what waits to be archived", QUEUE_SQL, &[]).await?;
            Some(queue(&row).map_err(|error| unexpected(&error))?)
        } else {
            local_data_directory(server).and_then(|directory| Queue::read(directory).ok())
        };
        Ok(archiver)
    }
}

const STATISTICS_SQL: &str = "
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 AS now,
        CASE WHEN pg_is_in_recovery()
            THEN coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0')
            ELSE pg_current_wal_lsn() END::text AS position,
        last_archived_wal, (extract(epoch FROM last_archived_time) * 1000000)::int8 AS last_archived_time,
        last_failed_wal, (extract(epoch FROM last_failed_time) * 1000000)::int8 AS last_failed_time,
        archived_count, failed_count,
        has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE') AS may_list
    FROM pg_stat_archiver";

/// The time of a `.ready` file is that of its creation: PostgreSQL never writes to it again.
const QUEUE_SQL: &str = "
    SELECT count(*) AS files, (extract(epoch FROM min(modification)) * 1000000)::int8 AS oldest
    FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";

fn archiver(row: &Row) -> Result<Archiver, UnexpectedAnswer> {
    let attempt = |file: &str, time: &str| -> Result<Option<Attempt>, UnexpectedAnswer> {
        let file: Option<String> = row.try_get(file)?;
        let Some(file) = file else { return Ok(None) };
        Ok(Some(Attempt { file, time: timestamp(row, time)? }))
    };
    Ok(Archiver {
        now: timestamp(row, "now")?,
        position: lsn(row, "position")?,
        queue: None,
        last_archived: attempt("last_archived_wal", "last_archived_time")?,
        last_failed: attempt("last_failed_wal", "last_failed_time")?,
        archived_count: row.try_get::<_, i64>("archived_count")?.unsigned_abs(),
        failed_count: row.try_get::<_, i64>("failed_count")?.unsigned_abs(),
    })
}

fn queue(row: &Row) -> Result<Queue, UnexpectedAnswer> {
    let files = row.try_get::<_, i64>("files")?.unsigned_abs();
    Ok(Queue { files, oldest: if files == 0 { None } else { Some(timestamp(row, "oldest")?) } })
}

impl Queue {
    /// Reads the queue out of a data directory on this host.
    ///
    /// # Errors
    /// `Refused` if it may not be read.
    pub fn read(data_directory: &Path) -> Result<Self> {
        let directory = data_directory.join("pg_wal/archive_status");
        let mut queue = Self::default();
        for entry in fs::read_dir(&directory).context("read directory", &directory)? {
            let entry = entry.context("read directory", &directory)?;
            if entry.path().extension().is_none_or(|extension| extension != "ready") {
                continue;
            }
            // One that is gone has been archived meanwhile.
            let Ok(modified) = entry.metadata().and_then(|metadata| metadata.modified()) else { continue };
            queue.files += 1;
            let modified = Timestamp::try_from(modified).ok();
            queue.oldest = [queue.oldest, modified].into_iter().flatten().min();
        }
        Ok(queue)
    }
}

/// The server's data directory, if the server is one on this host: a primary and its standby may have equal paths.
pub fn local_data_directory(server: &Server) -> Option<&Path> {
    let directory = server.settings.data_directory.as_deref()?;
    let started = Timestamp::from_second(PostmasterPid::read(directory)?.start_time).ok()?;
    (server.started.duration_since(started).abs() <= START_TAKES).then_some(directory)
}

/// The space of the file system `pg_wal` is on.
///
/// # Errors
/// `Missing` or `Refused`.
pub fn wal_space(data_directory: &Path) -> Result<WalSpace> {
    let directory: PathBuf = data_directory.join("pg_wal");
    let stat = rustix::fs::statvfs(&directory).map_err(std::io::Error::from).context("look at", &directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(WalSpace { free_bytes: bytes(stat.f_bavail), size_bytes: bytes(stat.f_blocks) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_counts_until_something_was_archived() {
        let attempt = |second| Some(Attempt { file: "x".to_owned(), time: Timestamp::from_second(second).unwrap() });
        let archiver = |last_archived, last_failed| Archiver {
            now: Timestamp::UNIX_EPOCH,
            position: Lsn(0),
            queue: None,
            last_archived,
            last_failed,
            archived_count: 0,
            failed_count: 0,
        };
        for (archived, failed, is_failing) in [
            (None, None, false),
            (None, attempt(1), true),
            (attempt(1), attempt(2), true),
            (attempt(2), attempt(1), false),
            (attempt(1), None, false),
        ] {
            assert_eq!(archiver(archived, failed).failure().is_some(), is_failing);
        }
    }

    #[test]
    fn the_queue_is_what_is_ready() {
        let directory = tempfile::tempdir().unwrap();
        let status = directory.path().join("pg_wal/archive_status");
        assert!(Queue::read(directory.path()).is_err());
        fs::create_dir_all(&status).unwrap();
        assert_eq!(Queue::read(directory.path()).unwrap(), Queue::default());
        for name in
            ["000000010000000000000001.ready", "000000010000000000000002.ready", "000000010000000000000003.done"]
        {
            fs::write(status.join(name), "").unwrap();
        }
        let queue = Queue::read(directory.path()).unwrap();
        assert_eq!(queue.files, 2);
        assert!(queue.oldest.is_some_and(|oldest| Timestamp::now().duration_since(oldest).as_secs() < 60));
        assert!(wal_space(directory.path()).unwrap().size_bytes > 0);
    }
}
