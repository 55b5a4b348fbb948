//! Timelines: failovers, servers that go on where they should not, and recovery along one branch of many.

use std::io::Write as _;
use std::sync::Arc;

use serde_json::Value;
use walkeep_common::lsn::Lsn;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_of};
use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, StopMode, program, setting};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, tool};
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::samples::unpacked;
use crate::site::{Place, Shared, archiving, basebackup, copy_of, take, taking, verify, wait_until_open};

const ROWS: &str = "select string_agg(what, ',' order by n) from t";

fn segment_size() -> SegmentSize {
    SegmentSize::try_from(1 << 20).unwrap()
}

/// The segment of a timeline that holds a position, or one so many before it.
fn segment(timeline: u32, position: Lsn, before: u64) -> String {
    let number = segment_of(position, segment_size()) - before;
    SegmentName::new(Timeline(timeline), number, segment_size()).to_string()
}

/// A primary whose standby was promoted while it went on itself: from the fork on there are two truths.
struct Fork {
    repository: Repository,
    /// Taken before the fork.
    common: String,
    /// Taken on timeline 2.
    new: String,
    /// Taken last, on timeline 1 behind the fork.
    old: String,
    /// Where timeline 2 left timeline 1.
    point: Lsn,
    before: Moment,
    on_new: Moment,
    on_old: Moment,
}

/// A moment and its position.
struct Moment {
    time: String,
    lsn: String,
}

impl Moment {
    /// What was inserted is before it.
    fn after_inserting(server: &Cluster, number: u32, what: &str) -> Self {
        server.sql(&format!("insert into t values ({number}, '{what}')"));
        Self {
            time: server.sql("select clock_timestamp()::text"),
            lsn: server.sql("select pg_current_wal_insert_lsn()"),
        }
    }
}

/// Ends so many segments and waits until the last is archived.
fn archive_segments(server: &Cluster, count: usize) {
    let last = (0..count).fold(String::new(), |_, _| server.finish_segment());
    server.wait_until_archived(&last);
}

impl Fork {
    fn shared() -> Arc<Self> {
        static SHARED: Shared<Fork> = Shared::new();
        SHARED.get(Self::make)
    }

    fn make() -> Self {
        let repository = Repository::directory();
        let primary = archiving(&repository).configure("autovacuum = off").start();
        primary.sql("create table t (n int, what text)");
        let common = take(&repository, &primary);
        let mut standby = primary.standby(archiving(&repository));
        standby.start();
        let before = Moment::after_inserting(&primary, 1, "common");
        archive_segments(&primary, 3);
        primary.sql("insert into t values (2, 'just before')");
        let written = primary.sql("select pg_current_wal_flush_lsn()");
        standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
        standby.promote();
        let on_new = Moment::after_inserting(&standby, 3, "new");
        archive_segments(&standby, 2);
        let new = take(&repository, &standby);
        standby.sql("insert into t values (4, 'newer')");
        archive_segments(&standby, 1);
        let on_old = Moment::after_inserting(&primary, 3, "old");
        archive_segments(&primary, 7);
        let old = take(&repository, &primary);
        primary.sql("insert into t values (4, 'older')");
        archive_segments(&primary, 1);
        let history = std::fs::read_to_string(standby.data().join("pg_wal/00000002.history")).unwrap();
        let point = history.split('\t').nth(1).unwrap().parse().unwrap();
        Self { repository, common, new, old, point, before, on_new, on_old }
    }
}

/// What a restore with these words chose, and the rows that recovery then comes to.
#[track_caller]
fn expect_rows(repository: &Repository, words: &[&str], backup: &str, rows: &str) -> Finished {
    let place = Place::new();
    let restored = place.restore(repository, words);
    assert!(restored.stdout.contains(backup), "expected backup {backup}\n{restored}");
    verify(&place.data());
    let mut server = place.server(repository);
    server.start();
    if ["--target-lsn", "--target-time"].iter().any(|target| words.contains(target)) {
        server.wait_for("select pg_is_wal_replay_paused()", "t");
    } else {
        wait_until_open(&server);
    }
    assert_eq!(server.sql(ROWS), rows, "{restored}");
    restored
}

#[test]
fn each_target_on_each_branch_is_reached_from_a_backup_on_the_way_to_it() {
    let fork = Fork::shared();
    let Fork { repository, common, new, old, before, on_new, on_old, .. } = &*fork;
    let newest = expect_rows(repository, &[], new, "common,just before,new,newer");
    newest.expect_stderr(&["WARNING", old, "left timeline 1"]);
    expect_rows(repository, &[common], common, "common,just before,new,newer");
    expect_rows(repository, &["--target-timeline", "1"], old, "common,just before,old,older");
    expect_rows(repository, &["--target-timeline=current", common], common, "common,just before,old,older");
    expect_rows(repository, &["--target-lsn", &before.lsn], common, "common");
    expect_rows(repository, &["--target-time", &before.time], common, "common");
    let left = expect_rows(repository, &["--target-lsn", &on_new.lsn], common, "common,just before,new");
    left.expect_stderr(&["WARNING", "--target-timeline=1"]);
    expect_rows(repository, &["--target-time", &on_new.time], common, "common,just before,new");
    let words = ["--target-time", &on_old.time, "--target-timeline", "1"];
    expect_rows(repository, &words, common, "common,just before,old");
}

#[test]
fn a_target_that_is_not_on_the_branch_is_refused() {
    let fork = Fork::shared();
    let Fork { repository, old, on_old, point, .. } = &*fork;
    let place = Place::new();
    let refuse = |words: &[&str], texts: &[&str]| {
        let refused = place.restoring(repository, words).finish();
        refused.expect_code(1).expect_stderr(&["basebackup: ERROR: ", "HINT: "]).expect_stderr(texts);
        assert!(place.is_untouched(), "{refused}");
    };
    refuse(&[old], &["left timeline 1", &point.to_string()]);
    refuse(&[old, "--target-timeline", "2"], &["left timeline 1"]);
    refuse(&["--target-timeline", "3"], &["timeline 3"]);
    // Timeline 1 has come further than timeline 2.
    let beyond = Lsn(point.0 + (6 << 20)).to_string();
    refuse(&["--target-lsn", &beyond], &[&beyond, "is not archived"]);
    refuse(&["--target-time", &on_old.time], &["last archived"]);
}

#[test]
fn both_branches_are_listed() {
    let fork = Fork::shared();
    let listed = basebackup(&fork.repository, &["list", "--format", "json"]).finish();
    let list: Value = serde_json::from_str(&listed.expect_code(0).stdout).unwrap();
    let cluster = &list["clusters"][0];
    let ids: Vec<_> = cluster["backups"].as_array().unwrap().iter().map(|backup| backup["id"].clone()).collect();
    assert_eq!(ids.len(), 3, "{listed}");
    let windows = cluster["windows"].as_array().unwrap();
    let of = |timeline: u32| windows.iter().filter(move |window| window["timeline"] == timeline).collect::<Vec<_>>();
    assert_eq!((of(1).len(), of(2).len()), (1, 1), "{listed}");
    for window in windows {
        assert_eq!(
            (&window["first_backup"], &window["hole"]),
            (&fork.common.as_str().into(), &Value::Null),
            "{listed}"
        );
    }
    assert_eq!(cluster["timelines"][1]["switch_point"], fork.point.to_string().as_str());
    assert_eq!(cluster["timelines"][1]["parent"], 1);
}

#[test]
fn a_segment_that_is_missing_before_a_fork_stops_recovery_and_is_a_hole() {
    let fork = Fork::shared();
    let repository = copy_of(&fork.repository);
    let name = segment(1, fork.point, 1);
    let key = repository.find(&format!("/{name}.zst"));
    let stored = repository.read(&key);

    // Gone after the plan was made: PostgreSQL is stopped, and goes on when it is back.
    let place = Place::new();
    place.restore(&repository, &[&fork.common]);
    repository.delete(&key);
    let mut server = place.server(&repository);
    server.launch();
    assert!(!server.wait_for_end(SOON).success());
    assert!(server.log().contains("archive-get: ERROR:") && server.log().contains(&name), "{}", server.log());
    assert_eq!(server.control("Database cluster state"), "in archive recovery");
    assert!(place.data().join("recovery.signal").exists());

    let other = Place::new();
    let refused = other.restoring(&repository, &[&fork.common]).finish();
    refused.expect_code(1).expect_stderr(&[&name, "is missing", "--until-hole"]);
    assert!(other.is_untouched());
    let listed = basebackup(&repository, &["list"]).finish();
    assert!(listed.expect_code(0).stdout.contains(&format!("a hole: {name} is missing")), "{listed}");

    let restored = other.restore(&repository, &[&fork.common, "--until-hole", "--target-action=pause"]);
    restored.expect_stderr(&["WARNING: --target-action=pause has no effect without a target"]);
    assert!(restored.stdout.contains(&name), "{restored}");
    let mut short = other.server(&repository);
    short.start();
    wait_until_open(&short);
    assert_eq!(short.sql(ROWS), "common");
    assert_eq!(short.sql("show archive_mode"), "off");
    drop(short);

    repository.write(&key, &stored);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql(ROWS), "common,just before,new,newer");
}

#[test]
fn the_hole_of_a_segment_and_of_its_copy_is_noticed_inside_the_fork() {
    let fork = Fork::shared();
    let repository = copy_of(&fork.repository);
    let [own, copy] = [1, 2].map(|timeline| segment(timeline, fork.point, 0));
    repository.delete(&repository.find(&format!("/{own}.zst")));
    // The new timeline has a copy of all that it needs of it.
    expect_rows(&repository, &[&fork.common], &fork.common, "common,just before,new,newer");
    repository.delete(&repository.find(&format!("/{copy}.zst")));
    let place = Place::new();
    let refused = place.restoring(&repository, &[&fork.common]).finish();
    refused.expect_code(1).expect_stderr(&[&copy, "is missing"]);
}

/// Makes the server recover once more and open on its next timeline.
fn next_timeline(server: &mut Cluster, timeline: u32) {
    server.stop(StopMode::Fast);
    let signal = server.data().join("recovery.signal");
    std::fs::write(&signal, "").unwrap();
    user::give(&signal);
    server.start();
    wait_until_open(server);
    server.sql(&format!("insert into t values ({timeline}, '{timeline}')"));
}

#[test]
fn seventeen_timelines_are_told_apart_in_hexadecimal() {
    let repository = Repository::directory();
    let command = setting("restore_command", &format!("{} %f %p", binaries::archive_get().display()));
    let mut server = archiving(&repository).configure(command).configure("autovacuum = off").start();
    server.sql("create table t (n int, what text); insert into t values (1, '1')");
    let first = take(&repository, &server);
    (2..=17).for_each(|timeline| next_timeline(&mut server, timeline));
    archive_segments(&server, 1);
    repository.find("wal/00000011.history.zst");
    let last = take(&repository, &server);
    server.sql("insert into t values (18, 'end')");
    let segment = server.finish_segment();
    assert!(segment.starts_with("00000011"), "{segment}");
    server.wait_until_archived(&segment);
    server.stop(StopMode::Fast);
    drop(server);

    let rows = |until: u32| (1..=until).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    let all = format!("{},end", rows(17));
    let shown = basebackup(&repository, &["show", &last]).finish();
    assert!(shown.expect_code(0).stdout.contains("Timeline    17"), "{shown}");
    let listed = basebackup(&repository, &["list"]).finish();
    assert!(listed.expect_code(0).stdout.contains("17 timelines"), "{listed}");
    expect_rows(&repository, &[], &last, &all);
    expect_rows(&repository, &["--target-timeline", "0x11", &first], &first, &all);
    expect_rows(&repository, &["--target-timeline", "10"], &first, &rows(10));

    let history = repository.find("wal/00000009.history.zst");
    repository.delete(&history);
    let place = Place::new();
    let refused = place.restoring(&repository, &[&first]).finish();
    refused.expect_code(1).expect_stderr(&["00000009.history", "is missing", "HINT: "]);
    assert!(place.is_untouched());
    // From behind it nobody asks for it.
    expect_rows(&repository, &[], &last, &all);
}

/// A restore point's name, and with it the reason in a history, is in the encoding of the database it was made in.
#[test]
fn a_history_that_is_not_utf_8_is_archived_and_followed() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    server.sql("create table t (n int, what text); insert into t values (1, 'before')");
    let first = take(&repository, &server);
    server.sql("insert into t values (2, 'between')");
    server.sql("create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0");
    let psql =
        Run::new(program("psql")).args(server.connection()).args(["-XAtqd", "dbname=latin client_encoding=UTF8"]);
    psql.args(["-c", "select pg_create_restore_point('f\u{fc}r')"]).finish().expect_code(0);
    server.sql("insert into t values (3, 'behind')");
    archive_segments(&server, 1);

    let place = Place::new();
    place.restore(&repository, &[&first, "--keep-archiving"]);
    let mut settings = std::fs::File::options().append(true).open(place.data().join("postgresql.auto.conf")).unwrap();
    settings.write_all(b"recovery_target_name = 'f\\374r'\nrecovery_target_action = 'promote'\n").unwrap();
    let mut recovered = place.server(&repository);
    recovered.start();
    wait_until_open(&recovered);
    let history = std::fs::read(recovered.data().join("pg_wal/00000002.history")).unwrap();
    assert!(history.windows(3).any(|bytes| bytes == b"f\xfcr"), "{}", history.escape_ascii());
    recovered.sql("insert into t values (4, 'new')");
    archive_segments(&recovered, 1);
    assert!(unpacked(&repository, &repository.find("wal/00000002.history.zst")) == history);
    // Where another cluster's data directory happens to be the working directory.
    let second = taking(&repository, &recovered).current_dir(Cluster::options().create().data()).finish();
    let second = second.expect_code(0).stdout.trim_end().to_owned();
    expect_rows(&repository, &[], &second, "before,between,new");
    expect_rows(&repository, &["--target-timeline", "2", &first], &first, "before,between,new");
}

/// A copy of a data directory that no server runs on, as a server of its own.
fn twin(repository: &Repository, data: &std::path::Path, place: &Place) -> Cluster {
    tool("cp", ["-a", data.to_str().unwrap(), place.data().to_str().unwrap()]);
    std::fs::remove_file(place.data().join("postmaster.pid")).ok();
    place.server(repository)
}

#[test]
fn what_abandoned_branches_archive_is_kept_aside_and_holds_nobody_up() {
    let repository = Repository::directory();
    let mut primary = archiving(&repository).configure("autovacuum = off").start();
    primary.sql("create table t (n int, what text)");
    take(&repository, &primary);
    let mut standby = primary.standby(archiving(&repository));
    standby.start();
    archive_segments(&primary, 2);
    primary.sql("insert into t values (1, 'common')");
    standby.wait_for(ROWS, "common");
    // The last thing the primary does never reaches the standby.
    standby.stop(StopMode::Fast);
    primary.sql("insert into t values (2, 'unseen')");
    primary.kill();
    let (second, third) = (Place::new(), Place::new());
    let mut second_primary = twin(&repository, primary.data(), &second);
    let mut late_standby = twin(&repository, primary.data(), &third);

    standby.start();
    standby.promote();
    standby.sql("insert into t values (3, 'new')");
    archive_segments(&standby, 2);
    let history = standby.data().join("pg_wal/00000002.history");
    let text = std::fs::read_to_string(&history).unwrap();
    let point: Lsn = text.split('\t').nth(1).unwrap().parse().unwrap();
    let left = segment(1, point, 0);
    until("the promoted standby archives the unfinished segment", SOON, || {
        repository.objects().iter().any(|key| key.ends_with(&format!("/{left}.partial.zst"))).then_some(())
    });

    // The old primary returns, and finishes that segment, and another.
    primary.start();
    primary.sql("insert into t values (4, 'old')");
    let finished = primary.finish_segment();
    assert_eq!(finished, left);
    archive_segments(&primary, 1);
    let canonical = repository.read(&repository.find(&format!("/{left}.zst")));
    primary.stop(StopMode::Fast);

    // So does a copy of it, which knows that this timeline is over.
    tool("cp", ["-p", history.to_str().unwrap(), second.data().join("pg_wal").to_str().unwrap()]);
    second_primary.start();
    second_primary.sql("insert into t values (5, 'old too')");
    archive_segments(&second_primary, 4);
    assert_eq!(second_primary.sql("select failed_count from pg_stat_archiver"), "0", "{}", second_primary.log());
    assert!(second_primary.log().contains("archive-push: WARNING"), "{}", second_primary.log());
    let forks: Vec<_> = repository.objects().into_iter().filter(|key| key.contains(".fork.")).collect();
    assert!(forks.iter().any(|key| key.contains(&format!("/{left}.fork."))), "{forks:#?}");
    assert!(repository.read(&repository.find(&format!("/{left}.zst"))) == canonical, "the first one stays");
    let fork = forks.iter().find(|key| key.contains(&left)).unwrap();
    assert!(unpacked(&repository, fork) == std::fs::read(second.data().join("pg_wal").join(&left)).unwrap());
    second_primary.stop(StopMode::Fast);

    // And one that was never told of anything but timelines is promoted inside the same segment: its partial one is
    // another than the first standby's.
    let histories = format!("case %f in *.history) exec {} %f %p;; esac; exit 1", binaries::archive_get().display());
    let timeline = "recovery_target_timeline = 'current'".to_owned();
    late_standby.configure(&[setting("restore_command", &histories), timeline]);
    std::fs::write(third.data().join("standby.signal"), "").unwrap();
    user::give(&third.data().join("standby.signal"));
    late_standby.start();
    late_standby.wait_for(ROWS, "common,unseen");
    late_standby.promote();
    late_standby.sql("insert into t values (6, 'late')");
    archive_segments(&late_standby, 2);
    assert_eq!(late_standby.sql("select failed_count from pg_stat_archiver"), "0", "{}", late_standby.log());
    let partial = |key: &&String| key.contains(&format!("/{left}.partial."));
    let objects = repository.objects();
    let partials: Vec<_> = objects.iter().filter(partial).map(|key| unpacked(&repository, key)).collect();
    assert!(partials.len() == 2 && partials[0] != partials[1], "{objects:#?}");
    late_standby.stop(StopMode::Fast);

    for (timeline, rows) in [("1", "common,unseen,old"), ("2", "common,new"), ("3", "common,unseen,late")] {
        expect_rows(&repository, &["--target-timeline", timeline], "", rows);
    }
}
