//! Failures of the server in this program's words. Decided by SQLSTATE alone: the text is in the server's language.

use std::error::Error as _;

use tokio_postgres::error::{DbError, SqlState};
use walkeep_common::error::{Error, Kind};

use super::conninfo::ConnectionParameters;
use super::tls;

/// The connection is gone; `reason` in the server's or the operating system's words.
pub(super) fn lost(reason: &str) -> Error {
    Error::new(Kind::Unavailable, format!("lost the connection to PostgreSQL: {reason}"))
        .hint("If a backup was running, PostgreSQL has ended its backup mode by itself. Run basebackup again.")
}

/// A statement failed.
pub(super) fn statement(doing: &str, error: tokio_postgres::Error) -> Error {
    if error.is_closed() {
        return lost("connection closed");
    }
    let Some(answer) = error.as_db_error() else {
        return Error::new(Kind::Internal, format!("could not {doing}")).caused_by(error);
    };
    let kind = match answer.code() {
        &SqlState::INSUFFICIENT_PRIVILEGE => Kind::Refused,
        code if ends_connection(code) || code.code().starts_with("53") => Kind::Unavailable,
        _ => Kind::Invalid,
    };
    with_hint_of(answer, Error::new(kind, format!("could not {doing}: {}", words(answer))))
}

/// Whether the server ends the connection along with this answer: class 57, but not a cancelled statement.
pub(super) fn ends_connection(code: &SqlState) -> bool {
    code.code().starts_with("57P")
}

/// Connecting failed.
pub(super) fn connecting(parameters: &ConnectionParameters, error: tokio_postgres::Error) -> Error {
    let message = format!("could not connect to PostgreSQL at {}", parameters.target());
    if let Some(answer) = error.as_db_error() {
        let message = format!("{message}: {}", words(answer));
        return match *answer.code() {
            SqlState::INVALID_PASSWORD => Error::new(Kind::Refused, message).hint(password_hint(parameters)),
            SqlState::INVALID_AUTHORIZATION_SPECIFICATION => Error::new(Kind::Refused, message).hint(format!(
                "Allow role \"{}\" to connect in pg_hba.conf, or name another with -U.",
                parameters.user
            )),
            SqlState::UNDEFINED_DATABASE => {
                Error::new(Kind::Usage, message).hint("Name a database that exists with -d.")
            }
            _ => with_hint_of(answer, Error::new(Kind::Unavailable, message)),
        };
    }
    if let Some(handshake) = handshake(&error) {
        let hint = tls::hint(handshake);
        return Error::new(Kind::Refused, message).caused_by(error).hint(hint);
    }
    // Words of the library, never translated; it keeps its kinds to itself.
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let error = Error::new(Kind::Unavailable, message).caused_by(error);
    match cause.as_str() {
        "password missing" => error.with_kind(Kind::Refused).hint(password_hint(parameters)),
        "server does not support TLS" => {
            error.with_kind(Kind::Refused).hint("Set \"ssl = on\" in postgresql.conf, or choose another sslmode.")
        }
        _ => error.hint("Is the server running there, and does it accept connections?"),
    }
}

/// The reason of a failed TLS handshake, if it was one.
pub(super) fn handshake(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    error.source()?.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref()
}

fn password_hint(parameters: &ConnectionParameters) -> String {
    match &parameters.password {
        Some(password) => match &password.file {
            Some(file) => format!("The password was found in \"{}\".", file.display()),
            None => "The password was given with the connection parameters.".to_owned(),
        },
        None => "Put the password into ~/.pgpass (mode 0600), or name such a file in PGPASSFILE.".to_owned(),
    }
}

/// Severity, message and detail, as psql prints them, in one line.
pub(super) fn words(answer: &DbError) -> String {
    let detail = answer.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    format!("{}: {}{detail}", answer.severity(), answer.message())
}

fn with_hint_of(answer: &DbError, error: Error) -> Error {
    match answer.hint() {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
