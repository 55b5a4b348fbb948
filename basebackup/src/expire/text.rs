//! A plan, and what came of it, for people and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};
use walkeep_common::repository::expire::{Range, WalRange};
use walkeep_common::store::Listed;
use walkeep_common::wal::segment::SegmentSize;

use super::execute::Done;
use super::plan::{Kept, Plan, Removed, Wish};
use super::policy::{Keeps, Reason};
use crate::list::time;
use crate::output::{bytes, table};

/// Ranges of WAL that are shown one by one.
const SHOWN: usize = 8;

/// What will be done, and why the rest stays.
pub(super) fn plan(plan: &Plan) -> String {
    let mut text = format!("Cluster {}\n\n", plan.system_identifier);
    let deletes_one = matches!(plan.wish, Wish::Delete(_));
    if !plan.kept.is_empty() && !deletes_one {
        let rows: Vec<Vec<String>> = plan.kept.iter().map(kept).collect();
        text.push_str(&table(&["KEPT", "FINISHED", "RECOVERY TO", "BECAUSE IT IS"], &rows));
    }
    for under_way in &plan.under_way {
        let host = under_way.begin.as_ref().map_or("unknown", |begin| begin.host.as_str());
        let _ = writeln!(text, "{}  not finished, left alone: running on host \"{host}\", or dead", under_way.id);
    }
    if plan.is_empty() {
        text.push_str("\nThere is nothing to remove.\n");
        return with_doubts(text, plan);
    }
    if !plan.removed.is_empty() {
        let rows: Vec<Vec<String>> = plan.removed.iter().map(removed).collect();
        let gap = if deletes_one || plan.kept.is_empty() { "" } else { "\n" };
        let _ = write!(text, "{gap}{}", table(&["REMOVED", "FINISHED", "OBJECTS", "STORED"], &rows));
    }
    let mut lines = Vec::new();
    for debris in &plan.debris {
        let objects = debris.objects.iter().chain(&debris.mark);
        lines.push(format!("What is left of backup {}: {}", debris.id, objects_of(objects)));
    }
    if !plan.leftovers.is_empty() {
        lines.push(format!("Objects that no backup names: {}", objects_of(plan.leftovers.iter())));
        lines.extend(plan.leftovers.iter().map(|object| format!("  {}", object.key)));
    }
    if !plan.stale_files.is_empty() {
        let size = plan.stale_files.iter().map(|file| file.size).sum();
        lines.push(format!("Files that never became objects: {}, {}", plan.stale_files.len(), bytes(size)));
    }
    if !plan.wal.objects.is_empty() {
        lines.push(format!("WAL that nothing kept needs: {}", objects_of(plan.wal.objects.iter())));
        lines.extend(plan.wal.ranges.iter().take(SHOWN).map(|range| format!("  {}", range_text(*range, plan))));
        let more = plan.wal.ranges.len().saturating_sub(SHOWN);
        if more > 0 {
            lines.push(format!("  and {more} more ranges"));
        }
    }
    if deletes_one {
        lines.push("WAL that only it needed goes with the next basebackup expire.".to_owned());
    }
    if !lines.is_empty() {
        let _ = write!(text, "\n{}\n", lines.join("\n"));
    }
    with_doubts(text, plan)
}

fn with_doubts(mut text: String, plan: &Plan) -> String {
    for doubt in &plan.doubts {
        let _ = writeln!(text, "\nLook first: {doubt}");
    }
    text
}

/// What was done.
pub(super) fn done(plan: &Plan, done: &Done) -> String {
    let (count, size) = (done.objects, bytes(done.stored_size));
    format!("\nRemoved {count} objects of cluster {}, {size}.\n", plan.system_identifier)
}

fn kept(kept: &Kept) -> Vec<String> {
    let is_newest = kept.reasons.contains(&Reason::Newest);
    let is_said = |reason: &&Reason| !is_newest || !matches!(reason, Reason::NewestSound | Reason::Branch { .. });
    let mut reasons: Vec<String> = kept.reasons.iter().filter(is_said).map(reason).collect();
    if let Some(problem) = &kept.problem {
        reasons.push(format!("CANNOT BE RESTORED: {problem}"));
    }
    let reaches = if kept.keeps == Keeps::AllWalSince { "any later moment" } else { "its own end" };
    vec![kept.backup.id.to_string(), time(kept.backup.stop_time), reaches.to_owned(), reasons.join(", ")]
}

fn removed(removed: &Removed) -> Vec<String> {
    let size = removed.objects.iter().map(|object| object.size).sum();
    vec![removed.backup.id.to_string(), time(removed.backup.stop_time), removed.objects.len().to_string(), bytes(size)]
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Full { number, of } => format!("number {number} of the newest {of}"),
        Reason::Window { days } => format!("of the last {days} days"),
        Reason::WindowStart { days } => format!("where the last {days} days begin"),
        Reason::Period { period } => format!("the newest of {period}"),
        Reason::Pinned(pin) => pin.to_text(),
        Reason::Branch { timeline } => format!("the newest on the way to timeline {timeline}, which is in use"),
        Reason::Parent { of } => format!("what {of} builds on"),
        Reason::Newest => "the newest".to_owned(),
        Reason::NewestSound => "the newest without damaged pages".to_owned(),
        Reason::NotCounted => "not counted".to_owned(),
    }
}

fn objects_of<'o>(objects: impl Iterator<Item = &'o Listed>) -> String {
    let (mut count, mut size) = (0_u64, 0);
    for object in objects {
        count += 1;
        size += object.size;
    }
    format!("{count} {}, {}", if count == 1 { "object" } else { "objects" }, bytes(size))
}

fn range_text(range: Range, plan: &Plan) -> String {
    match plan.segment_size.map(|size| WalRange::new(range, size)) {
        Some(named) if named.first == named.last => named.first,
        Some(named) => format!("{} to {}", named.first, named.last),
        None => String::new(),
    }
}

/// Plans and what came of them.
pub(super) fn json<'p>(parts: impl Iterator<Item = (&'p Plan, Option<&'p Done>)>, dry_run: bool) -> Value {
    json!({ "dry_run": dry_run, "clusters": parts.map(|(plan, done)| cluster(plan, done)).collect::<Vec<_>>() })
}

fn cluster(plan: &Plan, done: Option<&Done>) -> Value {
    let sizes = |objects: &[Listed]| objects.iter().map(|object| object.size).sum::<u64>();
    let kept = plan.kept.iter().map(|kept| {
        json!({ "id": kept.backup.id, "stop_time": kept.backup.stop_time, "keeps": kept.keeps, "reasons": kept.reasons,
                "problem": kept.problem })
    });
    let removed = plan.removed.iter().map(|removed| {
        json!({ "id": removed.backup.id, "stop_time": removed.backup.stop_time, "objects": removed.objects.len(),
                "stored_size": sizes(&removed.objects) })
    });
    let under_way = plan.under_way.iter().map(|under_way| {
        json!({ "id": under_way.id, "host": under_way.begin.as_ref().map(|begin| &begin.host),
                "started": under_way.begin.as_ref().map(|begin| begin.started) })
    });
    let debris = plan.debris.iter().map(|debris| {
        json!({ "id": debris.id, "objects": debris.objects.len() + usize::from(debris.mark.is_some()),
                "stored_size": sizes(&debris.objects) })
    });
    let ranges =
        |size: SegmentSize| plan.wal.ranges.iter().map(|range| WalRange::new(*range, size)).collect::<Vec<_>>();
    json!({
        "system_identifier": plan.system_identifier.to_string(),
        "kept": kept.collect::<Vec<_>>(),
        "removed": removed.collect::<Vec<_>>(),
        "under_way": under_way.collect::<Vec<_>>(),
        "debris": debris.collect::<Vec<_>>(),
        "leftovers": plan.leftovers.iter().map(|object| object.key.to_string()).collect::<Vec<_>>(),
        "stale_files": plan.stale_files.iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>(),
        "wal": {
            "objects": plan.wal.objects.len(),
            "stored_size": sizes(&plan.wal.objects),
            "ranges": plan.segment_size.map(ranges),
        },
        "doubts": plan.doubts,
        "done": done.map(|done| json!({
            "objects": done.objects,
            "stored_size": done.stored_size,
            "refused": done.refused.iter().map(|undeleted| {
                json!({ "object": undeleted.key.to_string(), "problem": undeleted.error.to_string() })
            }).collect::<Vec<_>>(),
        })),
    })
}
