use basebackup::session::archiver::local_data_directory;
use basebackup::session::server::Server;
use walkeep_tests::cluster::Cluster;

use crate::{archiving, connect};

#[tokio::test(flavor = "multi_thread")]
async fn the_archivers_state_is_read_with_and_without_the_right_to_list_its_queue() {
    let cluster = Cluster::options().archive_command("exit 1").start();
    let waiting = cluster.finish_segment();
    cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    cluster.sql("create role reader login");
    for (user, may_see_paths) in [("postgres", true), ("reader", false)] {
        let session = connect(&cluster, &format!("user={user}")).await.unwrap();
        let server = session.server().await.unwrap();
        let archiver = session.archiver(&server).await.unwrap();
        assert_eq!(archiver.queue.as_ref().map(|queue| queue.files), may_see_paths.then_some(1), "{user}");
        assert!(archiver.failure().is_some_and(|failure| failure.file == waiting), "{archiver:?}");
        assert!(archiver.failed_count > 0 && archiver.last_archived.is_none());
        assert_eq!(local_data_directory(&server).is_some(), may_see_paths);
    }
    // Where the role sees the path, the queue is read from the directory.
    cluster.sql("grant pg_read_all_settings to reader");
    let session = connect(&cluster, "user=reader").await.unwrap();
    let server = session.server().await.unwrap();
    let queue = session.archiver(&server).await.unwrap().queue.unwrap();
    assert_eq!(queue.files, 1);
    let age = server.started.duration_since(queue.oldest.unwrap());
    assert!(age.abs().as_secs() < 60, "{age}");
    cluster.sql("revoke pg_read_all_settings from reader; grant pg_monitor to reader");
    let session = connect(&cluster, "user=reader").await.unwrap();
    let server = session.server().await.unwrap();
    assert_eq!(session.archiver(&server).await.unwrap().queue.map(|queue| queue.files), Some(1));
    let elsewhere = Server { started: server.started - jiff::SignedDuration::from_hours(1), ..server };
    assert_eq!(local_data_directory(&elsewhere), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_tells_how_far_it_has_come() {
    let primary = archiving().start();
    let mut standby = primary.standby(Cluster::options());
    standby.start();
    primary.wait_until_archived(&primary.finish_segment());
    let written = primary.sql("select pg_current_wal_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
    let session = connect(&standby, "").await.unwrap();
    let server = session.server().await.unwrap();
    assert!(!server.archives());
    let archiver = session.archiver(&server).await.unwrap();
    assert!(archiver.position >= written.parse().unwrap(), "{archiver:?}");
    let session = connect(&primary, "").await.unwrap();
    let server = session.server().await.unwrap();
    let archiver = session.archiver(&server).await.unwrap();
    assert!(server.archives() && archiver.last_archived.is_some() && archiver.failure().is_none());
}
