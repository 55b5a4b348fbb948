//! `basebackup take`: a base backup of a running server, without locking it.
//!
//! The order is what makes it safe: `begin.json`, backup mode on, copy, `pg_control`, backup mode off, the last pack, the
//! WAL seen in the repository, index and manifest, and `backup.json` at the very end.

mod args;
mod begin;
mod configuration;
mod copy;
mod finish;
mod histories;
mod listing;
mod owner;
mod packs;
pub mod priority;
mod record;
mod throttle;
mod wal;

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::lsn::Lsn;
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::repository::backup::{Backup, BadPage, RestorePoint};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::retry::Patience;
use walkeep_common::store::Store;
use walkeep_common::wal_archive::WalArchive;

use self::args::Checkpoint;
pub use self::args::TakeArgs;
use self::copy::{PackBuilder, Reading, StoredPack, copy, store_pack};
use self::listing::Listing;
use self::packs::Pipeline;
use self::record::Facts;
use self::throttle::Throttle;
use crate::files::attributes::Attributes;
use crate::files::page::BlockSize;
use crate::files::scan::{Scan, ScanOptions, scan};
use crate::files::settle::PageChecks;
use crate::interrupt::interrupted;
use crate::meter::{Meter, Pace, Requests};
use crate::output::{Format, bytes, print, print_json};
use crate::session::backup_mode::{Backup as BackupMode, Started, Stopped, check_label};
use crate::session::conninfo::{ConnectionParameters, Environment};
use crate::session::server::Server;
use crate::session::{Session, preflight, relations};

/// More threads than this gain nothing, and each holds frames.
const MOST_JOBS: usize = 64;
/// How long one request is tried again: an outage shorter than this costs a backup nothing but time.
const PATIENCE: Patience = Patience::For(Duration::from_secs(10 * 60));

/// How hard WAL is compressed that is stored here and not by PostgreSQL's archiver.
const WAL_LEVEL: i32 = 3;

/// How long an interrupted backup waits for its very last put.
const LAST_PUT: Duration = Duration::from_secs(10);
/// How long the repository may be out of reach before anything has begun: somebody waits for the message.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);

/// Takes a backup and prints its id; nothing on a server that is not to be backed up.
///
/// # Errors
/// `Usage` for options that cannot work; `Refused` and `Invalid` for rights and settings that must change first;
/// `Unavailable` if the server or the repository fails for too long. Nothing that looks like a backup is left.
pub async fn take(args: &TakeArgs, config: &Config, reporter: Reporter) -> Result<()> {
    let progress = Progress::new();
    let mut running = Box::pin(run(args, config, reporter, &progress));
    let taken = tokio::select! {
        taken = &mut running => taken,
        // What is complete but for its record is as good as taken.
        // Leaving closes the connection, which ends PostgreSQL's backup mode.
        () = interrupted() => if progress.is_being_recorded.load(Ordering::Relaxed) {
            tokio::time::timeout(LAST_PUT, &mut running).await.unwrap_or_else(|_| Err(recording_interrupted()))
        } else {
            let message = "interrupted: there is no backup, and the server has left backup mode";
            Err(Error::new(Kind::Unavailable, message))
        },
    };
    // Uploads that are dropped with it are given up.
    drop(running);
    if let (Err(_), Some(store)) = (&taken, progress.store.get()) {
        store.remove_given_up().await;
    }
    let Some(backup) = taken? else { return Ok(()) };
    match args.format {
        Format::Json => print_json(&backup),
        Format::Text => print(&format!("{}\n", backup.id)),
    }
}

/// How far a backup has come, for whoever interrupts it.
struct Progress {
    /// The store, as soon as anything may be written to it.
    store: OnceCell<Store>,
    /// Whether its record is being stored, and with it the backup comes into being.
    is_being_recorded: AtomicBool,
    /// Whoever wants to know.
    requests: Requests,
}

impl Progress {
    fn new() -> Self {
        Self { store: OnceCell::new(), is_being_recorded: AtomicBool::new(false), requests: Requests::new() }
    }
}

fn recording_interrupted() -> Error {
    Error::new(Kind::Unavailable, "interrupted while the record of the complete backup was being stored")
        .hint("basebackup list shows whether it is there.")
}

/// Takes the backup, unless this server is not one to take it from.
async fn run(args: &TakeArgs, config: &Config, reporter: Reporter, progress: &Progress) -> Result<Option<Backup>> {
    check_label(&args.label)?;
    let parameters = ConnectionParameters::resolve(&args.connection, &Environment::of_process()?)?;
    let session = Session::connect(&parameters).await?;
    let server = session.server().await?;
    if let Some(reason) = preflight::other_role(&server, args.only_on, session.target()) {
        reporter.print(Severity::Info, &reason, None);
        session.close().await;
        return Ok(None);
    }
    refuse_problems(preflight::check(&server), reporter)?;
    for doubt in preflight::doubts(&server) {
        reporter.error(Severity::Warning, &doubt);
    }
    let (data_directory, control) = preflight::data_directory(&server, session.target())?;
    session.lock_for_backup().await?;

    let archive = WalArchive::open(config, control.system_identifier, HostMemory::open(config), PATIENCE)?;
    let _ = progress.store.set(archive.store().clone());
    let soon = Patience::Until(Instant::now() + FIRST_PATIENCE);
    let (segment_size, major) = (server.settings.segment_size, server.version.major());
    archive.with_patience(soon).prepare_to_write(Some(segment_size), Some(major)).await?;
    let id = begin::begin(&archive, data_directory, &control).await?;
    begin::warn_of_others(&archive.with_patience(soon), &id, reporter).await?;

    if args.checkpoint == Checkpoint::Spread {
        reporter.print(Severity::Info, "waiting for the server's checkpoint, which it spreads over time", None);
    }
    let backup_mode = BackupMode::start(session, &args.label, args.checkpoint.into()).await?;
    // Of another server's files nothing must be copied.
    let _ = backup_mode.control_file(data_directory).await?;
    let started = *backup_mode.started();
    // Without it the backup could not be recovered: better known now than after the copy.
    let _ = histories::history(&archive, data_directory, started.timeline).await?;
    reporter.print(
        Severity::Info,
        &format!("backup {id} starts at {} on timeline {}", started.lsn, started.timeline),
        None,
    );

    let job = Job { args, server: &server, control, data_directory, archive: &archive, id: &id, reporter, progress };
    let jobs = args.jobs.map_or_else(processors, usize::from);
    let level = args.compress.unwrap_or_else(|| config.compression_level.level());
    let pipeline = Pipeline::new(archive.clone(), id.clone(), level, jobs)?;
    if args.jobs.is_some() && pipeline.threads() < jobs {
        let threads = pipeline.threads();
        let message = format!("compressing on {threads} threads: {jobs} would take too much memory at level {level}");
        reporter.print(Severity::Info, &message, None);
    }
    let mut listing = Listing::new(major, job.control.system_identifier)?;
    let scan = tokio::select! {
        copied = job.copy(&pipeline, started.lsn, jobs, &mut listing) => copied?,
        lost = backup_mode.lost() => return Err(lost),
    };
    // On a standby the end of recovery is taken from this very copy, so it must not be older than any page.
    let control_bytes = backup_mode.control_file(data_directory).await?;
    let (stopped, session) = backup_mode.stop().await?;
    listing.add(job.last_pack(&pipeline, &scan, listing.next_pack()?, control_bytes, &stopped).await?)?;

    name_relations(&session, &parameters, listing.bad_pages()).await;
    let restore_point = restore_point(&session, &id, &started, reporter).await;
    let backup = job.complete(Facts { started, stopped, scan: &scan, restore_point }, listing).await?;
    session.close().await;
    Ok(Some(backup))
}

/// Adds to bad pages whose they are.
async fn name_relations(session: &Session, parameters: &ConnectionParameters, pages: &mut [BadPage]) {
    let files: BTreeSet<&str> = pages.iter().map(|page| page.file.as_str()).collect();
    if files.is_empty() {
        return;
    }
    let names = relations::names(session, parameters, files.into_iter()).await;
    for page in pages {
        page.relation = names.get(&page.file).cloned();
    }
}

/// Writes the restore point that drills look for. Behind the backup's end, so that a drill which finds it has replayed more
/// WAL than the backup itself needs, and recovery can stop at it. The backup is none the worse without.
async fn restore_point(
    session: &Session,
    id: &BackupId,
    started: &Started,
    reporter: Reporter,
) -> Option<RestorePoint> {
    if started.from_standby {
        return None;
    }
    session.create_restore_point(format!("walkeep-{id}")).await.unwrap_or_else(|error| {
        reporter.error(Severity::Warning, &error.context("the backup has no restore point"));
        None
    })
}

/// Reports every problem; the last one is the error.
fn refuse_problems(mut problems: Vec<Error>, reporter: Reporter) -> Result<()> {
    let Some(last) = problems.pop() else { return Ok(()) };
    for problem in &problems {
        reporter.error(Severity::Error, problem);
    }
    Err(last)
}

/// The data directory's own attributes.
fn root(scan: &Scan) -> Result<Attributes> {
    scan.root().ok_or_else(|| Error::new(Kind::Internal, "the data directory was not scanned"))
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_JOBS)
}

/// What does not change while one backup is taken.
struct Job<'j> {
    args: &'j TakeArgs,
    server: &'j Server,
    control: ControlFile,
    data_directory: &'j Path,
    archive: &'j WalArchive,
    id: &'j BackupId,
    reporter: Reporter,
    progress: &'j Progress,
}

impl Job<'_> {
    /// Copies everything but the files of the last pack.
    async fn copy(&self, pipeline: &Pipeline, start: Lsn, jobs: usize, listing: &mut Listing) -> Result<Arc<Scan>> {
        let settings = &self.server.settings;
        let scan = Arc::new(self.scan().await?);
        for warning in scan.warnings() {
            self.reporter.print(Severity::Warning, &warning.to_string(), None);
        }
        let block_size = BlockSize::try_from(settings.block_size)
            .map_err(|error| Error::new(Kind::Invalid, "cannot read this server's pages").caused_by(error))?;
        let checks = PageChecks { block_size, segment_blocks: settings.relation_segment_blocks, backup_start: start };
        let reading = Reading {
            data_directory: Arc::from(self.data_directory),
            page_checks: settings.data_checksums.then_some(checks),
            checksums: self.args.manifest_checksums,
            throttle: self.args.max_rate.map(|rate| Arc::new(Throttle::new(rate))),
        };
        let meter = Arc::new(Meter::new("copied", scan.total_bytes()));
        let copying = copy(pipeline, &reading, Arc::clone(&scan), jobs, &meter, listing);
        let pace = Pace::of(self.args.progress);
        meter.report_until(copying, self.reporter, pace, &self.progress.requests).await?;
        Ok(scan)
    }

    /// Lists what is to be copied. With many files on a slow disk that takes long, and must not keep anybody from
    /// noticing a signal or a lost connection.
    async fn scan(&self) -> Result<Scan> {
        let settings = &self.server.settings;
        let (pg_major, catalog_version) = (self.server.version.major(), self.control.catalog_version);
        let tablespaces = self.server.tablespaces.iter();
        let tablespaces: BTreeMap<_, _> = tablespaces.map(|space| (space.oid, space.location.clone())).collect();
        let (directory, statistics) = (self.data_directory.to_owned(), settings.stats_temp_directory.clone());
        let scanning = tokio::task::spawn_blocking(move || {
            let stats_temp_directory = statistics.as_deref();
            scan(
                &directory,
                &ScanOptions { pg_major, catalog_version, tablespaces: &tablespaces, stats_temp_directory },
            )
        });
        scanning.await.map_err(|error| Error::new(Kind::Internal, "the scan ended early").caused_by(error))?
    }

    /// `pg_control`, `tablespace_map` and `backup_label`, alone.
    async fn last_pack(
        &self,
        pipeline: &Pipeline,
        scan: &Scan,
        number: u32,
        control: Vec<u8>,
        stopped: &Stopped,
    ) -> Result<StoredPack> {
        let checksums = self.args.manifest_checksums;
        let (label, map) = (stopped.backup_label.clone(), stopped.tablespace_map.clone());
        let root = root(scan)?;
        // Files have their directory's rights, but for the right to search.
        let attributes = Attributes { mode: root.mode & 0o040 | 0o600, modified: stopped.time.as_second(), ..root };
        store_pack(pipeline, number, control.len() as u64, move |out| {
            let mut pack = PackBuilder::new(number, out);
            pack.bytes(Path::new("global/pg_control"), attributes, checksums, &control)?;
            if !map.is_empty() {
                pack.bytes(Path::new("tablespace_map"), attributes, checksums, &map)?;
            }
            pack.bytes(Path::new("backup_label"), attributes, checksums, &label)?;
            pack.finish()
        })
        .await
    }

    /// Stores what describes the backup, sees its WAL archived, and makes it exist.
    async fn complete(&self, facts: Facts<'_>, listing: Listing) -> Result<Backup> {
        let size = self.server.settings.segment_size;
        let Stopped { timeline, stop_timeline, .. } = facts.stopped;
        let history = histories::history(self.archive, self.data_directory, stop_timeline).await?;
        let own = (self.data_directory, &self.control);
        histories::see_archived(self.archive, own, &history, timeline, self.reporter).await?;
        let needed = wal::NeededWal::new(&history, facts.started.lsn, facts.stopped.lsn, size);
        let ranges = facts.wal_ranges(&history)?;
        let (totals, index, manifest) = listing.store(self.archive, self.id, &ranges).await?;
        let configuration = self.store_configuration().await?;
        let wait =
            wal::Wait { limit: self.args.wal_timeout, reporter: self.reporter, requests: &self.progress.requests };
        let kept_wal = if facts.started.from_standby {
            let own = wal::OwnWal { directory: &self.data_directory.join("pg_wal"), control: &self.control };
            needed.wait_or_keep_last(self.archive, self.id, own, wait).await?
        } else {
            needed.wait_until_archived(self.archive, wait).await?;
            Vec::new()
        };
        let backup =
            self.record(facts, totals, &needed, record::Objects { index, manifest, configuration, kept_wal })?;
        self.report_bad_pages(&backup)?;
        self.progress.is_being_recorded.store(true, Ordering::Relaxed);
        finish::store_record(self.archive, &backup).await?;
        let summary = format!(
            "backup {} is complete: {} in {} files, {} stored, {} to {} on timeline {}",
            backup.id,
            bytes(backup.plain_size),
            backup.files,
            bytes(backup.stored_size),
            backup.start_lsn,
            backup.stop_lsn,
            backup.end_timeline()
        );
        self.reporter.print(Severity::Info, &summary, None);
        Ok(backup)
    }
}
