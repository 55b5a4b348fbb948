//! Archiving one file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walkeep_common::cli::bounded::bounded;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host_memory::HostMemory;
use walkeep_common::retry::Patience;
use walkeep_common::wal_archive::WalArchive;

use crate::ahead::Ahead;
use crate::limits::{Limits, OUTAGE_MEMORY};
use crate::source::Source;
use crate::store;

/// What the host remembers a failing store under.
const OUTAGE_FACT: &str = "outage";

/// Archives the file at `path`: asks the worker that pushes ahead, or does it itself.
///
/// # Errors
/// See the exit codes: every kind has one.
pub(crate) fn push(path: &Path, config: &Config) -> Result<()> {
    let memory = HostMemory::open(config);
    if let Some(problem) = memory.problem() {
        tracing::warn!("{problem}; every push looks before it stores");
    }
    let url = config.repository.to_string();
    let store_failed = memory.age(OUTAGE_FACT, &url).is_some_and(|age| age < OUTAGE_MEMORY);
    let mut limits = Limits::new(config.timeout, store_failed);
    // Everything that needs no store comes first: a wrong file is refused whatever the store does.
    let source = Source::open(path).map_err(with_way_out)?;

    let ahead = Ahead::find(path, source.name, config);
    let answer = ahead.as_ref().and_then(|ahead| ahead.ask(&source, &mut limits));
    let (result, is_own) = match answer {
        Some(result) => (result, false),
        None => (push_alone(path, source, config, &memory, &mut limits, ahead.as_ref()), true),
    };
    match &result {
        Err(error) if error.kind() == Kind::Unavailable => memory.note(OUTAGE_FACT, &url, ""),
        Ok(()) if store_failed => memory.forget(OUTAGE_FACT, &url),
        _ => {}
    }
    if let Some(ahead) = ahead.filter(|_| is_own) {
        ahead.start_if_useful(&result, &limits, &memory);
    }
    result
}

/// Archives the file without any help from other processes.
fn push_alone(
    path: &Path,
    source: Source,
    config: &Config,
    memory: &HostMemory,
    limits: &mut Limits,
    ahead: Option<&Ahead<'_>>,
) -> Result<()> {
    let (path, config, memory): (PathBuf, _, _) = (path.to_owned(), config.clone(), memory.clone());
    let first_answer = limits.first_answer();
    let deadline = limits.deadline();
    let batch = ahead.filter(|_| first_answer.is_none()).and_then(Ahead::batch);
    let work = move || match batch {
        Some(data) => crate::ahead::batch::push(&data, source, path, &config, &memory, deadline),
        None => archive(&path, &source, &config, &memory, deadline, first_answer),
    };
    bounded(work, |_| limits.exceeded())
}

fn archive(
    path: &Path,
    source: &Source,
    config: &Config,
    memory: &HostMemory,
    deadline: Instant,
    first_answer: Option<Duration>,
) -> Result<()> {
    let archive = WalArchive::open(config, source.system_identifier, memory.clone(), Patience::Until(deadline))?;
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
        store::store(source, path, &encoded, &archive, memory, level).await
    });
    // A request that hangs must not keep the process.
    runtime.shutdown_background();
    result.map(drop)
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
