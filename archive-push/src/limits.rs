//! How long a call may take. PostgreSQL waits for its archive command without any limit of its own, also while it
//! shuts down: then it runs the command for every segment that waits, and ends only afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::postgres::postmaster::PostmasterPid;

/// Waiting any longer than this for a store that does not answer would delay a shutdown or pile up on an outage.
const IMPATIENT: Duration = Duration::from_secs(3);
/// What an upload gets besides while the server stops, once.
const LAST_UPLOAD: Duration = Duration::from_secs(10);
/// What is left of a call after its last attempt.
const MARGIN: Duration = Duration::from_millis(500);
/// How long a store counts as failing.
const OUTAGE_MEMORY: Duration = Duration::from_secs(60);

/// What the host remembers a failing store under.
const OUTAGE_FACT: &str = "outage";
/// What it remembers the server under whose last uploads came to nothing.
const LAST_UPLOAD_FACT: &str = "last-upload";

/// The limits of one call.
#[derive(Debug)]
pub(crate) struct Limits {
    begun: Instant,
    timeout: Duration,
    store_failed: bool,
    /// How long to wait for the store to show that it is there; nothing where there is no reason to be impatient.
    first_answer: Option<Duration>,
    stopping_since: Option<Instant>,
    /// What calls get while the server stops. PostgreSQL makes several of them then.
    last_chance: Duration,
    store_is_silent: bool,
    store_fails: bool,
}

impl Limits {
    /// The limits of a call that begins now.
    pub(crate) fn new(config: &Config, memory: &HostMemory) -> Self {
        let outage = memory.age(OUTAGE_FACT, &config.repository.to_string());
        // Where nothing can be remembered, every call would take the time that there is once.
        let is_taken =
            |server: &Server| memory.recall(LAST_UPLOAD_FACT, &server.directory).as_ref() == Some(&server.run);
        let may_upload = memory.is_usable() && !Server::here().is_some_and(|server| is_taken(&server));
        let store_failed = outage.is_some_and(|age| age < OUTAGE_MEMORY);
        Self {
            begun: Instant::now(),
            timeout: config.timeout,
            store_failed,
            first_answer: (store_failed || Server::is_stopping()).then(|| IMPATIENT.min(config.timeout)),
            stopping_since: None,
            last_chance: if may_upload { IMPATIENT + LAST_UPLOAD } else { IMPATIENT },
            store_is_silent: false,
            store_fails: false,
        }
    }

    /// When its attempts end: a moment before the call does, so that the reason can still be told.
    pub(crate) fn deadline(&self) -> Instant {
        self.begun + self.timeout.saturating_sub(MARGIN)
    }

    /// When the store must have shown a sign of life; nothing where there is no reason to be impatient.
    pub(crate) fn first_answer_by(&self) -> Option<Instant> {
        self.first_answer.map(|limit| self.begun + limit.saturating_sub(MARGIN))
    }

    /// Whether its attempts have had all the time they were given.
    pub(crate) fn is_used_up(&self) -> bool {
        Instant::now() >= self.deadline()
    }

    /// Takes note of what is known about the store.
    pub(crate) fn see(&mut self, store_answers: bool, trouble: Option<&str>) {
        self.store_fails = !store_answers && trouble.is_some();
    }

    /// Why not to wait any longer, for a store of which this is known.
    pub(crate) fn exceeded(&mut self, store_answers: bool, trouble: Option<&str>) -> Option<Error> {
        self.see(store_answers, trouble);
        if self.stopping_since.is_none() && Server::is_stopping() {
            self.stopping_since = Some(Instant::now());
        }
        let waited = self.begun.elapsed();
        let first = self.first_answer.filter(|first| !store_answers && waited >= *first);
        let is_over = self.stopping_since.is_some_and(|since| since.elapsed() >= self.last_chance);
        let error = if let Some(first) = first {
            self.store_is_silent = true;
            Error::new(Kind::Unavailable, format!("the repository did not answer within {} s", first.as_secs()))
        } else if is_over {
            Error::new(Kind::Unavailable, "gave up because the server is shutting down")
                .hint("The WAL file stays in pg_wal and is archived after the next start.")
        } else if waited >= self.timeout {
            self.store_is_silent = !store_answers;
            Error::new(Kind::Unavailable, format!("gave up after {} s without an answer", self.timeout.as_secs()))
                .hint("PostgreSQL tries again; on a slow link, raise \"timeout\".")
        } else {
            return None;
        };
        Some(match trouble {
            // Possibly that of another file.
            Some(trouble) => error.caused_by(format!("the repository's last failure was: {trouble}")),
            None => error,
        })
    }

    /// Remembers what later calls should know of how this one ended.
    pub(crate) fn remember(&self, result: &Result<()>, config: &Config, memory: &HostMemory) {
        let url = config.repository.to_string();
        match result {
            Ok(()) if self.store_failed => memory.forget(OUTAGE_FACT, &url),
            Err(error) if error.kind() == Kind::Unavailable => {
                if self.store_is_silent || self.store_fails {
                    memory.note(OUTAGE_FACT, &url, "");
                }
                if self.stopping_since.is_some_and(|since| since.elapsed() >= IMPATIENT)
                    && let Some(server) = Server::here()
                {
                    memory.note(LAST_UPLOAD_FACT, &server.directory, &server.run);
                }
            }
            _ => {}
        }
    }
}

/// The server whose data directory is the working directory.
struct Server {
    directory: String,
    /// What tells one run of it from the next.
    run: String,
}

impl Server {
    fn here() -> Option<Self> {
        let server = PostmasterPid::read(Path::new("."))?;
        let directory = std::env::current_dir().ok()?;
        Some(Self {
            directory: directory.to_string_lossy().into_owned(),
            run: format!("{} {}", server.pid, server.start_time),
        })
    }

    fn is_stopping() -> bool {
        PostmasterPid::read(Path::new(".")).is_some_and(|server| server.is_stopping())
    }
}
