//! The command line.

use std::path::PathBuf;

use clap::Parser;
use walkeep_common::cli::CommonArgs;
use walkeep_common::wal::name::WalFileName;

const EXAMPLE: &str = "\
Example, in postgresql.conf:
  archive_mode = on
  archive_command = 'archive-push %p'

Exit codes:
  0  durable in the repository, or an identical copy already was
  1  temporary failure: PostgreSQL tries again
  2  usage or configuration
  3  conflict with what is archived under this name, or a damaged copy is
  4  not a valid WAL file of this cluster
  5  the repository refuses us: credentials, permissions, no such bucket, not mounted";

/// Stores one WAL file in the repository; PostgreSQL's archive_command
#[derive(Debug, Clone, Parser)]
#[command(name = "archive-push", version, after_help = EXAMPLE, max_term_width = 100)]
pub struct Args {
    /// The file to archive, as PostgreSQL gives it in place of %p
    pub path: PathBuf,
    /// Options of every program.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Run as root all the same
    #[arg(long)]
    pub allow_root: bool,
    /// Push ahead what waits in the data directory PATH, for calls at this socket; archive-push starts itself so
    #[arg(long, hide = true, value_name = "SOCKET")]
    pub push_ahead: Option<PathBuf>,
    /// The socket's inode
    #[arg(long, hide = true, value_name = "NUMBER", requires = "push_ahead")]
    pub inode: Option<u64>,
    /// The file that was pushed a moment ago
    #[arg(long, hide = true, value_name = "NAME", requires = "push_ahead")]
    pub pushed: Option<WalFileName>,
}
