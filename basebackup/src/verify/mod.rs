//! `basebackup verify`: what is stored is read back, and whatever is not what it was is named, with what is lost by it.

mod backup;
mod finding;
mod lost;
mod members;
mod memory;
mod pack;
mod wal;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use walkeep_common::cli::Reporter;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::{BackupId, WalObject};
use walkeep_common::repository::seal::{self, Seal};
use walkeep_common::retry::Patience;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::inventory::Inventory;

pub use self::finding::{Finding, Lost, Span};
pub(crate) use self::lost::needed;
pub use self::memory::Verified;
use crate::catalog::{Catalog, archives};
use crate::cluster::ClusterArgs;
use crate::list::segment_size;
use crate::meter::{Meter, Pace, Requests};
use crate::output::{Format, bytes, print, print_json};

/// An outage shorter than this costs nothing but time.
const PATIENCE: Patience = Patience::For(std::time::Duration::from_secs(10 * 60));
/// Small records are far below this.
const RECORD_LIMIT: u64 = 1 << 20;
const ALTERED: &str = "it was changed since it was written";
/// Backups that are verified at the same time, so that small ones keep all jobs busy.
const BACKUPS_AT_ONCE: usize = 2;
/// More gain nothing, and each holds some 16 MiB.
const MOST_JOBS: usize = 16;

/// Options of `basebackup verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The backup: an id, or latest [default: latest]
    #[arg(value_name = "ID")]
    pub backup: Option<Choice>,
    /// Every backup
    #[arg(long, conflicts_with = "backup")]
    pub all: bool,
    /// All archived WAL too: each file, and that none is missing
    #[arg(long)]
    pub wal: bool,
    /// Read only so much, drawn at random: a share of the packs and of the WAL files
    #[arg(long, value_name = "PERCENT")]
    pub sample: Option<Share>,
    /// Objects read at the same time, 1 to 64 [default: processors]
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Tell the progress every second where standard error is no terminal
    #[arg(short = 'P', long)]
    pub progress: bool,
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form of the output
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// Which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The newest.
    Latest,
    /// This one.
    Id(BackupId),
}

impl FromStr for Choice {
    type Err = <BackupId as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "latest" { Ok(Self::Latest) } else { text.parse().map(Self::Id) }
    }
}

/// A share of everything, above 0 and up to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(f64);

impl FromStr for Share {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let percent: Option<f64> = text.strip_suffix('%').unwrap_or(text).trim().parse().ok();
        let percent = percent.filter(|percent| *percent > 0.0 && *percent <= 100.0);
        percent.map(|percent| Self(percent / 100.0)).ok_or("expected more than 0 and at most 100 percent, such as 5%")
    }
}

/// Whether everything that was read is what it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    Sound,
    /// Something is damaged or missing.
    Damaged,
}

/// What was verified, and what was found.
#[derive(Debug, Serialize)]
struct Report {
    verdict: Verdict,
    clusters: Vec<ClusterReport>,
}

/// One cluster's part.
#[derive(Debug, Default, Serialize)]
struct ClusterReport {
    system_identifier: String,
    /// The backups that were verified.
    backups: Vec<BackupId>,
    packs: usize,
    wal_files: usize,
    /// The share of packs and WAL files that was read.
    read_share: f64,
    read_bytes: u64,
    findings: Vec<Finding>,
    /// What is no damage and should be known.
    remarks: Vec<String>,
}

/// Verifies, and prints what was found.
///
/// # Errors
/// `Usage`, `NotFound`, `Refused`, `Unavailable`: then it could not be finished; what was found until then is printed.
pub async fn verify(args: &VerifyArgs, config: &Config, reporter: Reporter) -> Result<Verdict> {
    let requests = Requests::new();
    let mut report = Report { verdict: Verdict::Sound, clusters: Vec::new() };
    let mut result = Ok(());
    for (archive, catalog) in clusters(args, config).await? {
        let mut cluster = ClusterReport::default();
        result = verify_cluster(args, &archive, &catalog, reporter, &requests, &mut cluster).await;
        if !cluster.findings.is_empty() {
            report.verdict = Verdict::Damaged;
        }
        if result.is_ok() || !cluster.findings.is_empty() {
            cluster.note(args, config, &archive);
        }
        report.clusters.push(cluster);
        if result.is_err() {
            break;
        }
    }
    match args.format {
        Format::Json => print_json(&report)?,
        Format::Text => print(&report.clusters.iter().map(|cluster| cluster.to_text(&result)).collect::<String>())?,
    }
    result.map(|()| report.verdict)
}

/// The clusters that are meant: of one backup its own, otherwise all of this name.
async fn clusters(args: &VerifyArgs, config: &Config) -> Result<Vec<(WalArchive, Catalog)>> {
    let mut found = Vec::new();
    for archive in archives(config, args.cluster.identifier()?, PATIENCE).await? {
        let catalog = Catalog::load(&archive).await?;
        found.push((archive, catalog));
    }
    match &args.backup {
        _ if args.all => {}
        Some(Choice::Id(id)) => {
            let knows = |catalog: &Catalog| match catalog.find(id) {
                Err(error) if error.kind() == Kind::NotFound => Some(error),
                _ => None,
            };
            let unknown = found.iter().find_map(|(_, catalog)| knows(catalog));
            found.retain(|(_, catalog)| knows(catalog).is_none());
            if let (true, Some(unknown)) = (found.is_empty(), unknown) {
                return Err(unknown);
            }
        }
        Some(Choice::Latest) | None => {
            let newest = |(_, catalog): &(WalArchive, Catalog)| catalog.backups.last().map(|backup| backup.stop_time);
            let latest = found.iter().filter_map(newest).max();
            if latest.is_none() && !args.wal {
                let message = "there are no base backups that could be verified";
                let hint = "Take one with: basebackup take. With --wal the archived WAL is verified without any.";
                return Err(Error::new(Kind::NotFound, message).hint(hint));
            }
            if latest.is_some() {
                found.retain(|cluster| newest(cluster) == latest);
            }
        }
    }
    Ok(found)
}

async fn verify_cluster(
    args: &VerifyArgs,
    archive: &WalArchive,
    catalog: &Catalog,
    reporter: Reporter,
    requests: &Requests,
    report: &mut ClusterReport,
) -> Result<()> {
    report.system_identifier = archive.layout().system_identifier().to_string();
    report.read_share = args.sample.map_or(1.0, |share| share.0);
    let verification = Verification::new(archive.clone(), args);
    let chosen: Vec<&Backup> = match &args.backup {
        _ if args.all => catalog.backups.iter().collect(),
        Some(Choice::Id(id)) => catalog.backups.iter().filter(|backup| backup.id == *id).collect(),
        Some(Choice::Latest) | None => catalog.backups.last().into_iter().collect(),
    };
    report.backups = chosen.iter().map(|backup| backup.id.clone()).collect();
    report.packs = chosen.iter().map(|backup| backup.packs.len()).sum();
    let is_meant = |id: &BackupId| args.all || matches!(&args.backup, Some(Choice::Id(wanted)) if wanted == id);
    for (id, problem) in &catalog.unusable {
        if is_meant(id) {
            report.findings.push(verification.unusable(id, problem));
        } else {
            report.remarks.push(format!("backup {id} was not verified and cannot be used: {problem}"));
        }
    }
    let altered = chosen.iter().filter(|backup| catalog.altered.contains(&backup.id));
    report.findings.extend(altered.map(|backup| verification.altered(backup)));
    for unfinished in &catalog.unfinished {
        if let Some(finding) = verification.without_record(&unfinished.id).await? {
            report.findings.push(finding);
        } else {
            report.remarks.push(format!("backup {} is not finished: it is being taken, or dead", unfinished.id));
        }
    }

    report.findings.extend(verification.identity().await?);
    let size = match segment_size(archive, catalog).await {
        Ok(Some(size)) => size,
        // There is nothing that could be verified without what was found to be damaged.
        _ if !report.findings.is_empty() => return Ok(()),
        Ok(None) => {
            let message = "there is neither a base backup nor an identity.json that says how long segments are";
            return Err(Error::new(Kind::NotFound, message));
        }
        Err(error) => return Err(error),
    };
    let listed = archive.store().list(&archive.layout().wal_folder()).await?;
    let inventory = archive.inventory(size).await?;
    let mut files = wal::all(&listed);
    if !args.wal {
        files = wal::needed(files, &chosen, &inventory);
    }
    report.wal_files = files.len();

    let sizes = wal::sizes(&listed);
    let of_files: u64 = files.iter().filter_map(|(key, _)| sizes.get(key)).sum();
    let of_backups: u64 = chosen.iter().map(|backup| backup.stored_size).sum();
    let total = share_of(of_files + of_backups, report.read_share);
    let meter = Arc::new(Meter::new("verified", total));
    let verification = Verification { meter: Some(Arc::clone(&meter)), ..verification };
    let verified = tokio::select! {
        verified = verification.run(&chosen, &catalog.backups, &inventory, &files, args.wal, &mut report.findings) => verified,
        never = meter.report(reporter, Pace::of(args.progress), requests) => match never {},
    };
    Meter::clear();
    report.read_bytes = verification.read.load(Ordering::Relaxed);
    report.findings.sort_by(|a, b| a.object.cmp(&b.object));
    report.findings.dedup_by(|a, b| a.object == b.object);
    verified
}

/// What all parts of one verification share.
#[derive(Debug)]
struct Verification {
    archive: WalArchive,
    jobs: usize,
    work: Semaphore,
    share: Option<Share>,
    read: AtomicU64,
    meter: Option<Arc<Meter>>,
}

impl Verification {
    fn new(archive: WalArchive, args: &VerifyArgs) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_JOBS);
        let jobs = args.jobs.map_or(processors, usize::from);
        let work = Semaphore::new(jobs);
        Self { archive, jobs, work, share: args.sample, read: AtomicU64::new(0), meter: None }
    }

    /// Verifies backups and WAL files. What is found is kept whatever fails.
    async fn run(
        &self,
        chosen: &[&Backup],
        backups: &[Backup],
        inventory: &Inventory,
        files: &[(Path, WalObject)],
        everywhere: bool,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let wal = wal::Wal { inventory, backups };
        findings.extend(self.missing(&wal, chosen, everywhere).await?);
        let mut checks = stream::iter(chosen).map(|backup| self.backup(backup)).buffer_unordered(BACKUPS_AT_ONCE);
        while let Some(found) = checks.try_next().await? {
            findings.extend(found);
        }
        findings.extend(self.files(&wal, files).await?);
        Ok(())
    }

    /// Looks at `identity.json`, without which the absence of anything else means nothing.
    async fn identity(&self) -> Result<Option<Finding>> {
        let key = self.archive.layout().identity();
        let problem = match self.archive.identity().await {
            Ok(Some(_)) => {
                let bytes = self.archive.store().read(&key, RECORD_LIMIT).await?.unwrap_or_default();
                (seal::check(&bytes) == Seal::Broken).then(|| ALTERED.to_owned())
            }
            Ok(None) => Some("it is missing".to_owned()),
            Err(error) if matches!(error.kind(), Kind::Refused | Kind::Damaged) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        let object = self.archive.store().url_of(&key);
        Ok(problem.map(|problem| Finding { object, problem, lost: Lost::default() }))
    }

    /// Waits for its turn to read an object.
    async fn work(&self) -> Result<SemaphorePermit<'_>> {
        self.work.acquire().await.map_err(|error| Error::new(Kind::Internal, "no turn came").caused_by(error))
    }

    /// Which of `count` things are read, counted from 1: all, or a share drawn at random, but at least one.
    fn sample(&self, count: usize) -> BTreeSet<usize> {
        let Some(Share(share)) = self.share else { return (1..=count).collect() };
        let mut chosen: BTreeSet<usize> = (1..=count).filter(|_| fastrand::f64() < share).collect();
        if chosen.is_empty() && count > 0 {
            let _ = chosen.insert(fastrand::usize(1..=count));
        }
        chosen
    }

    fn note_read(&self, count: u64) {
        let _ = self.read.fetch_add(count, Ordering::Relaxed);
        if let Some(meter) = &self.meter {
            meter.add(count);
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "progress is an estimate"
)]
fn share_of(total: u64, share: f64) -> u64 {
    (total as f64 * share) as u64
}

impl ClusterReport {
    /// Has this host remember it. Root leaves nothing behind that others could not replace.
    fn note(&self, args: &VerifyArgs, config: &Config, archive: &WalArchive) {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let verified = Verified {
            finished: Timestamp::now(),
            verdict: if self.findings.is_empty() { Verdict::Sound } else { Verdict::Damaged },
            findings: self.findings.len(),
            backups: self.backups.clone(),
            all_wal: args.wal,
            read_share: self.read_share,
        };
        verified.note(&HostMemory::open(config), archive);
    }

    fn to_text(&self, result: &Result<()>) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let _ = writeln!(text, "damaged: {}", finding.to_text());
        }
        for remark in &self.remarks {
            let _ = writeln!(text, "note: {remark}");
        }
        let plural = |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        let verdict = match (self.findings.len(), result) {
            (_, Err(_)) => "could not be finished".to_owned(),
            (0, Ok(())) => "sound".to_owned(),
            (count, Ok(())) => format!("{} DAMAGED", plural(count, "object", "objects")),
        };
        let share =
            if self.read_share < 1.0 { format!(", a sample of {} %", self.read_share * 100.0) } else { String::new() };
        let _ = writeln!(
            text,
            "cluster {}: {} with {}, {}{share}, {} read: {verdict}",
            self.system_identifier,
            plural(self.backups.len(), "backup", "backups"),
            plural(self.packs, "pack", "packs"),
            plural(self.wal_files, "WAL file", "WAL files"),
            bytes(self.read_bytes),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percent() {
        assert_eq!("5%".parse(), Ok(Share(0.05)));
        assert_eq!("100".parse(), Ok(Share(1.0)));
        assert_eq!("0.5 %".parse(), Ok(Share(0.005)));
        for text in ["0", "101%", "-1", "x", "", "NaN"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }
}
