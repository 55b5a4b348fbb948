use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use basebackup::session::Session;
use basebackup::session::backup_mode::{Backup, Checkpoint, LOCK_KEY};
use basebackup::session::preflight;
use tokio::time::{sleep, timeout};
use walkeep_common::error::{Error, Kind};
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::postgres::label::{BackupFrom, BackupLabel};
use walkeep_common::postgres::tablespace_map;
use walkeep_common::wal::segment::Timeline;
use walkeep_tests::cluster::{Cluster, StopMode, major};

use crate::{SECONDS, SESSIONS, archiving, connect};

async fn start(session: Session) -> Result<Backup, Error> {
    Backup::start(session, "nightly", Checkpoint::Fast).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_started_and_stopped() {
    let cluster = archiving().start();
    let location = cluster.scratch().create_private("sp\\ace ü");
    cluster.sql(&format!("create tablespace outside location '{}'", location.display()));
    let session = connect(&cluster, "").await.unwrap();

    let server = session.server().await.unwrap();
    assert!(preflight::check(&server).is_empty());
    assert_eq!(server.version.major(), major());
    assert_eq!(server.timeline, Timeline(1));
    assert_eq!((server.in_recovery, server.min_recovery_point), (false, None));
    assert_eq!(server.settings.config_file.as_deref(), Some(cluster.data().join("postgresql.conf").as_path()));
    assert_eq!(server.settings.segment_size.bytes(), 1 << 24);
    assert_eq!(server.settings.block_size, 8192);
    let [tablespace] = server.tablespaces.as_slice() else { panic!("{:?}", server.tablespaces) };
    assert_eq!((tablespace.name.as_str(), &tablespace.location), ("outside", &location));
    let (directory, control) = preflight::data_directory(&server, session.target()).unwrap();
    assert_eq!(directory, cluster.data());
    assert_eq!(control.system_identifier, cluster.system_identifier());

    session.lock_for_backup().await.unwrap();
    let backup = start(session).await.unwrap();
    let started = *backup.started();
    backup.control_file(cluster.data()).await.unwrap();
    let during: u64 = cluster.sql("select pg_current_xact_id()").parse().unwrap();
    let (stopped, session) = backup.stop().await.unwrap();

    let label = BackupLabel::parse(std::str::from_utf8(&stopped.backup_label).unwrap()).unwrap();
    assert_eq!((label.start, label.from, label.label.as_str()), (started.lsn, BackupFrom::Primary, "nightly"));
    assert_eq!((stopped.timeline, stopped.stop_timeline), (Timeline(1), Timeline(1)));
    assert!(server.redo <= started.lsn && started.lsn < stopped.lsn);
    assert!(started.time < stopped.time && server.started < started.time);
    assert!(started.next_xid <= during && during < stopped.next_xid, "{started:?} {during} {stopped:?}");
    let [link] = &tablespace_map::parse(&stopped.tablespace_map, major()).unwrap()[..] else { panic!("{stopped:?}") };
    assert_eq!((link.oid, &link.path), (tablespace.oid, &location));

    session.close().await;
    cluster.wait_for(SESSIONS, "0");
    assert!(!cluster.log().contains("aborting backup"), "{}", cluster.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespaces_path_comes_unconverted_from_a_database_of_any_encoding() {
    let cluster = archiving().start();
    let location = cluster.scratch().path().join(std::ffi::OsStr::from_bytes(b"s\xe4\xc3"));
    std::fs::create_dir(&location).unwrap();
    walkeep_tests::user::give(&location);
    let prefix = cluster.scratch().path().display().to_string();
    cluster.sql("create database raw encoding 'SQL_ASCII' template template0");
    let sql = format!("create tablespace t location E'{prefix}/s\\344\\303'");
    let psql = walkeep_tests::run::Run::new(walkeep_tests::cluster::program("psql")).args(["-Xd", "raw", "-c", &sql]);
    psql.args(cluster.connection()).env("PGCLIENTENCODING", "SQL_ASCII").finish().expect_code(0);

    for database in ["raw", "postgres"] {
        let session = connect(&cluster, &format!("dbname={database}")).await.unwrap();
        assert_eq!(session.server().await.unwrap().tablespaces[0].location, location);
        let (stopped, _) = start(session).await.unwrap().stop().await.unwrap();
        assert!(stopped.tablespace_map.ends_with(b"/s\xe4\xc3\n"), "{}", stopped.tablespace_map.escape_ascii());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_role_neither_end_a_backup_nor_plant_functions() {
    let cluster = archiving().start();
    let function = if major() >= 15 { "pg_backup_start(text, bool)" } else { "pg_start_backup(text, bool, bool)" };
    cluster.sql(&format!(
        "create function public.{function} returns pg_lsn language plpgsql as $$begin raise 'trapped'; end$$;
        create function public.pg_is_in_recovery() returns bool language plpgsql as $$begin raise 'trapped'; end$$"
    ));
    let strings = if major() < 19 { "alter role postgres set standard_conforming_strings = off;" } else { "" };
    let idle_session = if major() >= 14 { "alter role postgres set idle_session_timeout = '1s';" } else { "" };
    cluster.sql(&format!(
        "alter role postgres set search_path = public, pg_catalog;
        alter role postgres set datestyle = 'German'; alter role postgres set timezone = 'Asia/Kolkata';
        alter role postgres set client_encoding = 'LATIN1'; alter role postgres set bytea_output = 'escape';
        {strings} alter role postgres set extra_float_digits = -15;
        alter role postgres set idle_in_transaction_session_timeout = '1s'; {idle_session}
        alter role postgres set lock_timeout = '1ms'; alter role postgres set statement_timeout = '1s'"
    ));
    let session = connect(&cluster, "").await.unwrap();
    let server = session.server().await.unwrap();
    assert_eq!(server.settings.data_directory.as_deref(), Some(cluster.data()));
    let backup = start(session).await.unwrap();
    // Longer than every time-out above.
    assert!(timeout(Duration::from_millis(2500), backup.lost()).await.is_err());
    backup.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_fails_the_backup_at_once() {
    let mut cluster = archiving().start();
    let backup = start(connect(&cluster, "").await.unwrap()).await.unwrap();
    cluster.sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'basebackup'");
    let lost = timeout(SECONDS, backup.lost()).await.unwrap();
    assert_eq!(lost.kind(), Kind::Unavailable);
    assert!(lost.to_string().contains("terminating connection"), "{lost}");
    let stop = backup.stop().await.unwrap_err();
    assert!(stop.to_string().starts_with("lost the connection to PostgreSQL"), "{stop}");

    let backup = start(connect(&cluster, "").await.unwrap()).await.unwrap();
    cluster.stop(StopMode::Immediate);
    let stop = timeout(SECONDS, backup.stop()).await.unwrap().unwrap_err();
    assert_eq!(stop.kind(), Kind::Unavailable, "{stop}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_backup_leaves_no_session_behind() {
    let cluster = archiving().start();
    let backup = start(connect(&cluster, "").await.unwrap()).await.unwrap();
    drop(backup);
    cluster.wait_for(SESSIONS, "0");
    start(connect(&cluster, "").await.unwrap()).await.unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_cancelled_during_its_checkpoint_leaves_no_session_behind() {
    if major() < 14 {
        return; // It cannot notice a closed socket before the checkpoint ends.
    }
    let cluster = archiving().configure("checkpoint_timeout = '1d'").start();
    cluster.sql("create table t as select g, repeat('x', 500) from generate_series(1, 20000) g");
    let session = connect(&cluster, "").await.unwrap();
    let start = tokio::spawn(Backup::start(session, "spread", Checkpoint::Spread));
    let waiting = "select count(*) from pg_stat_activity where query ~ 'backup' and wait_event = 'CheckpointDone'";
    while cluster.sql(waiting) == "0" {
        assert!(!start.is_finished());
        sleep(Duration::from_millis(20)).await;
    }
    start.abort();
    assert!(start.await.unwrap_err().is_cancelled());
    cluster.wait_for(SESSIONS, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_backup_of_a_server_runs_at_a_time() {
    let cluster = archiving().start();
    cluster.sql("create database other");
    let first = connect(&cluster, "").await.unwrap();
    first.lock_for_backup().await.unwrap();
    for database in ["postgres", "other"] {
        let second = connect(&cluster, &format!("dbname={database}")).await.unwrap();
        let refused = second.lock_for_backup().await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Unavailable);
        assert!(refused.to_string().contains("another backup of PostgreSQL"), "{refused}");
        let holder = cluster.sql("select pid from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = 'postgres')");
        assert!(refused.to_string().contains(&format!("process {holder}, since ")), "{refused}");
    }
    first.close().await;
    cluster.wait_for(SESSIONS, "0");
    assert_eq!(cluster.sql(&format!("select pg_try_advisory_lock({LOCK_KEY})")), "t");
    connect(&cluster, "").await.unwrap().lock_for_backup().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_of_another_cluster_is_told_apart() {
    let (cluster, other) = (archiving().start(), Cluster::options().create());
    let session = connect(&cluster, "").await.unwrap();
    let mut server = session.server().await.unwrap();
    server.settings.data_directory = Some(other.data().to_owned());
    let error = preflight::data_directory(&server, session.target()).unwrap_err();
    let expected = format!("PostgreSQL at {} is not the cluster in \"{}\"", session.target(), other.data().display());
    assert!(error.to_string().starts_with(&expected), "{error}");

    // The copy of a primary has its system identifier.
    let standby = cluster.standby(Cluster::options());
    server.settings.data_directory = Some(standby.data().to_owned());
    preflight::data_directory(&server, session.target()).unwrap();
    let backup = start(session).await.unwrap();
    let error = backup.control_file(standby.data()).await.unwrap_err();
    assert!(error.to_string().contains("is not the cluster in"), "{error}");
    assert!(ControlFile::read(standby.data()).unwrap().redo < backup.started().lsn);
}
