//! Work that may be waited for only so long: PostgreSQL waits without a limit for the commands it runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::Reporter;
use crate::error::{Error, Kind, Result};

/// How often the limits are looked at while the work goes on.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Runs `work` on a thread of its own and returns its result, unless `give_up`, asked again and again with the time
/// that has passed, says why not to wait any longer. A clock of our own decides, not the work's: what hangs in the
/// kernel cannot be trusted to notice.
///
/// # Errors
/// The work's, or what `give_up` says; `Internal` if the work panicked; `Unavailable` if no thread can be had.
pub fn bounded<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
    mut give_up: impl FnMut(Duration) -> Option<Error>,
) -> Result<T> {
    let begun = Instant::now();
    let (sender, receiver) = channel();
    let worker = thread::Builder::new().spawn(move || {
        // Nobody is left to tell if the receiver gave up.
        let _ = sender.send(work());
    });
    if let Err(error) = worker {
        return Err(Error::new(Kind::Unavailable, "could not start a thread").caused_by(error));
    }
    loop {
        match receiver.recv_timeout(LOOK_AGAIN) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(panicked()),
            Err(RecvTimeoutError::Timeout) => {
                if let Some(error) = give_up(begun.elapsed()) {
                    return Err(error);
                }
            }
        }
    }
}

/// Runs `work` and turns a panic into an error: the exit code of a panic, 101, is one that PostgreSQL would misread.
///
/// # Errors
/// The work's, or `Internal` if it panicked.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(panicked()))
}

fn panicked() -> Error {
    Error::new(Kind::Internal, Reporter::panic_message())
        .hint("This is a defect of Walkeep; please report it with this message.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_hangs_is_left_behind() {
        let result: Result<()> = bounded(
            || {
                thread::sleep(Duration::from_secs(60));
                Ok(())
            },
            |passed| (passed > Duration::from_millis(150)).then(|| Error::new(Kind::Unavailable, "too long")),
        );
        assert_eq!(result.unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let result: Result<()> = bounded(|| panic!("on purpose"), |_| None);
        assert_eq!(result.unwrap_err().kind(), Kind::Internal);
    }
}
