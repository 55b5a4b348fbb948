//! Waiting for something to become true, with a deadline.

use std::time::{Duration, Instant};

/// How long anything that should happen soon may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

const INTERVAL: Duration = Duration::from_millis(20);

/// Asks again and again until there is an answer.
///
/// Panics when there is none by the deadline, naming what was waited for.
pub fn until<T>(what: &str, deadline: Duration, ask: impl FnMut() -> Option<T>) -> T {
    try_until(deadline, ask).unwrap_or_else(|| panic!("waited {deadline:?} in vain: {what}"))
}

/// Asks again and again until there is an answer, or nothing when there is none by the deadline.
pub fn try_until<T>(deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(INTERVAL);
    }
}
