//! The call's side of a conversation with a worker. Needs no runtime, no thread and no store.

use std::fs;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use walkeep_common::error::{Error, Result};

use super::protocol::{self, Answer, Request};

/// A worker says something at least four times in this time. One that does not is stopped, hangs, or is starved.
const SILENCE: Duration = Duration::from_secs(2);

/// Asks the worker at `socket` for a file, and waits for its answer as long as `give_up`, asked at each sign of life,
/// finds no reason not to. Nothing if there is no worker that answers: then the call does the work itself.
pub(crate) fn ask(
    socket: &Path,
    request: &Request,
    mut give_up: impl FnMut(bool, Option<&str>) -> Option<Error>,
) -> Option<Result<()>> {
    let stream = UnixStream::connect(socket).ok()?;
    if !protocol::peer_is_ours(&stream) {
        return None;
    }
    stream.set_read_timeout(Some(SILENCE)).ok()?;
    stream.set_write_timeout(Some(SILENCE)).ok()?;
    protocol::write(&stream, request).ok()?;
    let mut answers = BufReader::new(&stream);
    loop {
        match protocol::read(&mut answers) {
            Ok(Some(Answer::Working { store_answers, trouble })) => {
                if let Some(error) = give_up(store_answers, trouble.as_deref()) {
                    return Some(Err(error));
                }
            }
            Ok(Some(Answer::Stored { warnings })) => {
                repeat(&warnings);
                return Some(Ok(()));
            }
            Ok(Some(Answer::Failed(failure))) => {
                let (error, warnings) = failure.into_error();
                repeat(&warnings);
                return Some(Err(error));
            }
            Ok(Some(Answer::NotMine) | None) => return None,
            Err(error) => {
                tracing::debug!(%error, "the worker fell silent");
                // Later calls need not wait for it; it leaves when it sees that its socket is gone.
                let _ = fs::remove_file(socket);
                return None;
            }
        }
    }
}

fn repeat(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}
