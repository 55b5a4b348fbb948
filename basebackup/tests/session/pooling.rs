use std::os::unix::net::UnixStream;
use std::path::Path;

use basebackup::session::Session;
use basebackup::session::backup_mode::{Backup, Checkpoint};
use walkeep_common::error::Kind;
use walkeep_tests::cluster::Cluster;
use walkeep_tests::daemon::{Daemon, Server};
use walkeep_tests::wait::{SOON, until};

use crate::{archiving, parameters};

const PGBOUNCER: &str = "/usr/sbin/pgbouncer";

fn pgbouncer(cluster: &Cluster, mode: &str, size: u32) -> (Daemon, String) {
    let directory = cluster.scratch().create_private(&format!("{mode}-{size}"));
    let configuration = cluster.scratch().write(
        &format!("{mode}-{size}.ini"),
        format!(
            "[databases]\n* = user=postgres host={}\n[pgbouncer]\nlisten_addr =\nunix_socket_dir = {}\nauth_type = any\n\
            pool_mode = {mode}\ndefault_pool_size = {size}\n",
            cluster.socket_directory().display(),
            directory.display()
        ),
    );
    let daemon = Daemon::start(&Server {
        program: Path::new(PGBOUNCER),
        arguments: vec![configuration.to_str().unwrap().to_owned()],
        environment: &[],
        directory: &directory,
        log: &cluster.scratch().path().join(format!("{mode}-{size}.log")),
        on_death: "KILL",
    });
    let socket = directory.join(".s.PGSQL.6432");
    until("pgbouncer takes connections", SOON, || UnixStream::connect(&socket).ok());
    (daemon, format!("host={} port=6432 user=postgres", directory.display()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_of_transactions_is_refused_and_a_pool_of_sessions_is_not() {
    if !Path::new(PGBOUNCER).exists() {
        return; // Not on every machine; CI installs it.
    }
    let cluster = archiving().start();
    for size in [1, 5] {
        let (_daemon, connection) = pgbouncer(&cluster, "transaction", size);
        let refused = Session::connect(&parameters(&connection).unwrap()).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Invalid, "{refused}");
        assert!(refused.hint_text().unwrap().contains("Connect to PostgreSQL itself"), "{refused:?}");
    }
    let (_daemon, connection) = pgbouncer(&cluster, "session", 5);
    let session = Session::connect(&parameters(&connection).unwrap()).await.unwrap();
    Backup::start(session, "pooled", Checkpoint::Fast).await.unwrap().stop().await.unwrap();
}
