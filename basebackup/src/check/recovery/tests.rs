use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::BadPage;

use super::*;
use crate::catalog::Unfinished;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A backup on timeline 1 whose end is in this segment of 16 MiB, finished so many hours after 1970.
fn backup(number: u64, hours: i64) -> Backup {
    let object = serde_json::json!({"size": 1, "sha256": "a".repeat(64)});
    let time = at(hours * 3600).to_string();
    serde_json::from_value(serde_json::json!({
        "walkeep": 1, "id": format!("20261122T100000Z-00{number:02}"), "type": "full", "parent": null, "label": "",
        "system_identifier": "7", "pg_version": 150_018, "segment_size": 1 << 24, "timeline": 1,
        "start_lsn": Lsn(number << 24 | 0x28).to_string(), "stop_lsn": Lsn(number << 24 | 0x100).to_string(),
        "start_wal": "", "stop_wal": "", "start_time": time, "stop_time": time, "next_xid_at_start": 700,
        "next_xid_at_stop": 701, "from_standby": false, "host": "a", "data_directory": "/d", "data_directory_mode": "0700",
        "tablespaces": [], "owner": {"uid": 1, "gid": 1, "user": null, "group": null}, "data_checksums": true,
        "bad_pages": [], "files": 1, "plain_size": 1, "stored_size": 1, "packs": [], "index": object, "manifest": object,
        "version": ""
    }))
    .unwrap()
}

fn inventory(segments: &[u64]) -> Inventory {
    let listed = segments.iter().map(|number| walkeep_common::store::Listed {
        key: format!("main/7/wal/x/0000000100000000{number:08X}.zst").into(),
        size: 1,
        modified: at(0),
    });
    let size = walkeep_common::wal::segment::SegmentSize::try_from(1 << 24).unwrap();
    Inventory::new(size, &listed.collect::<Vec<_>>(), Vec::new())
}

fn outcomes(findings: &[Finding]) -> Vec<(&'static str, Outcome)> {
    findings.iter().map(|finding| (finding.check, finding.outcome)).collect()
}

#[test]
fn a_backup_must_be_there_be_young_and_be_whole() {
    const HOURS: u64 = 3600;
    let ages = Ages { backup: Duration::from_secs(25 * HOURS), drill: Duration::from_secs(HOURS) };
    let judged = |catalog: &Catalog| {
        let mut found = Findings::default();
        backups(catalog, ages, at(100 * 3600), &mut found);
        outcomes(&found.findings)
    };
    let of = |hours| Catalog { backups: vec![backup(1, 1), backup(2, hours)], ..Catalog::default() };
    assert_eq!(judged(&Catalog::default()), [("backup_age", Outcome::Failed)]);
    assert_eq!(judged(&of(75)), [("backup_age", Outcome::Passed)]);
    assert_eq!(judged(&of(74)), [("backup_age", Outcome::Failed)]);

    let mut spoilt = of(99);
    let page = BadPage { file: "base/1/2".to_owned(), block: 3, relation: None };
    spoilt.backups.last_mut().unwrap().bad_pages.push(page);
    let id = spoilt.backups[0].id.clone();
    spoilt.unusable.push((id.clone(), "it is cut short".to_owned()));
    spoilt.unfinished.push(Unfinished { id, begin: None });
    let expected = [
        ("backup_age", Outcome::Passed),
        ("bad_pages", Outcome::Failed),
        ("unusable_backup", Outcome::Failed),
        ("dead_backup", Outcome::Note),
    ];
    assert_eq!(judged(&spoilt), expected);
}

#[test]
fn a_drill_must_have_been_passed_lately() {
    let limit = Duration::from_secs(8 * 86_400);
    let judged = |last: Option<(i64, bool)>| {
        let last = last.map(|(second, passed)| DrillSummary {
            id: "20261122T100000Z-0001".parse().unwrap(),
            verdict: if passed { DrillVerdict::Passed } else { DrillVerdict::Failed },
            problem: None,
            finished: at(second),
            host: "a".to_owned(),
            backup: None,
            target: "latest".to_owned(),
            rto_seconds: None,
            rpo_seconds: None,
        });
        let mut found = Findings::default();
        drill(last.as_ref(), limit, at(10 * 86_400), &mut found);
        found.outcome()
    };
    assert_eq!(judged(None), Outcome::Warning);
    assert_eq!(judged(Some((2 * 86_400, true))), Outcome::Passed);
    assert_eq!(judged(Some((2 * 86_400 - 1, true))), Outcome::Warning);
    assert_eq!(judged(Some((9 * 86_400, false))), Outcome::Failed);
}

#[test]
fn holes_are_told_by_what_they_cost() {
    let two = [backup(2, 1), backup(6, 2)];
    for (segments, expected) in [
        (&[2, 3, 4, 5, 6, 7][..], &[("wal", Outcome::Passed)][..]),
        (&[2, 3, 5, 6, 7], &[("wal", Outcome::Passed), ("old_hole", Outcome::Warning)]),
        (&[2, 3, 4, 5, 6, 8], &[("wal", Outcome::Failed)]),
        (&[2, 3, 4, 5], &[("wal", Outcome::Failed)]),
        (&[2, 3, 4, 5, 7], &[("wal", Outcome::Failed)]),
    ] {
        assert_eq!(outcomes(&wal(&two, &inventory(segments), Timeline(1))), expected, "{segments:?}");
    }
    assert_eq!(outcomes(&wal(&two, &inventory(&[2, 3]), Timeline(2))), [("history", Outcome::Failed)]);
    assert_eq!(wal(&[], &inventory(&[2, 3]), Timeline(1)), []);
}
