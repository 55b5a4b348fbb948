use std::os::unix::ffi::OsStrExt as _;

use walkeep_common::lsn::Lsn;
use walkeep_common::wal::segment::{SegmentSize, Timeline};

use super::*;
use crate::session::ServerVersion;
use crate::session::server::{Rights, Settings};

fn good() -> Server {
    Server {
        version: ServerVersion(15_00_18),
        system_identifier: 7,
        in_recovery: false,
        timeline: Timeline(1),
        redo: Lsn(1),
        min_recovery_point: None,
        full_page_writes: true,
        started: jiff::Timestamp::UNIX_EPOCH,
        role: "\"Backup\"".to_owned(),
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

/// The problem that this change of a good server causes: its text, then its hint.
#[track_caller]
fn problem(change: impl FnOnce(&mut Server)) -> String {
    let mut server = good();
    change(&mut server);
    match check(&server).as_slice() {
        [problem] => format!("{problem} | {}", problem.hint_text().unwrap()),
        problems => panic!("{problems:?}"),
    }
}

#[test]
fn a_good_server_has_no_problem() {
    assert!(check(&good()).is_empty());
    let mut library = good();
    (library.settings.archive_command, library.settings.archive_library) = (String::new(), "basic_archive".to_owned());
    assert!(check(&library).is_empty());
}

#[test]
fn each_bad_setting_is_named_with_what_to_write() {
    let minimal = problem(|server| server.settings.wal_level = "minimal".to_owned());
    assert!(minimal.contains("wal_level is \"minimal\"") && minimal.contains("wal_level = replica"), "{minimal}");
    let off = problem(|server| server.settings.archive_mode = ArchiveMode::Off);
    assert!(off.contains("archive_mode is off") && off.contains("archive_command = 'archive-push %p'"), "{off}");
    let empty = problem(|server| server.settings.archive_command.clear());
    assert!(empty.contains("archive_command is empty") && empty.contains("pg_reload_conf"), "{empty}");
}

#[test]
fn a_change_that_waits_for_a_restart_is_not_asked_for_again() {
    let off = problem(|server| {
        server.settings.archive_mode = ArchiveMode::Off;
        server.settings.pending_restart.push("archive_mode".to_owned());
    });
    assert!(off.ends_with("restart PostgreSQL.") && !off.contains("archive_command"), "{off}");
}

#[test]
fn a_standby_answers_for_its_primarys_full_page_writes_and_not_for_archiving() {
    let mut standby = good();
    (standby.in_recovery, standby.settings.archive_mode) = (true, ArchiveMode::Off);
    assert!(check(&standby).is_empty());
    standby.full_page_writes = false;
    assert!(check(&standby)[0].to_string().contains("full_page_writes is off on the primary"));

    let mut primary = good();
    primary.full_page_writes = false;
    assert!(check(&primary).is_empty());
}

#[test]
fn all_missing_rights_are_granted_by_one_paste() {
    let without_rights = |server: &mut Server| {
        server.rights = Rights { start: false, stop: false };
        server.settings.data_directory = None;
    };
    let all = problem(without_rights);
    assert!(all.starts_with("role \"Backup\" lacks rights"), "{all}");
    for grant in [
        "in database postgres:",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO \"Backup\";",
        "GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_stop(boolean) TO \"Backup\";",
        "GRANT pg_read_all_settings TO \"Backup\";",
    ] {
        assert!(all.contains(grant), "{all}");
    }
    let old = problem(|server| {
        without_rights(server);
        server.version = ServerVersion(14_00_10);
    });
    assert!(old.contains("pg_start_backup(text, boolean, boolean)"), "{old}");
    assert!(old.contains("pg_stop_backup(boolean, boolean)"), "{old}");
}

#[test]
fn a_directory_that_is_not_on_this_host_is_another_clusters() {
    let error = data_directory(&good(), "\"db1\", port 5432").unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    let expected = "PostgreSQL at \"db1\", port 5432 is not the cluster in \"/nonexistent/data\"";
    assert!(error.to_string().starts_with(expected), "{error}");
}

#[test]
fn a_tablespace_whose_path_is_no_text_is_refused() {
    let problem = problem(|server| {
        let location = std::ffi::OsStr::from_bytes(b"/srv/\xff").into();
        server.tablespaces.push(crate::session::server::Tablespace { oid: 16384, name: "fast".to_owned(), location });
    });
    assert!(problem.starts_with("the path of tablespace \"fast\""), "{problem}");
}

#[test]
fn what_makes_archiving_doubtful_is_told_where_the_server_archives() {
    let failing =
        || ArchiverFailure { file: "000000010000000000000007".to_owned(), last: jiff::Timestamp::UNIX_EPOCH, count: 3 };
    let told = |change: &dyn Fn(&mut Server)| {
        let mut server = good();
        change(&mut server);
        doubts(&server).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(told(&|_| ()), "");
    assert_eq!(
        told(&|server| "/opt/bin/archive-push --cluster x '%p'".clone_into(&mut server.settings.archive_command)),
        ""
    );
    let both = "pgbackrest --stanza=main archive-push %p && nice archive-push %p";
    assert_eq!(told(&|server| both.clone_into(&mut server.settings.archive_command)), "");
    for (change, text) in [
        (
            (&|server: &mut Server| "cp %p /x/%f".clone_into(&mut server.settings.archive_command))
                as &dyn Fn(&mut Server),
            "archive_command",
        ),
        (
            &|server: &mut Server| {
                "pgbackrest --stanza=a archive-push %p".clone_into(&mut server.settings.archive_command);
            },
            "archive_command",
        ),
        (&|server: &mut Server| "basic_archive".clone_into(&mut server.settings.archive_library), "archive_library"),
        (&|server: &mut Server| server.archiver_failure = Some(failing()), "000000010000000000000007"),
    ] {
        assert!(told(change).contains(text), "{text}: {}", told(change));
        // A standby's archiver has nothing to do, unless it is told to.
        let standby = |server: &mut Server| {
            change(server);
            server.in_recovery = true;
        };
        assert_eq!(told(&standby), "", "{text}");
    }
}

#[test]
fn a_server_of_the_other_kind_is_refused() {
    let standby = Server { in_recovery: true, ..good() };
    for (server, only_on, refused) in [
        (&standby, OnlyOn::Primary, true),
        (&standby, OnlyOn::Standby, false),
        (&standby, OnlyOn::Any, false),
        (&good(), OnlyOn::Primary, false),
        (&good(), OnlyOn::Standby, true),
    ] {
        assert_eq!(other_role(server, only_on, "here").is_some(), refused, "{only_on:?}");
    }
}
