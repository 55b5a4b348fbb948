//! The session against real servers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod archiver;
mod backup;
mod connect;
mod pooling;
mod rights;
mod standby;
mod tls;

use std::time::Duration;

use basebackup::session::Session;
use basebackup::session::conninfo::{ConnectionArgs, ConnectionParameters, Environment};
use walkeep_common::error::Result;
use walkeep_tests::cluster::{Cluster, Options};

/// How long what should happen within seconds may take on a busy machine.
const SECONDS: Duration = Duration::from_secs(20);

/// A server that archives, for the test alone.
fn archiving() -> Options {
    Cluster::options().archive_command("true")
}

fn parameters(dbname: &str) -> Result<ConnectionParameters> {
    let args = ConnectionArgs { dbname: Some(dbname.to_owned()), ..ConnectionArgs::default() };
    ConnectionParameters::resolve(&args, &Environment::of_process()?)
}

/// Connects through the Unix socket, as the superuser unless the rest says otherwise.
async fn connect(cluster: &Cluster, rest: &str) -> Result<Session> {
    Session::connect(&parameters(&format!("host={} user=postgres {rest}", cluster.socket_directory().display()))?).await
}

/// A query that counts the sessions of the program.
const SESSIONS: &str = "select count(*) from pg_stat_activity where application_name = 'basebackup'";
