//! The server and its settings: decided from what was read of it.

use jiff::Timestamp;

use super::finding::{Area, Finding, Outcome};
use super::releases;
use crate::output::bytes;
use crate::session::condition::Condition;
use crate::session::preflight;
use crate::session::server::{ArchiveMode, Server};

const AREA: Area = Area::PostgreSQL;
/// What an idle slot may hold back before it is more than worth knowing.
const MUCH_HELD: u64 = 1 << 30;

/// Judges the server.
pub(super) fn judge(server: &Server, condition: &Condition, now: Timestamp) -> Vec<Finding> {
    let mut findings = vec![version(server, now)];
    findings.extend(rights(server, condition));
    findings.extend(preflight(server));
    findings.extend(pending(server));
    findings.extend(safety(server, condition));
    findings.extend(archive_timeout(server, condition));
    findings.extend(slots(condition));
    findings
}

fn version(server: &Server, now: Timestamp) -> Finding {
    let version = server.version;
    let role = if server.in_recovery { "standby" } else { "primary" };
    let checksums = if server.settings.data_checksums { "on" } else { "off" };
    let text = format!(
        "PostgreSQL {}.{}, {role} on timeline {}, data checksums {checksums}, segments of {}",
        version.major(),
        version.0 % 10_000,
        server.timeline,
        bytes(server.settings.segment_size.bytes()),
    );
    match releases::known_bug(version) {
        Some(bug) => Finding::warning(AREA, "version", format!("{text}: {}", bug.problem), bug.fix()),
        None if releases::is_unsupported(version, now) => Finding::warning(
            AREA,
            "version",
            format!("{text}: this major gets no more fixes"),
            "Plan the upgrade to a supported major (pg_upgrade); its first backup begins a new folder by itself.",
        ),
        None if !server.settings.data_checksums => Finding::note(
            AREA,
            "version",
            format!(
                "{text}: damaged pages would be backed up unnoticed (pg_checksums --enable, with the server stopped)"
            ),
        ),
        None => Finding::passed(AREA, "version", text),
    }
}

/// What a backup and this check need, in words to paste.
fn rights(server: &Server, condition: &Condition) -> Vec<Finding> {
    let problems = preflight::check(server);
    let mut findings: Vec<Finding> = problems
        .iter()
        .filter(|problem| problem.kind() == walkeep_common::error::Kind::Refused)
        .map(|problem| Finding::of_error(AREA, "rights", problem))
        .collect();
    if !condition.may_switch_wal && !server.in_recovery {
        let fix = format!(
            "As a superuser, run in database {}: GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal() TO {};",
            server.database, server.role
        );
        let text =
            format!("role {} may not switch WAL segments: the way to the repository cannot be tried", server.role);
        findings.push(Finding::failed(AREA, "rights", text, fix));
    }
    if findings.is_empty() {
        let text = format!("role {} may start and stop backups and read the settings", server.role);
        findings.push(Finding::passed(AREA, "rights", text));
    }
    findings
}

/// What stands against a backup, besides rights.
fn preflight(server: &Server) -> Vec<Finding> {
    let problems = preflight::check(server);
    let problems = problems.iter().filter(|problem| problem.kind() != walkeep_common::error::Kind::Refused);
    let mut findings: Vec<Finding> = problems.map(|problem| Finding::of_error(AREA, "settings", problem)).collect();
    if findings.is_empty() {
        let settings = &server.settings;
        let archive_mode = match settings.archive_mode {
            ArchiveMode::Off => "off",
            ArchiveMode::On => "on",
            ArchiveMode::Always => "always",
        };
        let text = format!("wal_level = {}, archive_mode = {archive_mode}", settings.wal_level);
        findings.push(Finding::passed(AREA, "settings", text));
    }
    findings
}

fn pending(server: &Server) -> Option<Finding> {
    let pending = &server.settings.pending_restart;
    (!pending.is_empty()).then(|| {
        let text = format!("{} was changed, and the server still runs with the old value", pending.join(", "));
        Finding::warning(AREA, "pending_restart", text, "Restart PostgreSQL.")
    })
}

/// Settings without which the server's own files cannot be trusted after a crash.
fn safety(server: &Server, condition: &Condition) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut failed = |check, text: &str, setting: &str| {
        let fix = format!("ALTER SYSTEM SET {setting}; SELECT pg_reload_conf();");
        findings.push(Finding::failed(AREA, check, text, fix));
    };
    if !condition.fsync {
        failed("fsync", "fsync is off: a crash of this host can destroy the database", "fsync = on");
    }
    // On a standby, that of its primary counts, and stands among what speaks against a backup.
    if !condition.full_page_writes && !server.in_recovery {
        let text =
            "full_page_writes is off: a crash, or a backup of a standby, can leave torn pages that nothing repairs";
        failed("full_page_writes", text, "full_page_writes = on");
    }
    for setting in &condition.hiding_damage {
        let text = format!("{setting} is on: damage goes unnoticed into every backup");
        let fix = format!("ALTER SYSTEM SET {setting} = off; SELECT pg_reload_conf();");
        findings.push(Finding::warning(AREA, "hidden_damage", text, fix));
    }
    if findings.iter().all(|finding| finding.outcome != Outcome::Failed) {
        findings.push(Finding::passed(AREA, "crash_safety", "fsync = on, full_page_writes = on"));
    }
    findings
}

fn archive_timeout(server: &Server, condition: &Condition) -> Option<Finding> {
    if server.in_recovery {
        return None;
    }
    let seconds = condition.archive_timeout.as_secs();
    Some(if seconds == 0 {
        Finding::warning(
            AREA,
            "archive_timeout",
            "archive_timeout is 0: what an idle server wrote last is not archived until its segment is full",
            "ALTER SYSTEM SET archive_timeout = '60s'; SELECT pg_reload_conf();",
        )
    } else {
        Finding::passed(AREA, "archive_timeout", format!("archive_timeout = {seconds}s bounds what a lost host costs"))
    })
}

/// A slot nobody uses keeps WAL until the disk is full.
fn slots(condition: &Condition) -> Vec<Finding> {
    let slots = condition.idle_slots.iter().filter(|_| condition.max_slot_wal_keep_size.is_none());
    let judged = slots.map(|slot| {
        let text = format!("replication slot \"{}\" is not in use and holds back {} of WAL", slot.name, bytes(slot.held_bytes));
        if slot.held_bytes < MUCH_HELD {
            return Finding::note(AREA, "slots", text);
        }
        let fix = format!(
            "SELECT pg_drop_replication_slot('{}'); or bound them all: ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'; \
             SELECT pg_reload_conf();",
            slot.name.replace('\'', "''")
        );
        Finding::warning(AREA, "slots", format!("{text}, without a limit"), fix)
    });
    judged.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use walkeep_common::lsn::Lsn;
    use walkeep_common::wal::segment::{SegmentSize, Timeline};

    use super::*;
    use crate::session::ServerVersion;
    use crate::session::condition::IdleSlot;
    use crate::session::server::{Rights, Settings};

    pub(in crate::check) fn server() -> Server {
        Server {
            version: ServerVersion(15_00_18),
            system_identifier: 7,
            in_recovery: false,
            timeline: Timeline(1),
            redo: Lsn(1),
            min_recovery_point: None,
            full_page_writes: true,
            started: Timestamp::UNIX_EPOCH,
            role: "backup".to_owned(),
            database: "postgres".to_owned(),
            rights: Rights { start: true, stop: true },
            settings: Settings {
                data_directory: Some("/nonexistent/data".into()),
                config_file: None,
                hba_file: None,
                ident_file: None,
                archive_mode: ArchiveMode::On,
                archive_command: "archive-push %p".to_owned(),
                archive_library: String::new(),
                wal_level: "replica".to_owned(),
                data_checksums: true,
                segment_size: SegmentSize::try_from(1 << 24).unwrap(),
                block_size: 8192,
                relation_segment_blocks: 131_072,
                stats_temp_directory: None,
                pending_restart: Vec::new(),
            },
            tablespaces: Vec::new(),
            databases: Vec::new(),
            archiver_failure: None,
        }
    }

    pub(in crate::check) fn condition() -> Condition {
        Condition {
            archive_timeout: Duration::from_secs(60),
            fsync: true,
            full_page_writes: true,
            hiding_damage: Vec::new(),
            restore_command: String::new(),
            max_slot_wal_keep_size: None,
            idle_slots: Vec::new(),
            may_switch_wal: true,
        }
    }

    /// What is not as it should be after this change.
    fn found(change: impl FnOnce(&mut Server, &mut Condition)) -> Vec<(&'static str, Outcome)> {
        let (mut server, mut condition) = (server(), condition());
        change(&mut server, &mut condition);
        let findings = judge(&server, &condition, "2026-11-22T12:00:00Z".parse().unwrap());
        let mut bad: Vec<_> = findings.iter().filter(|finding| finding.outcome != Outcome::Passed).collect();
        bad.retain(|finding| {
            assert!(finding.fix.is_some() || finding.outcome == Outcome::Note, "{finding:?}");
            true
        });
        bad.into_iter().map(|finding| (finding.check, finding.outcome)).collect()
    }

    #[test]
    fn each_misconfiguration_turns_its_own_line_red() {
        type Change = fn(&mut Server, &mut Condition);
        let slot = |held_bytes| vec![IdleSlot { name: "s".to_owned(), held_bytes }];
        let cases: [(Change, &[(&str, Outcome)]); 12] = [
            (|_, _| {}, &[]),
            (|server, _| server.settings.archive_mode = ArchiveMode::Off, &[("settings", Outcome::Failed)]),
            (|server, _| server.settings.wal_level = "minimal".to_owned(), &[("settings", Outcome::Failed)]),
            (|server, _| server.rights.start = false, &[("rights", Outcome::Failed)]),
            (|_, condition| condition.may_switch_wal = false, &[("rights", Outcome::Failed)]),
            (|_, condition| condition.fsync = false, &[("fsync", Outcome::Failed)]),
            (|_, condition| condition.full_page_writes = false, &[("full_page_writes", Outcome::Failed)]),
            (
                |_, condition| condition.hiding_damage.push("zero_damaged_pages".to_owned()),
                &[("hidden_damage", Outcome::Warning)],
            ),
            (|_, condition| condition.archive_timeout = Duration::ZERO, &[("archive_timeout", Outcome::Warning)]),
            (|server, _| server.settings.data_checksums = false, &[("version", Outcome::Note)]),
            (
                |server, _| server.settings.pending_restart.push("wal_level".to_owned()),
                &[("pending_restart", Outcome::Warning)],
            ),
            (|server, _| server.version = ServerVersion(17_00_10), &[("version", Outcome::Warning)]),
        ];
        for (number, (change, expected)) in cases.into_iter().enumerate() {
            assert_eq!(found(change), expected, "case {number}");
        }
        assert_eq!(found(|_, condition| condition.idle_slots = slot(1 << 20)), [("slots", Outcome::Note)]);
        assert_eq!(found(|_, condition| condition.idle_slots = slot(1 << 40)), [("slots", Outcome::Warning)]);
        let limited = |_: &mut Server, condition: &mut Condition| {
            (condition.idle_slots, condition.max_slot_wal_keep_size) = (slot(1 << 40), Some(1024));
        };
        assert_eq!(found(limited), []);
    }

    #[test]
    fn a_standby_is_not_asked_for_what_only_a_primary_can() {
        let standby = |server: &mut Server, condition: &mut Condition| {
            server.in_recovery = true;
            (condition.may_switch_wal, condition.archive_timeout) = (false, Duration::ZERO);
        };
        assert_eq!(found(standby), []);
    }
}
