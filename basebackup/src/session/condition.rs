//! What only a doctor asks a server: settings and slots that decide whether its WAL and its pages can be trusted, and a
//! segment to be archived now.

use std::time::Duration;

use tokio_postgres::Row;
use walkeep_common::error::Result;
use walkeep_common::lsn::Lsn;

use super::Session;
use super::server::{UnexpectedAnswer, lsn, parse, unexpected};

/// A server's condition when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `archive_timeout`; zero: an idle server keeps its last WAL to itself for ever.
    pub archive_timeout: Duration,
    /// `fsync`
    pub fsync: bool,
    /// `full_page_writes`
    pub full_page_writes: bool,
    /// Those of `ignore_checksum_failure` and `zero_damaged_pages` that are on.
    pub hiding_damage: Vec<String>,
    /// `restore_command`
    pub restore_command: String,
    /// `max_slot_wal_keep_size` in MiB; none: slots hold back WAL without a limit.
    pub max_slot_wal_keep_size: Option<u64>,
    /// Replication slots nobody uses that still hold WAL back.
    pub idle_slots: Vec<IdleSlot>,
    /// The role may call `pg_switch_wal()`.
    pub may_switch_wal: bool,
}

/// A replication slot nobody is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleSlot {
    /// Its name.
    pub name: String,
    /// Bytes of WAL that it holds back.
    pub held_bytes: u64,
}

const SETTINGS_SQL: &str = "
    SELECT name, setting FROM pg_settings
    WHERE name IN ('archive_timeout', 'fsync', 'full_page_writes', 'ignore_checksum_failure', 'zero_damaged_pages',
        'restore_command', 'max_slot_wal_keep_size')";

const SLOTS_SQL: &str = "
    SELECT slot_name::text AS name, greatest(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()
        THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::int8 AS held
    FROM pg_replication_slots
    WHERE NOT active AND restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost'
    ORDER BY slot_name";

const RIGHTS_SQL: &str = "SELECT has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE') AS may_switch";

/// Without a record since the last switch nothing would be switched. Everybody may write one.
const MESSAGE_SQL: &str = "SELECT pg_logical_emit_message(false, 'walkeep', 'check')::text";
const SWITCH_SQL: &str = "SELECT pg_switch_wal()::text AS lsn";

impl Session {
    /// Reads the condition.
    ///
    /// # Errors
    /// `Unavailable` if the connection is lost.
    pub async fn condition(&self) -> Result<Condition> {
        let settings = self.query("read the server's settings", SETTINGS_SQL, &[]).await?;
        let slots = self.query("read the replication slots", SLOTS_SQL, &[]).await?;
        let rights = self.query_one("read the role's rights", RIGHTS_SQL, &[]).await?;
        condition(&settings, &slots, &rights).map_err(|error| unexpected(&error))
    }

    /// Ends the segment that is being written, so that the server archives it, and returns a position in it or at its end.
    ///
    /// # Errors
    /// `Refused` without the right to; `Unavailable`; `Invalid` on a standby.
    pub async fn finish_segment(&self) -> Result<Lsn> {
        let _ = self.query_one("write a record", MESSAGE_SQL, &[]).await?;
        let row = self.query_one("switch to a new WAL segment", SWITCH_SQL, &[]).await?;
        lsn(&row, "lsn").map_err(|error| unexpected(&error))
    }
}

fn condition(settings: &[Row], slots: &[Row], rights: &Row) -> Result<Condition, UnexpectedAnswer> {
    let mut values = Vec::with_capacity(settings.len());
    for row in settings {
        values.push((row.try_get::<_, String>("name")?, row.try_get::<_, String>("setting")?));
    }
    let text = |wanted: &str| {
        values.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let seconds = parse("archive_timeout", &text("archive_timeout"), |text| text.parse().ok())?;
    let mut idle_slots = Vec::with_capacity(slots.len());
    for row in slots {
        let held_bytes = row.try_get::<_, i64>("held")?.unsigned_abs();
        idle_slots.push(IdleSlot { name: row.try_get("name")?, held_bytes });
    }
    Ok(Condition {
        archive_timeout: Duration::from_secs(seconds),
        fsync: text("fsync") == "on",
        full_page_writes: text("full_page_writes") == "on",
        hiding_damage: ["ignore_checksum_failure", "zero_damaged_pages"]
            .into_iter()
            .filter(|&name| text(name) == "on")
            .map(str::to_owned)
            .collect(),
        restore_command: text("restore_command"),
        max_slot_wal_keep_size: text("max_slot_wal_keep_size").parse().ok(),
        idle_slots,
        may_switch_wal: rights.try_get("may_switch")?,
    })
}
