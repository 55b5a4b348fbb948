//! What is stored: whether the newest backup is young enough, the WAL after it whole, and a drill has shown it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use walkeep_common::error::Result;
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::inventory::Inventory;

use super::finding::{Area, Finding, Findings, Limits, Outcome};
use crate::catalog::Catalog;
use crate::list::{Window, time, windows};
use crate::output::seconds;
use crate::status::drills::{DrillSummary, DrillVerdict};

const AREA: Area = Area::Recovery;
/// A backup that was begun so long ago is not being taken any more.
const DEAD_AFTER: f64 = 48.0 * 3600.0;
/// Enough to see whether an object can be read at all.
const FIRST_BYTES: u64 = 4096;
const TAKE: &str = "basebackup take";

/// How old what is stored may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    pub(super) backup: Duration,
    pub(super) drill: Duration,
}

/// Judges the backups of one cluster.
pub(super) fn backups(catalog: &Catalog, ages: Ages, now: Timestamp, found: &mut Findings) {
    let limits = Limits::below(None, Some(ages.backup.as_secs_f64()));
    match catalog.backups.last() {
        None => {
            let text = "there is no base backup: nothing can be recovered";
            found.add([Finding::failed(AREA, "backup_age", text, TAKE)]);
        }
        Some(backup) => {
            let age = since(backup.stop_time, now);
            found.measure("backup_age", age, "s", limits);
            let text = format!("the newest backup, {}, was finished {} ago", backup.id, seconds(age));
            found.add([if limits.judge(age) == Outcome::Failed {
                let text = format!("{text}, more than {}", seconds(ages.backup.as_secs_f64()));
                Finding::failed(
                    AREA,
                    "backup_age",
                    text,
                    "basebackup take (and look why the timer did not: systemctl list-timers)",
                )
            } else {
                Finding::passed(AREA, "backup_age", text)
            }]);
            found.add(bad_pages(backup));
        }
    }
    found.add(catalog.unusable.iter().map(|(id, problem)| {
        let text = format!("backup {id} cannot be used: {problem}");
        Finding::failed(
            AREA,
            "unusable_backup",
            text,
            "basebackup verify --all shows what is left; basebackup take makes up for it",
        )
    }));
    found.add(catalog.altered.iter().map(|id| {
        let text = format!("the record of backup {id} was changed since it was written");
        Finding::warning(AREA, "altered_backup", text, format!("basebackup verify {id}"))
    }));
    let is_dead = |begun: Option<Timestamp>| begun.is_none_or(|begun| since(begun, now) > DEAD_AFTER);
    let dead =
        catalog.unfinished.iter().filter(|unfinished| is_dead(unfinished.begin.as_ref().map(|begin| begin.started)));
    found.add(dead.map(|dead| {
        Finding::note(
            AREA,
            "dead_backup",
            format!("backup {} was never finished: basebackup expire clears it away", dead.id),
        )
    }));
}

fn bad_pages(backup: &Backup) -> Option<Finding> {
    let count = backup.bad_pages.len();
    (count > 0).then(|| {
        let text = format!("{count} pages in the newest backup had wrong checksums on the server already");
        Finding::failed(AREA, "bad_pages", text, format!("basebackup show {} names the relations", backup.id))
    })
}

/// Judges the last drill.
pub(super) fn drill(last: Option<&DrillSummary>, limit: Duration, now: Timestamp, found: &mut Findings) {
    const FIX: &str = "basebackup drill";
    let limits = Limits::below(Some(limit.as_secs_f64()), None);
    let Some(last) = last else {
        let text = "no backup was ever restored to see whether it can be";
        return found.add([Finding::warning(AREA, "drill", text, FIX)]);
    };
    let age = since(last.finished, now);
    found.measure("drill_age", age, "s", limits);
    let text = format!("the last drill, {} ago,", seconds(age));
    found.add([if last.verdict == DrillVerdict::Failed {
        let problem = last.problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        Finding::failed(AREA, "drill", format!("{text} failed{problem}"), FIX)
    } else if limits.judge(age) == Outcome::Warning {
        Finding::warning(AREA, "drill", format!("{text} is more than {} old", seconds(limit.as_secs_f64())), FIX)
    } else {
        Finding::passed(AREA, "drill", format!("{text} was passed"))
    }]);
}

/// Judges what can be recovered along `timeline`, on which the server is.
pub(super) fn wal(backups: &[Backup], inventory: &Inventory, timeline: Timeline) -> Vec<Finding> {
    if let Some(problem) = inventory.history_problem(timeline) {
        let text = format!("timeline {timeline} cannot be recovered to: {problem}");
        let fix = "Take a base backup, which needs no older history: basebackup take";
        return vec![Finding::failed(AREA, "history", text, fix)];
    }
    if !inventory.has_history(timeline) {
        let text = format!("the history of timeline {timeline}, on which the server is, is not archived");
        let fix = format!("In the data directory: archive-push pg_wal/{:08X}.history", timeline.0);
        return vec![Finding::failed(AREA, "history", text, fix)];
    }
    let Some(newest) = backups.last() else { return Vec::new() };
    let windows = windows(backups, inventory);
    holes(newest, &windows, timeline)
}

fn holes(newest: &Backup, windows: &[Window], timeline: Timeline) -> Vec<Finding> {
    let reaches = |window: &&Window| window.from_lsn <= newest.stop_lsn && newest.stop_lsn <= window.to_lsn;
    let Some(last) = windows.iter().filter(|window| window.timeline == timeline).find(reaches) else {
        // It may be the only one, on a timeline that was left.
        let text = if windows.iter().any(|window| reaches(&window)) {
            format!("the newest backup, {}, does not lead to timeline {timeline}, on which the server is", newest.id)
        } else {
            format!(
                "the newest backup, {}, cannot be restored: some of the WAL between its start and its end is missing",
                newest.id
            )
        };
        return vec![Finding::failed(AREA, "wal", text, TAKE)];
    };
    let lost = |hole: &str| format!("\"{hole}\" is missing in the archive");
    let fix = |hole: &str| {
        format!("In the data directory, while PostgreSQL still has it: archive-push pg_wal/{hole}; otherwise: {TAKE}")
    };
    let mut findings = Vec::new();
    findings.push(if let Some(hole) = &last.hole {
        let text = format!("{}: nothing after it can be recovered until there is a newer backup", lost(hole));
        Finding::failed(AREA, "wal", text, fix(hole))
    } else {
        let (from, to) = (time(last.from_time), last.to_lsn);
        let text = format!("every moment since {from} can be recovered, up to {to} on timeline {timeline}");
        Finding::passed(AREA, "wal", text)
    });
    let earlier = windows.iter().filter(|window| window.timeline == timeline && *window != last);
    let earlier: BTreeMap<&str, &Window> =
        earlier.filter_map(|window| Some((window.hole.as_deref()?, window))).collect();
    findings.extend(earlier.into_iter().map(|(hole, window)| {
        let text = format!("{}: recovery from backup {} ends there", lost(hole), window.first_backup);
        Finding::warning(AREA, "old_hole", text, fix(hole))
    }));
    findings
}

/// Looks whether the objects of the newest backup are all there, as long as they were, and whether the oldest one can be
/// read at all: a store may have moved it to where reading takes hours.
///
/// # Errors
/// `Refused` or `Unavailable`: it cannot be read.
pub(super) async fn objects(archive: &WalArchive, catalog: &Catalog) -> Result<Vec<Finding>> {
    let (Some(newest), Some(oldest)) = (catalog.backups.last(), catalog.backups.first()) else { return Ok(Vec::new()) };
    let (store, layout) = (archive.store(), archive.layout());
    let listed = store.list(&layout.backup_folder(&newest.id)).await?;
    let sizes: BTreeMap<String, u64> =
        listed.iter().filter_map(|object| Some((object.key.filename()?.to_owned(), object.size))).collect();
    let packs = newest.packs.iter().map(|pack| (layout.backup_object(&newest.id, &pack.name), pack.size));
    let others = [("files.ndjson.zst", newest.index.size), ("backup_manifest.zst", newest.manifest.size)];
    let others = others.into_iter().map(|(name, size)| (layout.backup_object(&newest.id, name), size));
    let wrong = packs.chain(others).find(|(key, size)| key.filename().and_then(|name| sizes.get(name)) != Some(size));
    if let Some((key, _)) = wrong {
        let text = format!("\"{}\" of the newest backup is missing, or not as long as it was", store.url_of(&key));
        return Ok(vec![Finding::failed(
            AREA,
            "objects",
            text,
            format!("{TAKE}; basebackup verify --all names all damage"),
        )]);
    }
    if let Some(pack) = oldest.packs.first() {
        let _ = store.read_range(&layout.backup_object(&oldest.id, &pack.name), 0..FIRST_BYTES).await?;
    }
    Ok(vec![Finding::passed(
        AREA,
        "objects",
        format!("all {} packs of the newest backup are there", newest.packs.len()),
    )])
}

fn since(then: Timestamp, now: Timestamp) -> f64 {
    now.duration_since(then).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests;
