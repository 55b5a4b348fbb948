//! `archive_command = 'archive-push %p'`: stores one WAL file and says 0 only once it is durable.
//!
//! The way of a file: [`walkeep_common::wal_archive::source`] checks that it is what its name says, [`push`] asks the
//! worker of [`ahead`] for it or stores it, [`exit`] is what PostgreSQL reads.

mod ahead;
mod backfill;
mod exit;
mod limits;
mod push;
mod store;

use std::process::ExitCode;

use clap::Parser as _;
use walkeep_common::cli::bounded::caught;
use walkeep_common::cli::memory::ExitWhenExhausted;
use walkeep_common::cli::{self, LogFormat, Reporter, Severity};
use walkeep_common::error::Result;

use archive_push::args::Args;

const PROGRAM: &str = "archive-push";

#[global_allocator]
static ALLOCATOR: ExitWhenExhausted = ExitWhenExhausted::new(exit::TEMPORARY as i32);

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        // Left over in a configuration file, --help must not count as success.
        Err(problem) if !problem.use_stderr() && std::env::args_os().len() == 2 => {
            let _ = problem.print();
            return ExitCode::from(exit::DONE);
        }
        Err(problem) => {
            let reporter = Reporter::install(PROGRAM, LogFormat::Text);
            reporter.error(Severity::Error, &cli::usage_error(&problem));
            return ExitCode::from(exit::USAGE);
        }
    };
    if let Some(socket) = &args.push_ahead {
        ALLOCATOR.set_code(exit::DONE.into());
        cli::restrict_new_files();
        ahead::keep_warnings();
        let _ = Reporter::install(PROGRAM, args.common.log_format);
        ahead::worker::run(&args, socket);
        return ExitCode::from(exit::DONE);
    }
    let reporter = Reporter::install(PROGRAM, args.common.log_format);
    match caught(|| run(&args)) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            reporter.error(Severity::Error, &error);
            ExitCode::from(exit::code(error.kind()))
        }
    }
}

fn run(args: &Args) -> Result<()> {
    cli::restrict_new_files();
    cli::refuse_root(args.allow_root)?;
    push::push(&args.path, &args.common.resolve()?)
}
