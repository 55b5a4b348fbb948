//! `basebackup take` while it runs: what it refuses at once, what it warns of, how it tells its progress, how fast it reads.

use std::time::Duration;

use rustix::process::Signal;
use walkeep_tests::cluster::Cluster;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Run, tool};
use walkeep_tests::wait::{SOON, until};

use crate::site::{archiving, take, taking};

/// Nothing of a backup is in the repository.
fn expect_untouched(repository: &Repository) {
    assert!(!repository.objects().iter().any(|key| key.contains("/base/")), "{:?}", repository.objects());
}

#[test]
fn on_a_server_of_the_other_kind_nothing_is_done() {
    let repository = Repository::directory();
    let primary = archiving(&repository).start();
    let other = taking(&repository, &primary).arg("--only-on=standby").finish();
    other.expect_code(0).expect_stderr(&["INFO: no backup is taken", "is a primary", "--only-on=standby"]);
    assert_eq!(other.stdout, "");
    let refused = taking(&repository, &primary).args(["--label", "two\nlines"]).finish();
    refused.expect_code(2).expect_stderr(&["label holds a line break"]);
    expect_untouched(&repository);
    taking(&repository, &primary).arg("--only-on=primary").finish().expect_code(0);

    let mut standby = primary.standby(Cluster::options().configure("hot_standby = on"));
    standby.start();
    let other = taking(&repository, &standby).arg("--only-on=primary").finish();
    other.expect_code(0).expect_stderr(&["is a standby"]);
}

#[test]
fn doubts_about_the_archive_are_told_in_the_first_second() {
    let repository = Repository::directory();
    let cluster = Cluster::options().segment_size(1).archive_command("false %p").start();
    cluster.finish_segment();
    cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    let taken = taking(&repository, &cluster).args(["--wal-timeout", "1s"]).finish();
    taken.expect_code(1).expect_stderr(&[
        "WARNING: archive_command does not call archive-push",
        "WARNING: archiving fails right now: \"00000001",
        "was not archived within 1 s",
    ]);
}

#[test]
fn an_idle_server_is_backed_up_without_waiting_for_traffic() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).configure("archive_timeout = 0").configure("autovacuum = off").start();
    for _ in 0..2 {
        let taken = taking(&repository, &cluster).finish();
        assert!(taken.expect_code(0).elapsed < Duration::from_secs(20), "{taken}");
    }
}

#[test]
fn a_backup_that_another_host_has_begun_is_told_of() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let id = take(&repository, &cluster);
    let other =
        if id.ends_with("0000") { id.replace("-0000", "-0001") } else { format!("{}0000", &id[..id.len() - 4]) };
    let key = repository.find("begin.json");
    let mut begin: serde_json::Value = serde_json::from_slice(&repository.read(&key)).unwrap();
    begin["id"] = other.as_str().into();
    begin["host"] = "elsewhere".into();
    repository.write(&key.replace(&id, &other), begin.to_string().as_bytes());
    let taken = taking(&repository, &cluster).finish();
    let told = format!("WARNING: backup {other}, begun at ");
    taken.expect_code(0).expect_stderr(&[&told, "on host \"elsewhere\", has not ended"]);
    assert_eq!(taken.stderr.matches("has not ended").count(), 1, "{taken}");
}

#[test]
fn progress_is_told_every_second_on_request_and_at_once_on_sigusr1() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let taking = |words: &[&str]| taking(&repository, &cluster).args(["--max-rate", "4M"]).args(words).start();

    let told = taking(&["-P"]).finish();
    let lines = told.expect_code(0).stderr.matches("INFO: copied ").count();
    assert!(lines >= 3, "{lines} lines of progress\n{told}");

    let quiet = taking(&[]);
    until("the copy begins", SOON, || {
        let copying = "select count(*) from pg_stat_activity where query like '%backup_start%'";
        (cluster.sql(copying) != "0").then_some(())
    });
    until("the copy is under way", SOON, || {
        (repository.objects().iter().filter(|key| key.ends_with("begin.json")).count() == 2).then_some(())
    });
    quiet.signal(Signal::USR1);
    let told = quiet.finish();
    let lines = told.expect_code(0).stderr.matches("INFO: copied ").count();
    assert_eq!(lines, 1, "{told}");
    assert!(told.stderr.contains(" %), "), "{told}");
}

#[test]
fn reading_stays_below_the_rate() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let bytes: u64 = cluster.sql("select sum(pg_database_size(oid))::int8 from pg_database").parse().unwrap();
    let taken = taking(&repository, &cluster).args(["--max-rate=8M", "--jobs=4"]).finish();
    // Half a second may have been saved up.
    let least = Duration::from_millis(1000 * bytes / (8 << 20)).saturating_sub(Duration::from_secs(1));
    assert!(taken.expect_code(0).elapsed >= least, "{bytes} bytes at 8 MiB/s took less than {least:?}\n{taken}");
}

#[test]
fn the_level_is_taken_from_the_command_line() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let size = |level: &str| {
        taking(&repository, &cluster).args(["--compress", level]).finish().expect_code(0);
        let packs = repository.objects().into_iter().filter(|key| key.contains("/pack-"));
        packs.map(|key| repository.read(&key).len()).sum::<usize>()
    };
    let fast = size("-7");
    let small = size("zstd:12") - fast;
    assert!(small * 5 < fast * 4, "{small} bytes at level 12, {fast} at level -7");
}

#[test]
fn a_backup_that_gives_way_has_the_lowest_priority() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let taking = taking(&repository, &cluster).args(["--max-rate=4M", "--low-priority"]).start();
    let nice = until("the backup is under way", SOON, || {
        let begun = repository.objects().iter().any(|key| key.ends_with("begin.json"));
        let processes = Run::new("pgrep").args(["-x", "basebackup"]).finish().stdout;
        let of = |process: &str, words: &[&str]| Run::new("ps").args(words).args(["-p", process]).finish().stdout;
        let ours = processes.lines().find(|process| of(process, &["-o", "args="]).contains("--low-priority"))?;
        let classes = Run::new("ionice").args(["-p", ours]).finish().stdout;
        begun.then(|| (of(ours, &["-L", "-o", "ni="]), classes))
    });
    assert!(nice.0.split_whitespace().all(|nice| nice == "19"), "{nice:?}");
    assert!(nice.1.starts_with("idle"), "{nice:?}");
    taking.finish().expect_code(0);
}

#[test]
fn unlogged_relations_are_empty_and_usable_after_a_restore() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    cluster.sql("create unlogged table loose (i int primary key); insert into loose select generate_series(1, 1000)");
    cluster.sql("create table fast (i int); insert into fast select generate_series(1, 10)");
    take(&repository, &cluster);
    let place = crate::site::Place::new();
    place.restore(&repository, &[]);
    let mut restored = place.server(&repository);
    restored.start();
    crate::site::wait_until_open(&restored);
    assert_eq!(restored.sql("select count(*) from loose"), "0");
    restored.sql("insert into loose values (1)");
    assert_eq!(restored.sql("select (select count(*) from loose), (select count(*) from fast)"), "1|10");
}

#[test]
fn the_page_cache_is_after_a_backup_what_it_was_before() {
    let repository = Repository::directory();
    let server = archiving(&repository).configure("autovacuum = off").start();
    server.sql("create table t as select g, repeat('x', 900) from generate_series(1, 24000) g; checkpoint");
    let file = server.data().join(server.sql("select pg_relation_filepath('t')"));
    let file = file.to_str().unwrap();
    if tool("stat", ["-f", "-c", "%T", file]) == "tmpfs" {
        // Everything is in the page cache there, and nowhere else.
        return;
    }
    let cached = || tool("fincore", ["-b", "-n", "-o", "RES", file]).trim().parse::<u64>().unwrap();
    tool("sync", [file]);
    // Nothing is written: what lies behind the first half leaves the cache.
    let from_half = ["bs=1M", "seek=12", "count=0", "conv=notrunc,fdatasync", "oflag=nocache"];
    let mut seen = Vec::new();
    // On a busy host the kernel takes pages away itself, or says of some that they are not there: not every time.
    for _ in 0..5 {
        tool("cat", [file]);
        let whole = cached();
        tool("dd", ["status=none", &format!("of={file}")].into_iter().chain(from_half));
        let before = cached();
        taking(&repository, &server).finish().expect_code(0);
        let after = cached();
        let is_half = (8 << 20..16 << 20).contains(&before) && whole > 20 << 20;
        if is_half && after.abs_diff(before) < 1 << 20 {
            return;
        }
        seen.push((whole, before, after));
    }
    panic!("bytes in the cache when all was read, before a backup, and after it: {seen:?}");
}
