//! What was found, for people, for programs, and for monitoring that speaks Nagios' language.

use std::fmt::Write as _;

use serde::Serialize;

use super::finding::{Area, Finding, Findings, Measure, Outcome};

/// Everything, with what it is about.
#[derive(Debug, Serialize)]
pub(super) struct Report<'r> {
    pub(super) outcome: Outcome,
    pub(super) host: String,
    pub(super) repository: String,
    pub(super) cluster: String,
    #[serde(flatten)]
    pub(super) found: &'r Findings,
}

/// One line for each finding, what to type below it. The area is named where it changes.
pub(super) fn lines(findings: &[Finding], mut before: Option<Area>) -> String {
    let mut text = String::new();
    for finding in findings {
        let title = if before == Some(finding.area) { "" } else { finding.area.title() };
        before = Some(finding.area);
        let _ = writeln!(text, "{title:<14} {:<5} {}", mark(finding.outcome), finding.text);
        if let Some(fix) = &finding.fix {
            let _ = writeln!(text, "{:<20} fix: {fix}", "");
        }
    }
    text
}

/// All of it in one sentence.
pub(super) fn summary(found: &Findings) -> String {
    let count = |outcome| found.of(outcome).count();
    match (count(Outcome::Failed), count(Outcome::Warning)) {
        (0, 0) => format!("all is well ({} checks)", found.findings.len()),
        (0, warnings) => plural(warnings, "warning"),
        (failed, 0) => format!("{failed} failed"),
        (failed, warnings) => format!("{failed} failed, {}", plural(warnings, "warning")),
    }
}

fn plural(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn mark(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "ok",
        Outcome::Note => "note",
        Outcome::Warning => "WARN",
        Outcome::Failed => "FAIL",
    }
}

/// As the guidelines for monitoring plugins have it: the first line is the state, a text, and figures behind a bar; what
/// is wrong follows line by line.
pub(super) fn nagios(found: &Findings) -> String {
    let outcome = found.outcome();
    let mut text = format!("WALKEEP {} - {}", word(outcome), plain(&first_line(found)));
    if !found.measures.is_empty() {
        let measures: Vec<String> = found.measures.iter().map(performance).collect();
        let _ = write!(text, " | {}", measures.join(" "));
    }
    text.push('\n');
    for finding in found.of(Outcome::Failed).chain(found.of(Outcome::Warning)) {
        let _ = writeln!(text, "{} {}", mark(finding.outcome), plain(&finding.text));
        if let Some(fix) = &finding.fix {
            let _ = writeln!(text, "fix: {}", plain(fix));
        }
    }
    text
}

/// That nothing could be tested at all.
pub(super) fn nagios_unknown(problem: &str) -> String {
    format!("WALKEEP UNKNOWN - {}\n", plain(problem))
}

fn first_line(found: &Findings) -> String {
    let worst = found.of(Outcome::Failed).chain(found.of(Outcome::Warning)).next();
    match worst {
        Some(worst) => format!("{}: {}", summary(found), worst.text),
        None => summary(found),
    }
}

/// The word, and with it the exit code, of each state.
fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed | Outcome::Note => "OK",
        Outcome::Warning => "WARNING",
        Outcome::Failed => "CRITICAL",
    }
}

/// A bar would begin the figures.
fn plain(text: &str) -> String {
    text.replace('|', "/").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `'label'=value[UOM];warn;crit;min;max`
fn performance(measure: &Measure) -> String {
    // A range "10:" is left by what is below, a range "10" by what is above.
    let colon = if measure.limits.is_minimum { ":" } else { "" };
    let limit = |limit: Option<f64>| limit.map_or(String::new(), |limit| format!("{}{colon}", number(limit)));
    let (warning, critical) = (limit(measure.limits.warning), limit(measure.limits.critical));
    let least = if measure.value < 0.0 { "" } else { "0" };
    format!("'{}'={}{};{warning};{critical};{least};", measure.name, number(measure.value), measure.unit)
}

/// Up to three digits behind the point, and none that says nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Limits;
    use super::*;

    fn found() -> Findings {
        let mut found = Findings::default();
        found.add([
            Finding::passed(Area::Configuration, "file", "\"/etc/walkeep/walkeep.toml\""),
            Finding::warning(Area::PostgreSQL, "archive_timeout", "archive_timeout is 0", "SET it | to something"),
            Finding::failed(Area::PostgreSQL, "fsync", "fsync is off", "turn it on"),
            Finding::note(Area::Recovery, "x", "worth knowing"),
        ]);
        found.measure("ready_files", 3.0, "", Limits::default());
        found.measure("oldest_ready", 1.25, "s", Limits::below(Some(300.0), Some(900.0)));
        found.measure("disk_full_in", 7200.0, "s", Limits::above(14_400.0, 3600.0));
        found
    }

    #[test]
    fn people_read_one_line_for_each_test_and_what_to_type_below() {
        let found = found();
        assert_eq!(
            lines(&found.findings, None),
            "configuration  ok    \"/etc/walkeep/walkeep.toml\"\n\
             postgresql     WARN  archive_timeout is 0\n                     fix: SET it | to something\n\
             \x20              FAIL  fsync is off\n                     fix: turn it on\n\
             recovery       note  worth knowing\n"
        );
        assert_eq!(summary(&found), "1 failed, 1 warning");
    }

    #[test]
    fn monitoring_reads_the_state_the_worst_and_the_figures() {
        assert_eq!(
            nagios(&found()),
            "WALKEEP CRITICAL - 1 failed, 1 warning: fsync is off | 'ready_files'=3;;;0; \
             'oldest_ready'=1.25s;300;900;0; 'disk_full_in'=7200s;14400:;3600:;0;\n\
             FAIL fsync is off\nfix: turn it on\nWARN archive_timeout is 0\nfix: SET it / to something\n"
        );
        assert_eq!(nagios(&Findings::default()), "WALKEEP OK - all is well (0 checks)\n");
        assert_eq!(nagios_unknown("a\nb|c"), "WALKEEP UNKNOWN - a b/c\n");
    }
}
