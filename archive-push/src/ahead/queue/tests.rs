use jiff::Timestamp;
use walkeep_common::error::{Error, Kind};

use super::*;

const LINGER: Duration = Duration::from_secs(10);

fn name(text: &str) -> WalFileName {
    text.parse().unwrap()
}

fn segment(number: usize) -> WalFileName {
    name(&format!("0000000100000000{number:08X}"))
}

fn segments(numbers: std::ops::Range<usize>) -> Vec<WalFileName> {
    numbers.map(segment).collect()
}

fn stamp(inode: u64) -> Stamp {
    Stamp { inode, size: 1 << 20, modified: Timestamp::UNIX_EPOCH }
}

fn stored(inode: u64) -> Outcome {
    Outcome::Stored(stamp(inode), Vec::new())
}

fn failed(kind: Kind) -> Outcome {
    Outcome::Failed(Failure::new(&Error::new(kind, "no"), Vec::new()))
}

fn queue(waiting: &[WalFileName]) -> (Queue, Instant) {
    let now = Instant::now();
    let mut queue = Queue::new(LINGER, None, now);
    queue.refill(waiting);
    (queue, now)
}

fn begin(queue: &mut Queue, now: Instant) -> Option<WalFileName> {
    queue.next(now).map(|job| job.name)
}

#[test]
fn files_are_begun_in_postgresql_s_order_and_each_once() {
    let (mut queue, now) = queue(&segments(1..4));
    assert_eq!(queue.next(now), Some(Job { name: segment(1), is_asked: false, waiting: 3 }));
    assert_eq!(begin(&mut queue, now), Some(segment(2)));
    queue.end(segment(1), stored(1));
    queue.refill(&segments(1..5));
    assert_eq!(begin(&mut queue, now), Some(segment(3)));
    assert_eq!(begin(&mut queue, now), Some(segment(4)));
    assert_eq!(begin(&mut queue, now), None);
}

#[test]
fn what_is_asked_for_comes_before_everything_else() {
    let (mut queue, now) = queue(&segments(1..4));
    queue.ask(segment(3), now);
    queue.ask(name("00000002.history"), now);
    assert_eq!(queue.next(now).map(|job| (job.name, job.is_asked)), Some((segment(3), true)));
    assert_eq!(begin(&mut queue, now), Some(name("00000002.history")));
    // The history needs its past first, and nothing may overtake it.
    assert_eq!(begin(&mut queue, now), None);
    queue.end(name("00000002.history"), stored(9));
    assert_eq!(begin(&mut queue, now), Some(segment(1)));
}

#[test]
fn a_success_answers_once_and_only_for_the_same_file() {
    let (mut queue, now) = queue(&segments(1..2));
    queue.next(now).unwrap();
    queue.ask(segment(1), now);
    assert_eq!(queue.look(segment(1), &stamp(1), now), None);
    queue.end(segment(1), stored(1));
    assert_eq!(queue.look(segment(1), &stamp(2), now), Some(Answer::NotMine));
    assert_eq!(queue.look(segment(1), &stamp(1), now), Some(Answer::Stored { warnings: Vec::new() }));
    queue.answered(segment(1), now);
    // PostgreSQL has yet to take it out of its queue.
    queue.refill(&segments(1..2));
    assert_eq!(begin(&mut queue, now), None);
    // It asks again after a crash: then it is pushed again.
    queue.ask(segment(1), now);
    assert_eq!(queue.next(now).map(|job| job.is_asked), Some(true));
}

#[test]
fn what_the_call_pushed_that_started_the_worker_is_not_pushed_again() {
    let now = Instant::now();
    let mut queue = Queue::new(LINGER, Some(segment(1)), now);
    queue.refill(&segments(1..3));
    assert_eq!(begin(&mut queue, now), Some(segment(2)));
    queue.refill(&segments(2..3));
    queue.refill(&segments(1..3));
    assert_eq!(begin(&mut queue, now), Some(segment(1)), "it waits again, so it is another one");
}

#[test]
fn nothing_is_begun_beyond_a_failure_until_that_file_is_stored() {
    for kind in [Kind::Conflict, Kind::Damaged, Kind::Invalid, Kind::Refused, Kind::Unavailable] {
        let (mut queue, now) = queue(&segments(1..10));
        assert_eq!(begin(&mut queue, now), Some(segment(1)));
        assert_eq!(begin(&mut queue, now), Some(segment(2)));
        queue.end(segment(1), failed(kind));
        queue.refill(&segments(1..10));
        assert_eq!(begin(&mut queue, now), None, "{kind:?}");
        // Those that ran go on, and count.
        queue.end(segment(2), stored(2));
        // The failure was nobody's: it is looked at anew for the call that asks.
        queue.ask(segment(1), now);
        assert_eq!(begin(&mut queue, now), Some(segment(1)));
        queue.end(segment(1), failed(kind));
        assert!(matches!(queue.look(segment(1), &stamp(1), now), Some(Answer::Failed(_))));
        queue.answered(segment(1), now);
        queue.refill(&segments(1..10));
        assert_eq!(begin(&mut queue, now), None, "{kind:?}");
        // And the next one once more, until it succeeds.
        queue.ask(segment(1), now);
        assert_eq!(begin(&mut queue, now), Some(segment(1)));
        queue.end(segment(1), stored(1));
        queue.refill(&segments(1..10));
        assert_eq!(begin(&mut queue, now), Some(segment(3)));
    }
}

#[test]
fn a_failed_file_that_does_not_wait_any_more_holds_nothing_up() {
    let (mut queue, now) = queue(&segments(1..4));
    queue.next(now).unwrap();
    queue.end(segment(1), failed(Kind::Invalid));
    queue.refill(&segments(2..4));
    assert_eq!(begin(&mut queue, now), Some(segment(2)));
}

#[test]
fn a_file_that_has_gone_is_left_alone_and_a_call_for_it_does_it_itself() {
    let (mut queue, now) = queue(&segments(1..3));
    queue.next(now).unwrap();
    queue.end(segment(1), Outcome::Gone);
    queue.refill(&segments(1..3));
    assert_eq!(begin(&mut queue, now), Some(segment(2)));
    queue.ask(segment(2), now);
    queue.end(segment(2), Outcome::Gone);
    assert_eq!(queue.look(segment(2), &stamp(2), now), Some(Answer::NotMine));
}

#[test]
fn only_so_much_is_stored_before_it_is_asked_for() {
    let (mut queue, now) = queue(&segments(1..1000));
    let mut begun = 0;
    while let Some(name) = begin(&mut queue, now) {
        queue.end(name, stored(1));
        begun += 1;
    }
    assert_eq!(begun, MOST_UNASKED);
    queue.ask(segment(1), now);
    queue.answered(segment(1), now);
    assert!(begin(&mut queue, now).is_some());
}

#[test]
fn a_worker_nobody_asks_begins_nothing_and_is_idle_once_its_uploads_have_ended() {
    let (mut queue, now) = queue(&segments(1..10));
    queue.next(now).unwrap();
    let later = now + LINGER;
    assert_eq!(begin(&mut queue, later), None);
    assert!(!queue.is_idle(later));
    queue.end(segment(1), stored(1));
    assert!(queue.is_idle(later) && !queue.is_idle(now));
    queue.ask(segment(1), later);
    assert!(!queue.is_idle(later + LINGER * 100), "a call waits");
    queue.answered(segment(1), later);
    assert!(!queue.is_idle(later) && queue.is_idle(later + LINGER));
}

#[test]
fn a_slow_upload_is_kept_for_the_call_that_gave_up_on_it() {
    let (mut queue, now) = queue(&segments(1..2));
    queue.ask(segment(1), now);
    queue.next(now).unwrap();
    queue.withdraw(segment(1), now);
    queue.end(segment(1), stored(1));
    let a_minute_later = now + Duration::from_secs(61);
    assert!(!queue.is_idle(a_minute_later));
    queue.ask(segment(1), a_minute_later);
    assert!(matches!(queue.look(segment(1), &stamp(1), a_minute_later), Some(Answer::Stored { .. })));
    queue.answered(segment(1), a_minute_later);
    assert!(queue.is_idle(a_minute_later + LINGER));
}
