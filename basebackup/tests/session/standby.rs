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
    backup.confirm_data_directory(standby.data()).unwrap();
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
