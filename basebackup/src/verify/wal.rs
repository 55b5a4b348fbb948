//! The archived WAL: each file from its header to its last byte, the histories, and what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::WalObject;
use walkeep_common::store::Listed;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, Timeline, segment_of, segment_start};
use walkeep_common::wal_archive::inventory::Inventory;

use super::finding::{Finding, Lost};
use super::{Verification, lost};
use crate::list::windows;

/// What is archived, and the backups that need it.
#[derive(Debug)]
pub(super) struct Wal<'w> {
    pub(super) inventory: &'w Inventory,
    /// All backups there are, verified or not: a segment that is lost takes moments between any of them.
    pub(super) backups: &'w [Backup],
}

impl Verification {
    /// Finds the segments that are missing: those that `verified` backups need, and with `everywhere` every hole that
    /// cuts off a moment which was reachable.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub(super) async fn missing(&self, wal: &Wal<'_>, verified: &[&Backup], everywhere: bool) -> Result<Vec<Finding>> {
        let mut findings = self.histories(wal, verified, everywhere);
        let mut missing: BTreeSet<SegmentName> = BTreeSet::new();
        for backup in verified {
            let history = wal.inventory.history(backup.end_timeline());
            missing.extend(lost::needed(backup, &history).filter(|segment| !wal.inventory.has(*segment)));
        }
        if everywhere {
            let holes = windows(wal.backups, wal.inventory).into_iter().filter_map(|window| window.hole);
            missing.extend(holes.filter_map(|hole| hole.parse::<WalFileName>().ok()?.segment()));
        }
        for segment in missing {
            findings.push(self.segment(wal, segment, "it is missing".to_owned()).await?);
        }
        Ok(findings)
    }

    /// Reads the chosen ones of these files to their ends.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub(super) async fn files(&self, wal: &Wal<'_>, files: &[(Path, WalObject)]) -> Result<Vec<Finding>> {
        let chosen = self.sample(files.len());
        let chosen = files.iter().enumerate().filter(|(number, _)| chosen.contains(&(number + 1)));
        let checks = chosen.map(|(_, (key, object))| async move {
            let problem = self.wal_object(key, object.name).await?;
            match problem {
                None => Ok(None),
                Some(problem) => self.wal_finding(wal, key, object, problem).await.map(Some),
            }
        });
        let found: Vec<Option<Finding>> = stream::iter(checks).buffer_unordered(self.jobs).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn wal_finding(&self, wal: &Wal<'_>, key: &Path, object: &WalObject, problem: String) -> Result<Finding> {
        match object {
            WalObject { name: WalFileName::Segment(segment), kept_aside: None } => {
                self.segment(wal, *segment, problem).await
            }
            WalObject { name: WalFileName::History(timeline), kept_aside: None } => {
                Ok(self.history(wal, *timeline, problem))
            }
            // Recovery reads neither.
            _ => Ok(Finding { object: self.archive.store().url_of(key), problem, lost: Lost::default() }),
        }
    }

    /// Reads a WAL file to its end; says what is wrong with it.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub(super) async fn wal_object(&self, key: &Path, name: WalFileName) -> Result<Option<String>> {
        let _work = self.work().await?;
        let (archive, own_key) = (self.archive.clone(), key.clone());
        let reading = tokio::spawn(async move { archive.fetch_object(&own_key, name, || Ok(io::sink())).await });
        match reading.await.map_err(|error| Error::new(Kind::Internal, "a task failed").caused_by(error))? {
            Ok(Some(fetched)) => {
                self.note_read(fetched.header.stored_size);
                Ok(None)
            }
            Ok(None) => Ok(Some("it is missing".to_owned())),
            Err(error) if error.kind() == Kind::Damaged => {
                // The object is named by the finding already.
                let text = error.to_string();
                let problem = text.split_once(" is damaged: ").map_or(text.as_str(), |(_, problem)| problem);
                Ok(Some(problem.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// Something about a segment, with what is lost by it and when that was written.
    async fn segment(&self, wal: &Wal<'_>, segment: SegmentName, problem: String) -> Result<Finding> {
        let mut lost = lost::with_segment(segment, wal.backups, wal.inventory);
        let size = wal.inventory.segment_size();
        for span in &mut lost.spans {
            let before = segment_of(span.from_lsn, size).checked_sub(1);
            let before = before.map(|number| wal.inventory.history(span.timeline).segment_name(number, size));
            let Some(before) = before.filter(|before| wal.inventory.has(*before)) else { continue };
            span.from_time = match self.archive.header(WalFileName::Segment(before)).await {
                Err(error) if error.kind() == Kind::Damaged => None,
                header => header?.map(|header| header.modified),
            };
        }
        let key = self.archive.layout().wal(WalFileName::Segment(segment));
        Ok(Finding { object: self.archive.store().url_of(&key), problem, lost })
    }

    /// Histories that are missing, damaged, or contradict each other.
    fn histories(&self, wal: &Wal<'_>, verified: &[&Backup], everywhere: bool) -> Vec<Finding> {
        let inventory = wal.inventory;
        let is_asked_for =
            |timeline: Timeline| everywhere || verified.iter().any(|backup| backup.end_timeline() == timeline);
        let ends = verified.iter().map(|backup| backup.end_timeline());
        let timelines: BTreeSet<Timeline> = inventory.timelines().into_iter().chain(ends).collect();
        let mut findings = Vec::new();
        for timeline in timelines.into_iter().filter(|&timeline| timeline > Timeline(1) && is_asked_for(timeline)) {
            let problem = match inventory.history_problem(timeline) {
                Some(problem) => Some(problem.to_owned()),
                None if !inventory.has_history(timeline) => Some("it is missing".to_owned()),
                None => contradiction(inventory, timeline),
            };
            findings.extend(problem.map(|problem| self.history(wal, timeline, problem)));
        }
        findings
    }

    /// Something about a history, without which nothing is recovered to its timeline.
    fn history(&self, wal: &Wal<'_>, timeline: Timeline, problem: String) -> Finding {
        let backups = wal.backups.iter().filter(|backup| backup.end_timeline() == timeline);
        let backups = backups.map(|backup| backup.id.clone()).collect();
        let first =
            wal.inventory.runs(timeline).first().map(|run| segment_start(run.first, wal.inventory.segment_size()));
        let spans = first.map(|from_lsn| super::finding::Span {
            timeline,
            from_lsn,
            from_time: None,
            to_lsn: None,
            to_time: None,
        });
        let key = self.archive.layout().wal(WalFileName::History(timeline));
        let lost = Lost { backups, spans: spans.into_iter().collect() };
        Finding { object: self.archive.store().url_of(&key), problem, lost }
    }
}

/// Where a timeline's history disagrees with that of one of its ancestors.
fn contradiction(inventory: &Inventory, timeline: Timeline) -> Option<String> {
    let history = inventory.history(timeline);
    let ancestors = history.ancestors();
    ancestors.iter().enumerate().find_map(|(count, ancestor)| {
        let before = inventory.has_history(ancestor.timeline).then(|| inventory.history(ancestor.timeline))?;
        // What a later switch took back stands with other positions in the older history.
        let same = before.ancestors().iter().map(|before| before.timeline);
        (!same.eq(ancestors.iter().take(count).map(|ancestor| ancestor.timeline)))
            .then(|| format!("it tells another past of timeline {} than that one's own history", ancestor.timeline))
    })
}

/// The archived WAL files by key, whatever each is; what is not WAL is left out.
pub(super) fn all(objects: &[Listed]) -> Vec<(Path, WalObject)> {
    let known = objects.iter().filter_map(|object| {
        let parsed = WalObject::parse(object.key.filename()?)?;
        Some((object.key.clone(), parsed))
    });
    known.collect()
}

/// Those among the archived files that these backups need.
pub(super) fn needed(
    files: Vec<(Path, WalObject)>,
    backups: &[&Backup],
    inventory: &Inventory,
) -> Vec<(Path, WalObject)> {
    let mut names: BTreeSet<WalFileName> = BTreeSet::new();
    for backup in backups {
        let history = inventory.history(backup.end_timeline());
        names.extend(lost::needed(backup, &history).map(WalFileName::Segment));
        names.insert(WalFileName::History(backup.end_timeline()));
    }
    files.into_iter().filter(|(_, object)| object.kept_aside.is_none() && names.contains(&object.name)).collect()
}

/// Stored bytes of each object.
pub(super) fn sizes(objects: &[Listed]) -> BTreeMap<&Path, u64> {
    objects.iter().map(|object| (&object.key, object.size)).collect()
}
