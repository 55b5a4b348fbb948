//! The call's side of a conversation with a worker. Needs no runtime, no thread and no store.

use std::fs;
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use walkeep_common::error::{Error, Kind, Result};

use super::protocol::{self, Answer, Request};

/// A worker says something at least four times in this time. One that does not is stopped, hangs, or is starved.
const SILENCE: Duration = Duration::from_secs(2);

/// What would be no different for the call itself. Anything else may be the worker's own trouble: credentials that were
/// replaced since it began, descriptors it has too few of.
const TAKEN_AS_TOLD: [Kind; 3] = [Kind::Unavailable, Kind::Conflict, Kind::Damaged];

/// What came of asking.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The worker's answer is the call's.
    Told(Result<()>),
    /// There is a worker, which does not work for this call and leaves: the call does the work itself.
    SentAway,
    /// There is none: the call does the work itself, and may start one.
    Nobody,
}

/// Asks the worker at `socket` for a file, and waits for its answer as long as `give_up`, asked at each sign of life,
/// finds no reason not to.
pub(crate) fn ask(
    socket: &Path,
    request: &Request,
    mut give_up: impl FnMut(bool, Option<&str>) -> Option<Error>,
) -> Asked {
    let Some(stream) = send(socket, request) else { return Asked::Nobody };
    let mut answers = BufReader::new(&stream);
    loop {
        match protocol::read(&mut answers) {
            Ok(Some(Answer::Working { store_answers, trouble })) => {
                if let Some(error) = give_up(store_answers, trouble.as_deref()) {
                    return Asked::Told(Err(error));
                }
            }
            Ok(Some(Answer::Stored { warnings })) => {
                repeat(&warnings);
                return Asked::Told(Ok(()));
            }
            Ok(Some(Answer::Failed(failure))) => {
                let (error, warnings) = failure.into_error();
                if !TAKEN_AS_TOLD.contains(&error.kind()) {
                    tracing::debug!(%error, "the worker fails where this call may not");
                    let _ = fs::remove_file(socket);
                    return Asked::SentAway;
                }
                repeat(&warnings);
                return Asked::Told(Err(error));
            }
            Ok(Some(Answer::NotMine)) => return Asked::SentAway,
            Ok(None) => return Asked::Nobody,
            Err(error) => {
                tracing::debug!(%error, "the worker fell silent");
                // Later calls need not wait for it; it leaves when it sees that its socket is gone.
                let _ = fs::remove_file(socket);
                return Asked::Nobody;
            }
        }
    }
}

/// Says to a worker of the same user what is asked, if there is one.
fn send(socket: &Path, request: &Request) -> Option<UnixStream> {
    let stream = UnixStream::connect(socket).ok().filter(protocol::peer_is_ours)?;
    stream.set_read_timeout(Some(SILENCE)).ok()?;
    stream.set_write_timeout(Some(SILENCE)).ok()?;
    protocol::write(&stream, request).ok()?;
    Some(stream)
}

fn repeat(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
    }
}
