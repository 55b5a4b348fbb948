//! The walker over logs written here, byte by byte; the tests of the workspace compare it with real servers.

use super::*;

const SEGMENT_BYTES: usize = 1 << 20;
const START: Lsn = Lsn(0x30_0000);
const COMMIT: (u8, u8) = (1, 0x00);
const NOOP: (u8, u8) = (0, 0x20);
const SWITCH: (u8, u8) = (0, 0x40);
/// 2026-11-22 07:17:34.000001 UTC, as PostgreSQL counts.
const TIME: i64 = 848_647_054_000_001;

/// Writes a log from the start of a segment on.
#[derive(Clone)]
struct Writer {
    pg_major: u32,
    bytes: Vec<u8>,
    previous: Lsn,
}

impl Writer {
    fn new(pg_major: u32) -> Self {
        Self { pg_major, bytes: Vec::new(), previous: Lsn(0x2F_FFE0) }
    }

    fn position(&self) -> Lsn {
        START.saturating_add(self.bytes.len() as u64)
    }

    fn page_header(&mut self, mut flags: u16, remaining: usize) {
        let magics =
            [(13, 0xD106_u16), (14, 0xD10D), (15, 0xD110), (16, 0xD113), (17, 0xD116), (18, 0xD118), (19, 0xD122)];
        let magic = magics.iter().find(|(major, _)| *major == self.pg_major).unwrap().1;
        let first = self.bytes.len().is_multiple_of(SEGMENT_BYTES);
        flags |= if first { 2 } else { 0 };
        let address = self.position();
        self.bytes.extend([magic.to_le_bytes(), flags.to_le_bytes()].concat());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(address.0.to_le_bytes());
        self.bytes.extend((remaining as u64).to_le_bytes());
        if first {
            self.bytes.extend(42u64.to_le_bytes());
            self.bytes.extend((1u32 << 20).to_le_bytes());
            self.bytes.extend(8192u32.to_le_bytes());
        }
    }

    /// Appends a record and returns where it begins and ends.
    fn record(&mut self, (resource_manager, info): (u8, u8), xid: u32, fragments: &[u8]) -> (Lsn, Lsn) {
        let mut record = Vec::new();
        record.extend((24 + u32::try_from(fragments.len()).unwrap()).to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.0.to_le_bytes());
        record.extend([info, resource_manager, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(fragments), &record);
        record.extend(crc.to_le_bytes());
        record.extend(fragments);

        if self.bytes.len().is_multiple_of(PAGE_BYTES) {
            self.page_header(0, 0);
        }
        self.previous = self.position();
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE_BYTES) {
                self.page_header(1, rest.len());
            }
            let (here, later) = rest.split_at(rest.len().min(self.left_on_page()));
            self.bytes.extend(here);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        (self.previous, self.position())
    }

    fn left_on_page(&self) -> usize {
        PAGE_BYTES - self.bytes.len() % PAGE_BYTES
    }

    /// Appends a record that leaves this much of the page to the next one.
    fn leave_on_page(&mut self, left: usize) {
        if self.left_on_page() < left + 32 || self.left_on_page() == PAGE_BYTES {
            self.record(NOOP, 0, &main_data(&[7; 100]));
        }
        if self.left_on_page() < left + 32 {
            self.record(NOOP, 0, &main_data(&vec![7; self.left_on_page()]));
        }
        let body = self.left_on_page() - left - 29;
        self.record(NOOP, 0, &long_main_data(&vec![7; body]));
        assert_eq!(self.bytes.len() % PAGE_BYTES, (PAGE_BYTES - left) % PAGE_BYTES);
    }

    fn commit(&mut self, xid: u32) -> Event {
        let (start, end) = self.record(COMMIT, xid, &main_data(&TIME.to_le_bytes()));
        Event { start, end, kind: EventKind::Commit { xid, time: time() } }
    }

    /// The log so far as whole segments, with zeros behind its end.
    fn segments(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(SEGMENT_BYTES), 0);
        bytes.chunks(SEGMENT_BYTES).map(<[u8]>::to_vec).collect()
    }
}

fn time() -> jiff::Timestamp {
    "2026-11-22T07:17:34.000001Z".parse().unwrap()
}

fn long_main_data(data: &[u8]) -> Vec<u8> {
    [&[254], u32::try_from(data.len()).unwrap().to_le_bytes().as_slice(), data].concat()
}

fn main_data(data: &[u8]) -> Vec<u8> {
    match u8::try_from(data.len()) {
        Ok(length) => [&[255, length], data].concat(),
        Err(_) => long_main_data(data),
    }
}

/// Walks over segments from the one that starts at `start`.
fn walk_from(start: Lsn, segments: &[Vec<u8>]) -> (Vec<Event>, Option<Reason>, Lsn) {
    let mut events = Vec::new();
    let mut walker = Walker::new(start);
    let mut end = None;
    for segment in segments {
        if let Progress::Ended(found) = walker.feed(segment, |event| events.push(event)).unwrap() {
            assert_eq!(found.lsn, walker.position());
            end = Some(found.reason);
        }
    }
    (events, end, walker.position())
}

fn walk(log: &Writer) -> (Vec<Event>, Option<Reason>, Lsn) {
    walk_from(START, &log.segments())
}

#[test]
fn what_recovery_can_stop_at_is_reported_with_its_place_and_zeros_end_the_log() {
    for pg_major in 13..=19 {
        let mut log = Writer::new(pg_major);
        let commit = log.commit(700);
        let origin = [&[253, 1, 0, 252, 9, 0, 0, 0], main_data(&TIME.to_le_bytes()).as_slice()].concat();
        let abort = log.record((1, 0x20), 701, &origin);
        let mut point = [TIME.to_le_bytes().as_slice(), b"before \xE9"].concat();
        point.resize(8 + 64, 0);
        let point = log.record((0, 0x70), 0, &main_data(&point));
        let backup = log.record((0, 0x50), 0, &main_data(&0x20_0028u64.to_le_bytes()));
        log.record((1, 0x10), 702, &main_data(&[1; 90]));
        log.record((1, 0x50), 702, &main_data(&[1; 12]));
        log.record(NOOP, 702, &[]);

        let (events, end, position) = walk(&log);
        let event = |(start, end), kind| Event { start, end, kind };
        let time = time();
        assert_eq!(
            events,
            [
                commit,
                event(abort, EventKind::Abort { xid: 701, time }),
                event(point, EventKind::RestorePoint { name: b"before \xE9".to_vec(), time }),
                event(backup, EventKind::BackupEnd { start: Lsn(0x20_0028) }),
            ]
        );
        assert_eq!((end, position), (Some(Reason::Length { start: log.position() }), log.position()));
    }
}

#[test]
fn the_end_of_a_prepared_transaction_names_the_transaction_prepared() {
    for (pg_major, statistics_bytes) in [(13, 12), (15, 12), (17, 12), (18, 16), (19, 16)] {
        let mut log = Writer::new(pg_major);
        let counted =
            |count: u32, bytes: usize| [&count.to_le_bytes(), vec![0xEE; count as usize * bytes].as_slice()].concat();
        let two_phase = [900u32.to_le_bytes().as_slice(), b"gid\0"].concat();
        let all = [
            (1u32, vec![0xEE; 8]),
            (1 << 1, counted(3, 4)),
            (1 << 2, counted(2, 12)),
            (1 << 8, counted(5, statistics_bytes)),
            (1 << 3, counted(4, 16)),
            (1 << 4, two_phase),
            (1 << 5, vec![0xEE; 16]),
        ];
        let mut xids = Vec::new();
        for skipped in 0..all.len() {
            for info in [0x80 | 0x30, 0x80 | 0x40] {
                let parts: Vec<_> =
                    all.iter().enumerate().filter(|(index, _)| *index != skipped).map(|(_, part)| part).collect();
                let flags: u32 = parts.iter().map(|part| part.0).sum();
                let body: Vec<u8> = parts.iter().flat_map(|part| part.1.clone()).collect();
                log.record(
                    (1, info),
                    5,
                    &main_data(&[TIME.to_le_bytes().as_slice(), &flags.to_le_bytes(), &body].concat()),
                );
                xids.push(if skipped == 5 { 5 } else { 900 });
            }
        }
        let found: Vec<u32> = walk(&log)
            .0
            .iter()
            .map(|event| match event.kind {
                EventKind::Commit { xid, .. } | EventKind::Abort { xid, .. } => xid,
                _ => panic!("{event:?}"),
            })
            .collect();
        assert_eq!(found, xids, "PostgreSQL {pg_major}");
    }
}

#[test]
fn records_may_begin_anywhere_on_a_page_and_end_on_a_later_one() {
    for left in (0..=64).step_by(8) {
        let mut log = Writer::new(15);
        log.leave_on_page(left);
        let expected = [log.commit(1), log.commit(2)];
        let (events, _, position) = walk(&log);
        assert_eq!((events.as_slice(), position), (expected.as_slice(), log.position()), "{left} bytes left");
    }
}

#[test]
fn long_records_cross_segments_and_wait_for_the_next_one() {
    let mut log = Writer::new(17);
    let first = log.commit(1);
    let start = log.position();
    log.record(NOOP, 0, &main_data(&vec![9; 2 * SEGMENT_BYTES + 5000]));
    let second = log.commit(2);
    let segments = log.segments();
    assert_eq!(segments.len(), 3);
    let (events, end, position) = walk_from(START, &segments[..2]);
    assert_eq!((events, end, position), (vec![first.clone()], None, start), "unfinished, but not the end");
    assert_eq!(walk(&log).0, [first, second.clone()]);
    // From any segment on, the rest of the record is passed over.
    for from in 1..3 {
        let next = START.saturating_add((from * SEGMENT_BYTES) as u64);
        let (events, _, position) = walk_from(next, &segments[from..]);
        assert_eq!((events, position), (vec![second.clone()], log.position()));
    }
}

#[test]
fn a_continuation_may_fill_its_last_page() {
    for short in 0..=8 {
        let mut log = Writer::new(17);
        log.leave_on_page(8);
        while log.bytes.len() < SEGMENT_BYTES - PAGE_BYTES {
            log.leave_on_page(8);
        }
        // 8 bytes before the segment's end, all of the next page, and `short` bytes less.
        log.record(NOOP, 0, &long_main_data(&vec![9; 8 + PAGE_BYTES - 40 - 29 - short]));
        let commit = log.commit(3);
        let segments = log.segments();
        let next = START.saturating_add(SEGMENT_BYTES as u64);
        assert_eq!(walk_from(next, &segments[1..]).0, std::slice::from_ref(&commit), "{short} short");
        assert_eq!(walk(&log).0, [commit], "{short} short");
    }
}

#[test]
fn after_a_forced_switch_the_next_segment_goes_on() {
    for left in [8, 24, 0] {
        let mut log = Writer::new(16);
        let before = log.commit(1);
        log.leave_on_page(left);
        log.record(SWITCH, 0, &[]);
        log.bytes.resize(log.bytes.len().next_multiple_of(SEGMENT_BYTES), 0);
        let (_, end, position) = walk(&log);
        assert_eq!((end, position), (None, log.position()));
        let after = log.commit(2);
        assert_eq!(walk(&log).0, [before, after]);
    }
}

#[test]
fn a_record_cut_short_by_a_crash_is_replaced_by_what_follows() {
    for (pg_major, flag) in [(13, 8), (18, 8), (19, 4)] {
        let mut log = Writer::new(pg_major);
        let before = log.commit(1);
        let previous = log.previous;
        log.record(NOOP, 0, &main_data(&vec![9; 3 * PAGE_BYTES]));
        log.bytes.truncate(2 * PAGE_BYTES);
        log.previous = previous;
        log.page_header(flag, 0);
        log.record((0, 0xD0), 0, &main_data(&[0; 16]));
        let after = log.commit(2);
        let (events, _, position) = walk(&log);
        assert_eq!((events, position), (vec![before, after], log.position()), "PostgreSQL {pg_major}");
    }
}

#[test]
fn lengths_of_images_are_understood_in_each_major() {
    // id, fork and flags, length of data, then the image's length, hole offset and flags.
    let image = |flags: u8| vec![0, 0x30, 3, 0, 10, 0, 24, 0, flags];
    let relation_and_block = [5; 16];
    let compressed = [(14, 0x01 | 0x02 | 0x04), (15, 0x01 | 0x02 | 0x04), (17, 0x01 | 0x08), (18, 0x01 | 0x10)];
    let plain = [(13, 0x01 | 0x04), (14, 0x02), (15, 0x01 | 0x02), (19, 0x04)];
    let hole_length = [77, 0];
    for (pg_major, flags, hole) in compressed
        .map(|(major, flags)| (major, flags, &hole_length[..]))
        .into_iter()
        .chain(plain.map(|(major, flags)| (major, flags, &[][..])))
    {
        let mut log = Writer::new(pg_major);
        let same_relation = [1, 0xA0, 2, 0, 1, 2, 3, 4];
        let headers = [&image(flags), hole, &relation_and_block, &same_relation, &[255, 4]].concat();
        let record = log.record((10, 0), 1, &[headers.as_slice(), &[0xCC; 10 + 3 + 2 + 4]].concat());
        assert_eq!(walk(&log).2, record.1, "PostgreSQL {pg_major}, image flags {flags:02X}");
        let (start, _) = log.record((10, 0), 1, &[headers.as_slice(), &[0xCC; 10 + 3 + 2 + 5]].concat());
        assert_eq!(walk(&log).1, Some(Reason::Contents { start }));
    }
}

#[test]
fn what_does_not_belong_to_the_log_ends_it() {
    let mut log = Writer::new(15);
    log.leave_on_page(0);
    let commit = log.commit(1);
    let stale = {
        let mut other = log.clone();
        other.previous = Lsn(0x30_0028);
        let (start, _) = other.record(COMMIT, 2, &main_data(&TIME.to_le_bytes()));
        (other.bytes, Reason::PreviousLink { start, found: Lsn(0x30_0028) })
    };
    log.leave_on_page(0);
    let end = log.position();
    let next_page = |change: fn(&mut Vec<u8>)| {
        let mut other = log.clone();
        other.commit(3);
        change(&mut other.bytes);
        other.bytes
    };
    let cases = [
        stale,
        (
            next_page(|bytes| bytes[2 * PAGE_BYTES + 8] ^= 0x20),
            Reason::Address { address: end, found: Lsn(end.0 ^ 0x20) },
        ),
        (next_page(|bytes| bytes[2 * PAGE_BYTES] = 0), Reason::Magic { address: end, magic: 0xD100 }),
        (next_page(|bytes| bytes[2 * PAGE_BYTES + 2] = 0x10), Reason::Flags { address: end, flags: 0x10 }),
        (next_page(|bytes| bytes[2 * PAGE_BYTES + 2] = 1), Reason::Continuation { address: end }),
        (
            next_page(|bytes| bytes[2 * PAGE_BYTES + 4] = 0),
            Reason::Timeline { address: end, before: Timeline(1), found: Timeline(0) },
        ),
        (next_page(|bytes| bytes[2 * PAGE_BYTES + 24 + 30] ^= 1), Reason::Checksum { start: Lsn(end.0 + 24) }),
        (next_page(|bytes| bytes[2 * PAGE_BYTES + 24] = 23), Reason::Length { start: Lsn(end.0 + 24) }),
    ];
    for (bytes, reason) in cases {
        let (events, found, position) = walk(&Writer { bytes, ..log.clone() });
        assert_eq!((events, found), (vec![commit.clone()], Some(reason)));
        assert_eq!(position, if matches!(reason, Reason::PreviousLink { .. }) { commit.end } else { end });
    }
}

#[test]
fn a_record_whose_rest_is_another_one_ends_the_log() {
    let mut log = Writer::new(15);
    let commit = log.commit(1);
    log.record(NOOP, 0, &main_data(&vec![9; 2 * PAGE_BYTES]));
    for (at, value) in [(2, 0), (16, 8)] {
        let mut other = log.clone();
        other.bytes[PAGE_BYTES + at] = value;
        let (_, end, position) = walk(&other);
        let address = START.saturating_add(PAGE_BYTES as u64);
        assert_eq!((end, position), (Some(Reason::Continuation { address }), commit.end));
    }
}

#[test]
fn a_segment_of_another_place_is_refused_and_the_right_one_still_taken() {
    let mut log = Writer::new(15);
    log.record(NOOP, 0, &main_data(&vec![9; SEGMENT_BYTES]));
    let commit = log.commit(1);
    let segments = log.segments();
    let mut foreign = segments[1].clone();
    foreign[24] ^= 1;
    let mut large_pages = segments[0].clone();
    large_pages[37] = 0x40;
    let mut newer = segments[0].clone();
    newer[0] = 0x99;
    let mut walker = Walker::new(START);
    let mut events = Vec::new();
    let mut feed = |segment: &[u8]| walker.feed(segment, |event| events.push(event));
    let second = Lsn(START.0 + SEGMENT_BYTES as u64);
    assert_eq!(feed(&segments[1]), Err(InvalidWal::NotNext { expected: START, found: second }));
    assert_eq!(feed(&large_pages), Err(InvalidWal::PageSize(0x4000)));
    assert_eq!(feed(&newer), Err(InvalidWal::UnknownVersion(0xD199)));
    assert_eq!(feed(&segments[0]), Ok(Progress::Continues));
    assert_eq!(feed(&segments[0]), Err(InvalidWal::NotNext { expected: second, found: START }));
    assert_eq!(feed(&foreign), Err(InvalidWal::OtherLog));
    let whole = SEGMENT_BYTES as u64;
    assert_eq!(feed(&segments[1][..PAGE_BYTES]), Err(InvalidWal::Size { expected: whole, found: PAGE_BYTES }));
    assert!(matches!(feed(&[]), Err(InvalidWal::Header(_))));
    let ended = feed(&segments[1]).unwrap();
    assert!(matches!(ended, Progress::Ended(_)));
    assert_eq!(feed(&foreign), Ok(ended), "an ended log stays ended");
    assert_eq!(events, [commit]);
}

#[test]
fn times_beyond_what_can_be_shown_become_the_last_one() {
    let mut log = Writer::new(15);
    for time in [i64::MAX, i64::MIN] {
        log.record(COMMIT, 1, &main_data(&time.to_le_bytes()));
    }
    let kinds: Vec<EventKind> = walk(&log).0.into_iter().map(|event| event.kind).collect();
    let expected = [jiff::Timestamp::MAX, jiff::Timestamp::MIN].map(|time| EventKind::Commit { xid: 1, time });
    assert_eq!(kinds, expected);
}

/// Damage is either noticed, or makes no difference: no event is invented or changed, and none is lost before it.
#[test]
#[expect(clippy::print_stdout, reason = "the seed of a random test must be known when it fails")]
fn damaged_bytes_never_panic_and_never_invent_an_event() {
    let mut log = Writer::new(17);
    for xid in 0..3000 {
        log.commit(xid);
        if xid % 7 == 0 {
            log.record(NOOP, 0, &main_data(&vec![9; xid as usize * 3]));
        }
    }
    let segments = log.segments();
    let events = walk(&log).0;
    assert_eq!(events.len(), 3000);

    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() | 1;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 16).unwrap() % below
    };
    for round in 0..300 {
        let mut damaged: Vec<u8> = segments.concat();
        let mut first = log.bytes.len();
        for _ in 0..=random(4) {
            // Half of the damage hits headers of pages, few bytes of them all.
            let page = random(log.bytes.len() / PAGE_BYTES) * PAGE_BYTES;
            let at = page + if random(2) == 0 { random(24) } else { random(PAGE_BYTES) };
            let length = if random(2) == 0 { 1 } else { random(600).min(log.bytes.len() - at) };
            damaged[at..at + length].fill_with(|| u8::try_from(random(256)).unwrap());
            first = first.min(at);
        }
        // The first header decides whether these are segments at all.
        damaged[..40].copy_from_slice(&segments[0][..40]);
        let intact = Lsn(START.0 + (first - first % PAGE_BYTES) as u64);
        let mut walker = Walker::new(START);
        let mut found = Vec::new();
        for segment in damaged.chunks(SEGMENT_BYTES) {
            if walker.feed(segment, |event| found.push(event)).is_err() {
                break;
            }
        }
        assert!(events.starts_with(&found), "round {round}: an event was invented, changed or left out");
        let before = events.iter().filter(|event| event.end <= intact).count();
        assert!(found.len() >= before, "round {round}: {} events found of {before} before the damage", found.len());
    }
}

const CREATE_TABLESPACE: (u8, u8) = (5, 0x00);

fn create_tablespace(oid: u32, location: &str) -> Vec<u8> {
    main_data(&[&oid.to_le_bytes(), location.as_bytes(), b"\0"].concat())
}

#[test]
fn tablespaces_are_kept_in_place_and_the_log_stays_one() {
    for pg_major in 13..=19 {
        // On one page, and with the header, the name, or neither cut by the end of a page.
        let mut log = Writer::new(pg_major);
        let mut expected = Vec::new();
        for (oid, left) in (16384..).zip([4000, 16, 8, 24, 32, 40, 64]) {
            log.commit(oid);
            log.leave_on_page(left);
            let location = format!("/srv/fast \u{e9} {}", "x".repeat(oid as usize % 7 * 100));
            log.record(CREATE_TABLESPACE, oid, &create_tablespace(oid, &location));
            expected.push(CreatedTablespace { oid, location: location.into_bytes() });
        }
        let (_, end) = log.record(CREATE_TABLESPACE, 1, &create_tablespace(1, ""));
        let before = walk(&log);
        assert_eq!(before.2, end);
        let mut segments = log.segments();
        let changed = keep_tablespaces_in_place(&mut segments[0], START, pg_major).unwrap();
        assert_eq!(changed, expected);
        assert_eq!(walk_from(START, &segments), before, "{pg_major}");
        assert!(keep_tablespaces_in_place(&mut segments[0], START, pg_major).unwrap().is_empty());
        let names = String::from_utf8_lossy(&segments[0]).into_owned();
        assert!(!names.contains("/srv") && !names.contains("xxxx"));
    }
}

#[test]
fn what_is_not_the_creation_of_a_tablespace_is_left_as_it_is() {
    let mut log = Writer::new(15);
    log.commit(700);
    // It is dropped; another resource manager; a wrong checksum.
    log.record((5, 0x10), 1, &create_tablespace(16384, "/srv/fast"));
    log.record((6, 0x00), 1, &create_tablespace(16384, "/srv/fast"));
    let mut segments = log.segments();
    let unchanged = segments[0].clone();
    assert!(keep_tablespaces_in_place(&mut segments[0], START, 15).unwrap().is_empty());
    assert!(segments[0] == unchanged);
    let (start, _) = log.record(CREATE_TABLESPACE, 1, &create_tablespace(16384, "/srv/fast"));
    let mut damaged = log.segments();
    damaged[0][usize::try_from(start.0 - START.0).unwrap() + 35] ^= 1;
    assert!(keep_tablespaces_in_place(&mut damaged[0], START, 15).unwrap().is_empty());
}

#[test]
fn a_tablespace_at_the_very_end_of_a_segment_cannot_be_kept_in_place() {
    let mut log = Writer::new(15);
    while log.position().0 < START.0 + SEGMENT_BYTES as u64 - PAGE_BYTES as u64 {
        log.leave_on_page(0);
    }
    log.leave_on_page(64);
    let (start, _) = log.record(CREATE_TABLESPACE, 1, &create_tablespace(16384, &"x".repeat(60)));
    log.commit(700);
    let mut segments = log.segments();
    assert_eq!(segments.len(), 2);
    assert_eq!(keep_tablespaces_in_place(&mut segments[0], START, 15), Err(SpansSegments(start)));
}
