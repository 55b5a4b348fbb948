//! What must be known of a server, read in a few queries.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio_postgres::Row;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Database;
use walkeep_common::wal::segment::{SegmentSize, Timeline};

use super::{ServerVersion, Session};

/// A server as it was when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its version.
    pub version: ServerVersion,
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// Whether it is a standby. That it answers means hot standby.
    pub in_recovery: bool,
    /// The timeline it writes, or on a standby the latest it has replayed.
    pub timeline: Timeline,
    /// Redo position of the latest checkpoint: a backup starts here or later.
    pub redo: Lsn,
    /// Up to where a standby must have replayed to be consistent; none on a primary.
    pub min_recovery_point: Option<Lsn>,
    /// Whether full page images were on at the latest checkpoint; on a standby: on its primary.
    pub full_page_writes: bool,
    /// When the server started.
    pub started: Timestamp,
    /// The role of the session, quoted as SQL needs it.
    pub role: String,
    /// The database of the session, quoted as SQL needs it. Rights on functions are per database.
    pub database: String,
    /// What the role may do. A role that may not see `data_directory` lacks `pg_read_all_settings`.
    pub rights: Rights,
    /// Its settings.
    pub settings: Settings,
    /// Tablespaces besides the two in the data directory, by object identifier.
    pub tablespaces: Vec<Tablespace>,
    /// Its databases, by object identifier.
    pub databases: Vec<Database>,
    /// That archiving fails right now.
    pub archiver_failure: Option<ArchiverFailure>,
}

/// A failure of the archiver that no success has followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiverFailure {
    /// The file that could not be archived.
    pub file: String,
    /// When it was last tried.
    pub last: Timestamp,
    /// Failures since the statistics were reset.
    pub count: i64,
}

/// What the role of the session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rights {
    /// Start a backup.
    pub start: bool,
    /// Stop a backup.
    pub stop: bool,
}

/// Settings of a server. A path is none where the role has no right to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `data_directory`
    pub data_directory: Option<PathBuf>,
    /// `config_file`
    pub config_file: Option<PathBuf>,
    /// `hba_file`
    pub hba_file: Option<PathBuf>,
    /// `ident_file`
    pub ident_file: Option<PathBuf>,
    /// `archive_mode`
    pub archive_mode: ArchiveMode,
    /// `archive_command`; "(disabled)" while `archive_mode` is off.
    pub archive_command: String,
    /// `archive_library`; empty before 15.
    pub archive_library: String,
    /// `wal_level`
    pub wal_level: String,
    /// `data_checksums` is on, and not just being switched.
    pub data_checksums: bool,
    /// `wal_segment_size`
    pub segment_size: SegmentSize,
    /// `block_size` in bytes.
    pub block_size: u32,
    /// `segment_size`: blocks in one file of a relation.
    pub relation_segment_blocks: u32,
    /// `stats_temp_directory`, which has none of it to keep; gone since 15.
    pub stats_temp_directory: Option<PathBuf>,
    /// Names of settings changed in the configuration that wait for a restart.
    pub pending_restart: Vec<String>,
}

/// `archive_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveMode {
    /// WAL is not archived.
    Off,
    /// A primary archives.
    On,
    /// A standby archives too.
    Always,
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its object identifier: the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// Its directory; relative to the data directory for one made in place.
    pub location: PathBuf,
}

impl Tablespace {
    /// Whether it lies in `pg_tblspc` itself (`allow_in_place_tablespaces`).
    pub fn is_in_place(&self) -> bool {
        self.location == Path::new("pg_tblspc").join(self.oid.to_string())
    }
}

impl Server {
    /// Whether it is meant to archive the WAL it writes or receives.
    pub fn archives(&self) -> bool {
        match self.settings.archive_mode {
            ArchiveMode::Off => false,
            ArchiveMode::On => !self.in_recovery,
            ArchiveMode::Always => true,
        }
    }
}

impl Session {
    /// Reads the facts.
    ///
    /// # Errors
    /// `Unavailable` if the connection is lost, `Refused` without the right to look.
    pub async fn server(&self) -> Result<Server> {
        let cluster = self.query_one("read the server's state", &cluster_sql(self.version()), &[]).await?;
        let settings = self.query("read the server's settings", SETTINGS_SQL, &[]).await?;
        let tablespaces = self.query("read the tablespaces", TABLESPACES_SQL, &[]).await?;
        let databases = self.query("read the databases", DATABASES_SQL, &[]).await?;
        let archiver = self.query("read the archiver's statistics", ARCHIVER_SQL, &[]).await?;
        let tables = (&*tablespaces, &*databases);
        server(self.version(), &cluster, &settings, tables, archiver.first()).map_err(|error| unexpected(&error))
    }
}

/// Expressions are cast to types that the client knows. A primary's timeline is in the name of the segment it writes, since
/// `pg_control` learns of a promotion only at the next checkpoint. Names of roles, databases and tablespaces come as bytes:
/// each is in the encoding of the database it was given in, and another one cannot convert it.
fn cluster_sql(version: ServerVersion) -> String {
    let functions = BackupFunctions::of(version);
    format!(
        r"SELECT system.system_identifier, pg_is_in_recovery() AS in_recovery,
            CASE WHEN pg_is_in_recovery()
                THEN to_hex(greatest(checkpoint.timeline_id, recovery.min_recovery_end_timeline))
                ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
            checkpoint.redo_lsn::text AS redo,
            nullif(recovery.min_recovery_end_lsn, '0/0')::text AS min_recovery_point,
            checkpoint.full_page_writes,
            (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8 AS started,
            decode(replace(quote_ident(current_user), E'\\', E'\\\\'), 'escape') AS role,
            decode(replace(quote_ident(current_database()), E'\\', E'\\\\'), 'escape') AS database,
            has_function_privilege('{}', 'EXECUTE') AS may_start,
            has_function_privilege('{}', 'EXECUTE') AS may_stop
        FROM pg_control_system() AS system, pg_control_checkpoint() AS checkpoint, pg_control_recovery() AS recovery",
        functions.start, functions.stop
    )
}

/// Paths as bytes: they are in whatever encoding the file system has, and the server would convert them.
const SETTINGS_SQL: &str = r"
    SELECT name, decode(replace(setting, E'\\', E'\\\\'), 'escape') AS setting, pending_restart
    FROM pg_settings
    WHERE name IN ('data_directory', 'config_file', 'hba_file', 'ident_file', 'archive_mode', 'archive_command',
        'archive_library', 'wal_level', 'data_checksums', 'wal_segment_size', 'block_size', 'segment_size',
        'stats_temp_directory')";

const TABLESPACES_SQL: &str = r"
    SELECT oid, decode(replace(spcname::text, E'\\', E'\\\\'), 'escape') AS name,
        decode(replace(pg_tablespace_location(oid), E'\\', E'\\\\'), 'escape') AS location
    FROM pg_tablespace
    WHERE spcname NOT IN ('pg_default', 'pg_global')
    ORDER BY oid";

const DATABASES_SQL: &str =
    r"SELECT oid, decode(replace(datname::text, E'\\', E'\\\\'), 'escape') AS name FROM pg_database ORDER BY oid";

/// A row only while the latest attempt has failed.
const ARCHIVER_SQL: &str = "
    SELECT last_failed_wal, failed_count,
        (extract(epoch FROM last_failed_time) * 1000000)::int8 AS last_failed_time
    FROM pg_stat_archiver
    WHERE last_failed_time > coalesce(last_archived_time, '-infinity') AND last_failed_wal IS NOT NULL";

/// The functions of backup mode, with their arguments, as `GRANT` names them. 15 renamed them.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackupFunctions {
    pub(super) start: &'static str,
    pub(super) stop: &'static str,
}

impl BackupFunctions {
    pub(super) fn of(version: ServerVersion) -> Self {
        if version.major() >= 15 {
            Self { start: "pg_catalog.pg_backup_start(text, boolean)", stop: "pg_catalog.pg_backup_stop(boolean)" }
        } else {
            Self {
                start: "pg_catalog.pg_start_backup(text, boolean, boolean)",
                stop: "pg_catalog.pg_stop_backup(boolean, boolean)",
            }
        }
    }
}

/// The server's answer is not what this program expects of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnexpectedAnswer {
    /// A column has another type, or is null.
    #[error(transparent)]
    Column(#[from] tokio_postgres::Error),
    /// A value makes no sense.
    #[error("{name} is \"{value}\"")]
    Value {
        /// What it is the value of.
        name: String,
        /// The value.
        value: String,
    },
}

pub(super) fn unexpected(error: &UnexpectedAnswer) -> Error {
    Error::new(Kind::Internal, format!("unexpected answer of the server: {error}"))
}

/// Reads a value out of a text of the server's.
pub(super) fn parse<T>(name: &str, text: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, UnexpectedAnswer> {
    read(text).ok_or_else(|| UnexpectedAnswer::Value { name: name.to_owned(), value: text.to_owned() })
}

/// Reads an LSN column.
pub(super) fn lsn(row: &Row, column: &str) -> Result<Lsn, UnexpectedAnswer> {
    parse(column, row.try_get(column)?, |text| text.parse().ok())
}

/// Reads microseconds since 1970.
pub(super) fn timestamp(row: &Row, column: &str) -> Result<Timestamp, UnexpectedAnswer> {
    let microseconds: i64 = row.try_get(column)?;
    parse(column, &microseconds.to_string(), |_| Timestamp::from_microsecond(microseconds).ok())
}

fn server(
    version: ServerVersion,
    cluster: &Row,
    settings: &[Row],
    (tablespaces, databases): (&[Row], &[Row]),
    archiver: Option<&Row>,
) -> Result<Server, UnexpectedAnswer> {
    let in_recovery = cluster.try_get("in_recovery")?;
    let min_recovery_point: Option<&str> = cluster.try_get("min_recovery_point")?;
    let min_recovery_point = min_recovery_point.map(|text| parse("minRecoveryPoint", text, |text| text.parse().ok()));
    Ok(Server {
        version,
        system_identifier: cluster.try_get::<_, i64>("system_identifier")?.cast_unsigned(),
        in_recovery,
        timeline: parse("timeline", cluster.try_get("timeline")?, |text| {
            u32::from_str_radix(text, 16).ok().filter(|&timeline| timeline > 0).map(Timeline)
        })?,
        redo: lsn(cluster, "redo")?,
        min_recovery_point: min_recovery_point.transpose()?.filter(|_| in_recovery),
        full_page_writes: cluster.try_get("full_page_writes")?,
        started: timestamp(cluster, "started")?,
        role: name(cluster, "role")?,
        database: name(cluster, "database")?,
        rights: Rights { start: cluster.try_get("may_start")?, stop: cluster.try_get("may_stop")? },
        settings: settings_of(settings)?,
        tablespaces: tablespaces.iter().map(tablespace).collect::<Result<_, _>>()?,
        databases: databases.iter().map(database).collect::<Result<_, _>>()?,
        archiver_failure: archiver.map(archiver_failure).transpose()?,
    })
}

fn database(row: &Row) -> Result<Database, UnexpectedAnswer> {
    Ok(Database { oid: row.try_get("oid")?, name: name(row, "name")? })
}

fn archiver_failure(row: &Row) -> Result<ArchiverFailure, UnexpectedAnswer> {
    Ok(ArchiverFailure {
        file: row.try_get("last_failed_wal")?,
        last: timestamp(row, "last_failed_time")?,
        count: row.try_get("failed_count")?,
    })
}

fn settings_of(rows: &[Row]) -> Result<Settings, UnexpectedAnswer> {
    let mut values = Vec::with_capacity(rows.len());
    let mut pending_restart = Vec::new();
    for row in rows {
        let name: String = row.try_get("name")?;
        if row.try_get("pending_restart")? {
            pending_restart.push(name.clone());
        }
        values.push((name, row.try_get::<_, Vec<u8>>("setting")?));
    }
    let find = |wanted: &str| values.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
    let path = |name: &str| find(name).filter(|value| !value.is_empty()).map(path_of);
    let text = |name: &str| find(name).map(|value| String::from_utf8_lossy(&value).into_owned()).unwrap_or_default();
    Ok(Settings {
        data_directory: path("data_directory"),
        config_file: path("config_file"),
        hba_file: path("hba_file"),
        ident_file: path("ident_file"),
        archive_mode: parse("archive_mode", &text("archive_mode"), |text| match text {
            "off" => Some(ArchiveMode::Off),
            "on" => Some(ArchiveMode::On),
            "always" => Some(ArchiveMode::Always),
            _ => None,
        })?,
        archive_command: text("archive_command"),
        archive_library: text("archive_library"),
        wal_level: text("wal_level"),
        data_checksums: text("data_checksums") == "on",
        segment_size: parse("wal_segment_size", &text("wal_segment_size"), |text| {
            SegmentSize::try_from(text.parse::<u64>().ok()?).ok()
        })?,
        block_size: parse("block_size", &text("block_size"), |text| text.parse().ok())?,
        relation_segment_blocks: parse("segment_size", &text("segment_size"), |text| text.parse().ok())?,
        stats_temp_directory: path("stats_temp_directory"),
        pending_restart,
    })
}

fn tablespace(row: &Row) -> Result<Tablespace, UnexpectedAnswer> {
    let location = path_of(row.try_get("location")?);
    Ok(Tablespace { oid: row.try_get("oid")?, name: name(row, "name")?, location })
}

/// A name as far as it is UTF-8.
fn name(row: &Row, column: &str) -> Result<String, UnexpectedAnswer> {
    Ok(String::from_utf8_lossy(row.try_get(column)?).into_owned())
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}
