//! Where no process may stay in the background: one call pushes what comes next as well, in parallel, and the calls for
//! those files only look whether the archive holds them.
//!
//! The file that was asked for comes first and alone: on a slow link the others would take its share, and then none of
//! them would be stored in the time a call has.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use walkeep_common::cli::bounded::caught;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::retry::Patience;
use walkeep_common::store::Store;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::source::Source;

use super::data_directory::DataDirectory;
use super::pusher::Pusher;

/// What the host remembers the last batch under. Only a hint where a look is worth it: the archive is what decides.
const BATCH_FACT: &str = "push-batch";
/// How many rounds of parallel pushes make a batch.
const ROUNDS: usize = 4;
/// How long the others may take after the file that was asked for: it is PostgreSQL that waits.
const GRACE: Duration = Duration::from_secs(5);

/// A file that took longer leaves the others no time to be stored in.
const QUICK: Duration = Duration::from_secs(2);

/// How pushing one file ended.
type Ended = (WalFileName, Result<()>);

/// Pushes `source`, and after it some of the files that wait behind it. Whatever happens to those is not this call's to
/// tell.
///
/// # Errors
/// As those of pushing one file.
pub(crate) fn push(
    data: &DataDirectory,
    source: &Source,
    path: &Path,
    config: &Config,
    memory: &HostMemory,
    deadline: Instant,
    opened: &OnceLock<Store>,
) -> Result<()> {
    let pusher = Pusher::new(config, source.system_identifier, memory.clone())?;
    let _ = opened.set(pusher.store().clone());
    let asked = source.name;
    let subject = data.path().to_string_lossy();
    let last = memory.recall(BATCH_FACT, &subject).unwrap_or_default();
    if last.lines().any(|line| line == asked.to_string()) && pusher.holds(source)? {
        return Ok(());
    }
    let names = followers(data, asked, ROUNDS * pusher.threads());
    let level = config.compression_level.level_with_backlog(names.len());
    let begun = Instant::now();
    pusher.push_within(Patience::Until(deadline), path, source, level)?;
    if begun.elapsed() > QUICK || names.is_empty() {
        return Ok(());
    }
    let (data, system_identifier) = (data.clone(), source.system_identifier);
    let batch = Arc::new(Batch { pusher, data, system_identifier, names, next: AtomicUsize::new(0), level });
    let stored = wait(&batch.begin(), deadline.min(Instant::now() + GRACE));
    memory.note(BATCH_FACT, &subject, &stored.join("\n"));
    Ok(())
}

/// What waits behind a file. A history goes alone, before whatever knows of it.
fn followers(data: &DataDirectory, asked: WalFileName, most: usize) -> Vec<WalFileName> {
    let is_history = |name: &WalFileName| matches!(name, WalFileName::History(_));
    if is_history(&asked) {
        return Vec::new();
    }
    let others = data.waiting().into_iter().filter(|name| *name != asked);
    others.take_while(|name| !is_history(name)).take(most).collect()
}

/// Waits for all of them, but no longer than `until`. Returns the names of what was stored.
fn wait(ended: &Receiver<Ended>, until: Instant) -> Vec<String> {
    let mut stored = Vec::new();
    while let Ok((name, pushed)) = ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if pushed.is_ok() {
            stored.push(name.to_string());
        }
    }
    stored
}

/// The files that are pushed behind the one that was asked for.
struct Batch {
    pusher: Pusher,
    data: DataDirectory,
    system_identifier: u64,
    names: Vec<WalFileName>,
    next: AtomicUsize,
    level: i32,
}

impl Batch {
    /// Starts to push them.
    fn begin(self: Arc<Self>) -> Receiver<Ended> {
        let (sender, ended) = channel();
        for _ in 0..self.pusher.threads().min(self.names.len()) {
            let (batch, sender) = (Arc::clone(&self), sender.clone());
            if thread::Builder::new().spawn(move || batch.push_in_turn(&sender)).is_err() {
                break;
            }
        }
        ended
    }

    /// Pushes one after the other, and begins nothing beyond a failure.
    fn push_in_turn(&self, ended: &Sender<Ended>) {
        while let Some(&name) = self.names.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let pushed = caught(|| self.push(name));
            if pushed.is_err() {
                self.next.store(self.names.len(), Ordering::Relaxed);
            }
            // Nobody is left to tell if the call has ended.
            let _ = ended.send((name, pushed));
        }
    }

    fn push(&self, name: WalFileName) -> Result<()> {
        let path = self.data.wal(name);
        let source = Source::open(&path)?;
        if source.system_identifier != self.system_identifier {
            return Err(Error::new(Kind::Invalid, format!("WAL file \"{name}\" belongs to another cluster")));
        }
        self.pusher.push(&path, &source, self.level)
    }
}
