//! Plans for clusters drawn at random: timelines, backups, pins, damage, policies, and what must hold for each.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use jiff::{SignedDuration, Timestamp};
use walkeep_common::config::Retention;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::{Backup, BadPage};
use walkeep_common::repository::expire::Expired;
use walkeep_common::repository::layout::{BackupId, Layout, pack_name};
use walkeep_common::store::Listed;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline};
use walkeep_common::wal_archive::inventory::Inventory;

use super::gather::{Incomplete, Present, problem_of};
use super::plan::{Plan, Wish, plan};
use super::policy::{Candidate, GRACE, Keeps, window_start};
use crate::pins::Pin;

const CASES: u64 = 1000;
const SEGMENT: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::try_from(SEGMENT).unwrap()
}

fn at(hours: i64) -> Timestamp {
    "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_hours(hours)
}

/// A branch while it is being made: its history as text, and where its WAL begins and ends.
#[derive(Clone)]
struct Line {
    ancestors: Vec<(u32, u64)>,
    end: u64,
}

/// What a cluster did, hour by hour.
struct World {
    layout: Layout,
    lines: BTreeMap<u32, Line>,
    wal: Vec<Listed>,
    backups: Vec<Backup>,
    now: Timestamp,
}

impl World {
    fn draw(dice: &mut Rng) -> Self {
        let layout = Layout::new("main", 7);
        let first = Line { ancestors: Vec::new(), end: SEGMENT };
        let mut world =
            Self { layout, lines: BTreeMap::from([(1, first)]), wal: Vec::new(), backups: Vec::new(), now: at(0) };
        let mut hours = 0;
        for _ in 0..dice.usize(5..40) {
            hours += dice.i64(1..30);
            let timelines: Vec<u32> = world.lines.keys().copied().collect();
            // Mostly the newest branch, as in life; now and then one that was left.
            let newest = timelines.len() - 1;
            let timeline = timelines[if dice.u8(..) < 200 { newest } else { dice.usize(..=newest) }];
            match dice.u8(..10) {
                0 if timelines.len() < 5 => world.fork(timeline, dice),
                1..=3 => world.back_up(timeline, hours, dice),
                _ => world.write(timeline, dice.u64(1..6), hours),
            }
        }
        world.now = at(hours + dice.i64(0..100));
        world
    }

    fn history(&self, timeline: u32) -> TimelineHistory {
        let line = &self.lines[&timeline];
        let lines = line.ancestors.iter().map(|(ancestor, left)| format!("{ancestor}\t{}\tx", Lsn(*left)));
        let text = lines.collect::<Vec<_>>().join("\n");
        if text.is_empty() {
            TimelineHistory::without_ancestors(Timeline(timeline))
        } else {
            TimelineHistory::parse(Timeline(timeline), &text).unwrap()
        }
    }

    fn archive(&mut self, timeline: u32, number: u64, hours: i64) {
        let name = WalFileName::Segment(SegmentName::new(Timeline(timeline), number, size()));
        let key = self.layout.wal(name);
        if !self.wal.iter().any(|object| object.key == key) {
            self.wal.push(Listed { key, size: 1, modified: at(hours) });
        }
    }

    fn write(&mut self, timeline: u32, segments: u64, hours: i64) {
        let begun = self.lines[&timeline].end / SEGMENT;
        for number in begun..begun + segments {
            self.archive(timeline, number, hours);
        }
        self.lines.get_mut(&timeline).unwrap().end = (begun + segments) * SEGMENT;
    }

    fn fork(&mut self, parent: u32, dice: &mut Rng) {
        let line = self.lines[&parent].clone();
        let from = line.ancestors.last().map_or(SEGMENT, |(_, left)| *left);
        let position = if dice.bool() { line.end } else { dice.u64(from..=line.end) };
        let mut ancestors = line.ancestors;
        ancestors.push((parent, position + 40));
        let timeline = *self.lines.keys().last().unwrap() + 1;
        self.lines.insert(timeline, Line { ancestors, end: position + 40 });
    }

    fn back_up(&mut self, timeline: u32, hours: i64, dice: &mut Rng) {
        let start = self.lines[&timeline].end + 40;
        let length = dice.u64(0..3) * SEGMENT + 100;
        let stop = start + length;
        self.write(timeline, stop / SEGMENT + 1 - self.lines[&timeline].end / SEGMENT, hours);
        let stop_time = at(hours);
        let backup = Backup {
            walkeep: 1,
            id: BackupId::new(stop_time, dice.u16(..)),
            timeline: Timeline(timeline),
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            start_time: stop_time,
            stop_time,
            bad_pages: if dice.u8(..10) == 0 {
                vec![BadPage { file: "base/1/2".into(), block: 0, relation: None }]
            } else {
                vec![]
            },
            ..example()
        };
        self.backups.push(backup);
    }

    /// What listings show, with this much lost.
    fn present(&self, lost: &BTreeSet<usize>, pins: &BTreeMap<BackupId, Vec<Pin>>) -> Present {
        let wal: Vec<Listed> =
            self.wal.iter().enumerate().filter(|(n, _)| !lost.contains(n)).map(|(_, object)| object.clone()).collect();
        let histories = self.lines.keys().filter(|timeline| **timeline > 1).map(|timeline| self.history(*timeline));
        let inventory = Inventory::new(size(), &wal, histories.collect());
        let folder = |backup: &Backup| -> Vec<Listed> {
            let named = backup.objects().into_iter();
            named
                .map(|(name, size)| Listed {
                    key: self.layout.backup_object(&backup.id, &name),
                    size: size.unwrap_or(1),
                    modified: backup.stop_time,
                })
                .collect()
        };
        let folders: BTreeMap<BackupId, Vec<Listed>> =
            self.backups.iter().map(|backup| (backup.id.clone(), folder(backup))).collect();
        let candidates = self.backups.iter().map(|backup| Candidate {
            problem: problem_of(backup, &self.layout, &folders[&backup.id], Some(&inventory)),
            pins: pins.get(&backup.id).cloned().unwrap_or_default(),
            backup: backup.clone(),
        });
        Present {
            system_identifier: 7,
            ids: self.backups.iter().map(|backup| backup.id.clone()).collect(),
            candidates: candidates.collect(),
            incomplete: Vec::new(),
            unusable: Vec::new(),
            folders,
            wal,
            inventory: Some(inventory),
            expired: Expired::default(),
            stale_files: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// Whether recovery from this backup reaches the end of segment `number` along timeline `timeline`.
    fn reaches(&self, backup: &Backup, timeline: u32, number: u64, wal: &BTreeSet<String>) -> bool {
        let history = self.history(timeline);
        let end = Lsn((number + 1) * SEGMENT);
        history.passes_through(backup.end_timeline(), backup.stop_lsn)
            && backup.stop_lsn <= end
            && history.segments(backup.start_lsn, end, size()).all(|segment| wal.contains(&segment.to_string()))
    }
}

fn example() -> Backup {
    let digest = "0".repeat(64);
    serde_json::from_value(serde_json::json!({
        "walkeep": 1, "id": "20260101T000000Z-0000", "type": "full", "parent": null, "label": "x",
        "system_identifier": "7", "pg_version": 150_000, "segment_size": SEGMENT, "timeline": 1,
        "start_lsn": "0/100028", "stop_lsn": "0/100100", "start_wal": "", "stop_wal": "",
        "start_time": "2026-01-01T00:00:00Z", "stop_time": "2026-01-01T00:00:00Z", "next_xid_at_start": 1,
        "next_xid_at_stop": 1, "from_standby": false, "host": "db", "data_directory": "/d",
        "data_directory_mode": "0700", "tablespaces": [], "owner": {"uid": 1, "gid": 1, "user": null, "group": null},
        "data_checksums": true, "bad_pages": [], "files": 1, "plain_size": 1, "stored_size": 1,
        "packs": [{"name": pack_name(1), "size": 1, "sha256": digest}],
        "index": {"size": 1, "sha256": digest}, "manifest": {"size": 1, "sha256": digest}, "version": "1"
    }))
    .unwrap()
}

fn names(wal: &[Listed]) -> BTreeSet<String> {
    wal.iter().map(|object| object.key.filename().unwrap().trim_end_matches(".zst").to_owned()).collect()
}

fn draw_policy(dice: &mut Rng) -> Retention {
    let mut some = |most: u32| (dice.u8(..3) == 0).then(|| dice.u32(1..=most));
    Retention {
        keep_full: some(5),
        keep_days: some(20),
        keep_daily: some(5),
        keep_weekly: some(3),
        keep_monthly: some(2),
        keep_yearly: some(2),
    }
}

fn draw_pins(world: &World, dice: &mut Rng) -> BTreeMap<BackupId, Vec<Pin>> {
    let pinned = world.backups.iter().filter(|_| dice.u8(..6) == 0);
    pinned.map(|backup| (backup.id.clone(), vec![Pin { id: backup.id.clone(), until: None, note: None }])).collect()
}

/// Draws a case, and says which it was when something does not hold of it.
fn each_case(mut check: impl FnMut(&World, &Retention, &mut Rng)) {
    for seed in 0..CASES {
        let mut dice = Rng::with_seed(seed);
        let world = World::draw(&mut dice);
        let policy = draw_policy(&mut dice);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&world, &policy, &mut dice)));
        assert!(outcome.is_ok(), "case {seed}, policy {policy:?}");
    }
}

/// What the kept backups reached with the WAL in `before` they reach with that in `after`: every later moment, or the end
/// of the backup itself.
fn expect_reach(world: &World, plan: &Plan, before: &BTreeSet<String>, after: &BTreeSet<String>) {
    for (timeline, line) in &world.lines {
        for (number, kept) in (1..=line.end / SEGMENT).flat_map(|n| plan.kept.iter().map(move |kept| (n, kept))) {
            let is_own = number * SEGMENT < kept.backup.stop_lsn.0;
            let is_promised = kept.keeps == Keeps::AllWalSince || is_own;
            if is_promised && world.reaches(&kept.backup, *timeline, number, before) {
                let reaches = world.reaches(&kept.backup, *timeline, number, after);
                assert!(reaches, "{} no longer reaches segment {number} of {timeline}", kept.backup.id);
            }
        }
    }
}

#[test]
fn what_is_kept_stays_restorable_and_reaches_what_it_reached() {
    each_case(|world, policy, dice| {
        let lost = (0..world.wal.len()).filter(|_| dice.u8(..40) == 0).collect();
        let pins = draw_pins(world, dice);
        let present = world.present(&lost, &pins);
        let plan = plan(&present, &Wish::Policy(*policy), world.now);
        let before = names(&present.wal);
        let after: BTreeSet<String> = before.difference(&names(&plan.wal.objects)).cloned().collect();

        let removed: BTreeSet<&BackupId> = plan.removed.iter().map(|removed| &removed.backup.id).collect();
        assert_eq!(plan.kept.len() + removed.len(), world.backups.len());
        for id in pins.keys() {
            assert!(!removed.contains(id), "a pinned backup goes");
        }
        let whole = || present.candidates.iter().filter(|candidate| candidate.is_whole());
        for newest in [whole().next_back(), whole().rfind(|candidate| candidate.is_sound())].into_iter().flatten() {
            assert!(!removed.contains(&newest.backup.id), "the newest goes");
        }
        expect_reach(world, &plan, &before, &after);
        for kept in plan.kept.iter().filter(|kept| kept.problem.is_none()) {
            let history = world.history(kept.backup.timeline.0);
            let mut needed = crate::verify::needed(&kept.backup, &history);
            assert!(needed.all(|segment| after.contains(&segment.to_string())), "{}", kept.backup.id);
        }
    });
}

#[test]
fn every_moment_of_the_promised_window_stays_reachable() {
    each_case(|world, policy, dice| {
        let policy = Retention { keep_days: Some(dice.u32(1..20)), ..*policy };
        let lost = (0..world.wal.len()).filter(|_| dice.u8(..60) == 0).collect();
        let present = world.present(&lost, &BTreeMap::new());
        let plan = plan(&present, &Wish::Policy(policy), world.now);
        let before = names(&present.wal);
        let after: BTreeSet<String> = before.difference(&names(&plan.wal.objects)).cloned().collect();
        let start = window_start(world.now, policy.keep_days.unwrap());
        let whole: Vec<&Backup> = present.candidates.iter().filter(|c| c.is_whole()).map(|c| &c.backup).collect();
        for object in present.wal.iter().filter(|object| object.modified > start) {
            let segment: SegmentName = object.key.filename().unwrap().trim_end_matches(".zst").parse().unwrap();
            let (timeline, number) = (segment.timeline.0, segment.number(size()).unwrap());
            if whole.iter().any(|backup| world.reaches(backup, timeline, number, &before)) {
                let reached = plan.kept.iter().any(|kept| world.reaches(&kept.backup, timeline, number, &after));
                assert!(reached, "the end of {segment} is no longer reached");
            }
        }
    });
}

#[test]
fn a_branch_in_use_keeps_a_backup_that_leads_to_it() {
    each_case(|world, policy, dice| {
        let lost = (0..world.wal.len()).filter(|_| dice.u8(..60) == 0).collect();
        let present = world.present(&lost, &BTreeMap::new());
        let plan = plan(&present, &Wish::Policy(*policy), world.now);
        let before = names(&present.wal);
        let after: BTreeSet<String> = before.difference(&names(&plan.wal.objects)).cloned().collect();
        let whole: Vec<&Backup> = present.candidates.iter().filter(|c| c.is_whole()).map(|c| &c.backup).collect();
        for branch in present.branches() {
            if !branch.is_in_use(world.now) {
                continue;
            }
            let timeline = branch.history.timeline().0;
            for number in 1..=world.lines[&timeline].end / SEGMENT {
                let reached = |wal| move |backup: &&Backup| world.reaches(backup, timeline, number, wal);
                // With the newest backup before it, everything from there on.
                let newest =
                    whole.iter().rfind(|backup| branch.history.passes_through(backup.timeline, backup.stop_lsn));
                if newest.copied().filter(reached(&before)).is_some() {
                    let is_reached = plan.kept.iter().map(|kept| &kept.backup).any(|backup| reached(&after)(&backup));
                    assert!(is_reached, "segment {number} of timeline {timeline} is no longer reached");
                }
            }
        }
    });
}

#[test]
fn a_listing_of_wal_that_lacks_something_removes_nothing_that_is_needed() {
    each_case(|world, policy, dice| {
        let pins = draw_pins(world, dice);
        let present = world.present(&BTreeSet::new(), &pins);
        let full = plan(&present, &Wish::Policy(*policy), world.now);
        let mut newest: BTreeMap<u32, usize> = BTreeMap::new();
        for (number, object) in world.wal.iter().enumerate() {
            let segment: SegmentName = object.key.filename().unwrap().trim_end_matches(".zst").parse().unwrap();
            newest.insert(segment.timeline.0, number);
        }
        let lacking = (0..world.wal.len()).filter(|n| dice.u8(..8) == 0 && !newest.values().any(|last| last == n));
        let short = plan(&world.present(&lacking.collect(), &pins), &Wish::Policy(*policy), world.now);
        let ids = |plan: &Plan| plan.removed.iter().map(|removed| removed.backup.id.clone()).collect::<BTreeSet<_>>();
        assert!(ids(&short).is_subset(&ids(&full)), "backups go that should not");
        let before = names(&present.wal);
        let after = before.difference(&names(&short.wal.objects)).cloned().collect();
        expect_reach(world, &full, &before, &after);
    });
}

#[test]
fn what_a_running_backup_may_need_stays_and_a_dead_one_goes_after_the_grace_period() {
    each_case(|world, policy, dice| {
        let mut present = world.present(&BTreeSet::new(), &BTreeMap::new());
        let Some(backup) = world.backups.get(dice.usize(..world.backups.len().max(1))) else { return };
        let is_dead = dice.bool();
        let age = if is_dead { GRACE + SignedDuration::from_hours(1) } else { GRACE - SignedDuration::from_hours(1) };
        let id = BackupId::new(world.now, 0xffff);
        let begin = walkeep_common::repository::backup::Begin {
            walkeep: 1,
            id: id.clone(),
            system_identifier: 7,
            started: world.now - age,
            start_lsn_at_least: backup.start_lsn,
            timeline: backup.timeline,
            host: "db".into(),
            data_directory: "/d".into(),
            version: "1".into(),
        };
        let key = world.layout.backup_object(&id, "begin.json");
        let objects = vec![Listed { key, size: 1, modified: world.now - age }];
        present.incomplete = vec![Incomplete { id: id.clone(), begin: Some(begin), is_abandoned: false, objects }];
        let plan = plan(&present, &Wish::Policy(*policy), world.now);
        assert_eq!(plan.debris.iter().any(|debris| debris.id == id && debris.must_be_claimed), is_dead);
        assert_eq!(plan.under_way.len(), usize::from(!is_dead));
        let without =
            super::plan::plan(&world.present(&BTreeSet::new(), &BTreeMap::new()), &Wish::Policy(*policy), world.now);
        assert!(
            names(&plan.wal.objects).is_subset(&names(&without.wal.objects)),
            "only a complete backup makes WAL needless"
        );
        if !is_dead {
            let gone = names(&plan.wal.objects);
            let first = backup.start_lsn.0 / SEGMENT;
            for number in first..=world.lines[&backup.timeline.0].end / SEGMENT {
                assert!(!gone.contains(&SegmentName::new(backup.timeline, number, size()).to_string()));
            }
        }
    });
}

#[test]
fn a_forgotten_cluster_keeps_what_is_pinned_and_nothing_else() {
    each_case(|world, _, dice| {
        let pins = draw_pins(world, dice);
        let present = world.present(&BTreeSet::new(), &pins);
        let now = world.now + GRACE * 2;
        let plan = plan(&present, &Wish::Forget, now);
        assert!(plan.doubts.is_empty(), "{:?}", plan.doubts);
        assert_eq!(plan.kept.len(), pins.len());
        if pins.is_empty() {
            assert_eq!(plan.wal.objects.len(), present.wal.len());
        }
        let live = super::plan::plan(&present, &Wish::Forget, present.newest().unwrap_or(now));
        assert_eq!(live.doubts.is_empty(), present.newest().is_none());
    });
}

#[test]
fn removing_more_than_half_is_a_doubt_unless_it_is_a_few() {
    let mut dice = Rng::with_seed(1);
    for (count, keep, is_doubted) in [(2, 1, false), (3, 1, false), (4, 1, true), (6, 3, false), (7, 3, true)] {
        let first = Line { ancestors: Vec::new(), end: SEGMENT };
        let mut world = World {
            layout: Layout::new("main", 7),
            lines: BTreeMap::from([(1, first)]),
            wal: Vec::new(),
            backups: Vec::new(),
            now: at(1000),
        };
        for number in 0..count {
            world.back_up(1, number, &mut dice);
            world.backups.last_mut().unwrap().bad_pages.clear();
        }
        let policy = Retention { keep_full: Some(keep), ..Retention::default() };
        let plan = plan(&world.present(&BTreeSet::new(), &BTreeMap::new()), &Wish::Policy(policy), world.now);
        assert_eq!(plan.kept.len(), keep as usize);
        assert_eq!(!plan.doubts.is_empty(), is_doubted, "{count} {keep}: {:?}", plan.doubts);
    }
}
