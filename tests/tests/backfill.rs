//! After a failover the archive is unbroken across the fork, whatever the lost primary had not archived.

use rustix::process::{Pid, Signal, kill_process};
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, Options, setting};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};
use walkeep_tests::worker::{self, processes, status};

fn archiving(repository: &Repository) -> Options {
    let command = format!("{} %p", binaries::archive_push().display());
    let options = Cluster::options().segment_size(1).environment(repository.environment());
    // The worker of a server that does not archive any more leaves soon.
    options.environment(&[("WALKEEP_LINGER".to_owned(), "1s".to_owned())]).archive_command(&command)
}

/// A primary that archived its first segments and then no more, and a standby that has streamed all of it.
fn primary_and_standby(repository: &Repository) -> (Cluster, Cluster, Vec<String>) {
    let primary = archiving(repository).start();
    primary.sql("create table t (batch int)");
    primary.wait_until_archived(&primary.finish_segment());
    let mut standby = primary.standby(archiving(repository));
    standby.start();
    primary.sql("alter system set archive_command = 'false'");
    primary.reload();
    until("nothing pushes ahead any more", SOON, || worker::of(primary.data()).is_empty().then_some(()));
    let segments: Vec<String> = (1..=6)
        .map(|batch| {
            primary.sql(&format!("insert into t values ({batch})"));
            primary.finish_segment()
        })
        .collect();
    standby.wait_for("select count(*) from t", "6");
    let position = primary.sql("select pg_current_wal_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    (primary, standby, segments)
}

fn archived(repository: &Repository, name: &str) -> bool {
    repository.objects().iter().any(|key| key.ends_with(&format!("/{name}.zst")))
}

#[test]
fn segments_the_lost_primary_never_archived_are_archived_by_its_successor_before_the_new_history() {
    let repository = Repository::directory();
    let (mut primary, standby, segments) = primary_and_standby(&repository);
    assert!(!archived(&repository, &segments[0]), "the primary must not have archived it");
    primary.kill();
    standby.promote();
    until("the new history to be archived", SOON, || archived(&repository, "00000002.history").then_some(()));
    for segment in &segments {
        assert!(archived(&repository, segment), "{segment} is missing although the new timeline is known");
    }
    standby.sql("insert into t values (7)");
    standby.wait_until_archived(&standby.finish_segment());
}

#[test]
fn a_history_is_not_archived_while_its_past_cannot_be() {
    let mut repository = Repository::ceph();
    repository.configure("timeout = 4");
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let (mut primary, standby, segments) = primary_and_standby(&repository);
    // The third segment cannot be stored for a while.
    proxy.add(Rule::all(Fault::s3_error(500, "InternalError", "Try again.")).method("PUT").path(&segments[2]));
    primary.kill();
    standby.promote();
    until("the segments before it to be archived", SOON, || archived(&repository, &segments[1]).then_some(()));
    standby.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    assert!(!archived(&repository, "00000002.history"));
    proxy.clear();
    until("the new history to be archived", SOON, || archived(&repository, "00000002.history").then_some(()));
    for segment in &segments {
        assert!(archived(&repository, segment), "{segment}");
    }
}

#[test]
fn a_history_that_was_deleted_comes_back_with_a_later_segment() {
    let repository = Repository::directory();
    let (mut primary, standby, _) = primary_and_standby(&repository);
    primary.kill();
    standby.promote();
    until("the new history to be archived", SOON, || archived(&repository, "00000002.history").then_some(()));
    repository.delete(&repository.find("00000002.history.zst"));
    standby.sql("insert into t values (7)");
    standby.wait_until_archived(&standby.finish_segment());
    assert!(archived(&repository, "00000002.history"));
}

/// Whatever of ours is under way for a server, in whatever state.
fn kill_pushes(server: &Cluster) -> usize {
    let data = std::fs::canonicalize(server.data()).unwrap();
    let is_push = |process: &i32| status(*process).is_some_and(|(name, _)| name == "archive-push");
    let works_here = |process: &i32| {
        std::fs::read_link(format!("/proc/{process}/cwd")).is_ok_and(|directory| directory == data)
            || worker::of(server.data()).contains(process)
    };
    let ours: Vec<i32> = processes().filter(is_push).filter(works_here).collect();
    ours.iter().filter_map(|process| kill_process(Pid::from_raw(*process)?, Signal::KILL).ok()).count()
}

#[test]
fn a_backfill_that_is_killed_half_way_is_gone_on_with() {
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let (mut primary, standby, segments) = primary_and_standby(&repository);
    // Each segment takes long enough to be met.
    proxy.add(Rule::all(Fault::BytesPerSecond(30_000)).method("PUT"));
    primary.kill();
    standby.promote();
    let mut killed = 0;
    for segment in segments.iter().step_by(2) {
        until("the next segment to be archived", SOON * 2, || archived(&repository, segment).then_some(()));
        killed += kill_pushes(&standby);
        // A killed command ends the archiver process, and a new one comes with the next connection.
        standby.sql("select 1");
    }
    proxy.clear();
    assert!(killed > 0, "nothing was met");
    until("the new history to be archived", SOON * 2, || archived(&repository, "00000002.history").then_some(()));
    for segment in &segments {
        assert!(archived(&repository, segment), "{segment}");
    }
}

#[test]
fn the_last_of_a_cascade_archives_what_both_before_it_have_not() {
    let repository = Repository::directory();
    let (mut primary, mut first, old) = primary_and_standby(&repository);
    let mut second = first.standby(archiving(&repository));
    second.start();
    first.configure(&["archive_command = 'false'"]);
    first.reload();
    primary.kill();
    first.promote();
    let new: Vec<String> = (7..=9)
        .map(|batch| {
            first.sql(&format!("insert into t values ({batch})"));
            first.finish_segment()
        })
        .collect();
    second.wait_for("select count(*) from t", "9");
    let position = first.sql("select pg_current_wal_lsn()");
    second.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    assert!(!archived(&repository, "00000002.history"));
    first.kill();
    second.promote();
    until("the newest history to be archived", SOON, || archived(&repository, "00000003.history").then_some(()));
    assert!(archived(&repository, "00000002.history"));
    // What the second was copied with came with the copy; from there on it has everything.
    for segment in old[old.len() - 1..].iter().chain(&new) {
        assert!(archived(&repository, segment), "{segment} is missing\n{:#?}", repository.objects());
    }
    second.sql("insert into t values (10)");
    second.wait_until_archived(&second.finish_segment());
}

#[test]
fn standbys_that_always_archive_and_an_old_primary_that_returns_hold_nobody_up() {
    let repository = Repository::directory();
    let always = || archiving(&repository).configure("archive_mode = always");
    let mut primary = always().start();
    primary.sql("create table t (batch int)");
    let mut standbys = [primary.standby(always()), primary.standby(always())];
    for standby in &mut standbys {
        standby.start();
    }
    let fill = |server: &Cluster, batch: u32| {
        server.sql(&format!("insert into t values ({batch})"));
        server.finish_segment()
    };
    let old: Vec<String> = (1..=5).map(|batch| fill(&primary, batch)).collect();
    for server in standbys.iter().chain([&primary]) {
        for name in &old {
            server.wait_until_archived(name);
        }
    }
    primary.sql("insert into t values (6)");
    for standby in &standbys {
        standby.wait_for("select count(*) from t", "6");
    }
    primary.kill();

    let [promoted, other] = &mut standbys;
    promoted.promote();
    let follow = |server: &Cluster| {
        let [_, directory, _, user] = promoted.connection();
        let conninfo = format!("host={directory} port=5432 user={user}");
        server.configure(&[setting("primary_conninfo", &conninfo), "recovery_target_timeline = latest".to_owned()]);
    };
    follow(other);
    other.reload();
    follow(&primary);
    std::fs::write(primary.data().join("standby.signal"), "").unwrap();
    user::give(&primary.data().join("standby.signal"));
    primary.start();
    let new: Vec<String> = (7..=9).map(|batch| fill(promoted, batch)).collect();
    for server in [&*other, &primary] {
        server.wait_for("select count(*) from t", "9");
    }
    for server in [&*promoted, &*other, &primary] {
        for name in &new {
            server.wait_until_archived(name);
        }
        assert_eq!(server.sql("select failed_count from pg_stat_archiver"), "0", "{}", server.log());
    }
    for name in old.iter().chain(&new) {
        assert!(archived(&repository, name), "{name}");
    }
    assert!(archived(&repository, "00000002.history"));
}
