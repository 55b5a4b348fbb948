//! Options of `basebackup take`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use walkeep_common::config::CompressionLevel;

use super::throttle::MaxRate;
use crate::files::checksum::ChecksumAlgorithm;
use crate::output::Format;
use crate::session::backup_mode;
use crate::session::conninfo::ConnectionArgs;
use crate::session::preflight::OnlyOn;

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
    /// Threads that compress, 1 to 64; fewer where their memory would be too much [default: processors]
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// zstd's level, -7 to 19: a number, or zstd:LEVEL [default: compression_level of the configuration]
    #[arg(short = 'Z', long, value_name = "LEVEL", value_parser = level, allow_hyphen_values = true)]
    pub compress: Option<i32>,
    /// Read no more than this in a second: kilobytes, or with k or M behind it
    #[arg(short = 'r', long, value_name = "RATE")]
    pub max_rate: Option<MaxRate>,
    /// Give way to everything else on this host: lowest priority of processor and disk
    #[arg(long)]
    pub low_priority: bool,
    /// Fail unless the server is this
    #[arg(long, value_name = "primary|standby|any", default_value = "any", hide_possible_values = true)]
    pub only_on: OnlyOn,
    /// Tell the progress every second where standard error is no terminal
    #[arg(short = 'P', long)]
    pub progress: bool,
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

/// As far as `pg_basebackup --compress` has it: the method must be zstd.
fn level(text: &str) -> Result<i32, String> {
    let level = match text.strip_prefix("zstd") {
        Some("") => return Ok(CompressionLevel::Auto.level()),
        Some(detail) => detail.strip_prefix(':').map(|detail| detail.strip_prefix("level=").unwrap_or(detail)),
        None => Some(text),
    };
    let level = level.and_then(|level| level.parse().ok()).filter(|level| (-7..=19).contains(level) && *level != 0);
    level.ok_or_else(|| "expected -7 to 19 but not 0, zstd or zstd:LEVEL".to_owned())
}

fn note(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected a key, an equals sign and a value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Command {
        #[command(flatten)]
        take: TakeArgs,
    }

    #[test]
    fn options_are_within_their_bounds() {
        for (option, good) in [
            ("--jobs=0", false),
            ("--jobs=1", true),
            ("--jobs=64", true),
            ("--jobs=65", false),
            ("--compress=-7", true),
            ("-Z19", true),
            ("-Zzstd", true),
            ("-Zzstd:9", true),
            ("-Zzstd:level=9", true),
            ("-Zzstd:20", false),
            ("-Zzstd9", false),
            ("-Z0x", false),
            ("-Z0", false),
            ("-Zgzip", false),
            ("-r10M", true),
            ("-r10", false),
            ("--only-on=standby", true),
            ("--only-on=replica", false),
        ] {
            assert_eq!(Command::try_parse_from(["take", option]).is_ok(), good, "{option}");
        }
    }
}
