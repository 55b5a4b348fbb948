//! Which archived WAL no kept backup needs: decided by positions on timelines alone, never by what a listing lacks.

use std::collections::BTreeMap;

use jiff::Timestamp;
use object_store::path::Path;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::expire::{Covered, Range, merged};
use walkeep_common::repository::layout::WalObject;
use walkeep_common::store::Listed;
use walkeep_common::wal::segment::{SegmentName, Timeline, segment_before, segment_of};
use walkeep_common::wal_archive::inventory::Inventory;

use super::policy::Keeps;

/// What holds WAL: a backup that is kept, or one that is being taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// The timeline of its start.
    pub timeline: Timeline,
    /// The timeline of its end.
    pub end_timeline: Timeline,
    /// Where it begins.
    pub start_lsn: Lsn,
    /// Where it ends; of one that is being taken nobody knows.
    pub stop_lsn: Option<Lsn>,
    /// How much it holds.
    pub keeps: Keeps,
    /// Whether it can be restored: only then does it make older WAL unnecessary.
    pub is_whole: bool,
}

impl Holding {
    /// A complete backup's.
    pub fn of(backup: &Backup, keeps: Keeps, is_whole: bool) -> Self {
        Self {
            timeline: backup.timeline,
            end_timeline: backup.end_timeline(),
            start_lsn: backup.start_lsn,
            stop_lsn: Some(backup.stop_lsn),
            keeps,
            is_whole,
        }
    }
}

/// Everything that decides.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'r> {
    /// The timelines and their histories.
    pub inventory: &'r Inventory,
    /// What holds WAL.
    pub holdings: &'r [Holding],
    /// Backups that were removed, now or before.
    pub covered: &'r [Covered],
    /// A branch to which something was added since then may be in use.
    pub quiet_since: Timestamp,
    /// A branch that may be in use however quiet it is: the newest of a cluster that lives.
    pub alive: Option<Timeline>,
}

impl Rules<'_> {
    /// The objects that may go, of a listing of `wal/`. Histories stay, and whatever is not WAL.
    pub fn removable<'l>(&self, listed: &'l [Listed]) -> Vec<&'l Listed> {
        let named: Vec<(SegmentName, &Listed)> = listed.iter().filter_map(with_segment).collect();
        let mut newest: BTreeMap<Timeline, Timestamp> = BTreeMap::new();
        for (name, object) in &named {
            let newest = newest.entry(name.timeline).or_insert(object.modified);
            *newest = (*newest).max(object.modified);
        }
        let is_quiet = |timeline| {
            self.alive != Some(timeline) && newest.get(&timeline).is_some_and(|newest| *newest < self.quiet_since)
        };
        let goes = |name: SegmentName| {
            let Some(number) = name.number(self.inventory.segment_size()) else { return false };
            !self.is_needed(name.timeline, number)
                && (self.is_superseded(name.timeline, number)
                    || (self.was_expired(name.timeline, number) && is_quiet(name.timeline)))
        };
        named.into_iter().filter(|(name, _)| goes(*name)).map(|(_, object)| object).collect()
    }

    /// Whether anything that is kept needs the segment.
    pub fn is_needed(&self, timeline: Timeline, number: u64) -> bool {
        let size = self.inventory.segment_size();
        self.holdings.iter().any(|holding| {
            let last = match (holding.keeps, holding.stop_lsn) {
                (Keeps::OwnWal, Some(stop)) => segment_before(stop, size),
                _ => u64::MAX,
            };
            (segment_of(holding.start_lsn, size)..=last).contains(&number)
                && (self.may_descend(timeline, holding) || self.may_lie_on(timeline, number, holding.end_timeline))
        })
    }

    /// Whether a kept backup begins behind the segment on the same line of history: to go back before it, recovery would
    /// need an older backup, which would hold the segment itself.
    fn is_superseded(&self, timeline: Timeline, number: u64) -> bool {
        let size = self.inventory.segment_size();
        self.holdings.iter().filter(|holding| holding.is_whole).any(|holding| {
            number < segment_of(holding.start_lsn, size)
                && self.inventory.has_history(holding.timeline)
                && self.lies_on(timeline, number, holding.timeline)
        })
    }

    /// Whether a removed backup is the one that recovery would have come from.
    fn was_expired(&self, timeline: Timeline, number: u64) -> bool {
        let size = self.inventory.segment_size();
        self.inventory.has_history(timeline)
            && self.covered.iter().any(|covered| {
                number >= segment_of(covered.start_lsn, size)
                    && self.descends(timeline, covered.timeline, covered.start_lsn)
            })
    }

    /// Whether `timeline` is `ancestor`, or left it at or behind `position`.
    fn descends(&self, timeline: Timeline, ancestor: Timeline, position: Lsn) -> bool {
        timeline == ancestor
            || self.inventory.history(timeline).switch_point(ancestor).is_some_and(|left| left >= position)
    }

    /// The same; a timeline of unknown descent may descend from any older one.
    fn may_descend(&self, timeline: Timeline, holding: &Holding) -> bool {
        let is_unknown = !self.inventory.has_history(timeline) && timeline >= holding.timeline;
        is_unknown || self.descends(timeline, holding.timeline, holding.start_lsn)
    }

    /// Whether recovery to timeline `end` reads, or could read, segment `number` of `timeline`.
    fn lies_on(&self, timeline: Timeline, number: u64, end: Timeline) -> bool {
        let size = self.inventory.segment_size();
        timeline == end
            || self.inventory.history(end).switch_point(timeline).is_some_and(|left| number <= segment_of(left, size))
    }

    fn may_lie_on(&self, timeline: Timeline, number: u64, end: Timeline) -> bool {
        let is_unknown = !self.inventory.has_history(end) && timeline <= end;
        is_unknown || self.lies_on(timeline, number, end)
    }
}

/// The segment that an object of `wal/` is, belongs to, or is another copy of; histories have none.
fn with_segment(object: &Listed) -> Option<(SegmentName, &Listed)> {
    let parsed = object.key.filename().and_then(WalObject::parse)?;
    Some((parsed.name.segment()?, object))
}

/// The names of these objects, as few ranges as there are.
pub fn ranges<'p>(keys: impl IntoIterator<Item = &'p Path>, inventory: &Inventory) -> Vec<Range> {
    let names = keys.into_iter().filter_map(|key| key.filename().and_then(WalObject::parse)?.name.segment());
    let ranges = names.filter_map(|name| {
        let number = name.number(inventory.segment_size())?;
        Some(Range { timeline: name.timeline, first: number, last: number })
    });
    merged(ranges.collect())
}
