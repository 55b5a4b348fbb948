//! `basebackup take`: a base backup of a running server, without locking it.
//!
//! The order is what makes it safe: `begin.json`, backup mode on, copy, `pg_control`, backup mode off, the last pack, the
//! WAL seen in the repository, index and manifest, and `backup.json` at the very end.

mod args;
mod copy;
mod finish;
mod owner;
mod packs;
mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use walkeep_common::cli::{Reporter, Severity, host_name};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host_memory::HostMemory;
use walkeep_common::postgres::control::{self, ControlFile};
use walkeep_common::repository::backup::{Backup, BadPage, Begin, Owner, Tablespace};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::retry::Patience;
use walkeep_common::store::Created;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::header::FORMAT_VERSION;

pub use self::args::TakeArgs;
use self::args::{Checkpoint, ChecksumFailures};
use self::copy::{PackBuilder, Reading, StoredPack, copy, store_pack};
use self::packs::Pipeline;
use self::wal::{NeededWal, keep_with_backup};
use crate::files::attributes::Attributes;
use crate::files::manifest::wal_ranges;
use crate::files::page::BlockSize;
use crate::files::read::PageChecks;
use crate::files::scan::{Scan, ScanOptions, scan};
use crate::meter::Meter;
use crate::output::{Format, bytes, print, print_json};
use crate::session::{Facts, Moment, Session};

/// How long one request is tried again: an outage shorter than this costs a backup nothing but time.
const PATIENCE: Patience = Patience::For(Duration::from_secs(10 * 60));

/// What does not change while the backup is taken.
struct Source {
    facts: Facts,
    pg_version: u32,
    control: ControlFile,
}

/// Takes a backup and prints its id.
///
/// # Errors
/// `Usage` for settings and rights that must change first; `Unavailable` if the server or the repository fails for too
/// long; `Refused`; `Invalid` if the data directory is not the server's. Nothing that looks like a backup is left.
pub async fn take(args: &TakeArgs, config: &Config, reporter: Reporter) -> Result<()> {
    let backup = tokio::select! {
        taken = run(args, config, reporter) => taken?,
        signal = interrupted() => return Err(signal),
    };
    match args.format {
        Format::Json => print_json(&backup),
        Format::Text => print(&format!("{}\n", backup.id)),
    }
}

/// Waits for Ctrl-C or SIGTERM. Leaving closes the connection, which ends PostgreSQL's backup mode.
async fn interrupted() -> Error {
    use tokio::signal::unix::{SignalKind, signal};
    let error =
        || Error::new(Kind::Unavailable, "interrupted").hint("The server has left backup mode; nothing was kept.");
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => error(), _ = terminate.recv() => error() }
        }
        _ => std::future::pending().await,
    }
}

async fn run(args: &TakeArgs, config: &Config, reporter: Reporter) -> Result<Backup> {
    let session = Session::connect(
        args.host.as_deref().unwrap_or("/var/run/postgresql"),
        args.port.as_deref().and_then(|port| port.parse().ok()).unwrap_or(5432),
        args.username.as_deref().unwrap_or("postgres"),
    )
    .await?;
    let facts = session.facts().await?;
    let control = ControlFile::read(&facts.data_directory)?;
    let source = Source { facts, pg_version: session.version, control };
    let archive = WalArchive::open(config, control.system_identifier, HostMemory::open(config), PATIENCE)?;
    archive.prepare_to_write(control.segment_size, Some(source.pg_version / 10_000)).await?;
    let id = begin(&archive, &source).await?;

    let start = session.start(&args.label, args.checkpoint == Checkpoint::Fast).await?;
    reporter.print(Severity::Info, &format!("backup {id} started at {}", start.lsn), None);
    let copied = copy_everything(args, config, &source, &archive, &id, &start, reporter).await?;
    finish(args, &session, source, archive, id, start, copied, reporter).await
}

/// Claims an id.
async fn begin(archive: &WalArchive, source: &Source) -> Result<BackupId> {
    loop {
        let id = BackupId::new(Timestamp::now(), fastrand::u16(..));
        let begin = Begin {
            walkeep: FORMAT_VERSION,
            id: id.clone(),
            system_identifier: source.control.system_identifier,
            started: Timestamp::now(),
            start_lsn_at_least: source.control.redo,
            timeline: source.control.timeline,
            host: host_name(),
            data_directory: source.facts.data_directory.display().to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let bytes = serde_json::to_vec(&begin)
            .map_err(|error| Error::new(Kind::Internal, "could not write begin.json").caused_by(error))?;
        let key = archive.layout().backup_object(&id, "begin.json");
        let created = archive.store().create(&key, bytes.clone()).await?;
        if created == Created::New || archive.store().read(&key, bytes.len() as u64).await?.as_deref() == Some(&bytes) {
            return Ok(id);
        }
    }
}

/// All packs but the last, and what they were made from.
struct Copied {
    pipeline: Pipeline,
    scan: Arc<Scan>,
    packs: Vec<StoredPack>,
}

async fn copy_everything(
    args: &TakeArgs,
    config: &Config,
    source: &Source,
    archive: &WalArchive,
    id: &BackupId,
    start: &Moment,
    reporter: Reporter,
) -> Result<Copied> {
    let data_directory = &source.facts.data_directory;
    let locations: BTreeMap<u32, PathBuf> =
        source.facts.tablespaces.iter().map(|(oid, (_, location))| (*oid, location.clone())).collect();
    let options = ScanOptions {
        pg_major: source.pg_version / 10_000,
        catalog_version: source.control.catalog_version,
        tablespaces: &locations,
        stats_temp_directory: None,
    };
    let scan = Arc::new(scan(data_directory, &options)?);
    for warning in scan.warnings() {
        reporter.print(Severity::Warning, &warning.to_string(), None);
    }
    let block_size = BlockSize::try_from(source.facts.block_size)
        .map_err(|error| Error::new(Kind::Invalid, "cannot read this server's pages").caused_by(error))?;
    let checks = PageChecks { block_size, segment_blocks: source.facts.segment_blocks, backup_start: start.lsn };
    let reading = Reading {
        data_directory: Arc::from(data_directory.as_path()),
        page_checks: (source.control.data_checksums == Some(1)).then_some(checks),
        checksums: args.manifest_checksums,
    };
    let jobs = args.jobs.filter(|&jobs| jobs > 0).unwrap_or_else(processors);
    let pipeline = Pipeline::new(archive.clone(), id.clone(), config.compression_level.level(), jobs);
    let meter = Arc::new(Meter::new("copied", scan.total_bytes()));
    let packs = tokio::select! {
        packs = copy(&pipeline, &reading, Arc::clone(&scan), jobs, &meter) => packs,
        () = meter.report(reporter) => Ok(Vec::new()),
    };
    meter.end();
    Ok(Copied { pipeline, scan, packs: packs? })
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[expect(clippy::too_many_arguments, reason = "stop-gap")]
async fn finish(
    args: &TakeArgs,
    session: &Session,
    source: Source,
    archive: WalArchive,
    id: BackupId,
    start: Moment,
    copied: Copied,
    reporter: Reporter,
) -> Result<Backup> {
    let Copied { pipeline, scan, mut packs } = copied;
    let data_directory = source.facts.data_directory.clone();
    // On a standby the end of recovery is taken from this very copy, so it must not be older than any page.
    let (control_bytes, control) = control::read_bytes(&data_directory)?;
    let stop = session.stop().await?;
    let last = last_pack(&pipeline, &scan, args, packs.len(), control_bytes, &stop).await?;
    packs.push(last);

    let timeline = control.timeline;
    let size = source.control.segment_size.ok_or_else(|| Error::new(Kind::Invalid, "unknown version of pg_control"))?;
    let history = match timeline {
        Timeline(1) => TimelineHistory::without_ancestors(timeline),
        _ => archive.history(timeline).await?.unwrap_or_else(|| TimelineHistory::without_ancestors(timeline)),
    };
    let needed = NeededWal::new(&history, start.lsn, stop.lsn, size);
    let (start_wal, stop_wal) = (needed.first(), needed.last());
    let ranges = wal_ranges(&history, timeline, start.lsn, stop.lsn)
        .map_err(|error| Error::new(Kind::Internal, "the backup's positions contradict each other").caused_by(error))?;
    let pg_major = source.pg_version / 10_000;
    let index = finish::store_index(&archive, &id, &packs).await?;
    let manifest = finish::store_manifest(&archive, &id, pg_major, &packs, &ranges).await?;

    let mut kept_wal = Vec::new();
    if source.facts.in_recovery {
        let (needed, last) = needed.split_last();
        needed.wait_until_archived(&archive, args.wal_timeout, reporter).await?;
        if let Some(last) = last {
            keep_with_backup(&archive, &id, &data_directory, last, size).await?;
            kept_wal.push(last.to_string());
        }
    } else {
        needed.wait_until_archived(&archive, args.wal_timeout, reporter).await?;
    }

    let root = scan.root().unwrap_or(Attributes { mode: 0o700, uid: 0, gid: 0, modified: 0 });
    let owner = owner::named(root.uid, root.gid);
    let name = |name: String| Some(name).filter(|name| !name.is_empty());
    let bad_pages: Vec<BadPage> = packs.iter().flat_map(|pack| pack.contents.bad_pages.clone()).collect();
    report_bad_pages(args, &bad_pages, reporter)?;
    let backup = Backup {
        walkeep: FORMAT_VERSION,
        id,
        kind: "full".to_owned(),
        parent: None,
        label: args.label.clone(),
        system_identifier: source.control.system_identifier,
        pg_version: source.pg_version,
        segment_size: size,
        timeline,
        start_lsn: start.lsn,
        stop_lsn: stop.lsn,
        start_wal,
        stop_wal,
        start_time: start.time,
        stop_time: stop.time,
        next_xid_at_start: start.next_xid,
        next_xid_at_stop: stop.next_xid,
        from_standby: source.facts.in_recovery,
        host: host_name(),
        data_directory: data_directory.display().to_string(),
        data_directory_mode: format!("{:04o}", root.mode),
        tablespaces: source
            .facts
            .tablespaces
            .iter()
            .map(|(oid, (name, location))| Tablespace {
                oid: *oid,
                name: name.clone(),
                location: location.display().to_string(),
            })
            .collect(),
        owner: Owner { uid: root.uid, gid: root.gid, user: name(owner.user), group: name(owner.group) },
        data_checksums: source.control.data_checksums == Some(1),
        bad_pages,
        files: packs.iter().map(|pack| pack.contents.manifest.len() as u64).sum(),
        plain_size: packs.iter().map(|pack| pack.contents.plain_size).sum(),
        stored_size: packs.iter().map(|pack| pack.pack.size).sum(),
        packs: packs.into_iter().map(|pack| pack.pack).collect(),
        index,
        manifest,
        kept_wal,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        annotations: args.notes.iter().cloned().collect(),
    };
    finish::store_record(&archive, &backup).await?;
    let summary = format!(
        "backup {} is complete: {} in {} files, {} stored, {} to {} on timeline {}",
        backup.id,
        bytes(backup.plain_size),
        backup.files,
        bytes(backup.stored_size),
        backup.start_lsn,
        backup.stop_lsn,
        backup.timeline
    );
    reporter.print(Severity::Info, &summary, None);
    Ok(backup)
}

/// `pg_control`, `tablespace_map` and `backup_label`, alone.
async fn last_pack(
    pipeline: &Pipeline,
    scan: &Scan,
    args: &TakeArgs,
    packs: usize,
    control: Vec<u8>,
    stop: &Moment,
) -> Result<StoredPack> {
    let number = u32::try_from(packs + 1).map_err(|_| Error::new(Kind::Internal, "too many packs"))?;
    let (label, map, checksums) = (stop.label.clone(), stop.map.clone(), args.manifest_checksums);
    let root = scan.root().unwrap_or(Attributes { mode: 0o700, uid: 0, gid: 0, modified: 0 });
    // Files of the server have its directory's rights, without the right to search.
    let attributes = Attributes { mode: root.mode & 0o640 | 0o600, modified: stop.time.as_second(), ..root };
    store_pack(pipeline, number, control.len() as u64, move |out| {
        let mut pack = PackBuilder::new(number, out);
        pack.bytes(Path::new("global/pg_control"), attributes, checksums, &control)?;
        if !map.is_empty() {
            pack.bytes(Path::new("tablespace_map"), attributes, checksums, map.as_bytes())?;
        }
        pack.bytes(Path::new("backup_label"), attributes, checksums, label.as_bytes())?;
        pack.finish()
    })
    .await
}

fn report_bad_pages(args: &TakeArgs, bad_pages: &[BadPage], reporter: Reporter) -> Result<()> {
    const SHOWN: usize = 20;
    for page in bad_pages.iter().take(SHOWN) {
        let message = format!("page {} of \"{}\" has a wrong checksum", page.block, page.file);
        reporter.print(Severity::Warning, &message, None);
    }
    if bad_pages.is_empty() || args.checksum_failures == ChecksumFailures::Warn {
        return Ok(());
    }
    Err(Error::new(Kind::Damaged, format!("{} pages have wrong checksums", bad_pages.len()))
        .hint("The server's data is damaged. To keep the backup all the same, say --checksum-failures=warn."))
}
