//! The command line.

use std::path::PathBuf;

use clap::Parser;
use walkeep_common::cli::CommonArgs;
use walkeep_common::wal::segment::SegmentName;

const EXAMPLE: &str = "\
Example, in postgresql.conf:
  restore_command = 'archive-get %f %p'

Exit codes, without and with recovery.signal in the data directory:
  0    0    fetched and verified
  1    1    certainly not in the archive
  101  201  could not tell: unreachable, time-out
  102  202  a hole in the archive
  103  203  damaged
  104  204  usage, configuration, credentials, the wrong place";

/// Fetches and verifies one WAL file from the repository; PostgreSQL's restore_command
#[derive(Debug, Clone, Parser)]
#[command(name = "archive-get", version, after_help = EXAMPLE, max_term_width = 100)]
pub struct Args {
    /// The file's name, as PostgreSQL gives it in place of %f
    pub name: String,
    /// Where to write it, as PostgreSQL gives it in place of %p
    pub path: PathBuf,
    /// The oldest file still needed (%r); not used
    #[arg(hide = true)]
    pub restart: Option<String>,
    /// Options of every program.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The cluster whose WAL is wanted [default: from pg_control]
    #[arg(long, value_name = "NUMBER")]
    pub system_identifier: Option<u64>,
    /// Nothing after this segment is fetched, although it may be archived
    #[arg(long, value_name = "TLI/SEGMENT", value_parser = last_segment)]
    pub last_segment: Option<SegmentName>,
    /// Fetch what comes next into this directory, in the background; archive-get calls itself so
    #[arg(long, hide = true, value_name = "DIRECTORY")]
    pub read_ahead: Option<PathBuf>,
}

/// Reads a timeline in decimal, a slash, and a segment's name.
fn last_segment(text: &str) -> Result<SegmentName, String> {
    let problem = || {
        format!("expected a timeline, a slash and a segment of it, as in 2/000000020000000000000007, not \"{text}\"")
    };
    let (timeline, name) = text.split_once('/').ok_or_else(problem)?;
    let name: SegmentName = name.parse().map_err(|_| problem())?;
    if timeline.parse() == Ok(name.timeline.0) { Ok(name) } else { Err(problem()) }
}
