//! The command line.

use clap::{Parser, Subcommand};
use walkeep_common::cli::CommonArgs;

use crate::check::CheckArgs;
use crate::drill::DrillArgs;
use crate::expire::{DeleteArgs, ExpireArgs};
use crate::list::ListArgs;
use crate::pins::{PinArgs, UnpinArgs};
use crate::restore::RestoreArgs;
use crate::show::ShowArgs;
use crate::status::StatusArgs;
use crate::take::TakeArgs;
use crate::verify::VerifyArgs;

const EXAMPLE: &str = "\
Examples:
  basebackup take
  basebackup list
  basebackup status
  basebackup restore latest -D /srv/restored --target-time '2026-11-22 10:15:00+01'
  basebackup verify --all --wal
  basebackup drill --sql orders.sql --report drill.html
  basebackup expire --keep-days 30 --keep-monthly 12 --dry-run
  basebackup check

Exit codes: 0 done, 1 failed, 2 usage or configuration; verify and drill: 4 damage was found";

/// Takes, lists, restores, verifies, drills and expires base backups of PostgreSQL
#[derive(Debug, Clone, Parser)]
#[command(name = "basebackup", version, after_help = EXAMPLE, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every command.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Take a base backup of the running server on this host
    #[command(disable_help_flag = true)]
    Take(TakeArgs),
    /// List the backups and the windows in which recovery is possible
    List(ListArgs),
    /// Tell how far WAL is archived, what waits, what can be recovered, and when that was last proven
    #[command(disable_help_flag = true)]
    Status(Box<StatusArgs>),
    /// Show everything that is recorded of one backup
    Show(ShowArgs),
    /// Restore a backup, ready to recover to a target
    Restore(Box<RestoreArgs>),
    /// Restore a backup into a scratch directory, start PostgreSQL on it, check and measure, and remove it again
    #[command(disable_help_flag = true)]
    Drill(Box<DrillArgs>),
    /// Test the way from PostgreSQL to the repository and back, and say what to do about everything that is wrong
    #[command(disable_help_flag = true, after_help = crate::check::EXIT_CODES)]
    Check(Box<CheckArgs>),
    /// Read back what is stored and name what is damaged or missing
    Verify(VerifyArgs),
    /// Remove backups and WAL that the retention policy does not keep
    Expire(ExpireArgs),
    /// Keep a backup, whatever the policy
    Pin(PinArgs),
    /// Leave a pinned backup to the policy again
    Unpin(UnpinArgs),
    /// Remove one backup
    Delete(DeleteArgs),
}
