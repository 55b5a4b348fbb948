//! Backup mode: from `pg_backup_start` to `pg_backup_stop` in one session.
//!
//! PostgreSQL ends the mode when the session ends, so a [`Backup`] that is dropped, or whose process is killed, leaves
//! nothing behind on the server. Only non-exclusive backups are made; several may run at a time as far as PostgreSQL is
//! concerned, but one server's disks are read for one backup at a time ([`Session::lock_for_backup`]).

mod data_directory;
mod keep_alive;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::FromSql;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::postgres::label::BackupLabel;
use walkeep_common::wal::segment::Timeline;

use super::server::{UnexpectedAnswer, lsn, parse, timestamp, unexpected};
use super::{ServerVersion, Session, failure};
use keep_alive::KeepAlive;

/// The key of the advisory lock: "WALKEEP" in ASCII, 24560118909977936 in `SELECT pg_advisory_lock(…)`.
pub const LOCK_KEY: i64 = i64::from_be_bytes(*b"\0WALKEEP");

/// The longest label that PostgreSQL takes, in bytes (`MAXPGPATH`).
const LONGEST_LABEL: usize = 1024;

/// How often the session is used while files are copied: more often than firewalls forget a connection, and often enough
/// to notice soon that a standby was promoted.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// How the checkpoint at the start is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpoint {
    /// At once, at full speed.
    Fast,
    /// Spread over `checkpoint_timeout × checkpoint_completion_target`.
    Spread,
}

/// A backup that has begun. Dropping it closes the session, which ends backup mode.
#[derive(Debug)]
pub struct Backup {
    session: Session,
    keep_alive: KeepAlive,
    started: Started,
    role: Role,
}

/// What is known at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Where replay of the backup begins.
    pub lsn: Lsn,
    /// The server's timeline. That of the backup is in the label, and comes with the end.
    pub timeline: Timeline,
    /// Whether the server is a standby.
    pub from_standby: bool,
    /// The server's clock right after the start.
    pub time: Timestamp,
    /// The next transaction id right after the start, with its epoch: every transaction with this id or a later one
    /// ends after the start. (The `xmax` of a snapshot, which standbys have too.)
    pub next_xid: u64,
}

/// What PostgreSQL says at the end. The two files go into the backup as they are, and never into the live cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Where replay must have come for the copy to be consistent.
    pub lsn: Lsn,
    /// The backup's timeline, from the label: WAL is needed from here on.
    pub timeline: Timeline,
    /// The timeline that the end is on. On a standby it may be a later one than at the start.
    pub stop_timeline: Timeline,
    /// `backup_label`, byte for byte.
    pub backup_label: Vec<u8>,
    /// `tablespace_map`, byte for byte; empty when there is to be none.
    pub tablespace_map: Vec<u8>,
    /// The server's clock right after the end: a later transaction is not in the backup.
    pub time: Timestamp,
    /// The next transaction id right after the end, as in [`Started`].
    pub next_xid: u64,
}

/// What a server must stay during a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Role {
    in_recovery: bool,
    server_started: Timestamp,
}

/// A server at one moment.
struct Moment {
    role: Role,
    timeline: Timeline,
    time: Timestamp,
    next_xid: u64,
}

impl Session {
    /// Makes this the only session that takes a backup of the server, until it ends.
    ///
    /// Advisory locks are per database, so holders of the same lock in others count too.
    ///
    /// # Errors
    /// `Unavailable` while another session has it.
    pub async fn lock_for_backup(&self) -> Result<()> {
        const DOING: &str = "take the lock for backups";
        let row = self.query_one(DOING, "SELECT pg_try_advisory_lock($1) AS locked", &[&LOCK_KEY]).await?;
        let locked: bool = column(&row, "locked")?;
        let others = self.query(DOING, LOCK_HOLDERS_SQL, &[&LOCK_KEY]).await?;
        if locked && others.is_empty() {
            return Ok(());
        }
        let holders: Vec<String> = others.iter().map(|row| column(row, "holder")).collect::<Result<_>>()?;
        let holders = if holders.is_empty() { String::new() } else { format!(" ({})", holders.join("; ")) };
        let message = format!("another backup of PostgreSQL at {} is running{holders}", self.target());
        Err(Error::new(Kind::Unavailable, message)
            .hint("Wait for its end, or end its session with pg_terminate_backend."))
    }
}

/// Who else holds a lock with a key of 64 bits: its halves are in `classid` and `objid` (`LockTagType`,
/// src/include/storage/lock.h). Without the right to see other sessions all but the process id is null.
const LOCK_HOLDERS_SQL: &str = "
    SELECT 'process ' || locks.pid || coalesce(', since ' || date_trunc('second', activity.backend_start), '')
        || coalesce(', from ' || host(activity.client_addr), '') AS holder
    FROM pg_locks AS locks LEFT JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
    WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1 AND locks.pid <> pg_backend_pid()
        AND (locks.classid::int8 << 32 | locks.objid::int8) = $1
    ORDER BY locks.pid";

impl Backup {
    /// Enters backup mode. With [`Checkpoint::Spread`] this may take minutes; it ends early only if the connection
    /// does, or if the caller drops it. The label was looked at with [`check_label`].
    ///
    /// # Errors
    /// `Refused` without the right, `Unavailable` if the connection is lost, `Invalid` if the server cannot be backed up
    /// now.
    pub async fn start(session: Session, label: &str, checkpoint: Checkpoint) -> Result<Self> {
        session.notice_a_closed_socket().await?;
        let fast = checkpoint == Checkpoint::Fast;
        let sql = start_sql(session.version());
        let row = session.answer("start a backup", session.client.query_one(sql, &[&label, &fast])).await?;
        let lsn = lsn(&row, "lsn").map_err(|error| unexpected(&error))?;
        let Moment { role, timeline, time, next_xid } = session.moment().await?;
        let started = Started { lsn, timeline, from_standby: role.in_recovery, time, next_xid };
        let keep_alive = KeepAlive::start(&session, role.in_recovery, KEEP_ALIVE);
        Ok(Self { session, keep_alive, started, role })
    }

    /// What is known since the start.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// Resolves when the backup is lost, with the error to fail with: the connection ended, the server does not answer,
    /// or it was promoted.
    pub async fn lost(&self) -> Error {
        self.session.lost().await
    }

    /// Reads `pg_control` below a data directory, which must be the one that the server writes.
    ///
    /// # Errors
    /// `Invalid` if it is not, and whatever reading it gives.
    pub async fn control_file(&self, data_directory: &Path) -> Result<Vec<u8>> {
        self.session.own_control_file(data_directory).await
    }

    /// Leaves backup mode. Returns the session too: it still holds the lock.
    ///
    /// Does not wait for WAL to be archived. A server that waits and is interrupted has ended the backup, and its label
    /// is lost with the answer.
    ///
    /// # Errors
    /// `Unavailable` if the backup was lost, `Invalid` if the standby was promoted or the server says no.
    pub async fn stop(self) -> Result<(Stopped, Session)> {
        let Self { session, keep_alive, started, role } = self;
        keep_alive.stop().await?;
        still(role, session.moment().await?.role)?;
        let row = session.query_one("stop the backup", stop_sql(session.version()), &[]).await?;
        let moment = session.moment().await?;
        still(role, moment.role)?;
        let stopped = stopped(&row, &started, &moment).map_err(|error| unexpected(&error))?;
        Ok((stopped, session))
    }
}

/// Refuses a label that PostgreSQL does not take.
///
/// # Errors
/// `Usage`.
pub fn check_label(label: &str) -> Result<()> {
    if label.len() > LONGEST_LABEL {
        return Err(Error::new(Kind::Usage, format!("backup label is longer than {LONGEST_LABEL} bytes")));
    }
    // It becomes a line of backup_label, which is read line by line.
    if label.contains(char::is_control) {
        return Err(Error::new(Kind::Usage, "backup label holds a line break or another control character"));
    }
    Ok(())
}

fn start_sql(version: ServerVersion) -> &'static str {
    if version.major() >= 15 {
        "SELECT pg_backup_start($1, $2)::text AS lsn"
    } else {
        "SELECT pg_start_backup($1, $2, false)::text AS lsn"
    }
}

/// The texts as bytes: paths in the map are in whatever encoding the file system has, and must come unconverted.
fn stop_sql(version: ServerVersion) -> &'static str {
    macro_rules! select_from {
        ($function:literal) => {
            concat!(
                r"SELECT lsn::text AS lsn, decode(replace(labelfile, E'\\', E'\\\\'), 'escape') AS labelfile,
                    decode(replace(spcmapfile, E'\\', E'\\\\'), 'escape') AS spcmapfile FROM ",
                $function
            )
        };
    }
    if version.major() >= 15 {
        select_from!("pg_backup_stop(wait_for_archive => false)")
    } else {
        select_from!("pg_stop_backup(exclusive => false, wait_for_archive => false)")
    }
}

/// On a standby the end of a backup is its `minRecoveryPoint`, on that one's timeline.
const MOMENT_SQL: &str = "
    SELECT pg_is_in_recovery() AS in_recovery,
        CASE WHEN pg_is_in_recovery() THEN to_hex(min_recovery_end_timeline)
            ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
        (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8 AS server_started,
        (extract(epoch FROM clock_timestamp()) * 1000000)::int8 AS time,
        pg_snapshot_xmax(pg_current_snapshot())::text AS next_xid
    FROM pg_control_recovery()";

impl Session {
    async fn moment(&self) -> Result<Moment> {
        let row = self.query_one("read the server's state", MOMENT_SQL, &[]).await?;
        let read = |row: &Row| {
            Ok(Moment {
                role: Role {
                    in_recovery: row.try_get("in_recovery")?,
                    server_started: timestamp(row, "server_started")?,
                },
                timeline: parse("timeline", row.try_get("timeline")?, |text| {
                    u32::from_str_radix(text, 16).ok().map(Timeline)
                })?,
                time: timestamp(row, "time")?,
                next_xid: parse("next xid", row.try_get("next_xid")?, |text| text.parse().ok())?,
            })
        };
        read(&row).map_err(|error| unexpected(&error))
    }

    /// Makes the server look at the socket while it is busy (14 and later), so that a backup which is cancelled during
    /// a spread checkpoint does not linger until its end. Not every platform can.
    async fn notice_a_closed_socket(&self) -> Result<()> {
        const SQL: &str = "SELECT set_config('client_connection_check_interval', '2s', false)";
        if self.version().major() < 14 {
            return Ok(());
        }
        match self.client.query_one(SQL, &[]).await {
            Err(error) if error.as_db_error().is_some_and(|answer| !failure::ends_connection(answer.code())) => {
                tracing::debug!("the server cannot notice closed sockets: {error}");
                Ok(())
            }
            Err(error) => Err(self.explain("set up the session", error).await),
            Ok(_) => Ok(()),
        }
    }
}

/// Fails if the server is not what it was at the start. PostgreSQL refuses to end a backup of a standby that was
/// promoted, but in its own language.
fn still(role: Role, now: Role) -> Result<()> {
    if role == now {
        return Ok(());
    }
    let message = if now.in_recovery == role.in_recovery { RESTARTED } else { PROMOTED };
    Err(Error::new(Kind::Invalid, message).hint("Run basebackup again."))
}

const PROMOTED: &str = "the standby was promoted during the backup";
const RESTARTED: &str = "the server was restarted during the backup";

fn stopped(row: &Row, started: &Started, moment: &Moment) -> Result<Stopped, UnexpectedAnswer> {
    let backup_label: Vec<u8> = row.try_get("labelfile")?;
    let tablespace_map: Option<Vec<u8>> = row.try_get("spcmapfile")?;
    let text = String::from_utf8_lossy(&backup_label);
    let label =
        parse("backup_label", &text, |text| BackupLabel::parse(text).ok().filter(|label| label.start == started.lsn))?;
    Ok(Stopped {
        lsn: lsn(row, "lsn")?,
        timeline: label.start_timeline,
        stop_timeline: moment.timeline.max(label.start_timeline),
        tablespace_map: tablespace_map.unwrap_or_default(),
        time: moment.time,
        next_xid: moment.next_xid,
        backup_label,
    })
}

pub(super) fn column<'a, T: FromSql<'a>>(row: &'a Row, name: &str) -> Result<T> {
    row.try_get(name).map_err(|error| unexpected(&error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_lock_is_the_documented_one() {
        assert_eq!(LOCK_KEY, 24_560_118_909_977_936);
    }

    #[test]
    fn a_label_is_one_line_that_postgresql_takes() {
        check_label(&"x".repeat(LONGEST_LABEL)).unwrap();
        check_label("Nächtlich, \"full\"").unwrap();
        for label in [&"x".repeat(LONGEST_LABEL + 1), "two\nlines", "nul\0"] {
            assert_eq!(check_label(label).unwrap_err().kind(), Kind::Usage);
        }
    }
}
