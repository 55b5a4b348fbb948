//! What a call and its worker say to each other: lines of JSON over a Unix socket. Both are the same program of the same
//! version, or they have nothing to say to each other.

use std::io::{self, BufRead, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use walkeep_common::error::{Error, Kind};
use walkeep_common::postgres::postmaster::PostmasterPid;
use walkeep_common::wal_archive::source::{Source, Stamp};

use super::place::surroundings;

/// The version of these messages.
const PROTOCOL: u32 = 1;
/// Far longer than any message.
const LINE_LIMIT: u64 = 256 * 1024;

/// "Is exactly this file stored?"
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    protocol: u32,
    version: String,
    /// See [`surroundings`](super::place::surroundings).
    surroundings: String,
    /// The server that asks.
    server: PostmasterPid,
    /// The name PostgreSQL gave the file.
    pub(crate) name: String,
    /// The cluster it belongs to.
    pub(crate) system_identifier: u64,
    /// What tells it from another file of this name.
    pub(crate) stamp: Stamp,
}

/// What the worker says to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Not yet: the worker lives and is at it.
    Working {
        /// Whether the store has answered a moment ago.
        store_answers: bool,
        /// What the last attempt failed with.
        trouble: Option<String>,
    },
    /// It is stored, durably.
    Stored {
        /// What PostgreSQL's log should know.
        warnings: Vec<String>,
    },
    /// It could not be stored.
    Failed(Failure),
    /// This worker is not the one to ask.
    NotMine,
}

/// An error on its way from the worker to the call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    kind: Kind,
    message: String,
    hint: Option<String>,
    warnings: Vec<String>,
}

impl Request {
    /// The request of this program for this file.
    pub(crate) fn new(source: &Source, server: &PostmasterPid) -> Self {
        Self {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            surroundings: surroundings(),
            server: server.clone(),
            name: source.name.to_string(),
            system_identifier: source.system_identifier,
            stamp: source.before,
        }
    }

    /// Whether it comes from a program that means the same by it as this one, with these surroundings, for this run of
    /// the server.
    pub(crate) fn is_for(&self, surroundings: &str, server: &PostmasterPid) -> bool {
        self.protocol == PROTOCOL
            && self.version == env!("CARGO_PKG_VERSION")
            && self.surroundings == surroundings
            && self.server.is_same_server(server)
    }
}

impl Failure {
    /// Takes an error apart.
    pub(crate) fn new(error: &Error, warnings: Vec<String>) -> Self {
        Self { kind: error.kind(), message: error.to_string(), hint: error.hint_text().map(str::to_owned), warnings }
    }

    /// Puts the error together again, and hands out what was warned of on the way to it.
    pub(crate) fn into_error(self) -> (Error, Vec<String>) {
        let error = Error::new(self.kind, self.message);
        let error = match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        };
        (error, self.warnings)
    }
}

/// Writes one message.
///
/// # Errors
/// From the socket.
pub(crate) fn write(mut to: &UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads one message; nothing at the end of the stream.
///
/// # Errors
/// From the socket; `InvalidData` if it is not a message.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let _ = from.take(LINE_LIMIT).read_until(b'\n', &mut line)?;
    if line.last() != Some(&b'\n') {
        return if line.is_empty() { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// Whether the process at the other end runs as the same user.
pub(crate) fn peer_is_ours(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_program_in_the_same_surroundings_at_the_same_server_is_answered() {
        let server = PostmasterPid { pid: 7, start_time: 100, status: "ready".to_owned() };
        let request = Request {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            surroundings: "a".to_owned(),
            server: server.clone(),
            name: String::new(),
            system_identifier: 1,
            stamp: Stamp { inode: 1, size: 2, modified: jiff::Timestamp::UNIX_EPOCH },
        };
        assert!(request.is_for("a", &server));
        assert!(request.is_for("a", &PostmasterPid { status: "stopping".to_owned(), ..server.clone() }));
        assert!(!request.is_for("b", &server));
        assert!(!request.is_for("a", &PostmasterPid { start_time: 101, ..server.clone() }));
        assert!(!Request { protocol: PROTOCOL + 1, ..request.clone() }.is_for("a", &server));
        assert!(!Request { version: "0.0.0".to_owned(), ..request }.is_for("a", &server));
    }
}
