use basebackup::session::backup_mode::{Backup, Checkpoint};
use basebackup::session::preflight;
use walkeep_common::error::Kind;
use walkeep_common::postgres::label::{BackupFrom, BackupLabel};
use walkeep_common::wal::segment::Timeline;
use walkeep_tests::cluster::Cluster;

use crate::{archiving, connect};

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_backed_up_and_its_promotion_ends_the_backup() {
    let primary = archiving().start();
    let mut standby = primary.standby(Cluster::options());
    standby.start();
    let session = connect(&standby, "").await.unwrap();
    let server = session.server().await.unwrap();
    assert!(server.in_recovery && server.min_recovery_point.is_some() && server.full_page_writes);
    assert!(preflight::check(&server).is_empty());

    let backup = Backup::start(session, "standby", Checkpoint::Fast).await.unwrap();
    backup.control_file(standby.data()).await.unwrap();
    let started = *backup.started();
    let (stopped, session) = backup.stop().await.unwrap();
    let label = BackupLabel::parse(std::str::from_utf8(&stopped.backup_label).unwrap()).unwrap();
    assert_eq!((label.from, label.start), (BackupFrom::Standby, started.lsn));
    assert_eq!((started.from_standby, stopped.timeline, stopped.stop_timeline), (true, Timeline(1), Timeline(1)));
    assert!(stopped.tablespace_map.is_empty() && stopped.next_xid >= started.next_xid);

    let backup = Backup::start(session, "standby", Checkpoint::Fast).await.unwrap();
    standby.promote();
    let error = backup.stop().await.unwrap_err();
    assert_eq!(error.to_string(), "the standby was promoted during the backup");
    assert_eq!(error.kind(), Kind::Invalid);

    // A promoted server knows its new timeline before any checkpoint has told pg_control.
    let promoted = connect(&standby, "").await.unwrap().server().await.unwrap();
    assert_eq!((promoted.in_recovery, promoted.timeline), (false, Timeline(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_without_full_page_writes_is_seen_from_its_standby() {
    let primary = archiving().configure("full_page_writes = off").start();
    let mut standby = primary.standby(Cluster::options());
    standby.start();
    let server = connect(&standby, "").await.unwrap().server().await.unwrap();
    let [problem] = &preflight::check(&server)[..] else { panic!("{server:?}") };
    assert!(problem.to_string().starts_with("full_page_writes is off on the primary"), "{problem}");
}

/// On another host, under the same path, lie the files of another server of the same cluster.
#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_primary_a_second_standby_or_a_clone_are_not_the_server_s_own() {
    let primary = archiving().start();
    let mut standbys = [primary.standby(Cluster::options()), primary.standby(Cluster::options())];
    standbys.iter_mut().for_each(Cluster::start);
    let [standby, other] = standbys;
    primary.sql("checkpoint");
    let written = primary.sql("select pg_current_wal_flush_lsn()");
    for server in [&standby, &other] {
        server.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
    }
    // Both know the primary's latest checkpoint.
    standby.sql("checkpoint");
    let backup = Backup::start(connect(&standby, "").await.unwrap(), "standby", Checkpoint::Fast).await.unwrap();
    backup.control_file(standby.data()).await.unwrap();
    let error = backup.control_file(primary.data()).await.unwrap_err();
    let cause = error.to_string();
    assert!(cause.contains("its pg_control is a standby's, the directory's is a primary's"), "{cause}");
    assert_eq!(error.kind(), Kind::Invalid);
    let error = backup.control_file(other.data()).await.unwrap_err();
    assert!(error.to_string().contains("is not the cluster in"), "{error}");
    drop(backup);

    let clone = other;
    clone.promote();
    clone.sql("create table ahead as select generate_series(1, 1000); checkpoint");
    let backup = Backup::start(connect(&primary, "").await.unwrap(), "primary", Checkpoint::Fast).await.unwrap();
    let error = backup.control_file(clone.data()).await.unwrap_err();
    assert!(error.to_string().contains("its latest checkpoint is at"), "{error}");
    backup.control_file(primary.data()).await.unwrap();
}
