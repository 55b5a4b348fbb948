//! `basebackup drill`: a backup is restored into a scratch directory, a real PostgreSQL started on it in isolation, WAL
//! replayed to a target, everything checked and measured, and all of it removed again. What is left is a record.

mod args;
mod binaries;
mod checks;
mod choice;
mod isolation;
mod log;
mod performance;
mod program;
mod record;
mod replay;
mod report;
mod scratch;
mod server;
mod tablespaces;
mod wal;

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use jiff::Timestamp;
use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::host::host_name;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::retry::Patience;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::header::FORMAT_VERSION;

pub use self::args::{DrillArgs, Selection, TargetWish};
use self::binaries::Binaries;
use self::checks::Outcome;
use self::choice::describe;
use self::performance::{Performance, Sql};
use self::record::{Record, Verdict, environment};
use self::scratch::Scratch;
use crate::interrupt::interrupted;
use crate::output::{Format, print, print_json};

/// How long a request is tried again before anything is restored.
const FIRST_PATIENCE: Patience = Patience::For(Duration::from_secs(60));

/// Performs a drill and prints what came out. True if the backup stood it.
///
/// # Errors
/// The drill itself could not be performed: `Usage`, `NotFound`, `Invalid`, `Refused`, `Unavailable`.
pub async fn drill(args: &DrillArgs, config: &Config, reporter: Reporter) -> Result<bool> {
    args.check()?;
    let sql = args.sql.iter().map(|path| Sql::read(path)).collect::<Result<Vec<_>>>()?;
    args.report.as_deref().map_or(Ok(()), refuse_unwritable)?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u32(..));
    let mut rng = Rng::with_seed(seed.into());
    let (archive, catalog) = choice::find(args, config, FIRST_PATIENCE).await?;
    let mut record = blank_record(args, &archive, config);
    let is_drawn = args.backup == Selection::Random || args.target == TargetWish::Random;
    record.seed = is_drawn.then_some(seed);
    let backup = match choice::backup(args, &catalog, &mut rng) {
        Err(error) if error.kind() == Kind::Damaged => {
            // It is known to be bad before anything is restored.
            record.problem = Some(error.to_string());
            record.finished = Timestamp::now();
            tell(args, &archive, &record, reporter).await?;
            return Ok(false);
        }
        backup => backup?,
    };
    let target = choice::target(&args.target, backup, &archive, &mut rng).await?;
    let binaries = Binaries::find(args.pg_bindir.as_deref(), backup.pg_major())?;
    let scratch = Scratch::create(&args.directory, args.keep, reporter)?;

    record.backup = Some(backup.id.clone());
    record.restored_bytes = backup.plain_size;
    record.scratch = scratch.path().display().to_string();
    record.target = describe(&target);
    let mut drill = Performance::new(args, config, reporter, &sql, &binaries, &scratch, record);
    let performed = tokio::select! {
        performed = drill.perform(backup, target, &catalog.backups) => performed,
        () = interrupted() => Err(Error::new(Kind::Unavailable, "interrupted: the drill was given up")),
    };
    let mut record = drill.judge(performed)?;
    if let (Verdict::Failed, Some(report)) = (record.verdict, &args.report) {
        scratch.keep_log(&report.with_extension("log"))?;
    }
    drop(scratch);
    record.finished = Timestamp::now();
    tell(args, &archive, &record, reporter).await?;
    Ok(record.verdict == Verdict::Passed)
}

/// Keeps the record, and shows it.
async fn tell(args: &DrillArgs, archive: &WalArchive, record: &Record, reporter: Reporter) -> Result<()> {
    if args.keep {
        let hint = format!("The copy is in \"{}\". Remove it when you have seen enough.", record.scratch);
        reporter.print(Severity::Info, "the restored copy was kept", Some(&hint));
    }
    for check in record.checks.iter().filter(|check| check.outcome == Outcome::Skipped) {
        reporter.print(Severity::Warning, &format!("check \"{}\" was not made: {}", check.name, check.detail), None);
    }
    if let Err(error) = record.store(archive).await {
        reporter.error(Severity::Warning, &error.context("the record of the drill is not in the repository"));
    }
    match args.format {
        Format::Json => print_json(record)?,
        Format::Text => print(&record.to_text())?,
    }
    if let Some(path) = &args.report {
        let earlier = Record::earlier(archive).await.unwrap_or_default();
        std::fs::write(path, report::html(record, &earlier)).context("write file", path)?;
    }
    Ok(())
}

/// Finds out before anything is done whether there will be a report.
fn refuse_unwritable(report: &Path) -> Result<()> {
    let directory = report.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = if report.exists() { report } else { directory };
    rustix::fs::access(place, rustix::fs::Access::WRITE_OK).map_err(std::io::Error::from).context("write to", place)
}

fn blank_record(args: &DrillArgs, archive: &WalArchive, config: &Config) -> Record {
    let now = Timestamp::now();
    Record {
        walkeep: FORMAT_VERSION,
        id: BackupId::new(now, fastrand::u16(..)),
        verdict: Verdict::Failed,
        problem: None,
        started: now,
        finished: now,
        host: host_name(),
        user: whoami::username().unwrap_or_default(),
        environment: environment(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        repository: archive.store().location().to_string(),
        cluster: config.cluster.clone(),
        system_identifier: archive.layout().system_identifier().to_string(),
        backup: None,
        selection: choice::selection(args).to_owned(),
        seed: None,
        postgresql: None,
        databases: 0,
        restored_bytes: 0,
        timeline: None,
        target: String::new(),
        stopped: None,
        replayed_segments: 0,
        replayed_bytes: 0,
        replayed_segments_per_second: None,
        last_commit: None,
        network: None,
        scratch: String::new(),
        kept: args.keep,
        phases: Vec::new(),
        checks: Vec::new(),
        rto_seconds: None,
        rpo_seconds: None,
        rto_objective_seconds: args.rto.map(|rto| rto.as_secs_f64()),
        rpo_objective_seconds: args.rpo.map(|rpo| rpo.as_secs_f64()),
    }
}
