//! The one place where anything is tried again: transient failures only, with growing and jittered pauses, until a
//! limit of time; and once, what is marked as worth one more attempt.
//!
//! The pauses come from the `backoff` crate, whose types stay inside this module.

use std::time::{Duration, Instant};

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

use crate::error::{Error, Kind, Result};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What even an operation that begins too late gets for its one attempt.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// How long an operation may be tried again.
#[derive(Debug, Clone, Copy)]
pub enum Patience {
    /// Until a moment that all operations of a run share.
    Until(Instant),
    /// For this long, counted anew for each operation.
    For(Duration),
}

impl Patience {
    /// The moment at which an operation that begins now is given up.
    pub fn deadline(self) -> Instant {
        match self {
            Self::Until(deadline) => deadline,
            Self::For(duration) => Instant::now() + duration,
        }
    }
}

/// Runs `attempt` until it succeeds, fails for good, or the time is up. Each attempt builds its request anew, with
/// a fresh signature and credentials.
///
/// # Errors
/// The last attempt's; only `Unavailable` is tried again and again.
pub async fn retry<T, F>(patience: Patience, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let begun = Instant::now();
    let deadline = patience.deadline();
    let mut pauses = ExponentialBackoff {
        initial_interval: FIRST_PAUSE,
        current_interval: FIRST_PAUSE,
        max_interval: LONGEST_PAUSE,
        randomization_factor: 0.5,
        multiplier: 2.0,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    let mut attempts = 1_u32;
    let mut last = None;
    loop {
        let limit = deadline.max(begun + LEAST_TIME);
        let answer = tokio::time::timeout_at(limit.into(), attempt()).await;
        let error = match answer.unwrap_or_else(|_| Err(last.take().unwrap_or_else(|| no_answer(begun)))) {
            Err(error) if error.kind() == Kind::Unavailable => error,
            Err(error) if error.is_worth_one_more() && attempts == 1 => error,
            result => return result,
        };
        let pause = pauses.next_backoff().unwrap_or(LONGEST_PAUSE).max(error.pause().unwrap_or_default());
        if pause >= deadline.saturating_duration_since(Instant::now()) {
            let tried = format!("gave up after {attempts} attempts in {:.1} s", begun.elapsed().as_secs_f64());
            return Err(if attempts > 1 { error.context(tried) } else { error });
        }
        tracing::debug!(attempts, %error, "trying again");
        last = Some(error);
        tokio::time::sleep(pause).await;
        attempts += 1;
    }
}

fn no_answer(begun: Instant) -> Error {
    Error::new(
        Kind::Unavailable,
        format!("no answer from the repository within {:.1} s", begun.elapsed().as_secs_f64()),
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn run(patience: Patience, results: &[Result<u32, Kind>]) -> (Result<u32>, usize) {
        let calls = Cell::new(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let result = runtime.block_on(retry(patience, || {
            let result = results.get(calls.get()).copied().unwrap_or(Err(Kind::Unavailable));
            calls.set(calls.get() + 1);
            async move { result.map_err(|kind| Error::new(kind, "no")) }
        }));
        (result, calls.get())
    }

    #[test]
    fn only_transient_failures_are_tried_again() {
        let patience = Patience::For(Duration::from_secs(30));
        assert_eq!(run(patience, &[Err(Kind::Unavailable), Ok(7)]).0.unwrap(), 7);
        for kind in [Kind::Refused, Kind::Damaged, Kind::Conflict, Kind::NotFound] {
            assert_eq!(run(patience, &[Err(kind), Ok(7)]).1, 1);
        }
    }

    #[test]
    fn what_is_worth_one_more_attempt_gets_exactly_one() {
        let calls = Cell::new(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let result: Result<()> = runtime.block_on(retry(Patience::For(Duration::from_secs(30)), || {
            calls.set(calls.get() + 1);
            async { Err(Error::new(Kind::Damaged, "no").worth_one_more()) }
        }));
        assert_eq!((result.unwrap_err().kind(), calls.get()), (Kind::Damaged, 2));
    }

    #[test]
    fn who_wants_to_be_left_alone_is() {
        let calls = Cell::new(0);
        let begun = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let attempt = || {
            calls.set(calls.get() + 1);
            let pause = Duration::from_secs(calls.get());
            async move { Err::<(), _>(Error::new(Kind::Unavailable, "no").not_before(pause)) }
        };
        let result = runtime.block_on(retry(Patience::For(Duration::from_secs(2)), attempt));
        assert_eq!((result.unwrap_err().kind(), calls.get()), (Kind::Unavailable, 2));
        assert!((1..2).contains(&begun.elapsed().as_secs()), "the second pause would end too late");
    }

    #[test]
    fn the_time_limit_ends_it() {
        let (result, calls) = run(Patience::Until(Instant::now() + Duration::from_millis(400)), &[]);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!((2..6).contains(&calls), "{calls}");
        assert!(error.to_string().contains("attempts"), "{error}");
    }

    #[test]
    fn a_pause_without_end_ends_it_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let attempt = || async { Err::<(), _>(Error::new(Kind::Unavailable, "no").not_before(Duration::MAX)) };
        let result = runtime.block_on(retry(Patience::For(Duration::from_secs(2)), attempt));
        assert_eq!(result.unwrap_err().to_string(), "no");
    }
}
