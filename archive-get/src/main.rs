//! `restore_command = 'archive-get %f %p'`: fetches one WAL file, or says exactly why not.
//!
//! [`get`] fetches and publishes, [`ahead`] fetches what will be asked for next, [`exit`] is what PostgreSQL reads.

mod ahead;
mod destination;
mod exit;
mod get;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use walkeep_common::cli::bounded::caught;
use walkeep_common::cli::memory::ExitWhenExhausted;
use walkeep_common::cli::{self, LogFormat, Reporter, Severity};
use walkeep_common::config::StandbyOutage;
use walkeep_common::error::Kind;

use crate::exit::Asker;
use archive_get::args::Args;

const PROGRAM: &str = "archive-get";

#[global_allocator]
static ALLOCATOR: ExitWhenExhausted = ExitWhenExhausted::new(201);

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
            let asker = Asker::find(Path::new("."), "", Path::new(""));
            return ExitCode::from(asker.code(Kind::Usage, StandbyOutage::Retry));
        }
    };
    if args.read_ahead.is_some() {
        ALLOCATOR.set_code(exit::DONE.into());
        let _ = Reporter::install(PROGRAM, args.common.log_format);
        cli::restrict_new_files();
        ahead::worker::run(&args);
        return ExitCode::from(exit::DONE);
    }
    let asker = Asker::find(Path::new("."), &args.name, &args.path);
    ALLOCATOR.set_code(asker.code(Kind::Unavailable, StandbyOutage::Retry).into());
    let reporter = Reporter::install(PROGRAM, args.common.log_format);
    cli::restrict_new_files();
    let mut outage = StandbyOutage::Retry;
    let result = caught(|| {
        let config = args.common.resolve()?;
        outage = config.standby_outage;
        get::get(&args, config)
    });
    match result {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(error) => {
            let code = asker.code(error.kind(), outage);
            match error.kind() {
                // PostgreSQL asks beyond the end all the time.
                Kind::NotFound => {}
                Kind::Unavailable if code == 101 => reporter.error(Severity::Warning, &error),
                _ => reporter.error(Severity::Error, &error),
            }
            ExitCode::from(code)
        }
    }
}
