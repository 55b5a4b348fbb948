//! The record of a drill as one page of HTML, for people who were not there: styles and drawings are in it, nothing is
//! fetched from elsewhere, and it prints.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::checks::Outcome;
use super::record::{Phase, Record, Verdict, objective, seconds};
use crate::list::time;
use crate::output::bytes;

const STYLE: &str = "
:root { --ink: #1d2733; --soft: #5b6875; --line: #d9dfe5; --good: #1b7f4b; --warn: #9a6700; --bad: #b3261e; --bar: #3f6fb5; --side: #b9c6d8; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; color: var(--ink); margin: 0; background: #f4f6f8; }
main { max-width: 960px; margin: 24px auto; background: #fff; padding: 32px 40px; border: 1px solid var(--line); border-radius: 8px; }
header { display: flex; justify-content: space-between; align-items: flex-start; gap: 24px; border-bottom: 1px solid var(--line); padding-bottom: 16px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 28px 0 8px; }
.soft { color: var(--soft); } .mono { font-family: ui-monospace, 'DejaVu Sans Mono', monospace; font-size: 13px; overflow-wrap: anywhere; }
.verdict { font-weight: 700; font-size: 18px; padding: 8px 18px; border-radius: 6px; color: #fff; white-space: nowrap; }
.passed { background: var(--good); } .failed { background: var(--bad); }
.measures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px; margin-top: 20px; }
.measure { border: 1px solid var(--line); border-radius: 6px; padding: 12px 16px; }
.measure b { display: block; font-size: 20px; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; vertical-align: top; padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; width: 190px; } td.outcome { font-weight: 700; width: 90px; }
.o-passed { color: var(--good); } .o-warning { color: var(--warn); } .o-failed { color: var(--bad); } .o-skipped { color: var(--soft); }
svg { width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .soft { fill: var(--soft); }
.sign { display: grid; grid-template-columns: 2fr 1fr; gap: 32px; margin-top: 40px; } .sign div { border-top: 1px solid var(--ink); padding-top: 4px; color: var(--soft); }
@media print { body { background: #fff; } main { border: 0; margin: 0; padding: 0; max-width: none; } }
@media (max-width: 640px) { main { padding: 20px; } .measures { grid-template-columns: 1fr; } th { width: 120px; } }
";

/// The whole page. `earlier` are the records in the repository, oldest first, which may have this one among them.
pub(super) fn html(record: &Record, earlier: &[Record]) -> String {
    let (word, class) = match record.verdict {
        Verdict::Passed => ("PASSED", "passed"),
        Verdict::Failed => ("FAILED", "failed"),
    };
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Restore drill {id}: {word}</title><style>{STYLE}</style></head><body><main>\
         <header><div><h1>Restore drill</h1><div class=\"mono soft\">{id}</div>\
         <div class=\"soft\">{started} to {finished}</div></div><div class=\"verdict {class}\">{word}</div></header>",
        id = escape(&record.id.to_string()),
        started = time(record.started),
        finished = time(record.finished),
    );
    if let Some(problem) = &record.problem {
        let _ = write!(page, "<p class=\"o-failed mono\">{}</p>", escape(problem));
    }
    let measured = |seconds_taken: Option<f64>| seconds_taken.map_or_else(|| "not measured".to_owned(), seconds);
    let commit = record.last_commit.map_or_else(
        || ("none replayed".to_owned(), String::new()),
        |last| (last.strftime("%T UTC").to_string(), date(last)),
    );
    page.push_str("<div class=\"measures\">");
    for (name, value, note) in [
        ("Time to recover (RTO)", measured(record.rto_seconds), kept(record.rto_seconds, record.rto_objective_seconds)),
        ("Data at risk (RPO)", measured(record.rpo_seconds), kept(record.rpo_seconds, record.rpo_objective_seconds)),
        ("Newest commit recovered", commit.0, commit.1),
    ] {
        let (value, note) = (escape(&value), escape(&note));
        let _ = write!(
            page,
            "<div class=\"measure\"><span class=\"soft\">{name}</span><b>{value}</b><span class=\"soft\">{note}</span></div>"
        );
    }
    page.push_str("</div>");
    page.push_str("<h2>What was restored</h2>");
    page.push_str(&facts(&restored(record)));
    page.push_str("<h2>How long it took</h2>");
    page.push_str(&timeline(&record.phases));
    page.push_str("<h2>What was checked</h2>");
    page.push_str(&checks(record));
    page.push_str("<h2>How it was performed</h2>");
    page.push_str(&facts(&performed(record)));
    page.push_str("<h2>Earlier drills of this cluster</h2>");
    page.push_str(&history(record, earlier));
    page.push_str(
        "<div class=\"sign\"><div>Reviewed by</div><div>Date</div></div>\
         <p class=\"soft\">The record itself is in the repository, where it is created once and never changed. Evidence for \
         tests of recovery procedures as in SOC 2 A1.3 and ISO/IEC 27001:2022 A.8.13; it is not an attestation.</p>\
         </main></body></html>\n",
    );
    page
}

/// Whether an objective was kept, in words.
fn kept(measured: Option<f64>, wanted: Option<f64>) -> String {
    match (measured, wanted) {
        (Some(measured), Some(wanted)) if measured > wanted => format!("objective {}: missed", seconds(wanted)),
        (Some(_), Some(wanted)) => format!("objective {}: kept", seconds(wanted)),
        _ => "no objective".to_owned(),
    }
}

fn restored(record: &Record) -> Vec<(&'static str, String)> {
    let backup = record.backup.as_ref().map_or_else(String::new, |id| format!("{id}, {}", record.selection));
    let postgresql = record.postgresql.clone().unwrap_or_default();
    let timeline = record.timeline.map_or_else(String::new, |timeline| format!(", timeline {timeline}"));
    let mut facts = vec![
        ("Cluster", format!("{}, system identifier {}", record.cluster, record.system_identifier)),
        ("Repository", record.repository.clone()),
        ("Backup", backup),
        ("Size", format!("{} in {} databases", bytes(record.restored_bytes), record.databases)),
        ("PostgreSQL", postgresql),
        ("Target", format!("{}{timeline}", record.target)),
        ("WAL replayed", format!("{} segments, {}", record.replayed_segments, bytes(record.replayed_bytes))),
    ];
    facts.extend(record.stopped.clone().map(|stopped| ("Recovery stopped", stopped)));
    facts
}

fn performed(record: &Record) -> Vec<(&'static str, String)> {
    vec![
        ("Host", record.host.clone()),
        ("User", record.user.clone()),
        ("Program", format!("Walkeep {}", record.version)),
        ("Directory", record.scratch.clone()),
        ("Network", record.network.clone().unwrap_or_else(|| "no server was started".to_owned())),
        (
            "Kept apart",
            "archiving, streaming, slots, subscriptions, preloaded libraries and autovacuum off; no TCP; a socket that only \
             the user of the drill reaches; an empty environment"
                .to_owned(),
        ),
    ]
}

fn facts(facts: &[(&str, String)]) -> String {
    let rows = facts.iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>", escape(value)));
    format!("<table>{}</table>", rows.collect::<String>())
}

fn checks(record: &Record) -> String {
    let rows = record.checks.iter().map(|check| {
        let outcome = match check.outcome {
            Outcome::Passed => "passed",
            Outcome::Warning => "warning",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
        };
        let detail = escape(&check.detail).replace('\n', "<br>");
        format!(
            "<tr><th>{}</th><td class=\"outcome o-{outcome}\">{outcome}</td><td>{detail}</td></tr>",
            escape(&check.name)
        )
    });
    let rows: String = rows.collect();
    if rows.is_empty() {
        "<p class=\"soft\">It did not come so far.</p>".to_owned()
    } else {
        format!("<table>{rows}</table>")
    }
}

/// The phases one after the other, as bars.
#[expect(clippy::cast_precision_loss, reason = "a drawing")]
fn timeline(phases: &[Phase]) -> String {
    const LEFT: f64 = 200.0;
    const WIDTH: f64 = 560.0;
    const ROW: f64 = 30.0;
    let total: f64 = phases.iter().map(|phase| phase.seconds).sum::<f64>().max(0.001);
    let mut at = 0.0;
    let mut drawn = String::new();
    for (number, phase) in phases.iter().enumerate() {
        let y = number as f64 * ROW;
        let (x, width) = (LEFT + at / total * WIDTH, (phase.seconds / total * WIDTH).max(2.0));
        let fill = if phase.counts { "var(--bar)" } else { "var(--side)" };
        let _ = write!(
            drawn,
            "<text x=\"0\" y=\"{ty:.0}\">{name}</text><rect x=\"{x:.1}\" y=\"{ry:.0}\" width=\"{width:.1}\" height=\"18\" \
             rx=\"3\" fill=\"{fill}\"/><text class=\"soft\" x=\"{lx:.1}\" y=\"{ty:.0}\">{took}</text>",
            ty = y + 18.0,
            ry = y + 4.0,
            lx = x + width + 6.0,
            name = escape(&phase.name),
            took = escape(&seconds(phase.seconds)),
        );
        at += phase.seconds;
    }
    format!(
        "<svg viewBox=\"0 0 880 {height:.0}\" role=\"img\" aria-label=\"Phases of the drill\">{drawn}</svg>\
         <p class=\"soft\">Dark bars are what recovering in earnest takes; light ones are checks.</p>",
        height = phases.len().max(1) as f64 * ROW + 4.0
    )
}

/// Time to recover of each drill so far, as columns.
#[expect(clippy::cast_precision_loss, reason = "a drawing")]
fn history(record: &Record, earlier: &[Record]) -> String {
    const HEIGHT: f64 = 120.0;
    let mut all: Vec<&Record> = earlier.iter().filter(|other| other.id != record.id).collect();
    all.push(record);
    let highest = all.iter().filter_map(|record| record.rto_seconds).fold(0.001, f64::max);
    let step = 840.0 / all.len().max(12) as f64;
    let mut drawn = String::new();
    for (number, drill) in all.iter().enumerate() {
        let height = drill.rto_seconds.map_or(6.0, |rto| (rto / highest * HEIGHT).max(6.0));
        let fill = if drill.verdict == Verdict::Passed { "var(--good)" } else { "var(--bad)" };
        let _ = write!(
            drawn,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"2\" fill=\"{fill}\">\
             <title>{title}</title></rect>",
            x = 20.0 + number as f64 * step,
            y = HEIGHT + 10.0 - height,
            width = (step * 0.7).min(40.0),
            title = escape(&format!(
                "{}: {}, {}",
                time(drill.started),
                if drill.verdict == Verdict::Passed { "passed" } else { "failed" },
                objective(drill.rto_seconds, drill.rto_objective_seconds)
            )),
        );
    }
    let passed = all.iter().filter(|drill| drill.verdict == Verdict::Passed).count();
    let first = all.first().map_or(record.started, |drill| drill.started);
    format!(
        "<svg viewBox=\"0 0 880 150\" role=\"img\" aria-label=\"Time to recover of each drill\">\
         <line x1=\"16\" y1=\"130\" x2=\"864\" y2=\"130\" stroke=\"var(--line)\"/>{drawn}\
         <text class=\"soft\" x=\"20\" y=\"146\">{from}</text>\
         <text class=\"soft\" x=\"860\" y=\"146\" text-anchor=\"end\">highest column: {highest}</text></svg>\
         <p>{passed} of {count} passed{gap}.</p>",
        from = date(first),
        highest = escape(&seconds(highest)),
        count = all.len(),
        gap = longest_gap(&all).map_or_else(String::new, |gap| format!("; the longest time between two was {gap}")),
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
