//! The process in the background: fetches what recovery will ask for next, and leaves when recovery does.
//!
//! It holds no state that matters. Killed at any time it costs a download; nobody hears of its failures, because whoever
//! needs the segment fetches it again and says what is wrong. So it always exits 0.

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use walkeep_common::cli::background::detach;
use walkeep_common::cli::bounded::bounded;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::retry::Patience;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize};
use walkeep_common::wal_archive::WalArchive;

use super::mailbox::Mailbox;
use super::server::{Server, histories};
use super::spool::Spool;
use super::{ReadAhead, predict};
use crate::args::Args;
use crate::get::is_beyond;

/// Segments fetched at once. Each takes a zstd window and a few buffers, some 20 MiB in all.
const CONCURRENT: usize = 4;
/// How long one segment may take, over a slow link or from a store that fails now and then.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How often it is looked whether the server still recovers.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long it stays at least when segments lie ready: replaying one large segment may take minutes, and fetching the others again
/// for each would be worse than keeping them.
const LINGER_WITH_SEGMENTS: Duration = Duration::from_secs(10 * 60);

/// Starts a worker that goes on from the segment this call served. It knows all that this call knows: the same arguments,
/// environment and working directory.
pub(super) fn start(directory: &Path) {
    let started = env::current_exe().and_then(|program| {
        let mut worker = Command::new(program);
        worker.arg("--read-ahead").arg(directory).args(env::args_os().skip(1));
        worker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    });
    if let Err(error) = started {
        tracing::debug!(%error, "could not start a process to read ahead");
    }
}

/// Is the worker, until it is no longer needed.
pub(crate) fn run(args: &Args) {
    if detach().is_err() {
        return;
    }
    let args = args.clone();
    // A panic is as silent as any other failure.
    let _ = bounded(move || work(&args), |_| None);
}

fn work(args: &Args) -> Result<()> {
    let config = args.common.resolve()?;
    let name: WalFileName =
        args.name.parse().map_err(|error| Error::new(Kind::Usage, "no segment").caused_by(error))?;
    let Some(ahead) = ReadAhead::find(args, &config, name) else { return Ok(()) };
    let Ok(spool) = ahead.spool else { return Ok(()) };
    let unavailable = |error| Error::new(Kind::Unavailable, "could not read ahead").caused_by(error);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(CONCURRENT).enable_all().build();
    let runtime = runtime.map_err(unavailable)?;
    runtime.block_on(async {
        let Some(mut mailbox) = Mailbox::open(&spool).map_err(unavailable)? else { return Ok(()) };
        // From here on the spool is this worker's, with whatever a killed one left.
        spool.keep_only(&[]);
        spool.remove_abandoned();
        let archive = WalArchive::open(&config, ahead.system_identifier, ahead.memory, Patience::For(PATIENCE));
        if let Ok(archive) = archive {
            let reader = Reader::new(spool.clone(), ahead.server, archive, ahead.segment_size);
            reader.run(&mut mailbox, ahead.segment, &config, args.last_segment).await;
        }
        // Where the pipe was taken away, another worker may have begun.
        if mailbox.is_in(&spool) {
            spool.remove();
        }
        Ok(())
    })?;
    // A request that hangs must not keep the process.
    runtime.shutdown_background();
    Ok(())
}

/// How fetching a segment ended.
enum Outcome {
    Ready,
    /// Not there, or the store failed: worth a try when the next segment was served.
    NotYet,
    /// Damaged or refused.
    Never,
}

/// Fetches what comes next.
struct Reader {
    spool: Spool,
    server: Server,
    archive: WalArchive,
    segment_size: SegmentSize,
    plan: Vec<SegmentName>,
    fetches: JoinSet<(SegmentName, Outcome)>,
    running: HashMap<SegmentName, AbortHandle>,
    ready: BTreeSet<SegmentName>,
    not_yet: BTreeSet<SegmentName>,
    never: BTreeSet<SegmentName>,
}

impl Reader {
    fn new(spool: Spool, server: Server, archive: WalArchive, segment_size: SegmentSize) -> Self {
        Self {
            spool,
            server,
            archive,
            segment_size,
            plan: Vec::new(),
            fetches: JoinSet::new(),
            running: HashMap::new(),
            ready: BTreeSet::new(),
            not_yet: BTreeSet::new(),
            never: BTreeSet::new(),
        }
    }

    /// Goes on until it is not needed any more.
    async fn run(mut self, mailbox: &mut Mailbox, served: SegmentName, config: &Config, last: Option<SegmentName>) {
        let mut look = tokio::time::interval(LOOK_AGAIN);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        self.follow(served, config.prefetch, last);
        loop {
            self.fill();
            tokio::select! {
                message = mailbox.next(&self.spool) => match message {
                    Ok(Some(served)) => {
                        heard = Instant::now();
                        self.follow(served, config.prefetch, last);
                    }
                    Ok(None) | Err(_) => break,
                },
                Some(ended) = self.fetches.join_next() => self.note(ended),
                _ = look.tick() => {
                    let has_none = self.ready.is_empty() && self.running.is_empty();
                    let linger = if has_none { config.linger } else { config.linger.max(LINGER_WITH_SEGMENTS) };
                    if heard.elapsed() > linger || !self.server.still_recovers() || !mailbox.is_in(&self.spool) {
                        break;
                    }
                }
            }
        }
        self.fetches.shutdown().await;
    }

    /// Plans what comes after a served segment, and drops what does not.
    fn follow(&mut self, served: SegmentName, count: u32, last: Option<SegmentName>) {
        self.plan = predict::next(served, self.segment_size, &histories(), count);
        self.plan.retain(|name| last.is_none_or(|last| !is_beyond(*name, last)));
        let plan = &self.plan;
        self.running.iter().filter(|(name, _)| !plan.contains(name)).for_each(|(_, fetch)| fetch.abort());
        self.ready.retain(|name| plan.contains(name));
        self.not_yet.clear();
        self.spool.keep_only(plan);
    }

    /// Starts as many fetches as may run, in the order in which recovery will ask, up to the first that is in vain.
    fn fill(&mut self) {
        for &name in &self.plan {
            if self.not_yet.contains(&name) || self.never.contains(&name) || self.running.len() >= CONCURRENT {
                return;
            }
            if self.ready.contains(&name) || self.running.contains_key(&name) {
                continue;
            }
            if !self.spool.has_room(self.running.len() as u64 + 1, self.segment_size) {
                return;
            }
            let fetch = self.fetches.spawn(fetch(self.archive.clone(), self.spool.clone(), name));
            let _ = self.running.insert(name, fetch);
        }
    }

    fn note(&mut self, ended: std::result::Result<(SegmentName, Outcome), JoinError>) {
        let (name, outcome) = match ended {
            Ok(ended) => ended,
            // Only now may the same segment be fetched again: two at once would write to one file.
            Err(aborted) => return self.running.retain(|_, fetch| fetch.id() != aborted.id()),
        };
        let _ = self.running.remove(&name);
        if self.plan.contains(&name) {
            let _ = match outcome {
                Outcome::Ready => self.ready.insert(name),
                Outcome::NotYet => self.not_yet.insert(name),
                Outcome::Never => self.never.insert(name),
            };
        }
    }
}

async fn fetch(archive: WalArchive, spool: Spool, name: SegmentName) -> (SegmentName, Outcome) {
    let fetched = archive.fetch(WalFileName::Segment(name), || spool.begin(name)).await;
    let finished = fetched.and_then(|fetched| fetched.map(|fetched| fetched.file.finish()).transpose());
    let outcome = match finished {
        Ok(Some(())) => Outcome::Ready,
        Ok(None) => Outcome::NotYet,
        Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Missing | Kind::NotFound | Kind::Internal) => {
            Outcome::NotYet
        }
        Err(_) => Outcome::Never,
    };
    (name, outcome)
}
