//! Which segments recovery will ask for next. Pure: a wrong prediction costs a download, nothing else.

use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::segment::{SegmentName, SegmentSize};

/// The names of the `count` segments after `served`, along the newest timeline that `served` lies on the way to.
///
/// PostgreSQL asks for each segment first on the newest timeline of its target's history that has it
/// (`XLogFileReadAnyTLI`, src/backend/access/transam/xlogrecovery.c), and keeps the histories it follows in pg_wal.
pub(super) fn next(
    served: SegmentName,
    size: SegmentSize,
    histories: &[TimelineHistory],
    count: u32,
) -> Vec<SegmentName> {
    let Some(number) = served.number(size) else { return Vec::new() };
    let through = histories.iter().filter(|history| history.segment_name(number, size) == served);
    let history = through.max_by_key(|history| history.timeline());
    let name = |number| match history {
        Some(history) => history.segment_name(number, size),
        None => SegmentName::new(served.timeline, number, size),
    };
    (1..=u64::from(count)).map(|step| name(number + step)).collect()
}

#[cfg(test)]
mod tests {
    use walkeep_common::wal::segment::Timeline;

    use super::*;

    const SIZE: u64 = 16 << 20;

    fn after(served: &str, histories: &[TimelineHistory], count: u32) -> Vec<String> {
        let size = SegmentSize::try_from(SIZE).unwrap();
        next(served.parse().unwrap(), size, histories, count).iter().map(SegmentName::to_string).collect()
    }

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(Timeline(timeline), text).unwrap()
    }

    #[test]
    fn without_a_history_the_timeline_goes_on() {
        assert_eq!(after("0000000100000000000000FE", &[], 2), ["0000000100000000000000FF", "000000010000000100000000"]);
        assert!(after("0000000100000000000000FE", &[], 0).is_empty());
    }

    #[test]
    fn at_a_switch_point_the_name_is_the_childs() {
        let histories = [history(2, "1\t0/A000028\tx"), history(3, "1\t0/A000028\tx\n2\t0/C000000\ty")];
        let expected = ["00000002000000000000000A", "00000002000000000000000B", "00000003000000000000000C"];
        assert_eq!(after("000000010000000000000009", &histories, 3), expected);
        assert_eq!(after("00000002000000000000000A", &histories, 2), expected[1..]);
    }

    #[test]
    fn a_history_that_left_before_is_not_followed() {
        let histories = [history(2, "1\t0/A000028\tx")];
        assert_eq!(after("00000001000000000000000A", &histories, 1), ["00000001000000000000000B"]);
        assert_eq!(after("00000005000000000000000A", &histories, 1), ["00000005000000000000000B"]);
    }

    #[test]
    fn a_name_that_cannot_exist_has_no_next() {
        assert!(after("000000010000000000000100", &[], 3).is_empty());
    }
}
