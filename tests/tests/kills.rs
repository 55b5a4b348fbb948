//! The programs killed at any moment, and a network that breaks at any moment: what was acknowledged is there, what
//! was not never passes for whole.

use std::time::Duration;

use serde_json::Value;
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::dice::Dice;
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Finished;
use walkeep_tests::wait::{SOON, until};

use crate::samples::{DataDirectory, archive, ours, unpacked};
use crate::site::{Place, archiving, basebackup, expect_no_start, take, taking, verify, wait_until_open};

/// Pushes a segment again and again, killed later or earlier, and checks after each what the archive has of it.
fn kill_pushes(repository: &Repository, times: usize) {
    let mut dice = Dice::new();
    let segments = ours().segments(1);
    archive(ours(), repository, [segments[0]]);
    let name = segments[1];
    let directory = DataDirectory::with_wal(ours());
    let stored = || repository.objects().into_iter().find(|key| key.ends_with(&format!("/{name}.zst")));
    let mut whole = directory.push(repository, name).finish().expect_silent_success().elapsed;
    let (mut killed, mut killed_but_stored) = (0, 0);
    for _ in 0..times {
        if let Some(key) = stored() {
            repository.delete(&key);
        }
        let pushed = directory.push(repository, name).start().kill_after(dice.up_to(whole));
        let got = directory.get(repository, name).finish();
        if got.code() == 0 {
            assert!(std::fs::read(directory.wal("RECOVERYXLOG")).unwrap() == ours().files[name]);
        } else {
            assert!(pushed.was_killed(), "acknowledged, and not there\n{pushed}\n{got}");
            got.expect_code(1);
        }
        if pushed.was_killed() {
            killed += 1;
            killed_but_stored += usize::from(got.code() == 0);
        } else {
            whole = whole.min(pushed.expect_silent_success().elapsed);
        }
        directory.push(repository, name).finish().expect_code(0);
        assert!(unpacked(repository, &stored().unwrap()) == ours().files[name]);
    }
    assert!(killed > times / 2, "only {killed} of {times} were killed, {killed_but_stored} of them too late");
}

#[test]
fn a_killed_push_into_a_directory_loses_nothing_and_offers_no_half_object() {
    kill_pushes(&Repository::directory(), 150);
}

#[test]
fn a_killed_push_into_a_bucket_loses_nothing_and_offers_no_half_object() {
    kill_pushes(&Repository::ceph(), 100);
}

#[test]
fn what_the_archiver_did_not_live_to_note_is_pushed_again_and_is_fine() {
    let repository = Repository::directory();
    let around = repository.scratch().path().display().to_string();
    // Both programs run in a shell whose parent is the archiver.
    let command = format!(
        "{} %p; code=$?; echo %f $code >>{around}/pushed; test ! -e {around}/kill || {{ rm {around}/kill; kill -9 $PPID; }}; exit $code",
        binaries::archive_push().display()
    );
    let options = Cluster::options().segment_size(1).environment(repository.environment());
    let server = options.archive_command(&command).start();
    server.wait_until_archived(&server.finish_segment());
    repository.scratch().write("kill", "");
    let name = server.finish_segment();
    let pushes = || {
        let log = std::fs::read_to_string(repository.scratch().path().join("pushed")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(&name)).map(str::to_owned).collect::<Vec<_>>()
    };
    until("the segment is pushed a second time", SOON, || {
        // PostgreSQL restarts its archiver ten seconds after the last time, but only when something wakes it.
        server.try_sql("select 1");
        (pushes().len() > 1).then_some(())
    });
    assert_eq!(pushes(), [format!("{name} 0"), format!("{name} 0")]);
    server.wait_until_archived(&name);
    repository.find(&format!("/{name}.zst"));
    server.wait_for("select failed_count from pg_stat_archiver", "0");
    server.wait_until_archived(&server.finish_segment());
}

/// The ids that are listed as backups.
fn listed(repository: &Repository) -> Vec<String> {
    let listed = basebackup(repository, &["list", "--format", "json"]).finish();
    let list: Value = serde_json::from_str(&listed.expect_code(0).stdout).unwrap();
    let backups = list["clusters"][0]["backups"].as_array().unwrap();
    backups.iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// The id of a backup that was taken.
fn id(taken: &Finished) -> String {
    taken.expect_code(0).stdout.trim_end().to_owned()
}

fn kill_takes(repository: &Repository, times: usize) {
    let mut dice = Dice::new();
    let mut server = archiving(repository).start();
    server.sql("create table t as select generate_series(1, 1000) n");
    let taken = taking(repository, &server).finish();
    let mut whole = taken.elapsed;
    let mut acknowledged = vec![id(&taken)];
    let mut killed = 0;
    for _ in 0..times {
        let taken = taking(repository, &server).start().kill_after(dice.up_to(whole));
        if taken.was_killed() {
            killed += 1;
        } else {
            whole = whole.min(taken.elapsed);
            acknowledged.push(id(&taken));
        }
        // Its session holds the lock that admits one backup at a time.
        server.wait_for("select count(*) from pg_stat_activity where application_name like '%basebackup%'", "0");
    }
    assert!(killed > times / 2, "only {killed} of {times} were killed");
    acknowledged.push(take(repository, &server));
    let listed = listed(repository);
    for id in &acknowledged {
        assert!(listed.contains(id), "{id} was acknowledged");
    }
    // One that was killed after its last object is as good as any other.
    for id in &listed {
        assert!(repository.objects().iter().any(|key| key.ends_with(&format!("{id}/backup.json"))));
        if !acknowledged.contains(id) {
            expect_restorable(repository, &["--target=immediate", "--target-action=promote", id]);
        }
    }
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);
    expect_restorable(repository, &[]);
}

#[track_caller]
fn expect_restorable(repository: &Repository, words: &[&str]) {
    let place = Place::new();
    place.restore(repository, words);
    verify(&place.data());
    let mut server = place.server(repository);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql("select count(*) from t"), "1000");
}

#[test]
fn a_killed_backup_into_a_directory_is_none_and_the_next_one_is_taken() {
    kill_takes(&Repository::directory(), 20);
}

#[test]
fn a_killed_backup_into_a_bucket_is_none_and_the_next_one_is_taken() {
    kill_takes(&Repository::ceph(), 15);
}

#[test]
fn a_killed_restore_never_starts_and_the_next_one_finishes() {
    let mut dice = Dice::new();
    let repository = Repository::directory();
    let mut server = archiving(&repository).start();
    let tablespace = server.scratch().create_private("tablespace");
    server.sql(&format!("create tablespace apart location '{}'", tablespace.display()));
    server.sql("create table t tablespace apart as select generate_series(1, 1000) n");
    take(&repository, &server);
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);

    let mut place = Place::new();
    let restoring = |place: &Place, words: &[&str]| {
        let moved = place.around().path().join("moved");
        let mapping = format!("-T{}={}", tablespace.display(), moved.display());
        let delta = place.data().join("PG_VERSION").exists().then_some("--delta");
        place.restoring(&repository, words).arg(mapping).args(delta)
    };
    let mut whole = restoring(&Place::new(), &[]).finish().expect_code(0).elapsed;
    let (mut killed, mut finished) = (0, 0);
    for round in 0..60 {
        if round % 6 == 0 {
            place = Place::new();
        }
        // A server that is to recover and one that is to follow, in turns over the same files.
        let words = if round % 4 < 2 { &[][..] } else { &["--standby", "--primary-conninfo", "host=/nowhere"] };
        let restored = restoring(&place, words).start().kill_after(dice.up_to(whole));
        if restored.was_killed() {
            killed += 1;
            if !place.data().join("global/pg_control").exists() {
                expect_no_start(&place.data());
                continue;
            }
        } else {
            whole = whole.min(restored.expect_code(0).elapsed);
        }
        finished += 1;
    }
    assert!(killed > 30, "only {killed} of 60 were killed, {finished} were through");
    restoring(&place, &[]).finish().expect_code(0);
    verify(&place.data());
    assert!(place.data().join("recovery.signal").exists() && !place.data().join("standby.signal").exists());
    let mut server = place.server(&repository);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql("select count(*) from t"), "1000");
}

#[test]
fn with_a_network_that_breaks_at_random_nothing_acknowledged_is_missing() {
    const SEGMENTS: usize = 300;
    let mut dice = Dice::new();
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let kept = repository.scratch().create_private("kept");
    // What PostgreSQL had when it was told that the segment is safe.
    let command =
        format!("cp %p {0}/.%f && {1} %p && mv {0}/.%f {0}/%f", kept.display(), binaries::archive_push().display());
    let options = Cluster::options().segment_size(1).environment(repository.environment());
    let mut server = options.archive_command(&command).start();
    server.sql("create table t (n int)");
    take(&repository, &server);

    for _ in 0..SEGMENTS / 4 {
        let fault = match dice.below(8) {
            0 => Fault::ResetBeforeBody,
            1 => Fault::ResetDuringBody,
            2 => Fault::ResetAfterBody,
            3 => Fault::LoseAnswer,
            4 => Fault::slow_down(),
            5 => Fault::s3_error(500, "InternalError", "We encountered an internal error."),
            6 => Fault::s3_error(409, "ConditionalRequestConflict", "Retry the upload."),
            _ => Fault::web_page(502),
        };
        let after = usize::try_from(dice.below(SEGMENTS as u64)).unwrap();
        proxy.add(Rule::all(fault).path("/wal/").after(after).times(1));
    }
    server.sql(&format!(
        "do $$ begin for n in 1..{SEGMENTS} loop insert into t values (n); commit; perform pg_switch_wal(); end loop; end $$"
    ));
    let last = server.finish_segment();
    until("everything is archived", Duration::from_secs(240), || kept.join(&last).exists().then_some(()));
    server.kill();
    proxy.clear();
    let acknowledged: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    let acknowledged = acknowledged.iter().filter(|path| !path.to_string_lossy().contains("/."));
    let mut segments = 0;
    for path in acknowledged {
        let name = path.file_name().unwrap().to_str().unwrap();
        let key = repository.find(&format!("/{name}.zst"));
        assert!(unpacked(&repository, &key) == std::fs::read(path).unwrap(), "{name}");
        segments += 1;
    }
    assert!(segments > SEGMENTS, "{segments}");
    assert!(proxy.requests().len() > segments + SEGMENTS / 8, "the faults were met");

    let place = Place::new();
    place.restore(&repository, &[]);
    let mut restored = place.server(&repository);
    restored.start();
    wait_until_open(&restored);
    assert_eq!(restored.sql("select count(*), max(n) from t"), format!("{SEGMENTS}|{SEGMENTS}"));
}
