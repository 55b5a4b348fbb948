//! For people: one line per fact, what is wrong in words.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::Status;
use super::archived::{BackupSummary, ClusterStatus, TimelineStatus, WindowStatus};
use super::drills::{DrillSummary, DrillVerdict};
use super::server::{ServerFacts, ServerStatus};
use crate::list::time;
use crate::output::{bytes, seconds};
use crate::verify::{Verdict, Verified};

/// The whole status.
pub(super) fn render(status: &Status) -> String {
    let mut text = String::new();
    let place = format!("{}/{}", status.repository.url, status.repository.cluster);
    if let Some(problem) = &status.repository.problem {
        line(&mut text, "Repository", &format!("{place}: UNKNOWN, {problem}"));
    } else {
        line(&mut text, "Repository", &place);
    }
    let of_server = status.clusters.iter().any(|cluster| cluster.now.is_of_server);
    if !of_server {
        server(&mut text, &status.server, status.measured, status.repository.problem.is_none());
    }
    for cluster in &status.clusters {
        let _ = writeln!(text, "\nCluster {}", cluster.system_identifier);
        if cluster.now.is_of_server {
            server(&mut text, &status.server, status.measured, false);
        }
        cluster_lines(&mut text, cluster, status.measured);
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<12} {value}");
}

/// How long before `now`.
fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", seconds(now.duration_since(then).as_secs_f64().max(0.0)))
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn server(text: &mut String, status: &ServerStatus, now: Timestamp, is_foreign: bool) {
    let Some(facts) = &status.facts else {
        let problem = status.problem.as_deref().unwrap_or_default();
        line(text, "Server", &format!("UNKNOWN: {problem}"));
        line(text, "Queue", "unknown without the server");
        return;
    };
    let role = if facts.in_recovery { "standby" } else { "primary" };
    let (major, minor) = (facts.version / 10_000, facts.version % 10_000);
    let timeline = facts.timeline;
    let mut server = format!("PostgreSQL {major}.{minor}, {role} on timeline {timeline}, WAL up to {}", facts.position);
    if is_foreign {
        let _ = write!(server, "; of its cluster {} there is nothing in the repository", facts.system_identifier);
    }
    line(text, "Server", &server);
    line(text, "Queue", &queue(facts, now));
    if let Some(failed) = facts.last_failed.as_ref().filter(|_| facts.archives && facts.archiving_fails) {
        let count = counted(facts.failed_count, "failure", "failures");
        let when = ago(failed.time, now);
        line(
            text,
            "Archiver",
            &format!("FAILS: \"{}\" could not be archived, last {when}; {count} so far", failed.file),
        );
    }
}

fn queue(facts: &ServerFacts, now: Timestamp) -> String {
    match &facts.queue {
        _ if !facts.archives => {
            let why = if facts.in_recovery { "it is a standby, its primary archives" } else { "archive_mode is off" };
            format!("this server does not archive: {why}")
        }
        None => "unknown: the role lacks pg_monitor, and the data directory cannot be read".to_owned(),
        Some(queue) => match queue.oldest {
            None => "no file waits to be archived".to_owned(),
            Some(oldest) => {
                let files = counted(queue.files, "file waits", "files wait");
                format!("{files} to be archived, the oldest since {} ({})", time(oldest), ago(oldest, now))
            }
        },
    }
}

fn cluster_lines(text: &mut String, cluster: &ClusterStatus, now: Timestamp) {
    for row in &cluster.timelines {
        let is_current = Some(row.timeline) == cluster.now.current_timeline;
        if is_current || row.problem.is_some() {
            line(text, "Archive", &archive(row, is_current, now));
        }
    }
    if cluster.timelines.is_empty() {
        line(text, "Archive", "no WAL at all");
    }
    let behind = match cluster.now.behind_bytes {
        None => "unknown without a server of this cluster".to_owned(),
        Some(behind) => format!("{} of the server's WAL are not archived", bytes(behind)),
    };
    line(text, "Behind", &behind);
    line(text, "RPO now", &rpo(cluster));
    for (number, window) in cluster.windows.iter().enumerate() {
        line(text, if number == 0 { "Recovery" } else { "" }, &self::window(window));
    }
    if cluster.windows.is_empty() {
        line(text, "Recovery", "NOT POSSIBLE: no base backup reaches anything");
    }
    let last = cluster.last_backup.as_ref().map_or_else(|| "NEVER".to_owned(), |last| backup(last, now));
    line(text, "Last backup", &last);
    for id in &cluster.unusable_backups {
        line(text, "Backup", &format!("{id} CANNOT BE USED: basebackup list has the reason"));
    }
    for id in &cluster.unfinished_backups {
        line(text, "Backup", &format!("{id} is not finished: it is being taken, or dead"));
    }
    let last = cluster.last_verify.as_ref().map_or_else(|| "never on this host".to_owned(), |last| verify(last, now));
    line(text, "Last verify", &last);
    let last = cluster.drills.last.as_ref();
    line(text, "Last drill", &last.map_or_else(|| "never".to_owned(), |last| drill(last, now)));
    if let Some(passed) = cluster.drills.last_passed.as_ref().filter(|passed| Some(*passed) != last) {
        line(text, "Last passed", &drill(passed, now));
    }
    let (wal, backups) = (cluster.stored_wal_bytes, cluster.stored_backup_bytes);
    let count = counted(cluster.backups as u64, "backup", "backups");
    line(text, "Stored", &format!("{} of WAL, {count} of {}", bytes(wal), bytes(backups)));
}

fn archive(row: &TimelineStatus, is_current: bool, now: Timestamp) -> String {
    let mut text = format!("timeline {}", row.timeline);
    if let (true, Some(last), Some(end)) = (is_current, &row.last_segment, row.end_lsn) {
        let _ = write!(text, " without a hole up to {end}, segment {last}");
        if let Some(archived) = row.archived {
            let _ = write!(text, ", archived {} ({})", time(archived), ago(archived, now));
        }
    }
    if let Some(hole) = &row.hole {
        let _ = write!(text, "; then a HOLE: {hole} is missing, what follows is of use only after a new base backup");
    }
    if let Some(awaited) = &row.awaited {
        let _ = write!(text, "; {awaited} of the promotion is not full yet");
    }
    if let Some(problem) = &row.problem {
        let _ = write!(text, "; PROBLEM: {problem}");
    }
    text
}

fn rpo(cluster: &ClusterStatus) -> String {
    let current = cluster.now.current_timeline;
    let is_reached = cluster.windows.iter().any(|window| Some(window.window.timeline) == current);
    match cluster.now.rpo_seconds {
        None if cluster.windows.is_empty() => "everything would be lost: nothing can be recovered".to_owned(),
        None if !is_reached => "everything on the current timeline would be lost: it cannot be recovered to".to_owned(),
        None => "unknown: when the last segment was written cannot be read".to_owned(),
        Some(0.0) => "nothing would be lost: all WAL is archived".to_owned(),
        Some(age) => format!("at most {} would be lost", seconds(age)),
    }
}

/// "any moment from A to B on timeline 3".
fn window(status: &WindowStatus) -> String {
    let window = &status.window;
    let to = status.to_time.map_or_else(|| window.to_lsn.to_string(), time);
    let timeline = window.timeline;
    let mut text = format!("any moment from {} to {to} on timeline {timeline}", time(window.from_time));
    if let Some(hole) = &window.hole {
        let _ = write!(text, ", then a HOLE: {hole} is missing");
    }
    if window.expired.is_some() {
        text.push_str("; later WAL was removed by basebackup expire");
    }
    text
}

fn backup(backup: &BackupSummary, now: Timestamp) -> String {
    let mut text = format!(
        "{} ({}), ended {} ({}), took {}, {} of data, {} stored",
        backup.id,
        backup.kind,
        time(backup.finished),
        ago(backup.finished, now),
        seconds(backup.finished.duration_since(backup.started).as_secs_f64()),
        bytes(backup.plain_bytes),
        bytes(backup.stored_bytes),
    );
    if backup.bad_pages > 0 {
        let _ = write!(text, "; {} DAMAGED", counted(backup.bad_pages as u64, "page of it was", "pages of it were"));
    }
    text
}

fn verify(verified: &Verified, now: Timestamp) -> String {
    let verdict = match verified.verdict {
        Verdict::Sound => "sound".to_owned(),
        Verdict::Damaged => format!("{} DAMAGED", counted(verified.findings as u64, "object", "objects")),
    };
    let mut what: Vec<String> = match verified.backups.as_slice() {
        [one] => vec![format!("backup {one}")],
        several => vec![format!("{} backups", several.len())],
    };
    what.extend(verified.all_wal.then(|| "all WAL".to_owned()));
    if verified.read_share < 1.0 {
        what.push(format!("a sample of {} %", verified.read_share * 100.0));
    }
    let when = verified.finished;
    format!("{verdict}, {} ({}) on this host: {}", time(when), ago(when, now), what.join(", "))
}

fn drill(drill: &DrillSummary, now: Timestamp) -> String {
    let verdict = match drill.verdict {
        DrillVerdict::Passed => "PASSED",
        DrillVerdict::Failed => "FAILED",
    };
    let when = drill.finished;
    let mut text = format!("{verdict}, {} ({}) on host {}", time(when), ago(when, now), drill.host);
    if let Some(backup) = &drill.backup {
        let _ = write!(text, ": backup {backup}, {}", drill.target);
    }
    for (name, measured) in [("RTO", drill.rto_seconds), ("RPO", drill.rpo_seconds)] {
        if let Some(measured) = measured {
            let _ = write!(text, ", {name} {}", seconds(measured));
        }
    }
    if let Some(problem) = &drill.problem {
        let _ = write!(text, "; {problem}");
    }
    text
}
