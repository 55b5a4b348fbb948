//! What to tell the operator once everything is in place.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::repository::backup::Backup;

use super::directories::Directories;
use super::execute::Done;
use super::finish::Configuration;
use super::plan::{Plan, RecoveryEnd};
use super::recovery::Archiving;
use super::target::{Role, Target, TargetAction};
use crate::output::bytes;

/// Warns of what will get in the way of the restored server.
pub(super) fn warn(plan: &Plan, done: &Done, directories: &Directories, reporter: Reporter) {
    let warn = |message: &str, hint: &str| reporter.print(Severity::Warning, message, Some(hint));
    match done.configuration {
        Configuration::Elsewhere => warn(
            &format!("there is no postgresql.conf in \"{}\": the server had it elsewhere", directories.data.display()),
            if plan.backup.configuration.is_some() {
                "The backup has it: restore once more with --config-dir or --to-cluster, or start the server with its \
                 old configuration: pg_ctl -o '-c config_file=… -c data_directory=…'."
            } else {
                "Start the server with its old configuration (pg_ctl -o '-c config_file=… -c data_directory=…'), or put \
                 postgresql.conf and pg_hba.conf into the data directory. max_connections and its like must not be lower \
                 than they were."
            },
        ),
        Configuration::Placed => {}
        Configuration::Here => {
            let missing = missing_configuration(&plan.backup, directories);
            if let Some(first) = missing.first().filter(|_| !done.is_configuration_placed) {
                warn(
                    &format!(
                        "{} configuration file(s) of the server are not in the data directory, nor where they were, \
                         such as \"{}\"",
                        missing.len(),
                        first.display()
                    ),
                    "The backup has them: restore once more with --config-dir, or put them in their place.",
                );
            }
        }
    }
}

/// The configuration files that the backup keeps apart from the data directory, and that are not in their place.
fn missing_configuration(backup: &Backup, directories: &Directories) -> Vec<PathBuf> {
    let files = backup.configuration.iter().flat_map(|configuration| &configuration.files).map(Path::new);
    let places = files.map(|file| match file.strip_prefix(&backup.data_directory) {
        // A link to it was in the data directory.
        Ok(below) => directories.data.join(below),
        Err(_) => file.to_owned(),
    });
    places.filter(|place| !place.exists()).collect()
}

/// A few lines about what comes next.
pub(super) fn next_steps(plan: &Plan, done: &Done, archiving: Archiving, took: Duration) -> String {
    let backup = &plan.backup;
    let mut text = format!("\nRestored {} in {} s", bytes(backup.plain_size), took.as_secs().max(1));
    if done.kept > 0 {
        let _ = write!(text, "; {} of {} files were the same and stayed", done.kept, backup.files);
    }
    let _ = writeln!(text, ".\nStart the server: {}", done.start_command);
    let _ = writeln!(text, "It replays WAL from {} on; {}.", plan.wal.first, plan.end_text());
    let has_target = plan.request.target != Target::End;
    let then = match (&plan.request.role, plan.request.action.unwrap_or_default()) {
        (Role::Standby { .. }, _) if archiving == Archiving::Off => {
            "It follows as a standby until it is promoted: pg_ctl promote. Even then it archives nothing: if it is to take \
             over one day, restore it with --keep-archiving, or first say ALTER SYSTEM RESET archive_mode and restart it."
        }
        (Role::Standby { .. }, _) => "It follows as a standby until it is promoted: pg_ctl promote.",
        (Role::Primary, _) if !has_target => "Then it opens for writing, on a new timeline.",
        (Role::Primary, TargetAction::Pause) => {
            "There it pauses and answers queries (with hot_standby on; one that hangs waits for a lock of a transaction \
             that is cut off there). Look at the data, then open it for writing: SELECT pg_wal_replay_resume()."
        }
        (Role::Primary, TargetAction::Promote) => "There it opens for writing, on a new timeline.",
        (Role::Primary, TargetAction::Shutdown) => {
            "There it shuts down. To open it for writing later, remove recovery_target_action and the target from \
             postgresql.auto.conf, or set another target."
        }
    };
    let _ = writeln!(text, "{then}");
    if plan.request.role == Role::Primary {
        let _ = writeln!(
            text,
            "Once it is open, take out what only this recovery needed, or standbys made of it would obey it: {}",
            resets(plan, done)
        );
    }
    if matches!(plan.end, RecoveryEnd::Hole(_)) {
        let _ = writeln!(text, "What was committed after the hole is lost to this server.");
    }
    if let Some(left_out) = &done.left_out {
        let _ = writeln!(
            text,
            "Left out: {left_out}. Nobody can connect to these databases: drop them (DROP DATABASE). Other databases \
             are whole. There is no backup_manifest, since it would list what is not there."
        );
    }
    let _ = writeln!(text, "Archiving is {}.", archiving.to_text(backup));
    if plan.request.role == Role::Primary && archiving == Archiving::Off {
        let _ = writeln!(
            text,
            "Subscriptions are off with it, or they would take over those of that server. If this one is to replace it: \
             ALTER SYSTEM RESET archive_mode; ALTER SYSTEM RESET max_logical_replication_workers; and a restart."
        );
    }
    text
}

/// Statements that undo the settings of a recovery that is over.
fn resets(plan: &Plan, done: &Done) -> String {
    let target = plan.request.target.setting().into_iter();
    let target = target.flat_map(|(name, _)| [name, "recovery_target_inclusive", "recovery_target_action"]);
    let pages = done.left_out.iter().map(|_| "ignore_invalid_pages");
    let names = std::iter::once("recovery_target_timeline").chain(target).chain(pages);
    names.map(|name| format!("ALTER SYSTEM RESET {name};")).collect::<Vec<_>>().join(" ")
}
