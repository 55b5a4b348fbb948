//! Options of `basebackup check`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use walkeep_common::config::parse_duration;

use crate::session::conninfo::ConnectionArgs;

/// What the exit codes mean.
pub const EXIT_CODES: &str = "\
Exit codes: 0 nothing failed, 1 something failed, 2 usage or configuration;
with --format nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN (nothing could be checked)";

/// Options of `basebackup check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Where the server is.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// Check the repository and what is in it, without a server
    #[arg(long, conflicts_with_all = ["dbname", "host", "port", "username", "server"])]
    pub repository_only: bool,
    /// How old the newest backup may be
    #[arg(long, value_name = "TIME", default_value = "25h", value_parser = parse_duration)]
    pub max_backup_age: Duration,
    /// How long ago the last drill may be
    #[arg(long, value_name = "TIME", default_value = "8d", value_parser = parse_duration)]
    pub max_drill_age: Duration,
    /// How long to wait until the server has archived a segment
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub archive_timeout: Duration,
    /// Only the cluster with this system identifier, where there is no server to say which
    #[arg(long, value_name = "NUMBER", requires = "repository_only")]
    pub system_identifier: Option<u64>,
    /// Run as root all the same
    #[arg(long)]
    pub allow_root: bool,
    /// Form of the output
    #[arg(long, value_name = "text|json|nagios", default_value = "text", hide_possible_values = true)]
    pub format: CheckFormat,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// For people
    Text,
    /// One JSON document
    Json,
    /// For monitoring that runs Nagios' plugins
    Nagios,
}
