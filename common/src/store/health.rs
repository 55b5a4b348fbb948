//! How a store has been answering lately, for those who decide whether to wait for it and how hard to press it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Kind};

/// A store that wants to be left alone for longer is asked again all the same: it may have said so to many.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What was seen of a store by all operations of a process.
#[derive(Debug, Default)]
pub struct Health(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    success: Option<Instant>,
    answer: Option<Instant>,
    trouble: Option<(Instant, String)>,
    throttled: u64,
    resume: Option<Instant>,
    clock_ahead: Option<SignedDuration>,
}

impl Health {
    /// How long ago an object was last stored.
    pub fn last_success(&self) -> Option<Duration> {
        self.seen(|seen| seen.success.map(|moment| moment.elapsed()))
    }

    /// How long ago the store last answered anything but that it is failing.
    pub fn last_answer(&self) -> Option<Duration> {
        self.seen(|seen| seen.answer.map(|moment| moment.elapsed()))
    }

    /// What went wrong since an object was last stored, in the words of the last failed attempt.
    pub fn trouble(&self) -> Option<String> {
        self.seen(|seen| {
            let (moment, words) = seen.trouble.as_ref()?;
            seen.success.is_none_or(|success| success < *moment).then(|| words.clone())
        })
    }

    /// How many answers so far asked for fewer requests, or did not come in time.
    pub fn throttled(&self) -> u64 {
        self.seen(|seen| seen.throttled)
    }

    /// How long the store still wants to be left alone.
    pub fn pause(&self) -> Option<Duration> {
        let resume = self.seen(|seen| seen.resume)?;
        resume.checked_duration_since(Instant::now())
    }

    /// How far the store's clock was ahead of this host's at its last answer, to the second; nothing where answers do not
    /// tell the time.
    pub fn clock_ahead(&self) -> Option<SignedDuration> {
        self.seen(|seen| seen.clock_ahead)
    }

    /// An answer was dated: a whole second that had begun.
    pub(super) fn note_date(&self, date: Timestamp, now: Timestamp) {
        let ahead = date.duration_since(now) + SignedDuration::from_millis(500);
        self.seen(|seen| seen.clock_ahead = Some(ahead));
    }

    pub(super) fn note_pause(&self, pause: Duration) {
        self.seen(|seen| seen.resume = Some(Instant::now() + pause.min(LONGEST_PAUSE)).max(seen.resume));
    }

    /// The store answered; what kind of answer it was does not matter.
    pub(super) fn note_answer(&self) {
        self.seen(|seen| seen.answer = Some(Instant::now()));
    }

    /// An object was stored.
    pub(super) fn note_success(&self) {
        self.seen(|seen| {
            let now = Instant::now();
            (seen.success, seen.answer, seen.resume) = (Some(now), Some(now), None);
        });
    }

    pub(super) fn note_failure(&self, error: &Error, is_too_much: bool) {
        self.seen(|seen| {
            seen.throttled += u64::from(is_too_much);
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
        assert!(health.last_success().is_some() && health.last_answer().is_some());
    }

    #[test]
    fn the_stores_clock_is_that_of_its_last_answer() {
        let health = Health::default();
        assert_eq!(health.clock_ahead(), None);
        let now: Timestamp = "2026-11-22T12:00:00.5Z".parse().unwrap();
        for (date, ahead) in [("2026-11-22T12:00:00Z", 0), ("2026-11-22T12:05:00Z", 300), ("2026-11-22T11:59:00Z", -60)]
        {
            health.note_date(date.parse().unwrap(), now);
            assert_eq!(health.clock_ahead().map(|ahead| ahead.as_secs()), Some(ahead), "{date}");
        }
    }

    #[test]
    fn a_store_is_left_alone_no_longer_than_is_reasonable_and_not_once_it_stores() {
        let health = Health::default();
        health.note_pause(Duration::from_secs(u64::MAX));
        assert!((1..=60).contains(&health.pause().unwrap().as_secs()));
        health.note_answer();
        assert!(health.pause().is_some() && health.last_answer().is_some() && health.last_success().is_none());
        health.note_success();
        assert_eq!(health.pause(), None);
    }
}
