//! Archiving one file.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use walkeep_common::cli::bounded::bounded;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::retry::Patience;
use walkeep_common::store::{Health, Store};
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::source::Source;

use crate::ahead::{Ahead, Asked};
use crate::limits::Limits;
use crate::store;

/// Archives the file at `path`: asks the worker that pushes ahead, or does it itself.
///
/// # Errors
/// See the exit codes: every kind has one.
pub(crate) fn push(path: &Path, config: &Config) -> Result<()> {
    let memory = HostMemory::open(config);
    if let Some(problem) = memory.problem() {
        tracing::warn!("{problem}; every push looks before it stores");
    }
    let mut limits = Limits::new(config, &memory);
    // Everything that needs no store comes first: a wrong file is refused whatever the store does.
    let source = Source::open(path).map_err(with_way_out)?;

    let ahead = Ahead::find(path, source.name, config);
    let asked = ahead.as_ref().map_or(Asked::Nobody, |ahead| ahead.ask(&source, &mut limits));
    let may_start = matches!(asked, Asked::Nobody);
    let result = match asked {
        Asked::Told(result) => result,
        Asked::SentAway | Asked::Nobody => push_alone(path, source, config, &memory, &mut limits, ahead.as_ref()),
    };
    limits.remember(&result, config, &memory);
    if let Some(ahead) = ahead.filter(|_| may_start) {
        ahead.start_if_useful(&result, &limits);
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
    let (first_answer_by, deadline) = (limits.first_answer_by(), limits.deadline());
    // Later calls could not know what a batch has stored without a memory.
    let may_batch = first_answer_by.is_none() && memory.is_usable();
    let batch = ahead.filter(|_| may_batch).and_then(Ahead::batch);
    let store = Arc::new(OnceLock::new());
    let opened = Arc::clone(&store);
    let work = move || match batch {
        Some(data) => crate::ahead::batch::push(&data, &source, &path, &config, &memory, deadline, &opened),
        None => archive(&path, &source, &config, &memory, (deadline, first_answer_by), &opened),
    };
    // Even to open a store may hang, in a dead mount.
    let known = || {
        let health = store.get().map(Store::health);
        (health.and_then(Health::last_answer).is_some(), health.and_then(Health::trouble))
    };
    let result = bounded(work, |_| {
        let (answers, trouble) = known();
        limits.exceeded(answers, trouble.as_deref())
    });
    let (answers, trouble) = known();
    limits.see(answers, trouble.as_deref());
    result
}

/// Archives the file in a store that others may look at as soon as it is open.
fn archive(
    path: &Path,
    source: &Source,
    config: &Config,
    memory: &HostMemory,
    (deadline, first_answer_by): (Instant, Option<Instant>),
    opened: &OnceLock<Store>,
) -> Result<()> {
    let archive = WalArchive::open(config, source.system_identifier, memory.clone(), Patience::Until(deadline))?;
    let _ = opened.set(archive.store().clone());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Unavailable, "could not start the runtime").caused_by(error))?;
    let result = runtime.block_on(async {
        if let Some(limit) = first_answer_by {
            let hasty = archive.with_patience(Patience::Until(limit));
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
        "PostgreSQL archives no later file before this one. A sound copy may be in pg_wal of a standby. If there is \
         none, move the file away together with its .ready file, and take a base backup: nothing can be recovered \
         across it.",
    )
}
