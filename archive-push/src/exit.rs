//! What PostgreSQL is told. Never a code above 125: the archiver process would die of it, and pg_stat_archiver would
//! count nothing (`shell_archive_file`, src/backend/archive/shell_archive.c).

use walkeep_common::error::Kind;

/// Durable, or an identical copy was there.
pub(crate) const DONE: u8 = 0;
/// May work later.
pub(crate) const TEMPORARY: u8 = 1;
/// Arguments or configuration.
pub(crate) const USAGE: u8 = 2;
const CONFLICT: u8 = 3;
const INVALID: u8 = 4;
const REFUSED: u8 = 5;

/// The exit code of a failure.
pub(crate) fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Usage => USAGE,
        Kind::Conflict | Kind::Damaged => CONFLICT,
        Kind::Invalid => INVALID,
        Kind::Refused => REFUSED,
        Kind::NotFound | Kind::Missing | Kind::Hole | Kind::Unavailable | Kind::Internal => TEMPORARY,
    }
}
