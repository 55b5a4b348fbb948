//! Timelines × backups × holes. Segments have 16 MiB: segment N begins at 0/N000000.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use walkeep_common::repository::backup::{Owner, Pack, StoredObject};
use walkeep_common::repository::layout::pack_name;
use walkeep_common::store::Listed;

use super::*;
use crate::restore::target::Bound;
use crate::restore::time::Moment;

const FORK: &str = "1\t0/6000028\tx\n";

fn size() -> SegmentSize {
    SegmentSize::try_from(16 << 20).unwrap()
}

fn lsn(text: &str) -> Lsn {
    text.parse().unwrap()
}

fn moment(minute: u8) -> Moment {
    Moment::parse(&format!("2026-11-22 10:{minute:02}:00Z"), &TimeZone::UTC).unwrap()
}

/// A backup whose id ends in `number`, within segment `number` of `timeline`, done at minute `number`.
fn backup(timeline: u32, number: u8) -> Backup {
    let object = |name: &str| StoredObject { size: 1, sha256: name.repeat(64) };
    let time = moment(number).time;
    Backup {
        walkeep: 1,
        id: format!("20261122T100000Z-00{number:02}").parse().unwrap(),
        kind: "full".to_owned(),
        parent: None,
        label: String::new(),
        system_identifier: 7,
        pg_version: 150_000,
        segment_size: size(),
        timeline: Timeline(timeline),
        stop_timeline: None,
        start_lsn: lsn(&format!("0/{number:X}000028")),
        stop_lsn: lsn(&format!("0/{number:X}000100")),
        start_wal: String::new(),
        stop_wal: String::new(),
        start_time: time,
        stop_time: time,
        next_xid_at_start: 700 + u64::from(number) * 10,
        next_xid_at_stop: 705 + u64::from(number) * 10,
        from_standby: false,
        host: "a".to_owned(),
        data_directory: "/data".to_owned(),
        data_directory_mode: "0700".to_owned(),
        tablespaces: Vec::new(),
        databases: Vec::new(),
        owner: Owner { uid: 1, gid: 1, user: None, group: None },
        data_checksums: true,
        bad_pages: Vec::new(),
        files: 1,
        plain_size: 1,
        stored_size: 1,
        packs: vec![Pack { name: pack_name(1), size: 1, sha256: "a".repeat(64) }],
        index: object("a"),
        manifest: object("b"),
        configuration: None,
        kept_wal: Vec::new(),
        restore_point: None,
        version: String::new(),
        annotations: BTreeMap::new(),
    }
}

/// Segments as `TIMELINE: FIRST..=LAST`.
fn inventory(runs: &[(u32, std::ops::RangeInclusive<u64>)], histories: &[(u32, &str)]) -> Inventory {
    let names = runs.iter().flat_map(|(timeline, numbers)| {
        numbers.clone().map(|number| SegmentName::new(Timeline(*timeline), number, size()).to_string())
    });
    let objects: Vec<Listed> = names
        .map(|name| Listed { key: format!("wal/x/{name}.zst").into(), size: 1, modified: Timestamp::UNIX_EPOCH })
        .collect();
    let histories =
        histories.iter().map(|(timeline, text)| TimelineHistory::parse(Timeline(*timeline), text).unwrap()).collect();
    Inventory::new(size(), &objects, histories)
}

fn request(target: Target) -> Request {
    Request {
        target,
        bound: Bound::Inclusive,
        action: None,
        timeline: TimelineChoice::Latest,
        until_hole: false,
        role: Role::Primary,
    }
}

fn chosen_id(request: &Request, backups: &[Backup], inventory: &Inventory) -> Result<String> {
    choose(request, backups, inventory, &RuledOut::new()).map(|chosen| chosen.backup.id.as_str()[19..].to_owned())
}

/// With the verdict for a position that is not in the last archived segment.
fn settled(request: &Request, backups: &[Backup], inventory: &Inventory, verdict: Option<Verdict>) -> Result<Settled> {
    let chosen = choose(request, backups, inventory, &RuledOut::new())?;
    let reached = match request.target {
        Target::Lsn(lsn) if segment_of(lsn, size()) < chosen.reach.end => Some(Verdict::Reached),
        _ => None,
    };
    settle(request, &chosen, verdict.or(reached), inventory)
}

#[test]
fn the_newest_backup_before_the_target_is_chosen() {
    let inventory = inventory(&[(1, 2..=9)], &[]);
    let backups = [backup(1, 2), backup(1, 4), backup(1, 6)];
    for (target, id) in [
        (Target::End, "6"),
        (Target::Immediate, "6"),
        (Target::Time(moment(5)), "4"),
        // Ended at the target itself: its contents are newer than the target.
        (Target::Time(moment(4)), "2"),
        (Target::Lsn(lsn("0/6000100")), "6"),
        (Target::Lsn(lsn("0/60000FF")), "4"),
        (Target::Xid(765), "6"),
        (Target::Xid(764), "4"),
        (Target::Xid(1 << 32 | 5), "6"),
    ] {
        assert_eq!(chosen_id(&request(target.clone()), &backups, &inventory).unwrap(), format!("0{id}"), "{target:?}");
    }
    for target in [Target::Time(moment(2)), Target::Lsn(lsn("0/2000000")), Target::Xid(724)] {
        assert_eq!(chosen_id(&request(target), &backups, &inventory).unwrap_err().kind(), Kind::NotFound);
    }
}

#[test]
fn a_transaction_id_without_an_epoch_is_compared_on_a_circle() {
    let inventory = inventory(&[(1, 2..=9)], &[]);
    let wrapped = Backup { next_xid_at_stop: (3 << 32) + 10, ..backup(1, 2) };
    let first_epoch = [Backup { next_xid_at_stop: 700, ..backup(1, 2) }];
    for (xid, fits) in [(700, true), (2_000_000_000, true), (699, false), (4_294_967_290, false), (1 << 32, true)] {
        assert_eq!(chosen_id(&request(Target::Xid(xid)), &first_epoch, &inventory).is_ok(), fits, "{xid}");
    }
    for (xid, fits) in [(10, true), (2_000_000_000, true), (9, false), (4_294_967_290, false), ((3 << 32) + 9, false)] {
        let result = choose(&request(Target::Xid(xid)), std::slice::from_ref(&wrapped), &inventory, &RuledOut::new());
        assert_eq!(result.is_ok(), fits, "{xid}");
    }
}

#[test]
fn a_restore_point_does_not_tell_between_backups() {
    let inventory = inventory(&[(1, 2..=9)], &[]);
    let request = request(Target::Name("a".to_owned()));
    let two = [backup(1, 2), backup(1, 4)];
    assert_eq!(chosen_id(&request, &two, &inventory).unwrap_err().kind(), Kind::Usage);
    assert_eq!(chosen_id(&request, &two[..1], &inventory).unwrap(), "02");
    assert!(named(&request, &two[1], &inventory, &RuledOut::new()).is_ok());
}

#[test]
fn the_newest_timeline_is_followed_from_a_backup_on_the_way_to_it() {
    // Timeline 1 went on after timeline 2 had left it in segment 6.
    let inventory = inventory(&[(1, 2..=9), (2, 6..=8)], &[(2, FORK)]);
    let backups = [backup(1, 3), backup(1, 7)];
    let latest = request(Target::End);
    let chosen = choose(&latest, &backups, &inventory, &RuledOut::new()).unwrap();
    assert_eq!((chosen.backup.id.as_str(), chosen.history.timeline()), (backups[0].id.as_str(), Timeline(2)));
    assert!(chosen.warnings[0].contains(backups[1].id.as_str()), "{:?}", chosen.warnings);

    let error = named(&latest, &backups[1], &inventory, &RuledOut::new()).unwrap_err();
    assert!(error.to_string().contains("left timeline 1 at 0/6000028"), "{error}");

    let old = Request { timeline: TimelineChoice::Number(Timeline(1)), ..latest.clone() };
    assert_eq!(chosen_id(&old, &backups, &inventory).unwrap(), "07");
    let current = Request { timeline: TimelineChoice::Current, ..latest.clone() };
    assert_eq!(chosen_id(&current, &backups, &inventory).unwrap(), "07");
    let unknown = Request { timeline: TimelineChoice::Number(Timeline(5)), ..latest };
    assert_eq!(chosen_id(&unknown, &backups, &inventory).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_history_that_recovery_would_ask_for_must_be_there() {
    let between = inventory(&[(1, 2..=6), (2, 6..=6), (3, 6..=8)], &[(3, "1\t0/6000028\tx\n")]);
    let error = choose(&request(Target::End), &[backup(1, 3)], &between, &RuledOut::new()).unwrap_err();
    assert_eq!(error.kind(), Kind::Hole);
    assert!(error.to_string().contains("00000002.history"), "{error}");
    let own = inventory(&[(1, 2..=6), (2, 6..=6)], &[]);
    assert_eq!(choose(&request(Target::End), &[backup(1, 3)], &own, &RuledOut::new()).unwrap_err().kind(), Kind::Hole);
}

#[test]
fn a_target_behind_a_fork_warns_of_the_timeline_that_went_on() {
    let backups = [backup(1, 3)];
    let target = |text| request(Target::Lsn(lsn(text)));
    for (parent_until, position, warned) in [(9, "0/7000000", 1), (9, "0/5000000", 0), (5, "0/7000000", 0)] {
        let inventory = inventory(&[(1, 2..=parent_until), (2, 6..=8)], &[(2, FORK)]);
        let settled = settled(&target(position), &backups, &inventory, None).unwrap();
        assert_eq!(settled.warnings.len(), warned, "{parent_until} {position}: {:?}", settled.warnings);
    }
}

#[test]
fn a_backup_without_its_own_wal_is_passed_over_with_a_warning() {
    let inventory = inventory(&[(1, 2..=5), (1, 7..=9)], &[]);
    let backups = [backup(1, 3), backup(1, 6)];
    let chosen = choose(&request(Target::Lsn(lsn("0/7000000"))), &backups, &inventory, &RuledOut::new()).unwrap();
    assert_eq!(chosen.backup.id, backups[0].id);
    assert!(chosen.warnings[0].contains("000000010000000000000006"), "{:?}", chosen.warnings);
    let kept = Backup { kept_wal: vec!["000000010000000000000006".to_owned()], ..backup(1, 6) };
    assert_eq!(chosen_id(&request(Target::Immediate), &[kept], &inventory).unwrap(), "06");
}

#[test]
fn a_hole_before_the_target_makes_it_impossible() {
    let inventory = inventory(&[(1, 2..=5), (1, 7..=9)], &[]);
    let backups = [backup(1, 3)];
    let last = TransactionEnd { lsn: lsn("0/5000100"), time: moment(5).time };
    for (target, verdict, possible) in [
        (Target::End, None, false),
        (Target::Immediate, None, true),
        (Target::Lsn(lsn("0/5FFFFFF")), None, true),
        (Target::Lsn(lsn("0/6000000")), None, false),
        (Target::Time(moment(4)), Some(Verdict::Stops(last)), true),
        (Target::Time(moment(8)), Some(Verdict::AfterLast(last)), false),
        (Target::Time(moment(8)), Some(Verdict::Undecided), false),
        (Target::Xid(800), None, true),
        (Target::Name("a".to_owned()), None, true),
    ] {
        let asked = request(target.clone());
        match settled(&asked, &backups, &inventory, verdict) {
            Ok(settled) => {
                assert!(possible, "{target:?}");
                // The server reads ahead.
                assert_eq!(settled.last_segment.unwrap().to_string(), "000000010000000000000005", "{target:?}");
            }
            Err(error) => assert_eq!((error.kind(), possible), (Kind::Hole, false), "{target:?}"),
        }
        let until = Request { until_hole: true, ..asked };
        let settled = settled(&until, &backups, &inventory, verdict).unwrap();
        assert_eq!(settled.last_segment.unwrap().to_string(), "000000010000000000000005", "{target:?}");
        assert_eq!(settled.target == Target::End, !possible, "{target:?}");
    }
}

#[test]
fn a_hole_before_a_fork_ends_on_the_parent_timeline() {
    // The dead primary never archived segment 5; timeline 2 begins in segment 6.
    let inventory = inventory(&[(1, 2..=4), (2, 6..=8)], &[(2, FORK)]);
    let asked = request(Target::End);
    let backups = [backup(1, 3)];
    assert_eq!(settled(&asked, &backups, &inventory, None).unwrap_err().kind(), Kind::Hole);
    let until = Request { until_hole: true, ..asked };
    let settled = settled(&until, &backups, &inventory, None).unwrap();
    assert_eq!(settled.last_segment.unwrap().to_string(), "000000010000000000000004");
    assert_eq!(settled.timeline, RecoveryTimeline::Number(Timeline(1)));
    assert!(matches!(settled.end, RecoveryEnd::Hole(missing) if missing.to_string() == "000000010000000000000005"));
}

#[test]
fn targets_beyond_the_end_are_refused_with_what_there_is() {
    let inventory = inventory(&[(1, 2..=5)], &[]);
    let backups = [backup(1, 3)];
    let beyond = settled(&request(Target::Lsn(lsn("0/6000000"))), &backups, &inventory, None).unwrap_err();
    assert!(beyond.to_string().contains("0/6000000"), "{beyond}");
    let last = TransactionEnd { lsn: lsn("0/5000100"), time: moment(5).time };
    let verdict = Some(Verdict::AfterLast(last));
    let late = settled(&request(Target::Time(moment(9))), &backups, &inventory, verdict).unwrap_err();
    assert!(late.to_string().contains("10:05:00"), "{late}");
    assert!(late.hint_text().unwrap().contains("--target-lsn=0/5000100"));
    let idle = settled(&request(Target::Time(moment(9))), &backups, &inventory, Some(Verdict::NothingEnded));
    assert_eq!(idle.unwrap_err().kind(), Kind::NotFound);
    let idle = settled(&request(Target::Time(moment(9))), &backups, &inventory, Some(Verdict::Undecided)).unwrap();
    assert_eq!((idle.warnings.len(), idle.end), (1, RecoveryEnd::IfFound));
}

#[test]
fn a_standby_follows_the_latest_timeline_and_may_stream_over_a_hole() {
    let standby = |primary_conninfo: Option<&str>| Request {
        role: Role::Standby { primary_conninfo: primary_conninfo.map(str::to_owned), slot: None },
        ..request(Target::End)
    };
    let whole = inventory(&[(1, 2..=5)], &[]);
    let settled_standby = settled(&standby(None), &[backup(1, 3)], &whole, None).unwrap();
    assert_eq!((settled_standby.timeline, settled_standby.end), (RecoveryTimeline::Latest, RecoveryEnd::Never));
    let holed = inventory(&[(1, 2..=5), (1, 7..=9)], &[]);
    assert_eq!(settled(&standby(None), &[backup(1, 3)], &holed, None).unwrap_err().kind(), Kind::Hole);
    assert_eq!(settled(&standby(Some("host=a")), &[backup(1, 3)], &holed, None).unwrap().warnings.len(), 1);
}

#[test]
fn an_immediate_target_needs_no_more_than_the_backups_own_wal_and_timeline() {
    let inventory = inventory(&[(1, 2..=9), (2, 6..=8)], &[(2, FORK)]);
    let settled = settled(&request(Target::Immediate), &[backup(1, 3)], &inventory, None).unwrap();
    assert_eq!((settled.timeline, settled.last_number), (RecoveryTimeline::Number(Timeline(1)), 3));
}

#[test]
fn a_backup_that_crossed_a_fork_belongs_to_the_timeline_it_ended_on() {
    // A standby's backup: timeline 1 up to segment 6, where its primary was promoted, then timeline 2.
    let whole = inventory(&[(1, 2..=6), (2, 6..=9)], &[(2, FORK)]);
    let holed = inventory(&[(1, 2..=6), (2, 6..=7), (2, 9..=9)], &[(2, FORK)]);
    let crossed = Backup { stop_timeline: Some(Timeline(2)), stop_lsn: lsn("0/7000100"), ..backup(1, 4) };
    let backups = std::slice::from_ref(&crossed);
    for timeline in [TimelineChoice::Latest, TimelineChoice::Current, TimelineChoice::Number(Timeline(2))] {
        let asked = Request { timeline, ..request(Target::End) };
        let settled = settled(&asked, backups, &whole, None).unwrap();
        assert_eq!(settled.timeline, RecoveryTimeline::Number(Timeline(2)), "{timeline:?}");
    }
    let immediate = settled(&request(Target::Immediate), backups, &whole, None).unwrap();
    assert_eq!(immediate.timeline, RecoveryTimeline::Number(Timeline(2)));
    let parent = Request { timeline: TimelineChoice::Number(Timeline(1)), ..request(Target::End) };
    assert_eq!(settled(&parent, backups, &whole, None).unwrap_err().kind(), Kind::NotFound);
    let windows = crate::list::windows(backups, &whole);
    assert_eq!(windows.iter().map(|window| window.timeline).collect::<Vec<_>>(), [Timeline(2)]);

    let until = Request { until_hole: true, ..request(Target::End) };
    assert_eq!(settled(&until, backups, &holed, None).unwrap().timeline, RecoveryTimeline::Number(Timeline(2)));
}

#[test]
fn a_position_behind_the_last_archived_record_is_refused_with_that_records() {
    let inventory = inventory(&[(1, 2..=5)], &[]);
    let asked = request(Target::Lsn(lsn("0/5000200")));
    let backups = [backup(1, 3)];
    let behind = Some(Verdict::BehindLast(lsn("0/5000100")));
    let error = settled(&asked, &backups, &inventory, behind).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("behind the last archived record, at 0/5000100"), "{error}");
    assert!(error.hint_text().unwrap().contains("--target-lsn=0/5000100"));
    for doubt in [Verdict::Undecided, Verdict::UnknownVersion] {
        let settled = settled(&asked, &backups, &inventory, Some(doubt)).unwrap();
        assert_eq!((settled.warnings.len(), settled.end), (1, RecoveryEnd::IfFound));
    }
}

#[test]
fn a_backup_that_holds_what_ended_behind_the_target_gives_way_to_an_older_one() {
    let inventory = inventory(&[(1, 2..=9)], &[]);
    let backups = [backup(1, 2), backup(1, 4)];
    let asked = request(Target::Time(moment(6)));
    let end = TransactionEnd { lsn: lsn("0/4000080"), time: moment(7).time };
    let ruled_out = RuledOut::from([(backups[1].id.clone(), Unfit::HoldsLater(end))]);
    assert_eq!(choose(&asked, &backups, &inventory, &ruled_out).unwrap().backup.id, backups[0].id);
    let error = named(&asked, &backups[1], &inventory, &ruled_out).unwrap_err();
    assert!(error.to_string().contains("at 0/4000080"), "{error}");
}

#[test]
fn an_end_that_may_not_be_the_first_is_called_the_latest() {
    let inventory = inventory(&[(1, 2..=9)], &[]);
    let end = TransactionEnd { lsn: lsn("0/5000100"), time: moment(6).time };
    for (verdict, expected) in [
        (Verdict::Stops(end), RecoveryEnd::Before(end)),
        (Verdict::StopsAtLatest(end), RecoveryEnd::BeforeAtLatest(end)),
    ] {
        let asked = request(Target::Time(moment(5)));
        assert_eq!(settled(&asked, &[backup(1, 3)], &inventory, Some(verdict)).unwrap().end, expected);
    }
}

#[test]
fn a_timeline_that_has_just_begun_is_waited_for_and_no_hole() {
    let inventory = inventory(&[(1, 2..=5)], &[(2, FORK)]);
    let backups = [backup(1, 3)];
    let error = settled(&request(Target::End), &backups, &inventory, None).unwrap_err();
    assert!(error.to_string().contains("timeline 2 begins inside \"000000020000000000000006\""), "{error}");
    let hint = error.hint_text().unwrap();
    assert!(hint.contains("pg_switch_wal()") && hint.contains("--target-timeline=1"), "{hint}");
    let window = &crate::list::windows(&backups, &inventory)[1];
    assert_eq!((&window.hole, window.awaited.as_deref()), (&None, Some("000000020000000000000006")));
    let role = Role::Standby { primary_conninfo: None, slot: None };
    let standby = Request { role, ..request(Target::End) };
    assert_eq!(settled(&standby, &backups, &inventory, None).unwrap().warnings.len(), 1);
}

#[test]
fn a_damaged_history_fails_only_who_needs_it() {
    let inventory = inventory(&[(1, 2..=6), (2, 6..=7), (3, 7..=9)], &[(3, "1\t0/6000028\tx\n2\t0/7000028\ty\n")]);
    let inventory = inventory.with_damaged_history(Timeline(2), "\"00000002.history\" is damaged".to_owned());
    assert_eq!(chosen_id(&request(Target::End), &[backup(3, 8)], &inventory).unwrap(), "08");
    let error = chosen_id(&request(Target::End), &[backup(1, 3)], &inventory).unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("00000002.history")), (Kind::Damaged, true));
}
