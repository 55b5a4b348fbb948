//! Archiving one file.

use std::path::Path;

use std::time::{Duration, Instant};

use walkeep_common::cli::bounded::bounded;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host_memory::HostMemory;
use walkeep_common::retry::Patience;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::WalArchive;

use crate::backfill;
use crate::limits::{Limits, OUTAGE_MEMORY};
use crate::source::Source;

/// What the host remembers a failing store under.
const OUTAGE_FACT: &str = "outage";
/// What the host remembers having seen a timeline's history in the archive under.
const HISTORY_FACT: &str = "history";
/// How long it relies on that.
const HISTORY_MEMORY: Duration = Duration::from_secs(60 * 60);

/// Archives the file at `path`.
///
/// # Errors
/// See the exit codes: every kind has one.
pub(crate) fn push(path: &Path, config: Config) -> Result<()> {
    let mut limits = Limits::new(config.timeout);
    let memory = HostMemory::open(&config);
    if let Some(problem) = memory.problem() {
        tracing::warn!("{problem}; every push looks before it stores");
    }
    let url = config.repository.to_string();
    let impatient =
        Limits::server_is_stopping() || memory.age(OUTAGE_FACT, &url).is_some_and(|age| age < OUTAGE_MEMORY);

    let path = path.to_owned();
    let deadline = Instant::now() + config.timeout;
    let archiving = memory.clone();
    let work = move || archive(&path, &config, &archiving, deadline, impatient.then(|| limits.first_answer()));
    let result = bounded(work, |passed| limits.exceeded(passed));
    match &result {
        Err(error) if error.kind() == Kind::Unavailable => memory.note(OUTAGE_FACT, &url, ""),
        Ok(()) if memory.recall(OUTAGE_FACT, &url).is_some() => memory.forget(OUTAGE_FACT, &url),
        _ => {}
    }
    result
}

fn archive(
    path: &Path,
    config: &Config,
    memory: &HostMemory,
    deadline: Instant,
    first_answer: Option<Duration>,
) -> Result<()> {
    // Everything that needs no store comes first: a wrong file is refused whatever the store does.
    let source = Source::open(path).map_err(with_way_out)?;
    let archive =
        WalArchive::open(config, source.system_identifier, memory.clone(), Patience::Until(margin(deadline)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Unavailable, "could not start the runtime").caused_by(error))?;
    let result = runtime.block_on(async {
        if let Some(limit) = first_answer {
            let hasty = archive.with_patience(Patience::Until(Instant::now() + limit));
            let _ = hasty.identity().await?;
        }
        let level = config.compression_level.level();
        let encoded = source.encode(level)?;
        archive.prepare_to_write(source.segment_size, source.pg_major).await?;
        complete_the_past(&source, path, &archive, memory, level).await?;
        archive.keep(source.name, &encoded, &source.left_timelines()).await
    });
    // A request that hangs must not keep the process.
    runtime.shutdown_background();
    result.map(drop)
}

/// Before a new timeline's history comes what the archive lacks of its past; before a segment of a later timeline its
/// history.
async fn complete_the_past(
    source: &Source,
    path: &Path,
    archive: &WalArchive,
    memory: &HostMemory,
    level: i32,
) -> Result<()> {
    match source.name {
        WalFileName::History(timeline) => {
            let Some(size) = source.segment_size else { return Ok(()) };
            let history = backfill::read_history(path, timeline)?;
            backfill::backfill(archive, source.directory(), &history, size, level).await
        }
        WalFileName::Segment(segment) if segment.timeline > Timeline(1) => {
            let subject = format!("{} {}", archive.store().place(), archive.layout().folder());
            let fact = format!("{HISTORY_FACT}-{}", segment.timeline);
            if memory.age(&fact, &subject).is_some_and(|age| age < HISTORY_MEMORY) {
                return Ok(());
            }
            backfill::push_history(archive, source.directory(), segment.timeline, level).await?;
            memory.note(&fact, &subject, "");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The attempts end a moment before the caller does, so that the reason can still be told.
fn margin(deadline: Instant) -> Instant {
    deadline.checked_sub(Duration::from_millis(500)).unwrap_or(deadline)
}

/// PostgreSQL offers a file again and again, and archives no other before it.
fn with_way_out(error: Error) -> Error {
    if error.kind() != Kind::Invalid || error.hint_text().is_some() {
        return error;
    }
    error.hint(
        "No later file is archived before this one. A sound copy may be in pg_wal of a standby. If there is none, move \
         the file away together with its .ready file, and take a base backup: nothing can be recovered across it.",
    )
}
