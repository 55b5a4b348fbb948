//! Prometheus' text format. Moments are given as such, so that a file that is not replaced any more grows old visibly; what
//! is unknown has no sample. Labels are few and of few values.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::Status;
use super::archived::{ClusterStatus, TimelineStatus};
use super::drills::DrillVerdict;
use super::server::ServerFacts;
use crate::verify::Verdict;

/// Every metric: name, type, help.
const METRICS: [(&str, &str, &str); 34] = [
    ("build_info", "gauge", "Version of the program; always 1."),
    ("status_timestamp_seconds", "gauge", "When everything here was measured."),
    (
        "repository_up",
        "gauge",
        "Whether the cluster could be looked at in the repository; if not, nothing of it is here.",
    ),
    ("server_up", "gauge", "Whether PostgreSQL answered; if not, nothing of it is here."),
    ("archive_ready_files", "gauge", "Files that wait to be archived."),
    (
        "archive_ready_oldest_timestamp_seconds",
        "gauge",
        "Since when the file waits that waits longest; none if nothing waits.",
    ),
    ("archive_pushed_total", "counter", "Files archived, as PostgreSQL counts them."),
    ("archive_failed_total", "counter", "Failures of the archiver, as PostgreSQL counts them."),
    ("archive_last_success_timestamp_seconds", "gauge", "When PostgreSQL last archived a file."),
    ("archive_last_failure_timestamp_seconds", "gauge", "When the archiver last failed."),
    (
        "archive_last_segment_timestamp_seconds",
        "gauge",
        "When the last segment that is archived without a hole was archived.",
    ),
    ("archive_end_bytes", "gauge", "WAL position (LSN) up to which the timeline is archived without a hole."),
    ("archive_lag_bytes", "gauge", "WAL of the server that is not archived without a hole."),
    ("rpo_seconds", "gauge", "Age of the last moment that can be recovered: at most this much would be lost now."),
    ("recovery_oldest_timestamp_seconds", "gauge", "The oldest moment that can be recovered."),
    ("recovery_window_start_timestamp_seconds", "gauge", "Start of the timeline's last unbroken window of recovery."),
    ("recovery_window_end_timestamp_seconds", "gauge", "End of the timeline's last unbroken window of recovery."),
    ("wal_gaps", "gauge", "Places where WAL is missing although later WAL is there."),
    ("backups", "gauge", "Complete base backups."),
    ("backups_unfinished", "gauge", "Base backups that are being taken, or dead."),
    ("backups_unusable", "gauge", "Base backups whose record cannot be used."),
    ("backup_last_success_timestamp_seconds", "gauge", "When the last base backup ended."),
    ("backup_last_duration_seconds", "gauge", "How long the last base backup took."),
    ("backup_last_size_bytes", "gauge", "Size of the last base backup, plain and stored."),
    ("checksum_failures", "gauge", "Damaged pages that the last base backup found in the database."),
    ("repository_bytes", "gauge", "Stored bytes."),
    ("verify_last_timestamp_seconds", "gauge", "When the last verification on this host ended."),
    ("verify_last_success_timestamp_seconds", "gauge", "The same, if it found everything sound."),
    ("verify_last_findings", "gauge", "Objects that the last verification on this host found damaged or missing."),
    ("drill_last_timestamp_seconds", "gauge", "When the last drill ended."),
    ("drill_last_success_timestamp_seconds", "gauge", "When the last drill that was passed ended."),
    ("drill_last_result", "gauge", "The result of the last drill: 1 for the one it has."),
    ("drill_rto_seconds", "gauge", "How long recovery took in the last drill."),
    ("drill_rpo_seconds", "gauge", "How much was lost in the last drill."),
];

/// The whole status.
pub(super) fn render(status: &Status) -> String {
    let mut page = Page::default();
    let of_cluster = Labels(vec![("cluster", status.repository.cluster.clone())]);
    // Servers of one host may have the same name in the repository, and each has a page of its own.
    let of_run = match status.of_server {
        Some(system_identifier) => of_cluster.with("system_identifier", &system_identifier),
        None => of_cluster.clone(),
    };
    page.add("build_info", &of_run.with("version", &env!("CARGO_PKG_VERSION")), 1_u64);
    page.add("status_timestamp_seconds", &of_run, status.measured);
    page.add("repository_up", &of_run, u64::from(status.repository.problem.is_none()));
    page.add("server_up", &of_run, u64::from(status.server.facts.is_some()));
    if let Some(facts) = &status.server.facts {
        server(&mut page, &of_cluster, facts);
    }
    for cluster in &status.clusters {
        let labels = of_cluster.with("system_identifier", &cluster.system_identifier);
        archive(&mut page, &labels, cluster);
        backups(&mut page, &labels, cluster);
        proofs(&mut page, &labels, cluster);
    }
    page.to_text()
}

fn server(page: &mut Page, of_cluster: &Labels, facts: &ServerFacts) {
    // On a standby that does not archive, the numbers are of another time and place.
    if !facts.archives {
        return;
    }
    let labels = of_cluster.with("system_identifier", &facts.system_identifier);
    if let Some(queue) = &facts.queue {
        page.add("archive_ready_files", &labels, queue.files);
        page.add("archive_ready_oldest_timestamp_seconds", &labels, queue.oldest);
    }
    page.add("archive_pushed_total", &labels, facts.archived_count);
    page.add("archive_failed_total", &labels, facts.failed_count);
    page.add("archive_last_success_timestamp_seconds", &labels, facts.last_archived.as_ref().map(|last| last.time));
    page.add("archive_last_failure_timestamp_seconds", &labels, facts.last_failed.as_ref().map(|last| last.time));
}

fn archive(page: &mut Page, labels: &Labels, cluster: &ClusterStatus) {
    for row in &cluster.timelines {
        timeline(page, &labels.with("timeline", &row.timeline), row, cluster);
    }
    page.add("archive_lag_bytes", labels, cluster.now.behind_bytes);
    page.add("rpo_seconds", labels, cluster.now.rpo_seconds);
    let oldest = cluster.windows.iter().map(|window| window.window.from_time).min();
    page.add("recovery_oldest_timestamp_seconds", labels, oldest);
    page.add("wal_gaps", labels, cluster.holes.len() as u64);
    page.add("repository_bytes", &labels.with("class", &"wal"), cluster.stored_wal_bytes);
    page.add("repository_bytes", &labels.with("class", &"backups"), cluster.stored_backup_bytes);
}

fn timeline(page: &mut Page, labels: &Labels, row: &TimelineStatus, cluster: &ClusterStatus) {
    page.add("archive_last_segment_timestamp_seconds", labels, row.archived);
    page.add("archive_end_bytes", labels, row.end_lsn.map(|end| end.0));
    let of_timeline = cluster.windows.iter().filter(|window| window.window.timeline == row.timeline);
    if let Some(last) = of_timeline.max_by_key(|window| window.window.to_lsn) {
        page.add("recovery_window_start_timestamp_seconds", labels, last.window.from_time);
        page.add("recovery_window_end_timestamp_seconds", labels, last.to_time);
    }
}

fn backups(page: &mut Page, labels: &Labels, cluster: &ClusterStatus) {
    page.add("backups", labels, cluster.backups as u64);
    page.add("backups_unfinished", labels, cluster.unfinished_backups.len() as u64);
    page.add("backups_unusable", labels, cluster.unusable_backups.len() as u64);
    let Some(last) = &cluster.last_backup else { return };
    page.add("backup_last_success_timestamp_seconds", labels, last.finished);
    page.add("backup_last_duration_seconds", labels, last.finished.duration_since(last.started).as_secs_f64());
    page.add("backup_last_size_bytes", &labels.with("kind", &"plain"), last.plain_bytes);
    page.add("backup_last_size_bytes", &labels.with("kind", &"stored"), last.stored_bytes);
    page.add("checksum_failures", labels, last.bad_pages as u64);
}

fn proofs(page: &mut Page, labels: &Labels, cluster: &ClusterStatus) {
    if let Some(last) = &cluster.last_verify {
        page.add("verify_last_timestamp_seconds", labels, last.finished);
        let success = (last.verdict == Verdict::Sound).then_some(last.finished);
        page.add("verify_last_success_timestamp_seconds", labels, success);
        page.add("verify_last_findings", labels, last.findings as u64);
    }
    let success = cluster.drills.last_passed.as_ref().map(|passed| passed.finished);
    page.add("drill_last_success_timestamp_seconds", labels, success);
    let Some(last) = &cluster.drills.last else { return };
    page.add("drill_last_timestamp_seconds", labels, last.finished);
    for (result, verdict) in [("passed", DrillVerdict::Passed), ("failed", DrillVerdict::Failed)] {
        page.add("drill_last_result", &labels.with("result", &result), u64::from(last.verdict == verdict));
    }
    page.add("drill_rto_seconds", labels, last.rto_seconds);
    page.add("drill_rpo_seconds", labels, last.rpo_seconds);
}

/// Samples by metric: all of one stand together.
#[derive(Default)]
struct Page(Vec<(&'static str, String)>);

#[derive(Clone)]
struct Labels(Vec<(&'static str, String)>);

/// A number as a sample has it; none where it is unknown.
struct Value(Option<String>);

impl Page {
    fn add(&mut self, name: &'static str, labels: &Labels, value: impl Into<Value>) {
        if let Value(Some(value)) = value.into() {
            self.0.push((name, format!("walkeep_{name}{} {value}\n", labels.to_text())));
        }
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, kind, help) in METRICS {
            let samples: String =
                self.0.iter().filter(|(of, _)| *of == name).map(|(_, sample)| sample.as_str()).collect();
            if !samples.is_empty() {
                let _ = write!(text, "# HELP walkeep_{name} {help}\n# TYPE walkeep_{name} {kind}\n{samples}");
            }
        }
        text
    }
}

impl Labels {
    fn with(&self, name: &'static str, value: &impl ToString) -> Self {
        Self(self.0.iter().cloned().chain([(name, value.to_string())]).collect())
    }

    fn to_text(&self) -> String {
        let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels = self.0.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
        format!("{{{}}}", labels.collect::<Vec<_>>().join(","))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self(Some(number.to_string()))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self(Some(format!("{number:.3}")))
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Self {
        let milliseconds = time.as_millisecond();
        Self(Some(format!("{}.{:03}", milliseconds.div_euclid(1000), milliseconds.rem_euclid(1000))))
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(known: Option<T>) -> Self {
        known.map_or(Self(None), Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_metric_stand_together_and_labels_are_escaped() {
        let mut page = Page::default();
        let labels = Labels(vec![("cluster", "a\"b\\c\nd".to_owned())]);
        page.add("backups", &labels, 1_u64);
        page.add("wal_gaps", &labels, None::<u64>);
        page.add("rpo_seconds", &labels, 0.25);
        page.add("status_timestamp_seconds", &labels, Timestamp::from_millisecond(1_700_000_000_050).unwrap());
        page.add("backups", &labels.with("timeline", &3), 2_u64);
        let label = "cluster=\"a\\\"b\\\\c\\nd\"";
        let text = page.to_text();
        for expected in [
            format!(
                "# TYPE walkeep_backups gauge\nwalkeep_backups{{{label}}} 1\nwalkeep_backups{{{label},timeline=\"3\"}} 2\n"
            ),
            format!("walkeep_rpo_seconds{{{label}}} 0.250\n"),
            format!("walkeep_status_timestamp_seconds{{{label}}} 1700000000.050\n"),
        ] {
            assert!(text.contains(&expected), "{expected}\n{text}");
        }
        assert!(!text.contains("wal_gaps"));
    }
}
