//! How long a call may take. PostgreSQL waits for its archive command without any limit of its own, also while it
//! shuts down: then it runs the command for every segment that waits, and ends only afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use walkeep_common::error::{Error, Kind};
use walkeep_common::postgres::postmaster::PostmasterPid;

/// Waiting any longer than this for a store that does not answer would delay a shutdown or pile up on an outage.
const IMPATIENT: Duration = Duration::from_secs(3);
/// What an upload gets besides while the server stops.
const LAST_UPLOAD: Duration = Duration::from_secs(10);
/// What is left of a call after its last attempt.
const MARGIN: Duration = Duration::from_millis(500);
/// How long a store counts as failing.
pub(crate) const OUTAGE_MEMORY: Duration = Duration::from_secs(60);

/// The limits of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    begun: Instant,
    timeout: Duration,
    stopping_since: Option<Instant>,
    is_impatient: bool,
}

impl Limits {
    /// The limits of a call that begins now. `store_failed` a moment ago or not.
    pub(crate) fn new(timeout: Duration, store_failed: bool) -> Self {
        let is_impatient = store_failed || server_is_stopping();
        Self { begun: Instant::now(), timeout, stopping_since: None, is_impatient }
    }

    /// When its attempts end: a moment before the call does, so that the reason can still be told.
    pub(crate) fn deadline(&self) -> Instant {
        self.begun + self.timeout.saturating_sub(MARGIN)
    }

    /// How long to wait for a first sign of the store's life; nothing where there is no reason to be impatient.
    pub(crate) fn first_answer(&self) -> Option<Duration> {
        self.is_impatient.then(|| IMPATIENT.min(self.timeout))
    }

    /// Whether its attempts have had all the time they were given.
    pub(crate) fn is_used_up(&self) -> bool {
        Instant::now() >= self.deadline()
    }

    /// Why not to wait any longer.
    pub(crate) fn exceeded(&mut self) -> Option<Error> {
        if self.stopping_since.is_none() && server_is_stopping() {
            self.stopping_since = Some(Instant::now());
        }
        let last_chance = IMPATIENT + LAST_UPLOAD;
        if self.stopping_since.is_some_and(|since| since.elapsed() >= last_chance) {
            return Some(
                Error::new(Kind::Unavailable, "gave up because the server is shutting down")
                    .hint("The WAL file stays in pg_wal and is archived after the next start."),
            );
        }
        (self.begun.elapsed() >= self.timeout).then(|| {
            Error::new(Kind::Unavailable, format!("gave up after {} s without an answer", self.timeout.as_secs()))
                .hint("PostgreSQL tries again; on a slow link, raise \"timeout\".")
        })
    }

    /// Why not to wait any longer for a worker, of whose store this is known.
    pub(crate) fn exceeded_by_worker(&mut self, store_answers: bool, trouble: Option<&str>) -> Option<Error> {
        let silent = || self.first_answer().filter(|first| !store_answers && self.begun.elapsed() >= *first);
        let error = match silent() {
            Some(first) => {
                Error::new(Kind::Unavailable, format!("the repository did not answer within {} s", first.as_secs()))
            }
            None => self.exceeded()?,
        };
        Some(match trouble {
            Some(trouble) => error.caused_by(trouble),
            None => error,
        })
    }
}

/// Whether the server whose data directory is the working directory is shutting down.
fn server_is_stopping() -> bool {
    PostmasterPid::read(Path::new(".")).is_some_and(|server| server.is_stopping())
}
