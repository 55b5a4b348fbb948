//! How a store has been answering lately, for those who decide whether to wait for it and how hard to press it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};

/// What was seen of a store by all operations of a process.
#[derive(Debug, Default)]
pub struct Health(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    success: Option<Instant>,
    trouble: Option<(Instant, String)>,
    throttled: u64,
    resume: Option<Instant>,
}

impl Health {
    /// How long ago an object was last stored.
    pub fn last_success(&self) -> Option<Duration> {
        self.seen(|seen| seen.success.map(|moment| moment.elapsed()))
    }

    /// What went wrong since then, in the words of the last failed attempt.
    pub fn trouble(&self) -> Option<String> {
        self.seen(|seen| {
            let (moment, words) = seen.trouble.as_ref()?;
            seen.success.is_none_or(|success| success < *moment).then(|| words.clone())
        })
    }

    /// How many answers so far asked for fewer requests.
    pub fn throttled(&self) -> u64 {
        self.seen(|seen| seen.throttled)
    }

    /// How long the store still wants to be left alone.
    pub(super) fn pause(&self) -> Option<Duration> {
        let resume = self.seen(|seen| seen.resume)?;
        resume.checked_duration_since(Instant::now())
    }

    pub(super) fn note_pause(&self, pause: Duration) {
        self.seen(|seen| seen.resume = Instant::now().checked_add(pause).max(seen.resume));
    }

    pub(super) fn note_success(&self) {
        self.seen(|seen| seen.success = Some(Instant::now()));
    }

    pub(super) fn note_failure(&self, error: &Error, is_throttling: bool) {
        self.seen(|seen| {
            seen.throttled += u64::from(is_throttling);
            if error.kind() == Kind::Unavailable {
                seen.trouble = Some((Instant::now(), error.to_string()));
            }
        });
    }

    fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_over_with_the_next_success() {
        let health = Health::default();
        assert_eq!((health.last_success(), health.trouble(), health.throttled()), (None, None, 0));
        health.note_failure(&Error::new(Kind::Unavailable, "slow down"), true);
        health.note_failure(&Error::new(Kind::Refused, "not a matter of health"), false);
        assert_eq!((health.trouble().as_deref(), health.throttled()), (Some("slow down"), 1));
        health.note_success();
        assert_eq!((health.trouble(), health.throttled()), (None, 1));
        assert!(health.last_success().is_some());
    }
}
