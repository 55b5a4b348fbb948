//! The record of a drill as one page of HTML, for people who were not there: styles and drawings are in it, nothing is
//! fetched from elsewhere, and it prints.

mod charts;

use std::fmt::Write as _;

use jiff::Timestamp;

use super::checks::{Check, Outcome};
use super::record::{Record, Verdict, seconds};
use crate::list::time;
use crate::output::bytes;

const STYLE: &str = include_str!("style.css");
/// Drills that are listed one by one.
const LISTED: usize = 12;
/// What keeps a copy apart, in words.
const KEPT_APART: &str = "Archiving, streaming, replication slots, subscriptions, commands of the original and preloaded \
    libraries are off. The server listens on no network address, only on a socket that nobody but the user of the drill \
    reaches, and knows nothing of this host's environment.";

/// The whole page. `earlier` are the records in the repository, oldest first, which may have this one among them.
pub(super) fn html(record: &Record, earlier: &[Record]) -> String {
    let (word, class) = verdict(record);
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Restore drill {id}: {word}</title><style>{STYLE}</style></head><body><main>\
         <header><div><h1>Restore drill of {cluster}</h1><div class=\"mono soft\">{id}</div>\
         <div class=\"soft\">{started} to {finished}</div></div><div class=\"verdict {class}\">{word}</div></header>",
        id = escape(&record.id.to_string()),
        cluster = escape(&record.cluster),
        started = time(record.started),
        finished = time(record.finished),
    );
    for problem in problems(record) {
        let _ = write!(page, "<div class=\"problem text\">{}</div>", escape(&problem));
    }
    page.push_str(&measures(record));
    section(&mut page, "What was restored", &facts(&restored(record)));
    if !record.phases.is_empty() {
        section(&mut page, "How long it took", &charts::phases(&record.phases));
    }
    let _ = write!(page, "<section class=\"long\"><h2>What was checked</h2>{}</section>", checks(&record.checks));
    section(&mut page, "How it was performed", &facts(&performed(record)));
    section(&mut page, "Drills of this cluster", &history(record, earlier));
    let _ = writeln!(
        page,
        "<div class=\"sign\"><div>Reviewed by</div><div>Date</div><div>Findings, follow-up, ticket</div></div>\
         <footer>The record itself is <span class=\"mono\">drills/{id}.json</span> in the repository, created once and never \
         changed. It is evidence of a test of recovery procedures, as SOC 2 (A1.2, A1.3, CC7.5) and ISO/IEC 27001:2022 (A.8.13) \
         ask for; it is not an attestation.</footer></main></body></html>",
        id = escape(&record.id.to_string()),
    );
    page
}

fn section(page: &mut String, title: &str, body: &str) {
    let _ = write!(page, "<section><h2>{title}</h2>{body}</section>");
}

fn verdict(record: &Record) -> (&'static str, &'static str) {
    match record.verdict {
        Verdict::Passed => ("PASSED", "passed"),
        Verdict::Failed => ("FAILED", "failed"),
    }
}

/// Why it failed, in a line for each reason.
fn problems(record: &Record) -> Vec<String> {
    let failed = record.checks.iter().filter(|check| check.outcome == Outcome::Failed);
    let checks = failed.map(|check| format!("Check \u{201C}{}\u{201D} failed.", check.name));
    let missed = [
        ("Recovering took", record.rto_seconds, record.rto_objective_seconds),
        ("What would be lost is", record.rpo_seconds, record.rpo_objective_seconds),
    ];
    let missed = missed.into_iter().filter_map(|(what, measured, wanted)| {
        let (measured, wanted) = measured.zip(wanted).filter(|(measured, wanted)| measured > wanted)?;
        Some(format!("{what} {}, more than the objective of {}.", seconds(measured), seconds(wanted)))
    });
    record.problem.clone().into_iter().chain(checks).chain(missed).collect()
}

fn measures(record: &Record) -> String {
    let measured = |seconds_taken: Option<f64>| seconds_taken.map_or_else(|| "not measured".to_owned(), seconds);
    let commit = record.last_commit.map_or_else(
        || ("none replayed".to_owned(), String::new()),
        |last| (last.strftime("%T UTC").to_string(), date(last)),
    );
    let (rto, rpo) = (record.rto_seconds, record.rpo_seconds);
    let cells = [
        ("Time to recover (RTO)", measured(rto), kept(rto, record.rto_objective_seconds)),
        ("Data at risk (RPO)", measured(rpo), kept(rpo, record.rpo_objective_seconds)),
        ("Newest commit recovered", commit.0, ("soft", commit.1)),
    ];
    let cells = cells.into_iter().map(|(name, value, (class, note))| {
        let (value, note) = (escape(&value), escape(&note));
        format!("<div class=\"measure\"><span class=\"soft\">{name}</span><b>{value}</b><span class=\"{class}\">{note}</span></div>")
    });
    format!("<div class=\"measures\">{}</div>", cells.collect::<String>())
}

/// Whether an objective was kept: a class, and words.
fn kept(measured: Option<f64>, wanted: Option<f64>) -> (&'static str, String) {
    match (measured, wanted) {
        (Some(measured), Some(wanted)) if measured > wanted => {
            ("o-failed", format!("objective {}: missed", seconds(wanted)))
        }
        (Some(_), Some(wanted)) => ("o-passed", format!("objective {}: kept", seconds(wanted))),
        (None, Some(wanted)) => ("soft", format!("objective {}", seconds(wanted))),
        (_, None) => ("soft", "no objective".to_owned()),
    }
}

fn restored(record: &Record) -> Vec<(&'static str, String)> {
    let backup = record
        .backup
        .as_ref()
        .map_or_else(|| format!("none ({})", record.selected()), |id| format!("{id} ({})", record.selected()));
    let timeline = record.timeline.map_or_else(String::new, |timeline| format!(", timeline {timeline}"));
    let mut facts = vec![
        ("Cluster", format!("{}, system identifier {}", record.cluster, record.system_identifier)),
        ("Repository", record.repository.clone()),
        ("Backup", backup),
    ];
    if record.databases > 0 {
        facts.push(("Size", format!("{} in {} databases", bytes(record.restored_bytes), record.databases)));
    }
    facts.extend(record.postgresql.clone().map(|version| ("PostgreSQL", version)));
    if !record.target.is_empty() {
        facts.push(("Target", format!("{}{timeline}", record.target)));
    }
    if record.replayed_segments > 0 {
        facts.push(("WAL replayed", record.replayed()));
    }
    facts.extend(record.stopped.clone().map(|stopped| ("Recovery stopped", stopped)));
    facts
}

fn performed(record: &Record) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("By", format!("user {} on host {}", record.user, record.host)),
        ("On", record.environment.clone()),
        ("With", format!("Walkeep {}", record.version)),
    ];
    if !record.scratch.is_empty() {
        let gone = if record.kept { "left there" } else { "removed at the end" };
        facts.push(("In", format!("{}, {gone}", record.scratch)));
    }
    match &record.network {
        Some(network) => {
            facts.push(("Network", network.clone()));
            facts.push(("Kept apart", KEPT_APART.to_owned()));
        }
        None => facts.push(("Network", "no server was started".to_owned())),
    }
    facts
}

fn facts(facts: &[(&str, String)]) -> String {
    let rows = facts.iter().map(|(name, value)| {
        let value = escape(value);
        format!("<tr><th scope=\"row\">{name}</th><td class=\"text\">{value}</td></tr>")
    });
    format!("<table class=\"facts\"><tbody>{}</tbody></table>", rows.collect::<String>())
}

fn checks(checks: &[Check]) -> String {
    let rows = checks.iter().map(|check| {
        let outcome = match check.outcome {
            Outcome::Passed => "passed",
            Outcome::Warning => "warning",
            Outcome::Failed => "failed",
            Outcome::Skipped => "not made",
        };
        let class = if check.outcome == Outcome::Skipped { "skipped" } else { outcome };
        #[expect(clippy::cast_precision_loss, reason = "a duration for people")]
        let took = seconds(check.milliseconds as f64 / 1000.0);
        format!(
            "<tr><th scope=\"row\" class=\"text\">{}</th><td class=\"outcome o-{class}\">{outcome}</td>\
             <td class=\"text\">{}</td><td class=\"took\">{took}</td></tr>",
            escape(&check.name),
            escape(&check.detail),
        )
    });
    let rows: String = rows.collect();
    if rows.is_empty() {
        "<p class=\"soft\">It did not come so far.</p>".to_owned()
    } else {
        format!("<table class=\"checks\"><tbody>{rows}</tbody></table>")
    }
}

/// All drills that are known, with this one as the last: drawn, counted, and the newest of them listed.
fn history(record: &Record, earlier: &[Record]) -> String {
    let mut all: Vec<&Record> = earlier.iter().filter(|other| other.id != record.id).collect();
    all.push(record);
    let passed = all.iter().filter(|drill| drill.verdict == Verdict::Passed).count();
    let gap = longest_gap(&all).map_or_else(String::new, |gap| format!("; the longest time between two was {gap}"));
    let rows = all.iter().rev().take(LISTED).map(|drill| {
        let (word, class) = verdict(drill);
        let backup = drill.backup.as_ref().map_or_else(String::new, ToString::to_string);
        let measured = |measure: Option<f64>| measure.map_or_else(|| "\u{2013}".to_owned(), seconds);
        let this = if drill.id == record.id { " class=\"this\"" } else { "" };
        format!(
            "<tr{this}><td>{}</td><td class=\"o-{class}\">{}</td><td class=\"mono\">{}</td><td>{}</td><td>{}</td></tr>",
            time(drill.started),
            word.to_lowercase(),
            escape(&backup),
            measured(drill.rto_seconds),
            measured(drill.rpo_seconds),
        )
    });
    format!(
        "{chart}<p>{passed} of {count} passed{gap}.</p><div class=\"drills\"><table><thead><tr><th>Begun</th><th>Verdict</th>\
         <th>Backup</th><th>RTO</th><th>RPO</th></tr></thead><tbody>{rows}</tbody></table></div>",
        chart = charts::history(&all),
        count = all.len(),
        rows = rows.collect::<String>(),
    )
}

fn longest_gap(drills: &[&Record]) -> Option<String> {
    let gaps = drills.windows(2).filter_map(|pair| match pair {
        [before, after] => Some(after.started.duration_since(before.started).as_secs_f64()),
        _ => None,
    });
    gaps.reduce(f64::max).map(seconds)
}

fn date(moment: Timestamp) -> String {
    moment.strftime("%F").to_string()
}

/// What comes from databases, files and operators is text, whatever is in it.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // A control character is no character of HTML.
            control if control.is_control() && control != '\n' && control != '\t' => escaped.push('\u{FFFD}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_becomes_markup() {
        assert_eq!(escape("<script>'\"&\u{7}"), "&lt;script&gt;&#39;&quot;&amp;\u{FFFD}");
        assert_eq!(escape("a\nb"), "a\nb");
    }
}
