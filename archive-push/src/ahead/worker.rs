//! The process in the background: pushes what waits, in parallel, and answers the calls for it.
//!
//! It holds no state that matters. Killed at any time, the calls do its work, and what was stored already is found by
//! their conditional puts. Whatever goes wrong here is told to the call that asks; the process itself always exits 0.

use std::fs;
use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use walkeep_common::cli::bounded::caught;
use walkeep_common::config::{CompressionLevel, Config};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::postgres::postmaster::PostmasterPid;
use walkeep_common::wal_archive::source::Source;

use super::data_directory::DataDirectory;
use super::desk::Desk;
use super::detach::detach;
use super::place::{Place, surroundings};
use super::protocol::{self, Answer, Failure, Request};
use super::pusher::Pusher;
use super::queue::{Job, Outcome, Queue};
use super::{start, warnings};
use archive_push::args::Args;

/// How often a call that waits is told that its worker lives.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);
/// How often the worker looks whether it is still needed.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long a call may take to say what it wants.
const QUESTION_TIME: Duration = Duration::from_secs(2);
/// A store that answered anything this long ago answers.
const FRESH: Duration = Duration::from_secs(10);
/// PostgreSQL asks for one file at a time.
const MOST_CALLS: usize = 32;

/// Is the worker, until it is not needed any more.
pub(crate) fn run(args: &Args, socket: &Path) {
    let Ok(listener) = detach() else { return };
    let own = args.inode;
    let file = args.common.config.as_deref();
    let written = file.and_then(written);
    // A configuration that cannot be read now is the next call's to complain about.
    if let Ok(config) = args.common.resolve() {
        match Worker::begin(args, &config, socket, listener) {
            Ok(worker) => worker.work(|| is_at(socket, own) && file.and_then(self::written) == written),
            Err(error) => start::note_failure(socket, &error.to_string()),
        }
    }
    if is_at(socket, own) {
        let _ = fs::remove_file(socket);
    }
}

/// What changes when a file is written anew.
fn written(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Whether calls find our socket there, and not another worker's.
fn is_at(socket: &Path, own: Option<u64>) -> bool {
    own.is_some() && fs::symlink_metadata(socket).map(|metadata| metadata.ino()).ok() == own
}

struct Worker {
    /// The server's first process; nothing where it cannot be watched.
    process: Option<OwnedFd>,
    office: Arc<Office>,
}

/// What the worker's threads share.
struct Office {
    data: DataDirectory,
    server: PostmasterPid,
    surroundings: String,
    system_identifier: u64,
    level: CompressionLevel,
    desk: Desk,
    pusher: Pusher,
    leaving: AtomicBool,
    calls: AtomicUsize,
}

impl Worker {
    /// Sets everything up and starts the threads.
    fn begin(args: &Args, config: &Config, socket: &Path, listener: UnixListener) -> Result<Self> {
        let failed = |error: io::Error| Error::new(Kind::Unavailable, "could not start").caused_by(error);
        let data = DataDirectory::at(args.path.clone());
        let place = Place::new(data.clone(), config).map_err(failed)?;
        if place.socket(config).as_deref() != Some(socket) {
            return Err(Error::new(Kind::Usage, "the configuration has changed"));
        }
        let no_server = || Error::new(Kind::Unavailable, "no server runs on the data directory");
        let server = data.server().ok_or_else(no_server)?;
        let control = ControlFile::read(data.path())
            .map_err(|error| Error::new(Kind::Unavailable, "could not read global/pg_control").caused_by(error))?;
        let process = Pid::from_raw(server.pid).and_then(|process| pidfd_open(process, PidfdFlags::empty()).ok());
        let pusher = Pusher::new(config, control.system_identifier, HostMemory::open(config))?;
        // Nothing here needs the data directory as its own, or keeps its file system from being unmounted.
        rustix::process::chdir("/").map_err(|error| failed(error.into()))?;

        let queue = Queue::new(config.linger, args.pushed, Instant::now());
        let office = Arc::new(Office {
            desk: Desk::new(data.clone(), queue),
            data,
            server,
            surroundings: surroundings(),
            system_identifier: control.system_identifier,
            level: config.compression_level,
            pusher,
            leaving: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        });
        for number in 0..office.pusher.threads() {
            let office = Arc::clone(&office);
            match thread::Builder::new().spawn(move || office.push_for_ever()) {
                // With fewer it takes longer.
                Err(error) if number == 0 => return Err(failed(error)),
                Err(_) => break,
                Ok(_) => {}
            }
        }
        let answering = Arc::clone(&office);
        let _ = thread::Builder::new().spawn(move || answering.answer_for_ever(&listener)).map_err(failed)?;
        Ok(Self { process, office })
    }

    /// Goes on as long as the worker is needed, of which `is_found` tells whether calls could find it. Uploads that are
    /// under way at its end are given up: they can be done again.
    fn work(&self, is_found: impl Fn() -> bool) {
        loop {
            let server = self.office.data.server();
            let needed = server.is_some_and(|server| server.is_same_server(&self.office.server))
                && is_found()
                && !self.office.leaving.load(Ordering::Relaxed)
                && !self.office.desk.is_idle();
            if !needed {
                return;
            }
            self.office.desk.look_around();
            self.office.pusher.keep_pace();
            if self.server_has_ended(LOOK_AGAIN) {
                return;
            }
        }
    }

    /// Waits a while for the end of the server's process. Whoever stopped it may want to unmount `pg_wal` at once, and
    /// one that is killed leaves its `postmaster.pid`.
    fn server_has_ended(&self, patience: Duration) -> bool {
        let Some(process) = &self.process else {
            thread::sleep(patience);
            return false;
        };
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) };
        let mut events = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut events, Some(&timeout)) {
            Ok(ended) => ended > 0,
            Err(_) => false,
        }
    }
}

impl Office {
    fn push_for_ever(&self) {
        loop {
            let job = self.desk.next();
            // What panics must not leave a call waiting.
            let (pushed, warnings) = warnings::kept_during(|| caught(|| self.push(job)));
            let outcome = match pushed {
                Ok(Some(source)) => Outcome::Stored(source.before, warnings),
                Ok(None) => Outcome::Gone,
                Err(error) => Outcome::Failed(Failure::new(&error, warnings)),
            };
            self.desk.end(job.name, outcome);
        }
    }

    /// Pushes a file; nothing if it is not, or no more, the file that waits.
    fn push(&self, job: Job) -> Result<Option<Source>> {
        let path = self.data.wal(job.name);
        let is_gone = || !job.is_asked && (!self.data.is_ready(job.name) || !path.exists());
        if is_gone() {
            return Ok(None);
        }
        // The call opens it as well, and says what there is to say about it.
        let source = match warnings::kept_during(|| Source::open(&path)).0 {
            Err(_) if is_gone() => return Ok(None),
            opened => opened?,
        };
        if source.system_identifier != self.system_identifier {
            return Ok(None);
        }
        let pushed = self.pusher.push(&path, &source, self.level.level_with_backlog(job.waiting));
        // PostgreSQL renames and overwrites segments once they are archived: what was stored may not be what is there.
        if is_gone() || !source.is_unchanged() {
            return Ok(None);
        }
        pushed.map(|()| Some(source))
    }

    fn answer_for_ever(self: &Arc<Self>, listener: &UnixListener) {
        for call in listener.incoming() {
            let Ok(call) = call else {
                // Out of descriptors, most likely: those of others are given back soon.
                thread::sleep(LOOK_AGAIN);
                continue;
            };
            if self.calls.fetch_add(1, Ordering::Relaxed) >= MOST_CALLS {
                let _ = self.calls.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let office = Arc::clone(self);
            let answering = thread::Builder::new().spawn(move || {
                let _ = office.answer(&call);
                let _ = office.calls.fetch_sub(1, Ordering::Relaxed);
            });
            if answering.is_err() {
                let _ = self.calls.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Answers one call. What it cannot be told, it finds out itself: whatever fails here only ends the conversation.
    fn answer(&self, call: &UnixStream) -> io::Result<()> {
        if !protocol::peer_is_ours(call) {
            return Ok(());
        }
        call.set_read_timeout(Some(QUESTION_TIME))?;
        call.set_write_timeout(Some(QUESTION_TIME))?;
        let request = match protocol::read::<Request>(&mut BufReader::new(call)) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            // Of another version, most likely.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return self.send_away(call),
            Err(error) => return Err(error),
        };
        let is_ours =
            request.is_for(&self.surroundings, &self.server) && request.system_identifier == self.system_identifier;
        let Some(name) = request.name.parse().ok().filter(|_| is_ours) else {
            return self.send_away(call);
        };
        self.desk.ask(name);
        loop {
            let Some(answer) = self.desk.answer(name, &request.stamp, SIGN_OF_LIFE) else {
                if let Err(error) = protocol::write(call, &self.working()) {
                    self.desk.withdraw(name);
                    return Err(error);
                }
                continue;
            };
            if answer == Answer::NotMine {
                return self.send_away(call);
            }
            if let Err(error) = protocol::write(call, &answer) {
                self.desk.withdraw(name);
                return Err(error);
            }
            self.desk.answered(name);
            self.desk.look_around();
            return Ok(());
        }
    }

    fn working(&self) -> Answer {
        let health = self.pusher.health();
        let store_answers = health.last_answer().is_some_and(|age| age < FRESH);
        Answer::Working { store_answers, trouble: health.trouble() }
    }

    /// Whoever asks is not of this worker's world, or the world has changed: it is not the one that is needed.
    fn send_away(&self, call: &UnixStream) -> io::Result<()> {
        let sent = protocol::write(call, &Answer::NotMine);
        self.leaving.store(true, Ordering::Relaxed);
        sent
    }
}
