//! What a call and its worker say to each other: lines of JSON over a Unix socket. Both are the same program of the same
//! version, or they have nothing to say to each other.

use std::io::{self, BufRead, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use walkeep_common::error::{Error, Kind};

use crate::source::{Source, Stamp};

/// The version of these messages.
const PROTOCOL: u32 = 1;
/// Far longer than any message.
const LINE_LIMIT: u64 = 256 * 1024;

/// "Is exactly this file stored?"
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    protocol: u32,
    version: String,
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
        /// Whether the store has stored anything a moment ago.
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
    pub(crate) fn new(source: &Source) -> Self {
        Self {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            name: source.name.to_string(),
            system_identifier: source.system_identifier,
            stamp: source.before,
        }
    }

    /// Whether it comes from a program that means the same by it as this one.
    pub(crate) fn is_of_this_program(&self) -> bool {
        self.protocol == PROTOCOL && self.version == env!("CARGO_PKG_VERSION")
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
