use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use basebackup::session::Session;
use tokio::net::TcpListener;
use walkeep_common::error::Kind;
use walkeep_tests::cluster::Cluster;

use crate::{connect, parameters};

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_the_password_file() {
    let cluster = Cluster::options().start();
    cluster.sql("set password_encryption = 'scram-sha-256'; create role scram login password 'right:\\x'");
    std::fs::write(cluster.data().join("pg_hba.conf"), "local all postgres trust\nlocal all all scram-sha-256\n")
        .unwrap();
    cluster.sql("select pg_reload_conf()");
    let file = cluster.scratch().path().join("pgpass");
    let log_in = async |line: &str| {
        std::fs::write(&file, line).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        connect(&cluster, &format!("user=scram passfile={}", file.display())).await
    };
    let directory = cluster.socket_directory().display();
    log_in(&format!("{directory}:5432:postgres:scram:right\\:\\\\x\n")).await.unwrap();

    let wrong = log_in("*:*:*:*:wrong\n").await.unwrap_err();
    assert_eq!(wrong.kind(), Kind::Refused);
    assert!(wrong.hint_text().unwrap().contains(file.to_str().unwrap()), "{wrong:?}");
    assert!(!format!("{wrong:?}").contains("wrong\\n"));
    let missing = log_in("*:*:*:another:wrong\n").await.unwrap_err();
    assert_eq!(missing.kind(), Kind::Refused);
    assert!(missing.hint_text().unwrap().contains("~/.pgpass"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_refuses_is_explained() {
    let cluster = Cluster::options().start();
    let database = connect(&cluster, "dbname=nonexistent").await.unwrap_err();
    assert_eq!(database.kind(), Kind::Usage, "{database}");
    let role = connect(&cluster, "user=nonexistent").await.unwrap_err();
    assert_eq!(role.kind(), Kind::Refused, "{role}");
    let socket = Session::connect(&parameters("host=/nonexistent port=1").unwrap()).await.unwrap_err();
    assert_eq!(socket.kind(), Kind::Unavailable);
    assert!(socket.to_string().contains("socket \"/nonexistent/.s.PGSQL.1\""), "{socket}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let started = Instant::now();
    let silent = parameters(&format!("host=127.0.0.1 port={port} connect_timeout=2")).unwrap();
    let error = Session::connect(&silent).await.unwrap_err();
    assert!(error.to_string().ends_with("within 2 s") && error.kind() == Kind::Unavailable, "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}
