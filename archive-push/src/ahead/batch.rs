//! Where no process may stay in the background: one call pushes what comes next as well, in parallel, and the calls for
//! those files only look whether the archive holds them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use walkeep_common::cli::bounded::caught;
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

/// How pushing one file ended.
type Ended = (WalFileName, Result<()>);

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
    let pusher = Pusher::new(config, source.system_identifier, memory.clone())?;
    let asked = source.name;
    let subject = data.path().to_string_lossy();
    let last = memory.recall(BATCH_FACT, &subject).unwrap_or_default();
    if last.lines().any(|line| line == asked.to_string()) && pusher.holds(&source)? {
        return Ok(());
    }
    let names = followers(data, asked, ROUNDS * pusher.threads());
    let level = config.compression_level.level_with_backlog(names.len());
    let batch = Arc::new(Batch { pusher, data: data.clone(), names, next: AtomicUsize::new(0), level });
    let (stored, result) = wait(&batch.begin(source, path)?, asked, deadline);
    memory.note(BATCH_FACT, &subject, &stored.join("\n"));
    result
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

/// Waits for the file that was asked for, and a little longer for the others. Returns the names of what was stored.
fn wait(ended: &Receiver<Ended>, asked: WalFileName, deadline: Instant) -> (Vec<String>, Result<()>) {
    let mut stored = Vec::new();
    let mut until = deadline;
    let mut result = Err(Error::new(Kind::Unavailable, "the upload did not end in time"));
    while let Ok((name, pushed)) = ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if pushed.is_ok() {
            stored.push(name.to_string());
        }
        if name == asked {
            if pushed.is_err() {
                return (stored, pushed);
            }
            result = pushed;
            until = until.min(Instant::now() + GRACE);
        }
    }
    (stored, result)
}

/// The files that are pushed along with the one that was asked for.
struct Batch {
    pusher: Pusher,
    data: DataDirectory,
    names: Vec<WalFileName>,
    next: AtomicUsize,
    level: i32,
}

impl Batch {
    /// Starts to push `source`, on a thread of its own, and the others.
    fn begin(self: Arc<Self>, source: Source, path: PathBuf) -> Result<Receiver<Ended>> {
        let unavailable = |error| Error::new(Kind::Unavailable, "could not start a thread").caused_by(error);
        let (sender, ended) = channel();
        let (batch, first) = (Arc::clone(&self), sender.clone());
        let push_first = move || {
            let pushed = caught(|| batch.pusher.push(&path, &source, batch.level));
            // Nobody is left to tell if the call has given up.
            let _ = first.send((source.name, pushed));
        };
        let _ = thread::Builder::new().spawn(push_first).map_err(unavailable)?;
        for _ in 1..self.pusher.threads().min(self.names.len() + 1) {
            let (batch, sender) = (Arc::clone(&self), sender.clone());
            if thread::Builder::new().spawn(move || batch.push_others(&sender)).is_err() {
                break;
            }
        }
        Ok(ended)
    }

    /// Pushes one after the other, and begins nothing beyond a failure.
    fn push_others(&self, ended: &Sender<Ended>) {
        while let Some(&name) = self.names.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let path = self.data.wal(name);
            let push = || Source::open(&path).and_then(|source| self.pusher.push(&path, &source, self.level));
            let pushed = caught(push);
            if pushed.is_err() {
                self.next.store(self.names.len(), Ordering::Relaxed);
            }
            let _ = ended.send((name, pushed));
        }
    }
}
