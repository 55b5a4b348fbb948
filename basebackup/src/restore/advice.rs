//! What to tell the operator once everything is in place.

use std::fmt::Write as _;
use std::time::Duration;

use super::execute::Done;
use super::plan::{Plan, RecoveryEnd};
use super::recovery::Archiving;
use super::target::{Role, Target, TargetAction};
use crate::output::bytes;

/// A few lines about what comes next.
pub(super) fn next_steps(
    plan: &Plan,
    done: &Done,
    start_command: &str,
    archiving: Archiving,
    took: Duration,
) -> String {
    let backup = &plan.backup;
    let mut text = format!("\nRestored {} in {} s", bytes(backup.plain_size), took.as_secs().max(1));
    if done.kept > 0 {
        let _ = write!(text, "; {} of {} files were the same and stayed", done.kept, backup.files);
    }
    let _ = writeln!(text, ".\nStart the server: {start_command}");
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
