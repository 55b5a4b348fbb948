//! The process in the background: fetches what recovery will ask for next, and leaves when recovery does.
//!
//! It holds no state that matters. Killed at any time it costs a download; nobody hears of its failures, because whoever
//! needs the segment fetches it again and says what is wrong. So it always exits 0.

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
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

use super::mailbox::{Mailbox, Message};
use super::server::{Server, histories};
use super::spool::Spool;
use super::{ReadAhead, predict};
use crate::get::is_beyond;
use archive_get::args::Args;

/// Segments fetched at once when the next ones lie ready. Each takes a zstd window and a few buffers, some 20 MiB in all.
const CONCURRENT: usize = 4;
/// How long one segment may take, over a slow link or from a store that fails now and then.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How often it is looked whether the server still recovers.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long it stays at least when segments lie ready: replaying one large segment may take minutes, a standby may be
/// told to stay behind, and fetching the others again for each would be worse than keeping them.
const LINGER_WITH_SEGMENTS: Duration = Duration::from_secs(60 * 60);
/// What is fetched ahead may be this large for each segment that is configured, and two segments at least.
const BYTES_PER_SEGMENT: u64 = 64 << 20;

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
    /// What PostgreSQL waits for: nothing else is fetched meanwhile.
    wanted: Option<SegmentName>,
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
            wanted: None,
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
        let most = (u64::from(config.prefetch) * BYTES_PER_SEGMENT / self.segment_size.bytes()).max(2);
        let count = config.prefetch.min(u32::try_from(most).unwrap_or(u32::MAX));
        self.follow(served, count, last);
        let Ok(mut ending) = Ending::watch(&self.server) else { return };
        loop {
            self.fill();
            tokio::select! {
                message = mailbox.next(&self.spool) => match message {
                    Ok(Some(message)) => {
                        heard = Instant::now();
                        match message {
                            Message::Served(served) => self.follow(served, count, last),
                            Message::Wanted(wanted) => self.make_way(wanted),
                        }
                    }
                    Ok(None) | Err(_) => break,
                },
                Some(ended) = self.fetches.join_next() => self.note(ended),
                () = ending.next() => break,
                _ = look.tick() => {
                    self.make_room();
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
        self.wanted = None;
        self.plan = predict::next(served, self.segment_size, &histories(), count);
        self.plan.retain(|name| last.is_none_or(|last| !is_beyond(*name, last)));
        let plan = &self.plan;
        self.running.iter().filter(|(name, _)| !plan.contains(name)).for_each(|(_, fetch)| fetch.abort());
        self.ready.retain(|name| plan.contains(name));
        self.not_yet.clear();
        self.spool.keep_only(plan);
    }

    /// Leaves the link to a segment PostgreSQL waits for, which is on its way or fetched by the call itself.
    fn make_way(&mut self, wanted: SegmentName) {
        // What was not to be expected is most likely not there: on a newer timeline, or not archived yet.
        if self.plan.contains(&wanted) {
            self.wanted = Some(wanted);
            self.running.iter().filter(|(name, _)| **name != wanted).for_each(|(_, fetch)| fetch.abort());
        }
    }

    /// Gives up the segments needed last when recovery itself needs the room.
    fn make_room(&mut self) {
        while !self.spool.has_room(0, self.segment_size)
            && let Some(last) = self.plan.iter().rfind(|name| self.ready.contains(name)).copied()
        {
            let _ = self.ready.remove(&last);
            self.plan.retain(|name| *name != last);
            self.spool.remove_ready(last);
        }
    }

    /// Starts as many fetches as may run, in the order in which recovery will ask, up to the first that is in vain. As
    /// long as the next segment is on its way, it has the link for itself.
    fn fill(&mut self) {
        if self.wanted.is_some() {
            return;
        }
        let most = CONCURRENT.min(self.ready.len() + 1);
        for &name in &self.plan {
            if self.not_yet.contains(&name) || self.never.contains(&name) || self.running.len() >= most {
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

/// Why the worker may have to end at once.
struct Ending {
    server: Arc<Notify>,
    signals: [Signal; 3],
}

impl Ending {
    /// Watches the server's process, and the signals that ask a process to end. Needs a runtime.
    fn watch(server: &Server) -> io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let [one, two, three] = kinds.map(signal);
        Ok(Self { server: server.watch(), signals: [one?, two?, three?] })
    }

    /// Waits for one of them.
    async fn next(&mut self) {
        let [one, two, three] = &mut self.signals;
        tokio::select! {
            () = self.server.notified() => {}
            _ = one.recv() => {}
            _ = two.recv() => {}
            _ = three.recv() => {}
        }
    }
}

async fn fetch(archive: WalArchive, spool: Spool, name: SegmentName) -> (SegmentName, Outcome) {
    let _announced = spool.announce(name);
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
