//! The one error type of everything that does I/O: what kind of failure it is, what failed, and what to type.
//!
//! A [`Kind`] exists only where a caller acts differently; the programs turn it into their exit codes.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The result of an operation of Walkeep.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a failure means to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Wrong arguments or configuration: repeating the call cannot help.
    Usage,
    /// The repository refuses us or is not the right one: credentials, permissions, no such bucket, not mounted.
    Refused,
    /// Something else is stored under this name already.
    Conflict,
    /// Stored data fails its checksums, is cut short, or is not what its name says.
    Damaged,
    /// The file at hand is not what it must be (not a WAL file of this cluster, for one).
    Invalid,
    /// The thing asked for is certainly not in the repository.
    NotFound,
    /// A local file or directory is not there: never an answer about the repository.
    Missing,
    /// A segment is missing although later ones are archived.
    Hole,
    /// Could not tell, may work later: network, time-out, throttling, disk full.
    Unavailable,
    /// A defect of the program itself.
    Internal,
}

/// A failure: one line for the operator, a hint where there is something to do, and its cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    once_more: bool,
    pause: Option<Duration>,
}

impl Error {
    /// Creates an error from what failed, in PostgreSQL's style: lower case, no full stop, names in double quotes.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None, once_more: false, pause: None }
    }

    /// Creates an error for a failed operation on a local file, with a kind taken from the operating system's answer.
    pub fn io(action: &str, path: &Path, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::Missing,
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Kind::Refused,
            _ => Kind::Unavailable,
        };
        Self::new(kind, format!("could not {action} \"{}\"", path.display())).caused_by(source)
    }

    /// Adds what the operator can do about it: a full sentence.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause, whose own words are printed after ours.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Replaces the kind, where the caller knows better what the failure means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Marks a failure that a second attempt, and no more than that, may well clear up: an outdated signature, bytes
    /// that were damaged on their way.
    #[must_use]
    pub fn worth_one_more(mut self) -> Self {
        self.once_more = true;
        self
    }

    /// Whether a second attempt is worth it although the failure is not a passing one.
    pub fn is_worth_one_more(&self) -> bool {
        self.once_more
    }

    /// Notes that the other side wants to be left alone for this long.
    #[must_use]
    pub fn not_before(mut self, pause: Duration) -> Self {
        self.pause = Some(pause);
        self
    }

    /// How long the other side wants to be left alone.
    pub fn pause(&self) -> Option<Duration> {
        self.pause
    }

    /// Puts what the caller was doing before the message.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// What the failure means to the caller.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the operator can do, if anything.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Prints the message and every cause that says something new, in one line.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.message.clone();
        let mut cause = self.source.as_deref().map(|source| source as &(dyn StdError + 'static));
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.contains(text.trim()) {
                line.push_str(": ");
                line.push_str(text.trim());
            }
            cause = error.source();
        }
        f.write_str(&line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl StdError for Error {}

/// Names the path in every failure of local I/O.
pub trait IoContext<T> {
    /// Turns an I/O error into an [`Error`] that says what was attempted on which path.
    fn context(self, action: &str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn context(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::io(action, path, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_with_each_cause_once() {
        let cause = std::io::Error::other("connection\nrefused");
        let error = Error::new(Kind::Unavailable, "could not store \"x\"").caused_by(cause);
        assert_eq!(error.to_string(), "could not store \"x\": connection refused");
    }

    #[test]
    fn io_errors_carry_the_path_and_a_kind() {
        let error =
            std::fs::read("/nonexistent/file").context("read file", Path::new("/nonexistent/file")).unwrap_err();
        assert_eq!(error.kind(), Kind::Missing);
        assert!(error.to_string().contains("/nonexistent/file"));
    }
}
