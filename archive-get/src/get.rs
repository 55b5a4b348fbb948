//! Fetching one file.

use std::path::Path;
use std::time::{Duration, Instant};

use walkeep_common::cli::bounded::bounded;
use walkeep_common::config::{Config, StandbyOutage};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::postgres::control;
use walkeep_common::retry::Patience;
use walkeep_common::store::Store;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::SegmentName;
use walkeep_common::wal_archive::{WalArchive, system_identifiers};

use crate::ahead::ReadAhead;
use crate::destination::Destination;
use crate::exit;
use archive_get::args::Args;

/// What the host remembers a repository under that a standby had no answer from.
const OUTAGE_FACT: &str = "no-answer";
/// How long that is remembered.
const OUTAGE_MEMORY: Duration = Duration::from_secs(60);
/// How long to wait for a first answer then.
const IMPATIENT: Duration = Duration::from_secs(3);

/// Puts the file `args` name at the path they name.
///
/// # Errors
/// See the exit codes: every kind has one. Nothing is left at the path then.
pub(crate) fn get(args: &Args, config: Config) -> Result<()> {
    let name: WalFileName = args.name.parse().map_err(|error| {
        Error::new(Kind::Usage, "will not fetch this file")
            .caused_by(error)
            .hint("PostgreSQL gives the name first: restore_command = 'archive-get %f %p'.")
    })?;
    if let Some(last) = args.last_segment
        && name.segment().is_some_and(|segment| is_beyond(segment, last))
    {
        return Err(Error::new(Kind::NotFound, format!("\"{name}\" lies beyond the last segment to recover")));
    }
    let timeout = config.timeout;
    let now = Instant::now();
    let ahead = ReadAhead::find(args, &config, name);
    if let Some(ahead) = &ahead
        && ahead.serve(&args.path, now + timeout)
    {
        ahead.go_on();
        return Ok(());
    }
    let deadline = now + timeout;
    let (given, path) = (args.system_identifier, args.path.clone());
    let outage = Outage::find(args, &config);
    let first_answer = outage.as_ref().filter(|outage| outage.is_recent()).map(|_| IMPATIENT.min(timeout));
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::new(Kind::Unavailable, "could not start the runtime").caused_by(error))?;
        let patience = Patience::Until(deadline.checked_sub(Duration::from_millis(500)).unwrap_or(deadline));
        let result = runtime.block_on(fetch(name, &path, &config, given, patience, first_answer));
        // A request that hangs must not keep the process.
        runtime.shutdown_background();
        result
    };
    let result = bounded(work, |_| {
        (Instant::now() >= deadline)
            .then(|| Error::new(Kind::Unavailable, format!("gave up on \"{name}\" after {} s", timeout.as_secs())))
    });
    if let Some(outage) = outage {
        outage.note(&result);
    }
    result?;
    if let Some(ahead) = &ahead {
        ahead.go_on();
    }
    Ok(())
}

async fn fetch(
    name: WalFileName,
    path: &Path,
    config: &Config,
    given: Option<u64>,
    patience: Patience,
    first_answer: Option<Duration>,
) -> Result<()> {
    let control = if given.is_some() { None } else { control::of_wal_file(path)? };
    let system_identifier = match given.or_else(|| control.map(|control| control.system_identifier)) {
        Some(known) => known,
        None => only_cluster(config, patience).await?,
    };
    let archive = WalArchive::open(config, system_identifier, HostMemory::none(), patience)?;
    if let Some(limit) = first_answer {
        let _ = archive.with_patience(Patience::For(limit)).identity().await?;
    }
    loop {
        if let Some(fetched) = archive.fetch(name, || Destination::create(path)).await? {
            return fetched.file.publish();
        }
        // Returns only if the file appeared while it was looked for.
        archive.explain_missing(name).await?;
    }
}

/// A standby's memory of a repository that did not answer. It has its primary to turn to, and asks again every few
/// seconds: nothing is won by waiting each time as long as for the first.
struct Outage {
    memory: HostMemory,
    url: String,
}

impl Outage {
    /// Nothing unless a standby asks that lives on without the repository.
    fn find(args: &Args, config: &Config) -> Option<Self> {
        let is_standby = exit::signal(Path::new(".")) == Some(exit::Signal::Standby);
        let lives_on = is_standby && config.standby_outage == StandbyOutage::Retry;
        (lives_on && !exit::is_by_hand(&args.name, &args.path))
            .then(|| Self { memory: HostMemory::open(config), url: config.repository.to_string() })
    }

    fn is_recent(&self) -> bool {
        self.memory.age(OUTAGE_FACT, &self.url).is_some_and(|age| age < OUTAGE_MEMORY)
    }

    fn note(&self, result: &Result<()>) {
        match result {
            Err(error) if error.kind() == Kind::Unavailable => self.memory.note(OUTAGE_FACT, &self.url, ""),
            _ => self.memory.forget(OUTAGE_FACT, &self.url),
        }
    }
}

/// Whether recovery that ends with `last` must not see this segment. Newer timelines fork off later.
pub(crate) fn is_beyond(segment: SegmentName, last: SegmentName) -> bool {
    (segment.id, segment.part) > (last.id, last.part) || segment.timeline > last.timeline
}

async fn only_cluster(config: &Config, patience: Patience) -> Result<u64> {
    let store = Store::open(config, patience)?;
    let place = format!("\"{}/{}\"", store.location(), config.cluster);
    match system_identifiers(&store, &config.cluster).await?.as_slice() {
        [only] => Ok(*only),
        [] => Err(Error::new(Kind::Refused, format!("nothing is archived in {place}"))
            .hint("Check \"repository\" and \"cluster\": this looks like the wrong place.")),
        several => Err(Error::new(
            Kind::Usage,
            format!("{place} holds the WAL of {} clusters, and global/pg_control cannot be read here", several.len()),
        )
        .hint(format!(
            "Run it in the data directory, or say --system-identifier with one of: {}.",
            several.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}
