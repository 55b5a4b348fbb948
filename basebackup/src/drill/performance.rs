//! A drill under way: restore, recovery, checks.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::segment::{Timeline, segment_start};
use walkeep_common::wal_archive::WalArchive;

use super::args::{DrillArgs, TargetWish};
use super::binaries::Binaries;
use super::checks::{self, Access, Checks, Outcome};
use super::isolation::{self, Isolation, session_options, write_configuration};
use super::program::Program;
use super::record::{Phase, Record, Verdict};
use super::replay::{Seen, Way};
use super::scratch::Scratch;
use super::server::{Server, Wait, control_setting};
use super::tablespaces;
use super::wal::WalServer;
use crate::meter::Requests;
use crate::restore::args::{BackupChoice, TargetArgs};
use crate::restore::plan::{Plan, RecoveryTimeline};
use crate::restore::target::Target;
use crate::restore::{RestoreArgs, copy};

/// A socket's path has to fit into 107 bytes (`UNIXSOCK_PATH_BUFLEN`, src/include/libpq/pqcomm.h).
const LONGEST_SOCKET_DIRECTORY: usize = 90;

/// A file of the operator's, read before anything is done.
#[derive(Debug)]
pub(super) struct Sql {
    name: String,
    text: String,
}

impl Sql {
    /// Reads it.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, text: std::fs::read_to_string(path).context("read file", path)? })
    }
}

/// A drill under way.
pub(super) struct Performance<'d> {
    args: &'d DrillArgs,
    config: &'d Config,
    reporter: Reporter,
    sql: &'d [Sql],
    binaries: &'d Binaries,
    scratch: &'d Scratch,
    checks: Checks,
    record: Record,
    /// Whether recovery stops somewhere before the end of the archive.
    has_end: bool,
}

/// What recovery came to.
struct Recovered {
    seen: Seen,
    history: TimelineHistory,
    plan: Plan,
}

impl<'d> Performance<'d> {
    /// Prepares one, with what is known so far in its record.
    pub(super) fn new(
        args: &'d DrillArgs,
        config: &'d Config,
        reporter: Reporter,
        sql: &'d [Sql],
        binaries: &'d Binaries,
        scratch: &'d Scratch,
        record: Record,
    ) -> Self {
        Self { args, config, reporter, sql, binaries, scratch, checks: Checks::default(), record, has_end: false }
    }

    /// Everything from the restore to the last check. What the backup cannot stand is an error of kind `Damaged`, `Hole`
    /// or `NotFound`; anything else is the drill's own failure. `backups` are all there are: they say what else must be in
    /// the WAL.
    pub(super) async fn perform(&mut self, backup: &Backup, target: TargetArgs, backups: &[Backup]) -> Result<()> {
        self.record.postgresql = Some(self.binaries.version.clone());
        let (plan, archive) = self.restore(backup, target).await?;
        let data = self.scratch.data();
        self.judge_files(&data).await?;
        let (mut server, access, recovered) = self.recover(plan, &archive).await?;

        let begun = Instant::now();
        self.check_recovery(backup, backups, &mut server, &access, &recovered).await?;
        self.check_contents(&mut server, &access).await?;
        self.phase("checks", begun, false);

        let begun = Instant::now();
        let stopped = server.stop().await?;
        if !stopped.success() {
            let problem = format!("PostgreSQL did not shut down in order: {stopped}");
            self.checks.note("shutdown", begun, (Outcome::Failed, problem));
        }
        if recovered.plan.backup.data_checksums {
            let words = ["--check", "-D", data.to_str().unwrap_or_default()];
            let well = "every page has its checksum";
            self.run("page checksums", &program("pg_checksums", &words, well)).await?;
        }
        self.phase("shutdown and page checksums", begun, false);
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
    async fn judge_files(&mut self, data: &Path) -> Result<()> {
        let begun = Instant::now();
        let words = ["-n", "-e", data.to_str().unwrap_or_default()];
        let well = "every file is what PostgreSQL's manifest says";
        self.run("files", &program("pg_verifybackup", &words, well)).await?;
        self.phase("files against the manifest", begun, false);
        Ok(())
    }

    /// Starts the server and gives it WAL until it takes connections.
    async fn recover(&mut self, plan: Plan, archive: &WalArchive) -> Result<(Server, Access, Recovered)> {
        let begun = Instant::now();
        let timeline = plan_timeline(&plan);
        let history = archive.history(timeline).await?;
        let history = history.unwrap_or_else(|| TimelineHistory::without_ancestors(timeline));
        let size = plan.backup.segment_size;
        let numbers = plan.wal.first.number(size).zip(plan.wal.last.number(size)).map(|(first, last)| first..=last);
        let expected: VecDeque<_> =
            numbers.into_iter().flatten().map(|number| history.segment_name(number, size)).collect();
        let pg_major = plan.backup.pg_major();
        let mut wal = WalServer::new(archive, self.scratch.path(), expected, size, pg_major)?;
        let with_backup = tablespaces::keep_those_in_place(&self.scratch.data().join("pg_wal"), size, pg_major)?;
        let (mut server, access) = self.start(&plan, &wal)?;
        let waited = tokio::select! {
            waited = server.wait_until_open() => waited?,
            error = wal.serve() => return Err(error),
        };
        let took = begun.elapsed();
        (self.record.replayed_segments, self.record.replayed_bytes) = (wal.served.segments, wal.served.bytes);
        self.record.stopped.clone_from(&server.log.said.stopped);
        if let Wait::Ended(status) = waited {
            let lines = server.log.last_lines();
            return Err(Error::new(Kind::Damaged, format!("PostgreSQL gave up recovery ({status}): {lines}")));
        }
        self.phase("recovery", begun, true);
        let later = wal.served.tablespaces + with_backup;
        if later > 0 {
            let said = format!("{later} created after the backup: replayed inside the drill's own directory");
            self.checks.note("tablespaces", begun, (Outcome::Passed, said));
        }
        let counted = self.record.phases.iter().filter(|phase| phase.counts);
        self.record.rto_seconds = Some(counted.map(|phase| phase.seconds).sum());
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = self.record.replayed_segments as f64 / took.as_secs_f64();
        self.record.replayed_segments_per_second = Some(rate).filter(|rate| rate.is_finite());
        let seen = wal.finish().await;
        Ok((server, access, Recovered { seen, history, plan }))
    }

    fn start(&mut self, plan: &Plan, wal: &WalServer) -> Result<(Server, Access)> {
        let (home, data) = (self.scratch.path(), self.scratch.data());
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

        let controldata = self.controldata(&data)?;
        let of_original =
            |name: &str, otherwise: &str| control_setting(&controldata, name).unwrap_or_else(|| otherwise.to_owned());
        let port: u16 = fastrand::u16(10_000..60_000);
        let path = |name: &str| home.join(name).display().to_string();
        let mut own = vec![
            ("config_file", path("postgresql.conf")),
            ("hba_file", path("pg_hba.conf")),
            ("ident_file", path("pg_ident.conf")),
            ("unix_socket_directories", socket.display().to_string()),
            ("port", port.to_string()),
            ("cluster_name", format!("drill {}", self.record.id)),
            ("restore_command", wal.restore_command()),
            ("shared_preload_libraries", self.args.preload.join(",")),
            ("shared_buffers", shared_buffers()),
            ("max_prepared_transactions", of_original("max_prepared_xacts setting", "0")),
            ("max_locks_per_transaction", of_original("max_locks_per_xact setting", "64")),
            ("track_commit_timestamp", of_original("track_commit_timestamp setting", "off")),
        ];
        own.extend(tablespaces::permission(&self.binaries.version));
        let major = plan.backup.pg_major();
        let isolation = Isolation::new(major, &own);
        self.record.network = Some(isolation.network.to_text().to_owned());
        let server = Server::start(&isolation, &postgres, &data, home, &self.scratch.log())?;
        Ok((server, Access { socket, port, user: self.args.username.clone(), options: session_options(major) }))
    }

    fn controldata(&self, data: &Path) -> Result<String> {
        let Some(program) = self.binaries.program("pg_controldata") else { return Ok(String::new()) };
        let output = std::process::Command::new(&program).env_clear().env("LC_ALL", "C").arg("-D").arg(data).output();
        Ok(String::from_utf8_lossy(&output.context("run", &program)?.stdout).into_owned())
    }

    /// How far recovery came, by the server's word and by the WAL itself.
    async fn check_recovery(
        &mut self,
        backup: &Backup,
        backups: &[Backup],
        server: &mut Server,
        access: &Access,
        Recovered { seen, history, plan }: &Recovered,
    ) -> Result<()> {
        let session = access.connect_to_any().await?;
        self.record.last_commit = session.last_replayed_commit().await?;
        session.close().await;
        if !self.has_end {
            // Where nothing was replayed the backup itself is the newest there is.
            let newest = self.record.last_commit.unwrap_or(backup.stop_time);
            self.record.rpo_seconds = Some(self.record.started.duration_since(newest).as_secs_f64().max(0.0));
        }
        let begun = Instant::now();
        let size = plan.backup.segment_size;
        let said = server.log.read_on()?;
        let redo_done = said.redo_done;
        let verdict = match (said.is_consistent, &said.stopped) {
            (false, _) => (Outcome::Failed, "no consistent state was reached".to_owned()),
            (true, Some(stopped)) => (Outcome::Passed, format!("consistent, and stopped {stopped}")),
            (true, None) if self.has_end => (Outcome::Failed, "the target was not reached".to_owned()),
            (true, None) => seen.reaches_the_end(redo_done, plan.wal.last.number(size).unwrap_or(0), size),
        };
        self.checks.note("recovery", begun, verdict);
        let to = if self.has_end { redo_done.unwrap_or(Lsn(0)) } else { plan.wal.end_lsn };
        let from = plan.wal.first.number(size).map_or(backup.start_lsn, |first| segment_start(first, size));
        if let Some(said) = seen.restore_points(backups, &Way { history, from, to, redo_done }) {
            self.checks.note("restore points", begun, said);
        }
        Ok(())
    }

    /// What the databases are like.
    async fn check_contents(&mut self, server: &mut Server, access: &Access) -> Result<()> {
        let session = access.connect_to_any().await?;
        let begun = Instant::now();
        let named = session.databases_to_connect().await?;
        session.close().await;
        self.record.databases = named.len();
        let databases: Vec<String> = named.into_iter().flatten().collect();
        let others = self.record.databases - databases.len();
        if others > 0 {
            let said = format!("{others} were not looked into: their names are not UTF-8");
            self.checks.note("databases with other names", begun, (Outcome::Skipped, said));
        }
        self.checks.make("databases", checks::databases(access, &databases)).await;
        self.checks.make("collations and indexes", checks::collations(access, &databases)).await;
        self.checks.make("extensions", checks::extensions(access, &databases)).await;
        let begun = Instant::now();
        match checks::left_over(access, &databases).await {
            Ok((prepared, unlogged)) => {
                self.checks.note("prepared transactions", begun, prepared);
                self.checks.note("unlogged tables", begun, unlogged);
            }
            Err(error) => self.checks.note("unlogged tables", begun, (Outcome::Failed, error.to_string())),
        }
        if self.args.amcheck {
            self.amcheck(access, &databases).await?;
        }
        for Sql { name, text } in self.sql {
            let checking = checks::sql(access, &self.args.dbname, text);
            self.checks.make(&format!("SQL {name}"), checking).await;
        }
        // Last: what the checks provoke is in it too.
        let begun = Instant::now();
        let said = server.log.read_on()?;
        let verdict = match said.count.saturating_sub(said.complaints.len()) {
            _ if said.count == 0 => (Outcome::Passed, "nothing in it speaks of damage".to_owned()),
            0 => (Outcome::Failed, said.complaints.join("\n")),
            more => (Outcome::Failed, format!("{}\nand {more} more", said.complaints.join("\n"))),
        };
        self.checks.note("server log", begun, verdict);
        Ok(())
    }

    async fn amcheck(&mut self, access: &Access, databases: &[String]) -> Result<()> {
        let begun = Instant::now();
        // Installing the extension would set them off.
        if self.binaries.major < 17
            && let Err(error) = checks::disable_event_triggers(access, databases).await
        {
            self.checks.note("amcheck", begun, (Outcome::Failed, error.to_string()));
            return Ok(());
        }
        let (socket, port) = (access.socket.display().to_string(), access.port.to_string());
        let mut words = vec!["--all", "--install-missing", "--heapallindexed", "--parent-check"];
        words.extend(["-h", &socket, "-p", &port, "-U", &access.user]);
        if self.args.amcheck_time.is_some() {
            words.push("--progress");
        }
        let limit = self.args.amcheck_time;
        let well = "every table and index is consistent";
        let amcheck = Program { options: &access.options, limit, ..program("pg_amcheck", &words, well) };
        self.run("amcheck", &amcheck).await
    }

    /// Makes a check with one of PostgreSQL's programs.
    async fn run(&mut self, name: &str, program: &Program<'_>) -> Result<()> {
        let begun = Instant::now();
        let said = program.run(self.binaries, self.scratch.path()).await?;
        self.checks.note(name, begun, said);
        Ok(())
    }

    fn phase(&mut self, name: &str, begun: Instant, counts: bool) {
        self.record.phases.push(Phase { name: name.to_owned(), seconds: begun.elapsed().as_secs_f64(), counts });
    }

    /// The verdict.
    ///
    /// # Errors
    /// The drill's own failure.
    pub(super) fn judge(self, performed: Result<()>) -> Result<Record> {
        let Self { mut record, checks, .. } = self;
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
        Ok(record)
    }
}

fn program<'p>(name: &'static str, words: &'p [&'p str], well: &'static str) -> Program<'p> {
    Program { name, words, well, options: "", limit: None }
}

fn plan_timeline(plan: &Plan) -> Timeline {
    match plan.timeline {
        RecoveryTimeline::Number(timeline) => timeline,
        RecoveryTimeline::Latest => plan.wal.last.timeline,
    }
}

/// A quarter of the memory, but no more than recovery has use for.
fn shared_buffers() -> String {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().split(' ').next());
    let kibibytes: u64 = available.and_then(|number| number.parse().ok()).unwrap_or(512 << 10);
    format!("{}kB", (kibibytes / 4).clamp(16 << 10, 1 << 20))
}
