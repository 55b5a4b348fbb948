//! `basebackup`: takes, lists, restores, verifies, drills and expires base backups of PostgreSQL.

use std::process::ExitCode;

use basebackup::args::{Cli, Command};
use basebackup::check::CheckFormat;
use basebackup::verify::Verdict;
use basebackup::{check, drill, expire, list, pins, restore, show, status, take, verify};
use clap::Parser as _;
use walkeep_common::cli::{self, LogFormat, Reporter, Severity};
use walkeep_common::error::{Error, Kind, Result};

const PROGRAM: &str = "basebackup";
const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 2;
const DAMAGED: u8 = 4;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(problem) if !problem.use_stderr() => {
            let _ = problem.print();
            return ExitCode::from(DONE);
        }
        Err(problem) => {
            let reporter = Reporter::install(PROGRAM, LogFormat::Text);
            let problem = cli::usage_error(&problem);
            reporter.error(Severity::Error, &problem);
            let monitors = check::is_for_nagios(std::env::args_os());
            return ExitCode::from(if monitors { check::unknown(&problem) } else { USAGE });
        }
    };
    let reporter = Reporter::install(PROGRAM, cli.common.log_format);
    cli::restrict_new_files();
    match run(&cli, reporter) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            reporter.error(Severity::Error, &error);
            if matches!(&cli.command, Command::Check(args) if args.format == CheckFormat::Nagios) {
                return ExitCode::from(check::unknown(&error));
            }
            ExitCode::from(if error.kind() == Kind::Usage { USAGE } else { FAILED })
        }
    }
}

/// Returns the exit code.
fn run(cli: &Cli, reporter: Reporter) -> Result<u8> {
    if let Command::Take(args) = &cli.command {
        cli::refuse_root(args.allow_root)?;
        if args.low_priority {
            take::priority::lower(reporter);
        }
    }
    if let Some(allowed) = writes_as_root(&cli.command) {
        cli::refuse_root(allowed)?;
    }
    let config = cli.common.resolve()?;
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Error::new(Kind::Unavailable, "could not start the runtime").caused_by(error))?;
    let result = runtime.block_on(async {
        match &cli.command {
            Command::Take(args) => take::take(args, &config, reporter).await?,
            Command::Check(args) => return Box::pin(check::check(args, &config, reporter)).await,
            Command::List(args) => list::list(args, &config).await?,
            Command::Status(args) => status::status(args, &config).await?,
            Command::Show(args) => show::show(args, &config).await?,
            Command::Restore(args) => restore::restore(args, &config, reporter).await?,
            Command::Expire(args) => expire::expire(args, &config, reporter).await?,
            Command::Delete(args) => expire::delete(args, &config, reporter).await?,
            Command::Pin(args) => pins::pin(args, &config).await?,
            Command::Unpin(args) => pins::unpin(args, &config).await?,
            Command::Drill(args) => {
                if !Box::pin(drill::drill(args, &config, reporter)).await? {
                    reporter.print(Severity::Error, "the drill failed: its report says over what", None);
                    return Ok(DAMAGED);
                }
            }
            Command::Verify(args) => {
                if verify::verify(args, &config, reporter).await? == Verdict::Damaged {
                    reporter.print(Severity::Error, "not all is sound: the report says what is not", None);
                    return Ok(DAMAGED);
                }
            }
        }
        Ok(DONE)
    });
    runtime.shutdown_background();
    result
}

/// Whether a command that writes the repository may do so as root; nothing for those that write nothing there, and for
/// `take`, which says so itself.
fn writes_as_root(command: &Command) -> Option<bool> {
    match command {
        // PostgreSQL does not run as root.
        Command::Drill(_) => Some(false),
        Command::Expire(args) => Some(args.removal.allow_root || args.removal.dry_run),
        Command::Delete(args) => Some(args.removal.allow_root || args.removal.dry_run),
        Command::Check(args) => Some(args.allow_root),
        Command::Pin(args) => Some(args.allow_root),
        Command::Unpin(args) => Some(args.allow_root),
        _ => None,
    }
}
