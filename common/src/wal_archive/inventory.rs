//! What a listing of the archive holds, as timelines and runs of segments.

use std::collections::{BTreeMap, BTreeSet};

use crate::lsn::Lsn;
use crate::repository::expire::Range;
use crate::repository::layout::WalObject;
use crate::store::Listed;
use crate::wal::history::{Ancestor, TimelineHistory};
use crate::wal::name::WalFileName;
use crate::wal::segment::{SegmentName, SegmentSize, Timeline, segment_of, segment_start};

use super::WalArchive;
use crate::error::{Error, Kind, Result};

/// A history is a line of text per ancestor.
const HISTORY_LIMIT: u64 = 4 * 1024 * 1024;

/// Every segment and every history in the archive.
#[derive(Debug, Clone)]
pub struct Inventory {
    segment_size: SegmentSize,
    segments: BTreeMap<Timeline, BTreeSet<u64>>,
    histories: BTreeMap<Timeline, TimelineHistory>,
    damaged_histories: BTreeMap<Timeline, String>,
    /// Segments that were removed on purpose.
    expired: Vec<Range>,
    stored_size: u64,
}

/// Consecutive segments of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The first segment's number.
    pub first: u64,
    /// The last segment's number.
    pub last: u64,
}

impl Inventory {
    /// From a listing of everything below `wal/`, and the histories in it.
    pub fn new(segment_size: SegmentSize, objects: &[Listed], histories: Vec<TimelineHistory>) -> Self {
        let mut segments: BTreeMap<Timeline, BTreeSet<u64>> = BTreeMap::new();
        for object in objects {
            let parsed = object.key.filename().and_then(WalObject::parse);
            let Some(WalObject { name: WalFileName::Segment(name), kept_aside: None }) = parsed else { continue };
            if let Some(number) = name.number(segment_size) {
                let _ = segments.entry(name.timeline).or_default().insert(number);
            }
        }
        let histories = histories.into_iter().map(|history| (history.timeline(), history)).collect();
        let stored_size = objects.iter().map(|object| object.size).sum();
        Self { segment_size, segments, histories, damaged_histories: BTreeMap::new(), expired: Vec::new(), stored_size }
    }

    /// Notes which segments were removed on purpose.
    #[must_use]
    pub fn with_expired(mut self, expired: Vec<Range>) -> Self {
        self.expired = expired;
        self
    }

    /// Whether a segment was removed on purpose.
    pub fn was_removed(&self, name: SegmentName) -> bool {
        let number = name.number(self.segment_size);
        self.expired.iter().any(|range| {
            range.timeline == name.timeline && number.is_some_and(|n| (range.first..=range.last).contains(&n))
        })
    }

    /// Notes that a timeline's history is archived and cannot be used, and why.
    #[must_use]
    pub fn with_damaged_history(mut self, timeline: Timeline, problem: String) -> Self {
        let _ = self.damaged_histories.insert(timeline, problem);
        self
    }

    /// Why a timeline's history cannot be used, though it is archived.
    pub fn history_problem(&self, timeline: Timeline) -> Option<&str> {
        self.damaged_histories.get(&timeline).map(String::as_str)
    }

    /// The cluster's segment size.
    pub fn segment_size(&self) -> SegmentSize {
        self.segment_size
    }

    /// Stored bytes of everything listed.
    pub fn stored_size(&self) -> u64 {
        self.stored_size
    }

    /// Timelines with a segment or a history, ascending.
    pub fn timelines(&self) -> BTreeSet<Timeline> {
        self.segments.keys().chain(self.histories.keys()).chain(self.damaged_histories.keys()).copied().collect()
    }

    /// The newest timeline there is anything of.
    pub fn newest_timeline(&self) -> Option<Timeline> {
        self.timelines().last().copied()
    }

    /// Whether a segment is archived under exactly this name.
    pub fn has(&self, name: SegmentName) -> bool {
        name.number(self.segment_size)
            .is_some_and(|number| self.segments.get(&name.timeline).is_some_and(|numbers| numbers.contains(&number)))
    }

    /// The runs of consecutive segments of a timeline, ascending.
    pub fn runs(&self, timeline: Timeline) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for &number in self.segments.get(&timeline).into_iter().flatten() {
            match runs.last_mut() {
                Some(run) if run.last + 1 == number => run.last = number,
                _ => runs.push(Run { first: number, last: number }),
            }
        }
        runs
    }

    /// The archived history of a timeline; of timeline 1, or of one without a history, the empty one.
    pub fn history(&self, timeline: Timeline) -> TimelineHistory {
        self.histories.get(&timeline).cloned().unwrap_or_else(|| TimelineHistory::without_ancestors(timeline))
    }

    /// Whether the history that recovery to this timeline reads is archived and sound: timeline 1 has none.
    pub fn has_history(&self, timeline: Timeline) -> bool {
        timeline == Timeline(1) || self.histories.contains_key(&timeline)
    }

    /// The segment that recovery along `history` must read as number `number`, if it is archived. PostgreSQL would go on
    /// to look for it on older timelines (`XLogFileReadAnyTLI`, src/backend/access/transam/xlogrecovery.c), but what it
    /// found there would be the branch that was left.
    pub fn find(&self, history: &TimelineHistory, number: u64) -> Option<SegmentName> {
        let wanted = history.segment_name(number, self.segment_size);
        self.has(wanted).then_some(wanted)
    }

    /// The number of the first archived segment that lies on the history.
    pub fn first(&self, history: &TimelineHistory) -> Option<u64> {
        let on_history =
            |numbers: &BTreeSet<u64>| numbers.iter().copied().find(|&number| self.find(history, number).is_some());
        self.segments.values().filter_map(on_history).min()
    }

    /// Walks along `history` from segment `first` as far as every segment is archived.
    pub fn reach(&self, history: &TimelineHistory, first: u64) -> Reach {
        let mut number = first;
        while self.find(history, number).is_some() {
            number += 1;
        }
        let missing = history.segment_name(number, self.segment_size);
        // The segment in which a timeline was left may be missing on the parent; only what the history needs counts.
        let left = history.ancestors().iter().find(|left| left.switch_point > segment_start(number, self.segment_size));
        let beyond = match left {
            _ if self.was_removed(missing) => Beyond::Expired,
            _ if self.later_needed(history, number) => Beyond::Wal,
            Some(left) if segment_of(left.switch_point, self.segment_size) == number => Beyond::Fork(*left),
            Some(_) => Beyond::Wal,
            None => Beyond::Nothing,
        };
        Reach { end: number, missing, beyond }
    }

    /// Whether a segment after `number` that lies on the history is archived.
    fn later_needed(&self, history: &TimelineHistory, number: u64) -> bool {
        self.segments
            .iter()
            .any(|(_, numbers)| numbers.range(number + 1..).any(|&later| self.find(history, later).is_some()))
    }
}

/// How far an unbroken row of segments goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The number of the first segment that is not archived.
    pub end: u64,
    /// Its name.
    pub missing: SegmentName,
    /// What must come after what is there.
    pub beyond: Beyond,
}

/// What is known to come after an unbroken row of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// Nothing: it is the end of the archive.
    Nothing,
    /// The rest of the segment in which this timeline was left for a new one, as after a promotion: the new timeline's
    /// own first segment is not archived until it is full.
    Fork(Ancestor),
    /// WAL that was removed on purpose, since nothing that was kept needed it.
    Expired,
    /// WAL that is archived, or must have existed: there is a hole.
    Wal,
}

impl Reach {
    /// Whether recovery cannot take the end of the row for the end of the archive.
    pub fn is_broken(&self) -> bool {
        self.beyond != Beyond::Nothing
    }

    /// The position up to which WAL is there.
    pub fn end_lsn(&self, size: SegmentSize) -> Lsn {
        segment_start(self.end, size)
    }
}

impl WalArchive {
    /// Lists the whole archive and reads its histories. One that is damaged fails only those who need it.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn inventory(&self, segment_size: SegmentSize) -> Result<Inventory> {
        let objects = self.store.list(&self.layout.wal_folder()).await?;
        let expired = self.expired(segment_size).await?;
        Ok(self.inventory_of(segment_size, &objects).await?.with_expired(expired.wal))
    }

    /// The same, of a listing of the whole archive.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn inventory_of(&self, segment_size: SegmentSize, objects: &[Listed]) -> Result<Inventory> {
        let (mut histories, mut damaged) = (Vec::new(), Vec::new());
        for object in objects {
            let parsed = object.key.filename().and_then(WalObject::parse);
            if let Some(WalObject { name: WalFileName::History(timeline), kept_aside: None }) = parsed {
                match self.history(timeline).await {
                    Ok(history) => histories.extend(history),
                    Err(error) if error.kind() == Kind::Damaged => damaged.push((timeline, error.to_string())),
                    Err(error) => return Err(error),
                }
            }
        }
        let inventory = Inventory::new(segment_size, objects, histories);
        Ok(damaged
            .into_iter()
            .fold(inventory, |inventory, (timeline, problem)| inventory.with_damaged_history(timeline, problem)))
    }

    /// Fetches and reads a timeline's history; nothing if it is not archived.
    ///
    /// # Errors
    /// `Damaged`, `Refused`, `Unavailable`.
    pub async fn history(&self, timeline: Timeline) -> Result<Option<TimelineHistory>> {
        let name = WalFileName::History(timeline);
        let Some(fetched) = self.fetch(name, || Ok(Vec::new())).await? else { return Ok(None) };
        if fetched.file.len() as u64 > HISTORY_LIMIT {
            return Err(Error::new(Kind::Damaged, format!("timeline history \"{name}\" is impossibly large")));
        }
        TimelineHistory::parse(timeline, &fetched.file)
            .map(Some)
            .map_err(|error| Error::new(Kind::Damaged, format!("could not use \"{name}\"")).caused_by(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(names: &[&str], histories: &[(u32, &str)]) -> Inventory {
        let objects: Vec<Listed> = names
            .iter()
            .map(|name| Listed {
                key: format!("main/7/wal/x/{name}.zst").into(),
                size: 1,
                modified: jiff::Timestamp::UNIX_EPOCH,
            })
            .collect();
        let histories =
            histories.iter().map(|(timeline, text)| TimelineHistory::parse(Timeline(*timeline), text).unwrap());
        Inventory::new(SegmentSize::try_from(1 << 24).unwrap(), &objects, histories.collect())
    }

    #[test]
    fn the_end_of_the_archive_is_not_a_hole() {
        let inventory = inventory(&["000000010000000000000001", "000000010000000000000002"], &[]);
        let reach = inventory.reach(&inventory.history(Timeline(1)), 1);
        assert_eq!((reach.end, reach.beyond), (3, Beyond::Nothing));
        assert_eq!(reach.missing.to_string(), "000000010000000000000003");
    }

    #[test]
    fn a_missing_segment_before_later_ones_is_a_hole() {
        let inventory = inventory(&["000000010000000000000001", "000000010000000000000003"], &[]);
        let reach = inventory.reach(&inventory.history(Timeline(1)), 1);
        assert_eq!((reach.end, reach.beyond), (2, Beyond::Wal));
        assert_eq!(inventory.runs(Timeline(1)), [Run { first: 1, last: 1 }, Run { first: 3, last: 3 }]);
    }

    #[test]
    fn a_missing_segment_just_before_a_fork_is_a_hole() {
        // Timeline 2 begins inside segment 4; the parent's segment 3 is gone.
        let names = ["000000010000000000000002", "000000020000000000000004", "000000020000000000000005"];
        let inventory = inventory(&names, &[(2, "1\t0/4000028\tx\n")]);
        let reach = inventory.reach(&inventory.history(Timeline(2)), 2);
        assert_eq!((reach.missing.to_string().as_str(), reach.beyond), ("000000010000000000000003", Beyond::Wal));
    }

    #[test]
    fn a_history_whose_timeline_has_no_segment_yet_still_needs_its_parents_whole() {
        let inventory = inventory(&["000000010000000000000002"], &[(2, "1\t0/4000028\tx\n")]);
        let reach = inventory.reach(&inventory.history(Timeline(2)), 2);
        assert_eq!((reach.end, reach.beyond), (3, Beyond::Wal));
    }

    #[test]
    fn a_new_timeline_whose_first_segment_is_not_full_yet_is_no_hole() {
        let parent = ["000000010000000000000002", "000000010000000000000003"];
        let histories = [(2, "1\t0/4000028\tx\n")];
        let reach = |names: &[&str]| {
            let inventory = inventory(names, &histories);
            inventory.reach(&inventory.history(Timeline(2)), 2)
        };
        let fork = Ancestor { timeline: Timeline(1), switch_point: Lsn(0x400_0028) };
        let begun = reach(&parent);
        assert_eq!(
            (begun.missing.to_string().as_str(), begun.beyond),
            ("000000020000000000000004", Beyond::Fork(fork))
        );
        assert!(begun.is_broken());
        let later = [parent.as_slice(), &["000000020000000000000005"]].concat();
        assert_eq!(reach(&later).beyond, Beyond::Wal);
    }

    #[test]
    fn what_lies_beyond_a_fork_on_the_abandoned_branch_is_no_hole_of_the_new_one() {
        let names = [
            "000000010000000000000003",
            "000000010000000000000004",
            "000000010000000000000009",
            "000000020000000000000004",
        ];
        let inventory = inventory(&names, &[(2, "1\t0/4000028\tx\n")]);
        let reach = inventory.reach(&inventory.history(Timeline(2)), 3);
        assert_eq!((reach.end, reach.beyond), (5, Beyond::Nothing));
    }

    #[test]
    fn what_was_removed_on_purpose_is_no_hole() {
        let names = ["000000010000000000000001", "000000010000000000000005"];
        let removed = Range { timeline: Timeline(1), first: 2, last: 4 };
        let inventory = inventory(&names, &[]).with_expired(vec![removed]);
        let reach = inventory.reach(&inventory.history(Timeline(1)), 1);
        assert_eq!((reach.end, reach.beyond), (2, Beyond::Expired));
        assert!(reach.is_broken(), "it is not the end of the archive either");
    }

    #[test]
    fn copies_kept_aside_fill_no_hole() {
        let names = [
            "000000010000000000000001",
            "000000010000000000000002.fork.0123456789abcdef",
            "000000010000000000000002.partial",
        ];
        let inventory = inventory(&names, &[]);
        assert_eq!(inventory.reach(&inventory.history(Timeline(1)), 1).end, 2);
    }
}
