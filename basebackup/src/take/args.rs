//! Options of `basebackup take`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::files::checksum::ChecksumAlgorithm;
use crate::output::Format;
use crate::session::backup_mode;
use crate::session::conninfo::ConnectionArgs;

/// Options of `basebackup take`. Names follow pg_basebackup's.
#[derive(Debug, Clone, Args)]
pub struct TakeArgs {
    /// Where the server is.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// Whether the checkpoint at the start is done at once or spread over time
    #[arg(short = 'c', long, value_name = "fast|spread", default_value = "fast", hide_possible_values = true)]
    pub checkpoint: Checkpoint,
    /// Label of the backup
    #[arg(short = 'l', long, value_name = "LABEL", default_value = "walkeep base backup")]
    pub label: String,
    /// Threads that compress [default: processors]
    #[arg(short = 'j', long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Checksums in PostgreSQL's backup manifest
    #[arg(long, value_name = "ALGORITHM", default_value = "CRC32C", value_parser = algorithm)]
    pub manifest_checksums: ChecksumAlgorithm,
    /// What pages with a wrong checksum mean
    #[arg(long, value_name = "warn|error", default_value = "warn", hide_possible_values = true)]
    pub checksum_failures: ChecksumFailures,
    /// How long to wait for the WAL to be archived, such as 30min
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = walkeep_common::config::parse_duration)]
    pub wal_timeout: Duration,
    /// Note to keep with the backup; may be repeated
    #[arg(long = "note", value_name = "KEY=VALUE", value_parser = note)]
    pub notes: Vec<(String, String)>,
    /// Run as root all the same
    #[arg(long)]
    pub allow_root: bool,
    /// Form of the output
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// How the server writes out what is in its memory when the backup starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Checkpoint {
    /// At once
    Fast,
    /// Spread over checkpoint_timeout
    Spread,
}

impl From<Checkpoint> for backup_mode::Checkpoint {
    fn from(checkpoint: Checkpoint) -> Self {
        match checkpoint {
            Checkpoint::Fast => Self::Fast,
            Checkpoint::Spread => Self::Spread,
        }
    }
}

/// What pages with a wrong checksum mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ChecksumFailures {
    /// They are listed, and the backup is kept
    Warn,
    /// The backup fails
    Error,
}

fn algorithm(text: &str) -> Result<ChecksumAlgorithm, String> {
    let found = ChecksumAlgorithm::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "expected NONE, CRC32C, SHA224, SHA256, SHA384 or SHA512".to_owned())
}

fn note(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected a key, an equals sign and a value".to_owned()),
    }
}
