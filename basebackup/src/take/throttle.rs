//! `--max-rate`: no more bytes are read in a second, by all threads together.

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A rate in bytes a second, written as `pg_basebackup` takes it: kilobytes, or with a suffix `k` or `M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxRate(u64);

/// The text is no rate within the bounds (`MAX_RATE_LOWER`, `MAX_RATE_UPPER`, src/include/backup/basebackup.h).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 32k to 1024M: kilobytes a second, or a number with k or M behind it")]
pub struct InvalidRate;

impl FromStr for MaxRate {
    type Err = InvalidRate;

    fn from_str(text: &str) -> Result<Self, InvalidRate> {
        let (digits, unit) = match text.strip_suffix(['k', 'M']) {
            Some(digits) if text.ends_with('M') => (digits, 1024),
            Some(digits) => (digits, 1),
            None => (text, 1),
        };
        let kilobytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or(InvalidRate)?;
        if (32..=1024 * 1024).contains(&kilobytes) { Ok(Self(kilobytes * 1024)) } else { Err(InvalidRate) }
    }
}

/// Lets bytes pass at a rate.
#[derive(Debug)]
pub(super) struct Throttle {
    rate: MaxRate,
    /// When what has passed so far would have passed at the rate.
    next: Mutex<Instant>,
}

/// How much unused time can be made up for: a pause of the link is no reason for a burst afterwards.
const LEEWAY: Duration = Duration::from_millis(500);

impl Throttle {
    pub(super) fn new(rate: MaxRate) -> Self {
        Self { rate, next: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may be read.
    pub(super) fn wait(&self, bytes: u64) {
        let pause = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let (later, pause) = schedule(*next, Instant::now(), self.rate, bytes);
            *next = later;
            pause
        };
        sleep(pause);
    }
}

/// When the bytes after these may pass, and how long these must wait.
fn schedule(next: Instant, now: Instant, rate: MaxRate, bytes: u64) -> (Instant, Duration) {
    let from = now.checked_sub(LEEWAY).map_or(now, |earliest| next.max(earliest));
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.0.max(1));
    let later = from + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
    (later, from.saturating_duration_since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_as_pg_basebackup_takes_them() {
        for (text, rate) in [("32", 32 << 10), ("100k", 100 << 10), ("1M", 1 << 20), ("1024M", 1 << 30)] {
            assert_eq!(text.parse(), Ok(MaxRate(rate)), "{text}");
        }
        for text in ["", "k", "31", "1025M", "-1", "1G", "1.5M", "99999999999999999999"] {
            assert_eq!(text.parse::<MaxRate>(), Err(InvalidRate), "{text}");
        }
    }

    #[test]
    fn bytes_pass_at_the_rate_and_a_pause_earns_no_burst() {
        let (start, rate) = (Instant::now() + Duration::from_secs(1000), MaxRate(1 << 20));
        let (mut next, mut now, mut waited) = (start, start, Duration::ZERO);
        for _ in 0..100 {
            let (later, pause) = schedule(next, now, rate, 1 << 20);
            (next, now, waited) = (later, now + pause, waited + pause);
        }
        assert_eq!(waited, Duration::from_secs(99));
        let (later, pause) = schedule(next, now + Duration::from_secs(3600), rate, 1 << 20);
        assert_eq!((later - (now + Duration::from_secs(3600)), pause), (Duration::from_millis(500), Duration::ZERO));
    }
}
