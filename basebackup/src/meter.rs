//! How far a copy of many bytes or files is: a line that is drawn again on a terminal, otherwise a line a minute. SIGUSR1
//! has it printed at once.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;
use walkeep_common::cli::{Reporter, Severity};

use crate::output::bytes;

const TICK: Duration = Duration::from_millis(500);
const EVERY_MINUTE: Duration = Duration::from_secs(60);
const EVERY_SECOND: Duration = Duration::from_secs(1);
/// The rate is that of so many ticks.
const WINDOW: usize = 20;
const WIDEST_BAR: usize = 30;

/// How much of something is done.
#[derive(Debug)]
pub(crate) struct Meter {
    verb: &'static str,
    unit: Unit,
    total: u64,
    done: AtomicU64,
    stored: AtomicU64,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Files,
}

/// How often progress is told where standard error is no terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// For a log.
    Minutes,
    /// For someone who asked for it.
    Seconds,
}

impl Pace {
    /// What `--progress` means.
    pub(crate) fn of(progress: bool) -> Self {
        if progress { Self::Seconds } else { Self::Minutes }
    }
}

/// Requests to tell how far it is: SIGUSR1. Once there is one of these, the signal does not end the process any more, and
/// one that comes while nobody waits is answered by who waits next.
#[derive(Debug)]
pub(crate) struct Requests(Mutex<Option<Signal>>);

impl Requests {
    /// From now on.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(signal(SignalKind::user_defined1()).ok()))
    }

    /// Waits for the next one.
    pub(crate) async fn next(&self) {
        match &mut *self.0.lock().await {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

impl Meter {
    /// Counts up to `total` bytes that are `verb`, such as "copied".
    pub(crate) fn new(verb: &'static str, total: u64) -> Self {
        Self { verb, unit: Unit::Bytes, total, done: AtomicU64::new(0), stored: AtomicU64::new(0) }
    }

    /// Counts up to `total` files that are `verb`, such as "created".
    pub(crate) fn of_files(verb: &'static str, total: usize) -> Self {
        Self { unit: Unit::Files, ..Self::new(verb, total as u64) }
    }

    /// Counts what was done.
    pub(crate) fn add(&self, count: u64) {
        let _ = self.done.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts what the repository has of it.
    pub(crate) fn add_stored(&self, count: u64) {
        let _ = self.stored.fetch_add(count, Ordering::Relaxed);
    }

    /// Reports while something is done.
    pub(crate) async fn report_until<T>(
        &self,
        done: impl Future<Output = T>,
        reporter: Reporter,
        pace: Pace,
        requests: &Requests,
    ) -> T {
        let done = tokio::select! {
            done = done => done,
            never = self.report(reporter, pace, requests) => match never {},
        };
        Self::clear();
        done
    }

    /// Reports until it is dropped.
    pub(crate) async fn report(&self, reporter: Reporter, pace: Pace, requests: &Requests) -> std::convert::Infallible {
        let terminal = std::io::stderr().is_terminal();
        let every = if pace == Pace::Seconds { EVERY_SECOND } else { EVERY_MINUTE };
        let mut ticks = tokio::time::interval(TICK);
        let mut window = VecDeque::from([(Instant::now(), 0)]);
        let mut told = Instant::now();
        loop {
            let asked = tokio::select! {
                _ = ticks.tick() => false,
                () = requests.next() => true,
            };
            let (now, done) = (Instant::now(), self.done.load(Ordering::Relaxed));
            window.push_back((now, done));
            if window.len() > WINDOW {
                let _ = window.pop_front();
            }
            let rate = window.front().map_or(0, |(then, before)| rate(done - before, now - *then));
            if asked || !terminal && told.elapsed() >= every {
                told = now;
                Self::clear();
                reporter.print(Severity::Info, &self.text(done, rate), None);
            } else if terminal {
                let _ = write!(std::io::stderr().lock(), "\r{}\x1b[K", self.drawn(done, rate, width()));
            }
        }
    }

    /// Clears what was drawn.
    pub(crate) fn clear() {
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }

    fn percent(&self, done: u64) -> u64 {
        done.saturating_mul(100).checked_div(self.total).unwrap_or(100).min(100)
    }

    fn text(&self, done: u64, rate: u64) -> String {
        let remaining = match self.total.saturating_sub(done).checked_div(rate) {
            Some(seconds) => format!("about {} left", duration(seconds)),
            None => "standing still".to_owned(),
        };
        let stored = match self.stored.load(Ordering::Relaxed) {
            0 => String::new(),
            stored => format!(", {} stored", bytes(stored)),
        };
        let (verb, percent) = (self.verb, self.percent(done));
        let (done, total, rate) = match self.unit {
            Unit::Bytes => (bytes(done), bytes(self.total), bytes(rate)),
            Unit::Files => (done.to_string(), format!("{} files", self.total), rate.to_string()),
        };
        format!("{verb} {done} of {total} ({percent} %), {rate}/s, {remaining}{stored}")
    }

    /// The text with a bar before it, as far as there is room.
    fn drawn(&self, done: u64, rate: u64, width: usize) -> String {
        let text = self.text(done, rate);
        let room = width.saturating_sub(text.len() + 4).min(WIDEST_BAR);
        let bar = if room < 5 {
            String::new()
        } else {
            let full = usize::try_from(self.percent(done)).unwrap_or(0) * room / 100;
            format!("[{}{}] ", "#".repeat(full), " ".repeat(room - full))
        };
        (bar + &text).chars().take(width.saturating_sub(1)).collect()
    }
}

/// Bytes a second.
fn rate(count: u64, time: Duration) -> u64 {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1000) / millis
}

/// Seconds, as people say them.
pub(crate) fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// Columns of the terminal.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0).unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_done_and_fits_the_terminal() {
        let meter = Meter::new("copied", 800 << 20);
        meter.add_stored(100 << 20);
        let line = "copied 200 MiB of 800 MiB (25 %), 10.0 MiB/s, about 1 min 0 s left, 100 MiB stored";
        assert_eq!(meter.text(200 << 20, 10 << 20), line);
        assert!(meter.text(200 << 20, 0).contains("standing still"));
        assert_eq!(meter.drawn(200 << 20, 10 << 20, 104), format!("[####              ] {line}"));
        for width in [1, 10, 80, 86, 90, 104, 200] {
            assert!(meter.drawn(200 << 20, 10 << 20, width).len() < width.max(2), "{width}");
        }
        let line = "created 1500 of 6000 files (25 %), 500/s, about 9 s left";
        assert_eq!(Meter::of_files("created", 6000).text(1500, 500), line);
        assert_eq!(Meter::new("copied", 0).text(0, 1), "copied 0 B of 0 B (100 %), 1 B/s, about 0 s left");
    }

    #[test]
    fn rates_and_times_are_for_people() {
        assert_eq!(rate(1000, Duration::from_millis(500)), 2000);
        assert_eq!(rate(1000, Duration::ZERO), 1_000_000);
        for (seconds, text) in [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3_700, "1 h 1 min")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
