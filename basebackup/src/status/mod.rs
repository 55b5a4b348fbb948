//! `basebackup status`: how far WAL is archived without a hole, what waits, what can be recovered, and when that was last
//! proven. For people, for programs, and for Prometheus.
//!
//! Every figure is about what is there without a hole; the newest object is never taken for the end of what can be used.
//! What could not be found out is said to be unknown: an old figure never stands in for it.

mod archived;
pub(crate) mod drills;
mod file;
mod prometheus;
mod server;
mod text;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use walkeep_common::config::Config;
use walkeep_common::error::Result;
use walkeep_common::host::HostMemory;
use walkeep_common::retry::Patience;

use self::archived::ClusterStatus;
use self::server::ServerStatus;
use crate::catalog::archives;
use crate::output::{print, to_json};
use crate::session::conninfo::{ConnectionArgs, ConnectionParameters, Environment, system_identifier_of};

/// How long a request is tried again: who asks every few minutes is told soon that there is no answer.
const PATIENCE: Patience = Patience::For(Duration::from_secs(30));

/// Options of `basebackup status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Only the cluster with this system identifier
    #[arg(long, value_name = "NUMBER")]
    pub system_identifier: Option<u64>,
    /// Form of the output
    #[arg(long, value_name = "text|json|prometheus", default_value = "text", hide_possible_values = true)]
    pub format: StatusFormat,
    /// Write to a file, all at once and readable by everyone, as node_exporter's textfile collector wants it
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Where the server is. Behind the others, for its heading holds for what follows.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatusFormat {
    /// For people
    Text,
    /// One JSON document
    Json,
    /// Prometheus' text format
    Prometheus,
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
struct Status {
    /// When, by this host's clock.
    measured: Timestamp,
    repository: RepositoryStatus,
    server: ServerStatus,
    /// The cluster that it is all about, if a server of this host was named.
    #[serde(skip)]
    of_server: Option<u64>,
    clusters: Vec<ClusterStatus>,
}

#[derive(Debug, Serialize)]
struct RepositoryStatus {
    url: String,
    cluster: String,
    /// Why nothing is known of what is in it.
    problem: Option<String>,
}

/// Finds out and prints, also what little is known when the repository does not answer.
///
/// # Errors
/// Whatever the repository fails with, after what is known was printed; `Usage` for connection parameters that cannot
/// work; `Refused` where the file cannot be written. That the server does not answer is none.
pub async fn status(args: &StatusArgs, config: &Config) -> Result<()> {
    let parameters = ConnectionParameters::resolve(&args.connection, &Environment::of_process()?)?;
    // Whoever may not read the server's files is told of all clusters there are.
    let named = args.connection.server.as_deref();
    let of_server = named.and_then(|server| system_identifier_of(server).ok());
    let wanted = args.system_identifier.or(of_server);
    let (server, clusters) = tokio::join!(server::look(&parameters), clusters(wanted, config));
    let (clusters, failure) = match clusters {
        Ok(clusters) => (clusters, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut status = Status {
        measured: Timestamp::now(),
        repository: RepositoryStatus {
            url: config.repository.to_string(),
            cluster: config.cluster.clone(),
            problem: failure.as_ref().map(ToString::to_string),
        },
        server,
        of_server,
        clusters,
    };
    for cluster in &mut status.clusters {
        cluster.compare(&status.server, status.measured);
    }
    let rendered = match args.format {
        StatusFormat::Text => text::render(&status),
        StatusFormat::Json => to_json(&status)?,
        StatusFormat::Prometheus => prometheus::render(&status),
    };
    match &args.output {
        Some(path) => file::replace(path, &rendered)?,
        None => print(&rendered)?,
    }
    failure.map_or(Ok(()), Err)
}

async fn clusters(wanted: Option<u64>, config: &Config) -> Result<Vec<ClusterStatus>> {
    let memory = HostMemory::look(config);
    let mut clusters = Vec::new();
    for archive in archives(config, wanted, PATIENCE).await? {
        clusters.push(ClusterStatus::look(&archive, &memory).await?);
    }
    Ok(clusters)
}
