//! How far a copy of many bytes is: a line that is drawn again on a terminal, otherwise a line a minute.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use walkeep_common::cli::{Reporter, Severity};

use crate::output::bytes;

const ON_A_TERMINAL: Duration = Duration::from_millis(500);
const IN_A_LOG: Duration = Duration::from_secs(60);

/// Bytes copied so far.
#[derive(Debug)]
pub(crate) struct Meter {
    verb: &'static str,
    total: u64,
    done: AtomicU64,
    begun: Instant,
}

impl Meter {
    /// Counts up to `total` bytes that are `verb`, such as "copied".
    pub(crate) fn new(verb: &'static str, total: u64) -> Self {
        Self { verb, total, done: AtomicU64::new(0), begun: Instant::now() }
    }

    /// Counts what was read.
    pub(crate) fn add(&self, count: u64) {
        let _ = self.done.fetch_add(count, Ordering::Relaxed);
    }

    /// Reports until it is dropped.
    pub(crate) async fn report(&self, reporter: Reporter) -> std::convert::Infallible {
        let terminal = std::io::stderr().is_terminal();
        loop {
            tokio::time::sleep(if terminal { ON_A_TERMINAL } else { IN_A_LOG }).await;
            let line = self.line();
            if terminal {
                let _ = write!(std::io::stderr().lock(), "\r{line}\x1b[K");
            } else {
                reporter.print(Severity::Info, &line, None);
            }
        }
    }

    /// Clears what was drawn.
    pub(crate) fn clear() {
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }

    fn line(&self) -> String {
        let done = self.done.load(Ordering::Relaxed);
        let seconds = self.begun.elapsed().as_secs().max(1);
        let rate = done / seconds;
        let percent = done.saturating_mul(100).checked_div(self.total).unwrap_or(100).min(100);
        let remaining = self.total.saturating_sub(done).checked_div(rate).unwrap_or(0);
        format!(
            "{} {} of {} ({percent} %), {}/s, about {} min {} s left",
            self.verb,
            bytes(done),
            bytes(self.total),
            bytes(rate),
            remaining / 60,
            remaining % 60
        )
    }
}
