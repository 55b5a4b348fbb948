//! How many uploads run at the same time: few at first, more as long as they are quick, fewer when the store asks for
//! that or uploads do not end in time, as on a slow link that all of them share.

use std::time::{Duration, Instant};

/// So many begin, to see how long they take.
const FIRST: usize = 2;
/// An upload that takes longer would not be helped by another beside it.
const QUICK: Duration = Duration::from_secs(10);
/// Failures that come within this time are about the same crowd of requests; and how long the store must be content,
/// once it was not, before one more upload is tried.
const SAME_CROWD: Duration = Duration::from_secs(1);

/// The number of uploads, over time.
#[derive(Debug)]
pub(crate) struct Pace {
    most: usize,
    now: usize,
    /// When it was last changed since the store was too much for once.
    changed: Option<Instant>,
    refused: u64,
}

impl Pace {
    /// There will never be more than `most`.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, now: FIRST.min(most), changed: None, refused: 0 }
    }

    /// The number from now on.
    pub(crate) fn uploads(&self) -> usize {
        self.now
    }

    /// An upload succeeded and took so long.
    pub(crate) fn stored(&mut self, took: Duration, now: Instant) {
        let is_content = self.changed.is_none_or(|changed| now.duration_since(changed) >= SAME_CROWD);
        if took < QUICK && is_content && self.now < self.most {
            self.now += 1;
            self.changed = self.changed.map(|_| now);
        }
    }

    /// So many requests in all were refused because there were too many, or not answered in time.
    pub(crate) fn refused(&mut self, refused: u64, now: Instant) {
        if refused > self.refused && self.changed.is_none_or(|changed| now.duration_since(changed) >= SAME_CROWD) {
            self.now = (self.now / 2).max(1);
            self.changed = Some(now);
        }
        self.refused = refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uploads over a link that they share, each given up when it has taken too long. Returns how many were stored and
    /// how many given up within 5 minutes.
    fn drain(jobs: usize, bytes_per_second: u64, size: u64, limit: Duration) -> (u64, u64) {
        let start = Instant::now();
        let mut pace = Pace::new(jobs);
        let mut uploads: Vec<(Instant, u64)> = Vec::new();
        let (mut stored, mut given_up) = (0, 0);
        for tenth in 1..=3000 {
            let now = start + Duration::from_millis(100 * tenth);
            uploads.resize(uploads.len().max(pace.uploads()), (now, 0));
            let share = bytes_per_second / 10 / uploads.len() as u64;
            uploads.retain_mut(|(begun, sent)| {
                *sent += share;
                if *sent >= size {
                    stored += 1;
                    pace.stored(now - *begun, now);
                } else if now - *begun >= limit {
                    given_up += 1;
                    pace.refused(given_up, now);
                }
                *sent < size && now - *begun < limit
            });
        }
        (stored, given_up)
    }

    #[test]
    fn uploads_over_a_slow_link_do_not_starve_each_other() {
        const KIB: u64 = 1024;
        let links = [(512, 512), (512, 5000), (100, 5000), (64, 5000), (2000, 16_000), (20_000, 16_000)];
        for (rate, size) in links.map(|(rate, size)| (rate * KIB, size * KIB)) {
            let limit = Duration::from_secs(30 + size / (64 * KIB));
            let (stored, given_up) = drain(64, rate, size, limit);
            let possible = 300 * rate / size;
            let found = format!("{rate} bytes/s, {size} bytes: {stored} of {possible}, {given_up} given up");
            assert!(stored * 3 >= possible, "{found}");
            assert!(given_up <= 2, "{found}");
        }
    }

    #[test]
    fn quick_uploads_reach_their_full_number_within_as_many_uploads() {
        let mut pace = Pace::new(64);
        for _ in 0..62 {
            pace.stored(Duration::from_millis(100), Instant::now());
        }
        assert_eq!(pace.uploads(), 64);
        pace.stored(Duration::from_millis(100), Instant::now());
        assert_eq!((pace.uploads(), Pace::new(1).uploads()), (64, 1));
    }

    #[test]
    fn uploads_are_halved_at_once_and_come_back_one_by_one() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::new(8);
        for _ in 0..6 {
            pace.stored(Duration::ZERO, at(0));
        }
        let mut refused = |count, milliseconds| {
            pace.refused(count, at(milliseconds));
            pace.uploads()
        };
        assert_eq!(refused(3, 100), 4);
        assert_eq!(refused(9, 300), 4, "the same crowd");
        assert_eq!(refused(9, 1200), 4, "nothing new");
        assert_eq!(refused(10, 1300), 2);
        assert_eq!(refused(11, 2300), 1);
        assert_eq!(refused(12, 3400), 1, "one is always let through");
        pace.stored(Duration::from_millis(50), at(3500));
        assert_eq!(pace.uploads(), 1);
        for second in 5..9 {
            for upload in 0..10 {
                pace.stored(Duration::from_millis(50), at(second * 1000 + upload * 90));
            }
        }
        assert_eq!(pace.uploads(), 5);
        pace.stored(Duration::from_secs(11), at(20_000));
        assert_eq!(pace.uploads(), 5, "slow ones would only take each other's share");
    }
}
