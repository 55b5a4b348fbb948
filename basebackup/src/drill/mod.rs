//! `basebackup drill`: a backup is restored into a scratch directory, a real PostgreSQL started on it in isolation, WAL
//! replayed to a target, everything checked and measured, and all of it removed again. What is left is a record.

mod binaries;
mod checks;
mod isolation;
mod record;
mod report;
mod scratch;
mod server;
mod wal;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use walkeep_common::cli::{Reporter, Severity, host_name};
use walkeep_common::config::{Config, parse_duration};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::retry::Patience;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::SegmentName;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::header::FORMAT_VERSION;

use self::binaries::Binaries;
use self::checks::{Access, Checks, Outcome};
use self::isolation::{Isolation, write_configuration};
use self::record::{Phase, Record, Verdict};
use self::scratch::Scratch;
use self::server::{Server, Wait, complaints, control_setting, keep_log, last_lines, stopped_at};
use self::wal::WalServer;
use crate::catalog::{Catalog, archives};
use crate::interrupt::interrupted;
use crate::list::windows;
use crate::meter::Requests;
use crate::output::{Format, print, print_json};
use crate::restore::args::{BackupChoice, TargetArgs};
use crate::restore::plan::Plan;
use crate::restore::target::{Target, TargetAction};
use crate::restore::{RestoreArgs, copy};

/// How long a request is tried again before anything is restored.
const FIRST_PATIENCE: Patience = Patience::For(Duration::from_secs(60));
/// Segments that are fetched before they are asked for.
const MOST_AHEAD: usize = 4;
/// Lines of the server's log in a record of a recovery that failed.
const LOG_LINES: usize = 5;
/// A socket's path has to fit into 107 bytes (`UNIXSOCK_PATH_BUFLEN`, src/include/libpq/pqcomm.h).
const LONGEST_SOCKET_DIRECTORY: usize = 90;

/// Options of `basebackup drill`.
#[derive(Debug, Clone, Args)]
pub struct DrillArgs {
    /// The backup: an id, latest, oldest or random
    #[arg(value_name = "ID", default_value = "latest")]
    pub backup: Selection,
    /// Where recovery ends: latest (the end of the archive), immediate, random (a moment drawn between the backup and the
    /// end of the archive), a time, or the name of a restore point
    #[arg(long, value_name = "TARGET", default_value = "latest")]
    pub target: TargetWish,
    /// Directory below which the drill takes place; needs room for the whole database
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    pub directory: PathBuf,
    /// File with SQL whose last query must return a row, and none that begins with false; may be repeated
    #[arg(long, value_name = "FILE")]
    pub sql: Vec<PathBuf>,
    /// Database in which the SQL is run
    #[arg(short, long, value_name = "DBNAME", default_value = "postgres")]
    pub dbname: String,
    /// Superuser to connect as
    #[arg(short = 'U', long, value_name = "NAME", default_value = "postgres")]
    pub username: String,
    /// Compare tables with their indexes, page by page (`pg_amcheck`)
    #[arg(long)]
    pub amcheck: bool,
    /// Fail if recovering takes longer than this, such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub rto: Option<Duration>,
    /// Fail if more than this is missing at the end of the archive, such as 5min
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub rpo: Option<Duration>,
    /// Write a report as one page of HTML
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Directory of PostgreSQL's programs [default: that of the backup's major on this host]
    #[arg(long, value_name = "DIRECTORY")]
    pub pg_bindir: Option<PathBuf>,
    /// Leave the restored copy and the server's log where they are
    #[arg(long)]
    pub keep: bool,
    /// How many parts of the backup are fetched and written at the same time [default: one per processor, 8 at most]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Tell the progress every second where standard error is no terminal
    #[arg(short = 'P', long)]
    pub progress: bool,
    /// Only from the cluster with this system identifier
    #[arg(long, value_name = "NUMBER")]
    pub system_identifier: Option<u64>,
    /// Form of the output
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// Which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The newest.
    Latest,
    /// The oldest.
    Oldest,
    /// Any.
    Random,
    /// This one.
    Id(BackupId),
}

impl FromStr for Selection {
    type Err = <BackupId as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "latest" => Self::Latest,
            "oldest" => Self::Oldest,
            "random" => Self::Random,
            id => Self::Id(id.parse()?),
        })
    }
}

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetWish {
    /// With the archive.
    Latest,
    /// With the backup.
    Immediate,
    /// Somewhere in between.
    Random,
    /// At a time.
    Time(String),
    /// At a restore point.
    Name(String),
}

impl FromStr for TargetWish {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_date = text.get(..5).is_some_and(|start| {
            start.ends_with('-') && start.chars().take(4).all(|character| character.is_ascii_digit())
        });
        Ok(match text {
            "latest" => Self::Latest,
            "immediate" => Self::Immediate,
            "random" => Self::Random,
            time if is_date => Self::Time(time.to_owned()),
            name => Self::Name(name.to_owned()),
        })
    }
}

/// Performs a drill and prints what came out. True if the backup stood it.
///
/// # Errors
/// The drill itself could not be performed: `Usage`, `NotFound`, `Invalid`, `Refused`, `Unavailable`.
pub async fn drill(args: &DrillArgs, config: &Config, reporter: Reporter) -> Result<bool> {
    let (archive, catalog) = find(args, config).await?;
    let backup = choose(args, &catalog)?;
    let binaries = Binaries::find(args.pg_bindir.as_deref(), backup.pg_major())?;
    let mut drill = Drill {
        args,
        config,
        reporter,
        binaries,
        scratch: Scratch::create(&args.directory, args.keep, reporter)?,
        checks: Checks::default(),
        record: blank_record(args, &archive, config, backup),
        has_end: false,
    };
    let target = target(args, backup, &catalog, &archive).await?;
    drill.record.scratch = drill.scratch.path().display().to_string();
    drill.record.target = describe(&target);
    let performed = tokio::select! {
        performed = drill.perform(backup, target) => performed,
        () = interrupted() => Err(Error::new(Kind::Unavailable, "interrupted: the drill was given up")),
    };
    let mut record = drill.finish(performed)?;
    if record.problem.is_none() && record.verdict == Verdict::Failed && args.keep {
        let hint = format!("The copy is in \"{}\".", record.scratch);
        reporter.print(Severity::Info, "the restored copy was kept", Some(&hint));
    }
    for check in record.checks.iter().filter(|check| check.outcome == Outcome::Skipped) {
        reporter.print(Severity::Warning, &format!("check \"{}\" was not made: {}", check.name, check.detail), None);
    }
    record.finished = Timestamp::now();
    if let Err(error) = record.store(&archive).await {
        reporter.error(Severity::Warning, &error.context("the record of the drill is not in the repository"));
    }
    if let Some(path) = &args.report {
        let earlier = Record::earlier(&archive).await.unwrap_or_default();
        std::fs::write(path, report::html(&record, &earlier)).context("write file", path)?;
    }
    match args.format {
        Format::Json => print_json(&record)?,
        Format::Text => print(&record.to_text())?,
    }
    Ok(record.verdict == Verdict::Passed)
}

/// The cluster that is meant, and its backups.
async fn find(args: &DrillArgs, config: &Config) -> Result<(WalArchive, Catalog)> {
    let mut found: Option<(WalArchive, Catalog)> = None;
    for archive in archives(config, args.system_identifier, FIRST_PATIENCE).await? {
        let catalog = Catalog::load(&archive).await?;
        let newest = |catalog: &Catalog| catalog.backups.last().map(|backup| backup.stop_time);
        let is_meant = match &args.backup {
            Selection::Id(id) => catalog.find(id).is_ok(),
            _ => found.as_ref().is_none_or(|(_, other)| newest(&catalog) > newest(other)),
        };
        if is_meant || found.is_none() {
            found = Some((archive, catalog));
        }
    }
    found.ok_or_else(|| Error::new(Kind::NotFound, "there is no cluster of this name"))
}

fn choose<'c>(args: &DrillArgs, catalog: &'c Catalog) -> Result<&'c Backup> {
    let chosen = match &args.backup {
        Selection::Id(id) => return catalog.find(id),
        Selection::Latest => catalog.backups.last(),
        Selection::Oldest => catalog.backups.first(),
        Selection::Random => catalog.backups.get(fastrand::usize(..catalog.backups.len().max(1))),
    };
    chosen.ok_or_else(|| {
        Error::new(Kind::NotFound, "there are no base backups to drill").hint("Take one with: basebackup take.")
    })
}

/// The target in the terms of a restore.
async fn target(args: &DrillArgs, backup: &Backup, catalog: &Catalog, archive: &WalArchive) -> Result<TargetArgs> {
    let mut target = TargetArgs { target_inclusive: true, ..TargetArgs::default() };
    match &args.target {
        TargetWish::Latest => return Ok(target),
        TargetWish::Immediate => target.target = Some("immediate".to_owned()),
        TargetWish::Time(time) => target.target_time = Some(time.clone()),
        TargetWish::Name(name) => target.target_name = Some(name.clone()),
        TargetWish::Random => {
            let inventory = archive.inventory(backup.segment_size).await?;
            let reached = windows(&catalog.backups, &inventory)
                .into_iter()
                .filter(|window| window.from_time <= backup.stop_time)
                .filter_map(|window| window.last_segment.parse::<WalFileName>().ok())
                .next_back();
            let end = match reached {
                Some(last) => archive.header(last).await?.map(|header| header.modified),
                None => None,
            };
            let between = end.map_or(SignedDuration::ZERO, |end| end.duration_since(backup.stop_time));
            let micros = i64::try_from(between.as_micros()).unwrap_or(0).max(1);
            let moment = backup.stop_time + SignedDuration::from_micros(fastrand::i64(1..=micros));
            target.target_time = Some(moment.to_string());
        }
    }
    target.target_action = Some(TargetAction::Promote);
    Ok(target)
}

fn describe(target: &TargetArgs) -> String {
    match target {
        TargetArgs { target_time: Some(time), .. } => format!("time {time}"),
        TargetArgs { target_name: Some(name), .. } => format!("restore point \"{name}\""),
        TargetArgs { target: Some(_), .. } => "immediate: the end of the backup".to_owned(),
        _ => "latest: the end of the archive".to_owned(),
    }
}

fn blank_record(args: &DrillArgs, archive: &WalArchive, config: &Config, backup: &Backup) -> Record {
    let now = Timestamp::now();
    let selection = match &args.backup {
        Selection::Latest => "the newest",
        Selection::Oldest => "the oldest",
        Selection::Random => "drawn at random",
        Selection::Id(_) => "named",
    };
    Record {
        walkeep: FORMAT_VERSION,
        id: BackupId::new(now, fastrand::u16(..)),
        verdict: Verdict::Failed,
        problem: None,
        started: now,
        finished: now,
        host: host_name(),
        user: whoami::username().unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        repository: archive.store().location().to_string(),
        cluster: config.cluster.clone(),
        system_identifier: archive.layout().system_identifier().to_string(),
        backup: Some(backup.id.clone()),
        selection: selection.to_owned(),
        postgresql: None,
        databases: 0,
        restored_bytes: backup.plain_size,
        timeline: None,
        target: String::new(),
        stopped: None,
        replayed_segments: 0,
        replayed_bytes: 0,
        last_commit: None,
        network: None,
        scratch: String::new(),
        phases: Vec::new(),
        checks: Vec::new(),
        rto_seconds: None,
        rpo_seconds: None,
        rto_objective_seconds: args.rto.map(|rto| rto.as_secs_f64()),
        rpo_objective_seconds: args.rpo.map(|rpo| rpo.as_secs_f64()),
    }
}

/// A drill under way.
struct Drill<'d> {
    args: &'d DrillArgs,
    config: &'d Config,
    reporter: Reporter,
    binaries: Binaries,
    scratch: Scratch,
    checks: Checks,
    record: Record,
    /// Whether recovery stops somewhere before the end of the archive.
    has_end: bool,
}

impl Drill<'_> {
    /// Everything from the restore to the last check. What the backup cannot stand is an error of kind `Damaged`, `Hole`
    /// or `NotFound`; anything else is the drill's own failure.
    async fn perform(&mut self, backup: &Backup, target: TargetArgs) -> Result<()> {
        self.record.postgresql = Some(self.binaries.version.clone());
        let (plan, archive) = self.restore(backup, target).await?;
        let (data, home) = (self.scratch.data(), self.scratch.path().to_owned());
        self.judge_files(&data).await;

        let begun = Instant::now();
        let history = archive.history(plan_timeline(&plan)).await?;
        let size = plan.backup.segment_size;
        let number = |name: SegmentName| name.number(size).unwrap_or_default();
        let expected = (number(plan.wal.first)..=number(plan.wal.last)).map(|number| {
            let last = plan.wal.last;
            let name = history.as_ref().map(|history| history.segment_name(number, size));
            WalFileName::Segment(name.unwrap_or_else(|| SegmentName::new(last.timeline, number, size)))
        });
        let mut wal = WalServer::new(&archive, &home, expected, MOST_AHEAD)?;
        let (mut server, access) = self.start(&plan, &wal, &data, &home)?;
        let waited = tokio::select! {
            waited = server.wait_until_open() => waited?,
            error = wal.serve() => return Err(error),
        };
        let log = server.text()?;
        (self.record.replayed_segments, self.record.replayed_bytes) = (wal.served.segments, wal.served.bytes);
        self.record.stopped = stopped_at(&log);
        if let Wait::Ended(status) = waited {
            let lines = last_lines(&log, LOG_LINES);
            return Err(Error::new(Kind::Damaged, format!("PostgreSQL gave up recovery ({status}): {lines}")));
        }
        self.phase("recovery", begun, true);
        self.record.rto_seconds =
            Some(self.record.phases.iter().filter(|phase| phase.counts).map(|phase| phase.seconds).sum());

        let begun = Instant::now();
        self.check(backup, &mut server, &access).await?;
        let stopped = server.stop().await?;
        if !stopped.success() {
            let problem = format!("PostgreSQL did not shut down in order: {stopped}");
            self.checks.make("shutdown", async { Ok((Outcome::Failed, problem)) }).await;
        }
        if plan.backup.data_checksums {
            let words = ["--check", "-D", data.to_str().unwrap_or_default()];
            let well = "every page has its checksum";
            self.checks.make("page checksums", checks::program(&self.binaries, "pg_checksums", &words, well)).await;
        }
        self.phase("checks", begun, false);
        Ok(())
    }

    async fn restore(&mut self, backup: &Backup, target: TargetArgs) -> Result<(Plan, WalArchive)> {
        let begun = Instant::now();
        let choice = BackupChoice::Id(backup.id.clone());
        let mut restoring = RestoreArgs::of_copy(choice, target, self.args.jobs, self.args.progress);
        restoring.system_identifier = Some(backup.system_identifier);
        let requests = Requests::new();
        let mut restored = copy(&restoring, self.config, self.scratch.path(), self.reporter, &requests).await;
        if self.args.target == TargetWish::Random
            && restored.as_ref().is_err_and(|error| error.kind() == Kind::NotFound)
        {
            // Behind the moment that was drawn nothing was committed any more: there is nothing to stop at.
            restoring.target = TargetArgs { target_inclusive: true, ..TargetArgs::default() };
            self.record.target = format!("latest, for nothing was committed after the drawn {}", self.record.target);
            restored = copy(&restoring, self.config, self.scratch.path(), self.reporter, &requests).await;
        }
        let restored = restored?;
        self.has_end = restored.plan.request.target != Target::End;
        for warning in &restored.plan.warnings {
            self.reporter.print(Severity::Warning, warning, None);
        }
        self.record.timeline = Some(plan_timeline(&restored.plan).0);
        self.phase("restore", begun, true);
        Ok((restored.plan, restored.archive))
    }

    /// PostgreSQL's own judge of the files, before a server changes them.
    async fn judge_files(&mut self, data: &Path) {
        let begun = Instant::now();
        let words = ["-n", "-e", data.to_str().unwrap_or_default()];
        let well = "every file is what PostgreSQL's manifest says";
        self.checks.make("files", checks::program(&self.binaries, "pg_verifybackup", &words, well)).await;
        self.phase("files against the manifest", begun, false);
    }

    fn start(&mut self, plan: &Plan, wal: &WalServer, data: &Path, home: &Path) -> Result<(Server, Access)> {
        let missing = |name: &str| Error::new(Kind::Invalid, format!("PostgreSQL's {name} is not installed"));
        let postgres = self.binaries.program("postgres").ok_or_else(|| missing("postgres"))?;
        write_configuration(home)?;
        let socket = home.join("socket");
        if socket.as_os_str().len() > LONGEST_SOCKET_DIRECTORY {
            let message = format!("the path of \"{}\" is too long for a socket", home.display());
            return Err(Error::new(Kind::Usage, message).hint("Name a shorter one with --directory."));
        }
        std::fs::create_dir(&socket).context("create directory", &socket)?;
        // What the original had set with ALTER SYSTEM is not for this server, but for where recovery ends.
        let settings = data.join("postgresql.auto.conf");
        let contents = std::fs::read(&settings).context("read file", &settings)?;
        let of_recovery = isolation::recovery_settings(&contents);
        std::fs::write(&settings, of_recovery).context("write file", &settings)?;

        let controldata = self.controldata(data)?;
        let of_original =
            |name: &str, otherwise: &str| control_setting(&controldata, name).unwrap_or_else(|| otherwise.to_owned());
        let port: u16 = fastrand::u16(10_000..60_000);
        let path = |name: &str| home.join(name).display().to_string();
        let own = [
            ("config_file", path("postgresql.conf")),
            ("hba_file", path("pg_hba.conf")),
            ("ident_file", path("pg_ident.conf")),
            ("unix_socket_directories", socket.display().to_string()),
            ("port", port.to_string()),
            ("cluster_name", format!("drill {}", self.record.id)),
            ("restore_command", wal.restore_command()),
            ("shared_buffers", shared_buffers()),
            ("max_prepared_transactions", of_original("max_prepared_xacts setting", "0")),
            ("max_locks_per_transaction", of_original("max_locks_per_xact setting", "64")),
            ("track_commit_timestamp", of_original("track_commit_timestamp setting", "off")),
        ];
        let isolation = Isolation::new(plan.backup.pg_major(), &own);
        self.record.network = Some(isolation.network.to_text().to_owned());
        let log = home.join("server.log");
        let server = Server::start(&isolation, &postgres, data, home, &log)?;
        Ok((server, Access { socket, port, user: self.args.username.clone() }))
    }

    fn controldata(&self, data: &Path) -> Result<String> {
        let Some(program) = self.binaries.program("pg_controldata") else { return Ok(String::new()) };
        let output = std::process::Command::new(&program).env_clear().env("LC_ALL", "C").arg("-D").arg(data).output();
        Ok(String::from_utf8_lossy(&output.context("run", &program)?.stdout).into_owned())
    }

    async fn check(&mut self, backup: &Backup, server: &mut Server, access: &Access) -> Result<()> {
        let session = access.connect("postgres").await?;
        let last = session.last_replayed_commit().await?;
        let databases = session.databases_to_connect().await?;
        session.close().await;
        self.record.last_commit = last;
        self.record.databases = databases.len();
        if !self.has_end {
            // Where nothing was replayed the backup itself is the newest there is.
            let newest = last.unwrap_or(backup.stop_time);
            self.record.rpo_seconds = Some(self.record.started.duration_since(newest).as_secs_f64().max(0.0));
        }

        let log = server.text()?;
        let stopped = self.record.stopped.clone();
        let has_end = self.has_end;
        self.checks
            .make("recovery", async {
                let is_consistent = log.contains("consistent recovery state reached");
                Ok(match (is_consistent, stopped) {
                    (false, _) => (Outcome::Failed, "no consistent state was reached".to_owned()),
                    (true, None) if has_end => (Outcome::Failed, "the target was not reached".to_owned()),
                    (true, None) => (Outcome::Passed, "consistent, and replayed to the end of the archive".to_owned()),
                    (true, Some(stopped)) => (Outcome::Passed, format!("consistent, and stopped {stopped}")),
                })
            })
            .await;
        self.checks.make("databases", checks::databases(access, &databases)).await;
        self.checks.make("collations and indexes", checks::collations(access, &databases)).await;
        if self.args.amcheck {
            let (socket, port) = (access.socket.display().to_string(), access.port.to_string());
            let words = [
                "--all",
                "--install-missing",
                "--heapallindexed",
                "--parent-check",
                "-h",
                &socket,
                "-p",
                &port,
                "-U",
                &access.user,
            ];
            let well = "every table and index is consistent";
            let made = checks::program(&self.binaries, "pg_amcheck", &words, well);
            self.checks.make("amcheck", made).await;
        }
        for file in &self.args.sql {
            let name = format!("SQL {}", file.file_name().unwrap_or(file.as_os_str()).to_string_lossy());
            self.checks.make(&name, checks::sql(access, &self.args.dbname, file)).await;
        }
        // Last: what the checks provoke is in it too.
        let found = complaints(&server.text()?);
        self.checks
            .make("server log", async {
                Ok(if found.is_empty() {
                    (Outcome::Passed, "nothing in it speaks of damage".to_owned())
                } else {
                    (Outcome::Failed, found.join("\n"))
                })
            })
            .await;
        Ok(())
    }

    fn phase(&mut self, name: &str, begun: Instant, counts: bool) {
        self.record.phases.push(Phase { name: name.to_owned(), seconds: begun.elapsed().as_secs_f64(), counts });
    }

    /// The verdict.
    fn finish(self, performed: Result<()>) -> Result<Record> {
        let Self { mut record, checks, args, scratch, .. } = self;
        match performed {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), Kind::Damaged | Kind::Hole | Kind::NotFound) => {
                record.problem = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        let exceeds = |measured: Option<f64>, wanted: Option<f64>| measured.zip(wanted).is_some_and(|(m, w)| m > w);
        let keeps_objectives = !exceeds(record.rto_seconds, record.rto_objective_seconds)
            && !exceeds(record.rpo_seconds, record.rpo_objective_seconds);
        let passed = record.problem.is_none() && checks.have_passed() && keeps_objectives;
        record.verdict = if passed { Verdict::Passed } else { Verdict::Failed };
        record.checks = checks.0;
        if let (false, Some(report)) = (passed, &args.report) {
            let log = scratch.path().join("server.log");
            if log.exists() {
                keep_log(&log, &report.with_extension("log"))?;
            }
        }
        Ok(record)
    }
}

fn plan_timeline(plan: &Plan) -> walkeep_common::wal::segment::Timeline {
    match plan.timeline {
        crate::restore::plan::RecoveryTimeline::Number(timeline) => timeline,
        crate::restore::plan::RecoveryTimeline::Latest => plan.wal.last.timeline,
    }
}

/// A quarter of the memory, but no more than recovery has use for.
fn shared_buffers() -> String {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().split(' ').next());
    let kibibytes: u64 = available.and_then(|number| number.parse().ok()).unwrap_or(512 << 10);
    format!("{}kB", (kibibytes / 4).clamp(16 << 10, 1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart() {
        let wish = |text: &str| text.parse::<TargetWish>().unwrap_or(TargetWish::Latest);
        assert_eq!(wish("random"), TargetWish::Random);
        assert_eq!(wish("2026-11-22 10:15:00+01"), TargetWish::Time("2026-11-22 10:15:00+01".to_owned()));
        assert_eq!(wish("2026 release"), TargetWish::Name("2026 release".to_owned()));
        assert_eq!(wish("before the drop"), TargetWish::Name("before the drop".to_owned()));
    }
}
