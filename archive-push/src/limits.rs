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
/// How long a store counts as failing.
pub(crate) const OUTAGE_MEMORY: Duration = Duration::from_secs(60);

/// The limits of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    timeout: Duration,
    stopping_since: Option<Instant>,
}

impl Limits {
    /// The limits of a call that begins now.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, stopping_since: None }
    }

    /// How long to wait for a first sign of life where there is reason to be impatient.
    pub(crate) fn first_answer(self) -> Duration {
        IMPATIENT.min(self.timeout)
    }

    /// Whether the server whose data directory is the working directory is shutting down.
    pub(crate) fn server_is_stopping() -> bool {
        PostmasterPid::read(Path::new(".")).is_some_and(|server| server.is_stopping())
    }

    /// Why not to wait any longer, `passed` after the call began.
    pub(crate) fn exceeded(&mut self, passed: Duration) -> Option<Error> {
        if self.stopping_since.is_none() && Self::server_is_stopping() {
            self.stopping_since = Some(Instant::now());
        }
        let last_chance = IMPATIENT + LAST_UPLOAD;
        if self.stopping_since.is_some_and(|since| since.elapsed() >= last_chance) {
            return Some(
                Error::new(Kind::Unavailable, "gave up because the server is shutting down")
                    .hint("The WAL file stays in pg_wal and is archived after the next start."),
            );
        }
        (passed >= self.timeout).then(|| {
            Error::new(Kind::Unavailable, format!("gave up after {} s without an answer", self.timeout.as_secs()))
                .hint("PostgreSQL tries again; on a slow link, raise \"timeout\".")
        })
    }
}
