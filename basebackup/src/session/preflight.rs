//! Whether a backup can be taken: decided before anything is started.

use std::path::Path;

use clap::ValueEnum;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::postgres::control::ControlFile;

use super::server::{ArchiveMode, ArchiverFailure, BackupFunctions, Server};

/// What the server must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnlyOn {
    /// Not a standby
    Primary,
    /// Not a primary
    Standby,
    /// Either
    Any,
}

/// What stands against a backup, each with what to do about it. Empty: nothing does.
///
/// On a standby archiving is its primary's business, except for full page images. On a primary `full_page_writes` may
/// be off: PostgreSQL writes them while a backup runs all the same (`do_pg_backup_start`,
/// src/backend/access/transam/xlog.c).
pub fn check(server: &Server) -> Vec<Error> {
    let rights = missing_rights(server);
    let problems = if server.in_recovery { on_standby(server) } else { on_primary(server) };
    rights.into_iter().chain(problems).chain(nameless_tablespaces(server)).collect()
}

fn on_primary(server: &Server) -> Vec<Error> {
    let settings = &server.settings;
    let mut problems = Vec::new();
    if settings.wal_level == "minimal" {
        let message = "wal_level is \"minimal\": WAL holds too little to restore a backup";
        let hint = with_restart(server, "wal_level", "Put into postgresql.conf: wal_level = replica");
        problems.push(Error::new(Kind::Invalid, message).hint(hint));
    }
    if settings.archive_mode == ArchiveMode::Off {
        let lines = "Put into postgresql.conf: archive_mode = on, and on a line of its own: archive_command = 'archive-push %p'";
        let hint = with_restart(server, "archive_mode", lines);
        problems.push(Error::new(Kind::Invalid, "archive_mode is off: the WAL of the backup is not kept").hint(hint));
    } else if settings.archive_command.is_empty() && settings.archive_library.is_empty() {
        problems.push(
            Error::new(Kind::Invalid, "archive_command is empty: the WAL of the backup is not kept").hint(
                "Put into postgresql.conf: archive_command = 'archive-push %p' and run: SELECT pg_reload_conf();",
            ),
        );
    }
    problems
}

/// What makes it doubtful that the WAL of the backup will be archived, each with what to look at. The backup is taken all
/// the same, for its end waits for the WAL.
pub fn doubts(server: &Server) -> Vec<Error> {
    let settings = &server.settings;
    if !server.archives() {
        return Vec::new();
    }
    let mut doubts = Vec::new();
    let foreign = |message: String| {
        Error::new(Kind::Invalid, message).hint(
            "The backup is only complete once its WAL is in this repository: archive_command = 'archive-push %p'.",
        )
    };
    if !settings.archive_library.is_empty() {
        doubts.push(foreign(format!("archive_library is \"{}\", not this program's", settings.archive_library)));
    } else if !calls_archive_push(&settings.archive_command) {
        // What it is stays unsaid: it may have a password in it.
        doubts.push(foreign("archive_command does not call archive-push".to_owned()));
    }
    if let Some(ArchiverFailure { file, last, count }) = &server.archiver_failure {
        let message = format!(
            "archiving fails right now: \"{file}\" could not be archived at {} ({count} failures so far)",
            last.strftime("%F %T UTC")
        );
        let hint = "The server's log has the reason. The backup waits at its end until its WAL is archived.";
        doubts.push(Error::new(Kind::Unavailable, message).hint(hint));
    }
    doubts
}

/// Whether one of the shell's commands is ours. Other archivers have a subcommand of the same name.
fn calls_archive_push(archive_command: &str) -> bool {
    archive_command.split(['&', '|', ';', '\n']).any(|command| {
        let words = command.split_whitespace().map(|word| word.trim_matches(['\'', '"', '(', ')', '{', '}']));
        let mut programs = words.map(|word| word.rsplit('/').next().unwrap_or_default());
        let first = programs.find(|name| *name == "archive-push" || *name == "pgbackrest" || *name == "pg_probackup");
        first == Some("archive-push")
    })
}

/// Why there is nothing to do: the server is not what was asked for. Nothing if it is.
pub fn other_role(server: &Server, only_on: OnlyOn, target: &str) -> Option<String> {
    let (is, asked_for) = match only_on {
        OnlyOn::Primary if server.in_recovery => ("a standby", "primary"),
        OnlyOn::Standby if !server.in_recovery => ("a primary", "standby"),
        _ => return None,
    };
    Some(format!("no backup is taken: PostgreSQL at {target} is {is}, and --only-on={asked_for} was asked for"))
}

/// A backup's record is text, and a restore must find the very directory.
fn nameless_tablespaces(server: &Server) -> impl Iterator<Item = Error> {
    let nameless = server.tablespaces.iter().filter(|tablespace| tablespace.location.to_str().is_none());
    nameless.map(|tablespace| {
        let location = tablespace.location.display();
        Error::new(
            Kind::Invalid,
            format!("the path of tablespace \"{}\", \"{location}\", is not UTF-8", tablespace.name),
        )
        .hint("Stop PostgreSQL, rename the directory and point the link in pg_tblspc to it.")
    })
}

fn on_standby(server: &Server) -> Vec<Error> {
    if server.full_page_writes {
        return Vec::new();
    }
    let message = "full_page_writes is off on the primary: a backup of a standby could hold torn pages";
    let hint =
        "On the primary, put into postgresql.conf: full_page_writes = on and run: SELECT pg_reload_conf(); CHECKPOINT;";
    vec![Error::new(Kind::Invalid, message).hint(hint)]
}

fn with_restart(server: &Server, setting: &str, lines: &str) -> String {
    if server.settings.pending_restart.iter().any(|pending| pending == setting) {
        return format!("The change of {setting} in the configuration waits for it: restart PostgreSQL.");
    }
    format!("{lines}, and restart PostgreSQL.")
}

/// One problem for all rights that are missing, so that one paste mends it.
fn missing_rights(server: &Server) -> Option<Error> {
    let functions = BackupFunctions::of(server.version);
    let grants = [
        (server.rights.start, format!("EXECUTE ON FUNCTION {}", functions.start)),
        (server.rights.stop, format!("EXECUTE ON FUNCTION {}", functions.stop)),
        (server.settings.data_directory.is_some(), "pg_read_all_settings".to_owned()),
    ];
    let missing = grants.into_iter().filter(|(has, _)| !has);
    let grants: Vec<_> = missing.map(|(_, right)| format!("GRANT {right} TO {};", server.role)).collect();
    if grants.is_empty() {
        return None;
    }
    let message = format!("role {} lacks rights that a backup needs", server.role);
    let hint = format!("As a superuser, run in database {}: {}", server.database, grants.join(" "));
    Some(Error::new(Kind::Refused, message).hint(hint))
}

/// Makes sure that the data directory on this host is the one of the server, and returns it with its `pg_control`.
///
/// `target` names the server. Two servers can share a system identifier, a primary and its standby for one; that is
/// found out when the backup starts.
///
/// # Errors
/// `Refused` if the files may not be read, `Invalid` if they are another cluster's or not there.
pub fn data_directory<'a>(server: &'a Server, target: &str) -> Result<(&'a Path, ControlFile)> {
    let Some(directory) = &server.settings.data_directory else {
        return Err(missing_rights(server).unwrap_or_else(|| {
            Error::new(Kind::Internal, format!("PostgreSQL at {target} does not say where its data directory is"))
        }));
    };
    let control = ControlFile::read(directory).map_err(|error| unreadable(error, directory, target))?;
    if control.system_identifier != server.system_identifier {
        let found = control.system_identifier;
        return Err(not_the_cluster(target, directory).caused_by(format!(
            "its system identifier is {}, that of the directory {found}",
            server.system_identifier
        )));
    }
    Ok((directory, control))
}

/// The server writes elsewhere.
pub(super) fn not_the_cluster(target: &str, directory: &Path) -> Error {
    let message = format!("PostgreSQL at {target} is not the cluster in \"{}\"", directory.display());
    Error::new(Kind::Invalid, message).hint("Run basebackup on the host of the server, and connect to that one.")
}

fn unreadable(error: Error, directory: &Path, target: &str) -> Error {
    match error.kind() {
        Kind::Missing => not_the_cluster(target, directory).caused_by(error),
        Kind::Refused => error.hint("Run basebackup as the operating system's user that owns the data directory."),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
