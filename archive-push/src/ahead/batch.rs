//! Where no process may stay in the background: one call pushes what comes next as well, in parallel, and the calls for
//! those files only look whether the archive holds them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host_memory::HostMemory;
use walkeep_common::wal::name::WalFileName;

use super::data_directory::DataDirectory;
use super::pusher::Pusher;
use crate::source::Source;

/// What the host remembers the last batch under. Only a hint where a look is worth it: the archive is what decides.
const BATCH_FACT: &str = "push-batch";
/// How many rounds of parallel pushes make a batch.
const ROUNDS: usize = 4;
/// How long the others may take after the file that was asked for: it is PostgreSQL that waits.
const GRACE: Duration = Duration::from_secs(5);

/// Pushes `source`, and with it some of the files that wait behind it. Whatever happens to those is not this call's to
/// tell.
///
/// # Errors
/// As those of pushing one file.
pub(crate) fn push(
    data: &DataDirectory,
    source: Source,
    path: PathBuf,
    config: &Config,
    memory: &HostMemory,
    deadline: Instant,
) -> Result<()> {
    let pusher = Arc::new(Pusher::new(config, source.system_identifier, memory.clone())?);
    let subject = data.path().to_string_lossy().into_owned();
    let last = memory.recall(BATCH_FACT, &subject).unwrap_or_default();
    let asked = source.name;
    if last.lines().any(|line| line == asked.to_string()) && pusher.holds(&source)? {
        return Ok(());
    }
    let is_history = matches!(asked, WalFileName::History(_));
    let others = data.waiting().into_iter().filter(|name| *name != asked && !is_history);
    // A history goes alone, before whatever knows of it.
    let others = others.take_while(|name| !matches!(name, WalFileName::History(_)));
    let names: Vec<WalFileName> = others.take(ROUNDS * pusher.threads()).collect();
    let level = config.compression_level.level_with_backlog(names.len());

    let (sender, ended) = channel();
    let next = Arc::new(AtomicUsize::new(0));
    let names = Arc::new(names);
    let first = Arc::clone(&pusher);
    let asked_sender = sender.clone();
    let unavailable = |error| Error::new(Kind::Unavailable, "could not start a thread").caused_by(error);
    let _ = thread::Builder::new()
        .spawn(move || asked_sender.send((asked, first.push(&path, &source, level))))
        .map_err(unavailable)?;
    for _ in 1..pusher.threads() {
        let (pusher, next, names, sender) =
            (Arc::clone(&pusher), Arc::clone(&next), Arc::clone(&names), sender.clone());
        let data = data.clone();
        let _ = thread::Builder::new()
            .spawn(move || {
                while let Some(&name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = data.wal(name);
                    let pushed = Source::open(&path).and_then(|source| pusher.push(&path, &source, level));
                    let failed = pushed.is_err();
                    let _ = sender.send((name, pushed));
                    if failed {
                        // Nothing is begun beyond a failure.
                        next.store(names.len(), Ordering::Relaxed);
                    }
                }
            })
            .map_err(unavailable)?;
    }
    drop(sender);
    let mut stored = Vec::new();
    let mut asked_ended = false;
    let mut until = deadline;
    loop {
        match ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((name, Ok(()))) => stored.push(name.to_string()),
            Ok((name, Err(error))) if name == asked => return Err(error),
            Ok((_, Err(_))) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
        if !asked_ended && stored.contains(&asked.to_string()) {
            asked_ended = true;
            until = until.min(Instant::now() + GRACE);
        }
    }
    memory.note(BATCH_FACT, &subject, &stored.join("\n"));
    if asked_ended { Ok(()) } else { Err(Error::new(Kind::Unavailable, "the upload did not end in time")) }
}
