use basebackup::session::backup_mode::{Backup, Checkpoint};
use basebackup::session::preflight;
use basebackup::session::server::Server;
use walkeep_common::error::Kind;
use walkeep_tests::cluster::Cluster;

use crate::{archiving, connect};

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_is_told_the_grants_that_suffice() {
    let cluster = archiving().start();
    cluster.sql("create role \"Back up\" login");
    let session = connect(&cluster, "user='Back up'").await.unwrap();
    let server = session.server().await.unwrap();
    let [problem] = &preflight::check(&server)[..] else { panic!("{server:?}") };
    assert_eq!(problem.kind(), Kind::Refused);
    let hint = problem.hint_text().unwrap();
    let (_, grants) = hint.split_once("run in database postgres: ").unwrap();
    assert_eq!(preflight::data_directory(&server, session.target()).unwrap_err().hint_text(), Some(hint));
    let denied = Backup::start(session, "denied", Checkpoint::Fast).await.unwrap_err();
    assert_eq!(denied.kind(), Kind::Refused, "{denied}");

    cluster.sql(grants);
    let session = connect(&cluster, "user='Back up'").await.unwrap();
    let server = session.server().await.unwrap();
    assert!(preflight::check(&server).is_empty(), "{server:?}");
    session.lock_for_backup().await.unwrap();
    Backup::start(session, "granted", Checkpoint::Fast).await.unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_make_a_backup_useless_are_seen_on_a_real_server() {
    let cluster = Cluster::options().configure("wal_level = minimal").configure("max_wal_senders = 0").start();
    let session = connect(&cluster, "").await.unwrap();
    let texts = |server: Server| preflight::check(&server).iter().map(ToString::to_string).collect::<Vec<_>>();
    let problems = texts(session.server().await.unwrap());
    assert!(problems.len() == 2 && problems[0].contains("wal_level") && problems[1].contains("archive_mode"));

    cluster.configure(&["wal_level = replica", "archive_mode = on"]);
    cluster.sql("select pg_reload_conf()");
    cluster.wait_for("select count(*) from pg_settings where pending_restart", "2");
    for problem in preflight::check(&session.server().await.unwrap()) {
        assert!(problem.hint_text().unwrap().contains("restart PostgreSQL"), "{problem:?}");
    }

    let cluster = Cluster::options().archive_command("").start();
    let session = connect(&cluster, "").await.unwrap();
    let problems = texts(session.server().await.unwrap());
    assert!(problems.len() == 1 && problems[0].contains("archive_command is empty"), "{problems:?}");
}
