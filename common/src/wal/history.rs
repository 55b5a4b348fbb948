//! Timeline history files: which timelines a timeline descends from, and where each was left.
//!
//! Mirrors `readTimeLineHistory` and `writeTimeLineHistory` (src/backend/access/transam/timeline.c).

use super::segment::{SegmentName, SegmentSize, Timeline, segment_before, segment_of, segment_start};
use crate::lsn::Lsn;

/// The ancestry of one timeline, oldest first; the timeline itself is not in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: Timeline,
    ancestors: Vec<Ancestor>,
}

/// One timeline that was left for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ancestor {
    /// The timeline that was left.
    pub timeline: Timeline,
    /// The position at which it was left: its last valid byte is the one before.
    pub switch_point: Lsn,
}

/// The text is not a timeline history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid timeline history: {0}")]
pub struct InvalidHistory(String);

impl TimelineHistory {
    /// The history of a timeline that has none: timeline 1, or one started by initdb.
    pub fn without_ancestors(timeline: Timeline) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the contents of `timeline`'s history file. A file without any ancestor is refused: PostgreSQL never
    /// writes one, and taking it for true would cut the timeline off from its past. The reason that ends a line may hold
    /// the name of a restore point, and that is in the encoding of the database it was made in.
    pub fn parse(timeline: Timeline, contents: impl AsRef<[u8]>) -> Result<Self, InvalidHistory> {
        let text = String::from_utf8_lossy(contents.as_ref());
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let mut fields = line.split_whitespace();
            let ancestor = fields
                .next()
                .and_then(|field| field.parse().ok())
                .zip(fields.next().and_then(|field| field.parse().ok()))
                .map(|(timeline, switch_point)| Ancestor { timeline: Timeline(timeline), switch_point })
                .ok_or_else(|| InvalidHistory(format!("line \"{line}\" is not a timeline and an LSN")))?;
            let previous = ancestors.last().map_or(Timeline(0), |last| last.timeline);
            if ancestor.timeline <= previous || ancestor.timeline >= timeline {
                return Err(InvalidHistory(format!("timeline {} is out of order", ancestor.timeline)));
            }
            ancestors.push(ancestor);
        }
        if ancestors.is_empty() {
            return Err(InvalidHistory("it names no parent timeline".to_owned()));
        }
        // Recovery along a timeline may end before that timeline was even begun. PostgreSQL writes both switch points as
        // they are and looks from the newest on (`tliOfPointInHistory`): what a later one took back is not reached.
        let mut end = Lsn(u64::MAX);
        for ancestor in ancestors.iter_mut().rev() {
            end = end.min(ancestor.switch_point);
            ancestor.switch_point = end;
        }
        Ok(Self { timeline, ancestors })
    }

    /// The timeline whose history this is.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The timelines it descends from, oldest first.
    pub fn ancestors(&self) -> &[Ancestor] {
        &self.ancestors
    }

    /// Where `timeline` was left on the way to this one; nothing if it is not an ancestor.
    pub fn switch_point(&self, timeline: Timeline) -> Option<Lsn> {
        self.ancestors.iter().find(|ancestor| ancestor.timeline == timeline).map(|ancestor| ancestor.switch_point)
    }

    /// The timeline that the byte at `lsn` belongs to on this history (`tliOfPointInHistory`).
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.ancestors
            .iter()
            .find(|ancestor| lsn < ancestor.switch_point)
            .map_or(self.timeline, |ancestor| ancestor.timeline)
    }

    /// Whether a state of the cluster that ended at `lsn` on `timeline` lies on this history: whether recovery can
    /// go from there to this timeline.
    pub fn passes_through(&self, timeline: Timeline, lsn: Lsn) -> bool {
        timeline == self.timeline || self.switch_point(timeline).is_some_and(|switch_point| lsn <= switch_point)
    }

    /// The name under which recovery to this timeline reads segment `number`: a segment that holds a switch point
    /// is read from the newest timeline it belongs to (`XLogFileReadAnyTLI`, src/backend/access/transam/xlogrecovery.c).
    pub fn segment_name(&self, number: u64, size: SegmentSize) -> SegmentName {
        let timeline = self
            .ancestors
            .iter()
            .find(|ancestor| number < segment_of(ancestor.switch_point, size))
            .map_or(self.timeline, |ancestor| ancestor.timeline);
        SegmentName::new(timeline, number, size)
    }

    /// The segments that recovery along this history reads from `start` to `stop`: from the one that holds `start` to the
    /// one that holds the byte before `stop`. Names are computed here, for `pg_walfile_name` means another segment on a
    /// boundary from 17 on.
    pub fn segments(&self, start: Lsn, stop: Lsn, size: SegmentSize) -> impl Iterator<Item = SegmentName> {
        let first = segment_of(start, size);
        (first..=segment_before(stop, size).max(first)).map(move |number| self.segment_name(number, size))
    }

    /// The segment a timeline of this history begins in.
    pub fn first_segment(&self, timeline: Timeline, size: SegmentSize) -> u64 {
        let before = self.ancestors.iter().take_while(|ancestor| ancestor.timeline < timeline).last();
        before.map_or(0, |ancestor| segment_of(ancestor.switch_point, size))
    }

    /// Whether all of segment `number` of `timeline` lies before the point where this history left that timeline.
    pub fn needs_whole(&self, timeline: Timeline, number: u64, size: SegmentSize) -> bool {
        number >= self.first_segment(timeline, size)
            && self.switch_point(timeline).is_some_and(|switch_point| segment_start(number + 1, size) <= switch_point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "1\t0/A000028\tno recovery target specified\n\n# comment\n2\t0/B0000F8\tbefore 2026-11-22 07:17:34+00\n";

    fn size() -> SegmentSize {
        SegmentSize::try_from(1 << 24).unwrap()
    }

    #[test]
    fn each_position_belongs_to_one_timeline() {
        let history = TimelineHistory::parse(Timeline(3), TEXT).unwrap();
        for (lsn, timeline) in [(0, 1), (0xA00_0027, 1), (0xA00_0028, 2), (0xB00_00F7, 2), (0xB00_00F8, 3)] {
            assert_eq!(history.timeline_at(Lsn(lsn)), Timeline(timeline), "{lsn:X}");
        }
        assert!(history.passes_through(Timeline(1), Lsn(0xA00_0028)));
        assert!(!history.passes_through(Timeline(1), Lsn(0xA00_0029)));
        assert!(history.passes_through(Timeline(3), Lsn(u64::MAX)));
        assert!(!history.passes_through(Timeline(4), Lsn(0)));
    }

    #[test]
    fn a_segment_with_a_fork_inside_is_read_from_the_newer_timeline() {
        let history = TimelineHistory::parse(Timeline(3), TEXT).unwrap();
        let names: Vec<String> = (9..=12).map(|number| history.segment_name(number, size()).to_string()).collect();
        assert_eq!(
            names,
            [
                "000000010000000000000009",
                "00000002000000000000000A",
                "00000003000000000000000B",
                "00000003000000000000000C"
            ]
        );
        assert!(history.needs_whole(Timeline(1), 9, size()));
        assert!(!history.needs_whole(Timeline(1), 10, size()));
        assert_eq!(history.first_segment(Timeline(2), size()), 10);
        assert_eq!(history.first_segment(Timeline(1), size()), 0);
    }

    #[test]
    fn a_fork_on_a_boundary_leaves_the_parents_last_segment_whole() {
        let history = TimelineHistory::parse(Timeline(2), "1\t0/A000000\tx\n").unwrap();
        assert_eq!(history.segment_name(9, size()).timeline, Timeline(1));
        assert!(history.needs_whole(Timeline(1), 9, size()));
    }

    #[test]
    fn histories_that_postgresql_never_writes_are_refused() {
        for text in ["", "\n#\n", "x 0/1", "1", "1 zero", "2\t0/1\tx", "1\t0/5\ta\n1\t0/6\tb"] {
            assert!(TimelineHistory::parse(Timeline(2), text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_timeline_left_before_it_began_is_never_reached() {
        // As PostgreSQL writes it after a recovery along timeline 2 to a point before its fork.
        let history = TimelineHistory::parse(Timeline(3), "1\t0/40000D0\tx\n2\t0/3015EC0\ty\n").unwrap();
        for (lsn, timeline) in [(0x301_5EBF, 1), (0x301_5EC0, 3), (0x400_00D0, 3)] {
            assert_eq!(history.timeline_at(Lsn(lsn)), Timeline(timeline), "{lsn:X}");
        }
        assert_eq!(history.segment_name(2, size()).timeline, Timeline(1));
        assert_eq!(history.segment_name(3, size()).timeline, Timeline(3));
        assert!(history.needs_whole(Timeline(1), 2, size()));
        assert!(!history.needs_whole(Timeline(1), 3, size()));
        assert!(!history.needs_whole(Timeline(2), 2, size()), "it was never on the way");
        assert!(!history.passes_through(Timeline(2), Lsn(0x401_0000)));
    }
}
