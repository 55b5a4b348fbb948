//! How many uploads run at the same time: fewer when the store asks for that, more again when it does not.

use std::time::{Duration, Instant};

/// Answers that come within this time are about the same crowd of requests.
const SAME_CROWD: Duration = Duration::from_secs(1);
/// How long the store must be content before one more upload is tried.
const CONTENT: Duration = Duration::from_secs(5);

/// The number of uploads, over time.
#[derive(Debug)]
pub(crate) struct Pace {
    most: usize,
    now: usize,
    throttled: u64,
    changed: Option<Instant>,
}

impl Pace {
    /// Begins with as many as there may be.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, now: most, throttled: 0, changed: None }
    }

    /// The number from now on, after so many answers in all that asked for fewer requests.
    pub(crate) fn update(&mut self, throttled: u64, now: Instant) -> usize {
        let since_change = self.changed.map(|changed| now.duration_since(changed));
        if throttled > self.throttled {
            if since_change.is_none_or(|passed| passed >= SAME_CROWD) {
                self.now = (self.now / 2).max(1);
                self.changed = Some(now);
            }
            self.throttled = throttled;
        } else if self.now < self.most && since_change.is_some_and(|passed| passed >= CONTENT) {
            self.now += 1;
            self.changed = Some(now);
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_halved_at_once_and_come_back_one_by_one() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::new(8);
        assert_eq!(pace.update(0, at(0)), 8);
        assert_eq!(pace.update(3, at(100)), 4);
        assert_eq!(pace.update(9, at(300)), 4, "the same crowd");
        assert_eq!(pace.update(10, at(1200)), 2);
        assert_eq!(pace.update(11, at(2300)), 1);
        assert_eq!(pace.update(12, at(3400)), 1, "one is always let through");
        assert_eq!(pace.update(12, at(8300)), 1);
        assert_eq!(pace.update(12, at(8400)), 2);
        assert_eq!(pace.update(12, at(8500)), 2);
        for second in 9..60 {
            pace.update(12, at(second * 1000));
        }
        assert_eq!(pace.update(12, at(60_000)), 8);
    }
}
