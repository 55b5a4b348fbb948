//! `basebackup drill`: what can be restored passes, what cannot does not, and nothing else on the host notices.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use walkeep_tests::binaries;
use walkeep_tests::cluster::{StopMode, bin_directory};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::site::{Load, Shared, archiving, basebackup, copy_of, snapshot, take};

/// A repository with two backups, a restore point, and settings that would reach out of a drill.
struct Past {
    repository: Repository,
    first: String,
    second: String,
    /// After the second backup.
    moment: String,
    /// Where hostile commands would leave a mark.
    marks: Scratch,
}

const POINT: &str = "before the upgrade";

impl Past {
    fn shared() -> Arc<Self> {
        static SHARED: Shared<Past> = Shared::new();
        SHARED.get(Self::make)
    }

    fn make() -> Self {
        let repository = Repository::directory();
        let marks = Scratch::new("marks");
        std::fs::set_permissions(marks.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mark = |name: &str| format!("touch {}", marks.path().join(name).display());
        let mut server = archiving(&repository).checksums().start();
        let space = server.scratch().create_private("space");
        server.sql(&format!("create tablespace space location '{}'", space.display()));
        for (name, value) in [
            ("recovery_end_command", mark("recovery_end")),
            ("archive_cleanup_command", mark("archive_cleanup")),
            ("synchronous_standby_names", "nobody".to_owned()),
            ("shared_preload_libraries", "pg_prewarm".to_owned()),
            ("session_preload_libraries", "not_installed".to_owned()),
            ("primary_conninfo", "host=/nowhere".to_owned()),
            ("ssl_ca_file", "/nowhere".to_owned()),
            ("max_prepared_transactions", "5".to_owned()),
        ] {
            // What is set takes effect in a restored copy only: this server is never started again with it.
            server.sql(&format!("alter system set {name} = '{value}'"));
        }
        Load::fill(&server);
        server.sql("create table t (n int) tablespace space");
        let first = take(&repository, &server);
        server.sql("insert into t values (1)");
        server.sql(&format!("select pg_create_restore_point('{POINT}')"));
        server.sql("insert into t values (2)");
        let second = take(&repository, &server);
        server.sql("insert into t values (3)");
        let moment = server.sql("select clock_timestamp()");
        server.sql("insert into t values (4)");
        server.stop(StopMode::Fast);
        Self { repository, first, second, moment, marks }
    }
}

type Spoil<'s> = &'s dyn Fn(&Repository);

/// A place for drills, and for files of SQL.
pub(crate) fn place() -> Scratch {
    Scratch::new("drills")
}

pub(crate) fn drilling(repository: &Repository, place: &Scratch, words: &[&str]) -> Run {
    let drill =
        basebackup(repository, &["drill", "--directory"]).arg(place.path()).arg("--pg-bindir").arg(bin_directory());
    drill.args(words).timeout(Duration::from_secs(180))
}

pub(crate) fn drill(repository: &Repository, words: &[&str]) -> (Finished, Value) {
    let place = place();
    let drilled = drilling(repository, &place, &[words, &["--format", "json"]].concat()).finish();
    let record = serde_json::from_str(&drilled.stdout).unwrap_or(Value::Null);
    assert!(is_empty(place.path()), "something is left\n{drilled}");
    (drilled, record)
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

pub(crate) fn check<'r>(record: &'r Value, name: &str) -> &'r Value {
    let checks = record["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {checks:#?}"))
}

/// A file with SQL.
pub(crate) fn sql(place: &Scratch, name: &str, text: &str) -> String {
    place.write(name, text);
    place.path().join(name).display().to_string()
}

#[test]
fn a_sound_backup_passes_and_the_record_says_what_was_done() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let files = place();
    let all = sql(&files, "all.sql", "select count(*) = 4 from t");
    let report = files.path().join("report.html");
    let (drilled, record) =
        drill(&repository, &["--amcheck", "--sql", &all, "--rto", "10min", "--report", report.to_str().unwrap()]);
    drilled.expect_code(0);
    assert_eq!((&record["verdict"], &record["backup"]), (&"passed".into(), &past.second.as_str().into()));
    // Not every build of PostgreSQL brings everything; what was not done is said.
    for (name, program) in [
        ("files", "pg_verifybackup"),
        ("recovery", "postgres"),
        ("databases", "postgres"),
        ("amcheck", "pg_amcheck"),
        ("SQL all.sql", "postgres"),
        ("restore points", "postgres"),
        ("extensions", "postgres"),
        ("prepared transactions", "postgres"),
        ("unlogged tables", "postgres"),
        ("server log", "postgres"),
        ("page checksums", "pg_checksums"),
    ] {
        let outcome = &check(&record, name)["outcome"];
        let may_be_skipped = name == "amcheck" || !bin_directory().join(program).exists();
        assert!(outcome == "passed" || may_be_skipped && outcome == "skipped", "{name}: {record:#}");
        assert_eq!(outcome == "skipped", drilled.stderr.contains(&format!("check \"{name}\" was not made")));
    }
    assert!(record["rto_seconds"].as_f64().unwrap() > 0.0 && record["rpo_seconds"].as_f64().unwrap() > 0.0);
    assert!(record["replayed_segments"].as_u64().unwrap() > 0 && record["last_commit"].is_string());

    // It is kept in the repository, and the page stands on its own.
    let key = repository.find(&format!("/drills/{}.json", record["id"].as_str().unwrap()));
    let kept: Value = serde_json::from_slice(&repository.read(&key)).unwrap();
    assert_eq!((&kept["verdict"], &kept["id"]), (&record["verdict"], &record["id"]));
    let page = std::fs::read_to_string(&report).unwrap();
    for words in ["<!doctype html>", "PASSED", &past.second, "SQL all.sql", "<svg"] {
        assert!(page.contains(words), "{words}");
    }
    for words in ["<script", "http://", "https://", "src=", "@import"] {
        assert!(!page.contains(words), "{words}");
    }
    let (_, again) = drill(&repository, &["--target", "immediate"]);
    assert_eq!(again["verdict"], "passed", "{again:#}");
    assert_eq!(repository.objects().iter().filter(|key| key.contains("/drills/")).count(), 2);
}

#[test]
fn every_selection_and_target_is_reached() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let files = place();
    let rows = |count: &str| sql(&files, &format!("{count}.sql"), &format!("select count(*) = {count} from t"));
    let (one, two, three) = (rows("1"), rows("2"), rows("3"));
    for (words, backup) in [
        (vec!["oldest", "--target", POINT, "--sql", &one], Some(&past.first)),
        (vec!["--target", "immediate", "--sql", &two], Some(&past.second)),
        (vec!["oldest", "--target", &past.moment, "--sql", &three], Some(&past.first)),
        (vec![past.first.as_str()], Some(&past.first)),
        (vec!["random", "--target", "random"], None),
    ] {
        let (drilled, record) = drill(&repository, &words);
        drilled.expect_code(0);
        assert_eq!(record["verdict"], "passed", "{words:?}: {record:#}");
        assert!(backup.is_none_or(|backup| record["backup"] == backup.as_str()), "{record:#}");
    }
    // What was drawn can be drawn again.
    let drawn = |words: &[&str]| drill(&repository, &[&["random", "--target", "random"], words].concat()).1;
    let first = drawn(&[]);
    let again = drawn(&["--seed", &first["seed"].to_string()]);
    assert_eq!((&first["backup"], &first["target"]), (&again["backup"], &again["target"]));
    // The point behind a backup says which backup is meant.
    let (_, record) = drill(&repository, &["--target", &format!("walkeep-{}", past.first)]);
    assert_eq!((&record["verdict"], &record["backup"]), (&"passed".into(), &past.first.as_str().into()), "{record:#}");
    let (drilled, record) = drill(&repository, &["--target", "no such point"]);
    drilled.expect_code(4);
    assert_eq!(record["verdict"], "failed");
}

#[test]
fn a_comparison_that_takes_too_long_is_ended_and_a_library_preloaded_on_request_alone() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let files = place();
    let preloaded = sql(&files, "preloaded.sql", "select current_setting('shared_preload_libraries') = 'plpgsql'");
    let words = ["--amcheck", "--amcheck-time", "1ms", "--preload", "plpgsql", "--sql", &preloaded];
    let (drilled, record) = drill(&repository, &words);
    drilled.expect_code(0).expect_stderr(&["check \"amcheck\" was not made"]);
    assert_eq!(check(&record, "amcheck")["outcome"], "skipped", "{record:#}");
    assert_eq!(check(&record, "SQL preloaded.sql")["outcome"], "passed", "{record:#}");
}

#[test]
fn what_is_wrong_fails_the_drill() {
    let past = Past::shared();
    let files = place();
    let wrong = sql(&files, "wrong.sql", "select count(*) = 5 from t");
    let nothing = sql(&files, "nothing.sql", "select n from t where n > 100");
    let invalid = sql(&files, "invalid.sql", "select no_such_column from t");
    let repository = copy_of(&past.repository);
    let (drilled, record) =
        drill(&repository, &["--sql", &wrong, "--sql", &nothing, "--sql", &invalid, "--rpo", "1ms"]);
    drilled.expect_code(4);
    for name in ["SQL wrong.sql", "SQL nothing.sql", "SQL invalid.sql"] {
        assert_eq!(check(&record, name)["outcome"], "failed", "{record:#}");
    }
    assert_eq!(check(&record, "databases")["outcome"], "passed");
    let text = drilling(&repository, &files, &["--rto", "1ms"]).finish();
    assert!(text.expect_code(4).stdout.contains("MISSED"), "{text}");
    let middle = |repository: &Repository, key: &str| {
        let length = repository.read(key).len();
        repository.flip_bit(key, length / 2);
    };
    let segments = |repository: &Repository| -> Vec<String> {
        let all = repository.objects().into_iter().filter(|key| key.contains("/wal/0000") && !key.contains(".backup."));
        all.collect()
    };
    let spoils: [(&str, Spoil<'_>); 4] = [
        ("a pack", &|repository| middle(repository, &repository.find(&format!("{}/pack-00001.tar.zst", past.second)))),
        ("the index", &|repository| repository.delete(&repository.find(&format!("{}/files.ndjson.zst", past.second)))),
        ("a segment", &|repository| middle(repository, segments(repository).last().unwrap())),
        ("a hole", &|repository| {
            let all = segments(repository);
            repository.delete(&all[all.len() - 2]);
        }),
    ];
    for (what, spoil) in spoils {
        let repository = copy_of(&past.repository);
        spoil(&repository);
        let (drilled, record) = drill(&repository, &[]);
        drilled.expect_code(4);
        assert!(record["verdict"] == "failed" && record["problem"].is_string(), "{what}: {record:#}");
    }
}

#[test]
fn nothing_reaches_out_of_a_drill() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let before = snapshot(&repository);
    let place = place();
    let file = sql(&place, "x.sql", "create table written as select 1 as n; select pg_switch_wal() is not null");
    let listens = sql(&place, "y.sql", "select current_setting('listen_addresses') = '' and not pg_is_in_recovery()");
    let drilled = drilling(&repository, &place, &["--sql", &file, "--sql", &listens, "--format", "json"]).finish();
    let record: Value = serde_json::from_str(&drilled.expect_code(0).stdout).unwrap();
    assert_eq!(record["verdict"], "passed", "{record:#}");
    assert!(is_empty(past.marks.path()), "a command of the original was run");
    let mut after = snapshot(&repository);
    after.retain(|key, _| !key.contains("/drills/"));
    assert!(after == before, "the archive was written to");
    // Where namespaces are permitted there is no network at all; the record says which of the two it was.
    let permitted = Run::new("unshare").args(["--user", "--map-current-user", "--net", "true"]).finish().code() == 0;
    assert_eq!(record["network"].as_str().unwrap().starts_with("none"), permitted, "{record:#}");
}

#[test]
fn a_server_without_a_network_gets_its_wal_from_a_bucket() {
    let repository = Repository::ceph();
    let server = archiving(&repository).start();
    server.sql("create table t as select 1 as n");
    take(&repository, &server);
    for n in 2..6 {
        server.sql(&format!("insert into t values ({n})"));
        server.wait_until_archived(&server.finish_segment());
    }
    let files = place();
    let all = sql(&files, "all.sql", "select count(*) = 5 from t");
    let (drilled, record) = drill(&repository, &["--sql", &all]);
    drilled.expect_code(0);
    assert!(record["replayed_segments"].as_u64().unwrap() >= 4, "{record:#}");
    // While it goes on, the original is at work and notices nothing.
    server.sql("insert into t values (6)");
}

#[test]
fn a_drill_that_is_killed_leaves_nothing_that_the_next_one_does_not_clear() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let place = place();
    let file = sql(&place, "long.sql", "select pg_sleep(600) is not null");
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let scratches = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| name(path).starts_with("walkeep-drill-")).collect()
    };
    for signal in [Signal::TERM, Signal::KILL] {
        let running = drilling(&repository, &place, &["--sql", &file]).start();
        let scratch = until("the drill runs its SQL", Duration::from_secs(60), || {
            let scratch = scratches().pop()?;
            let log = std::fs::read_to_string(scratch.join("server.log")).ok()?;
            log.contains("ready to accept connections").then_some(scratch)
        });
        let postmaster = std::fs::read_to_string(scratch.join("data/postmaster.pid")).unwrap();
        let pid = postmaster.lines().next().unwrap().to_owned();
        running.signal(signal);
        let ended = running.finish();
        if signal == Signal::TERM {
            ended.expect_code(1).expect_stderr(&["interrupted"]);
            assert!(scratches().is_empty());
        } else {
            assert!(!scratches().is_empty(), "it had no time to clear anything");
        }
        until("its server ends with it", SOON, || (!Path::new("/proc").join(&pid).exists()).then_some(()));
    }
    let drilled = drilling(&repository, &place, &["--target", "immediate"]).finish();
    drilled.expect_code(0).expect_stderr(&["a drill that did not end in order left"]);
    assert!(scratches().is_empty());
}

#[test]
fn a_drill_that_cannot_be_performed_is_no_verdict() {
    let past = Past::shared();
    let place = place();
    let run = |words: &[&str]| drilling(&past.repository, &place, words).finish();
    run(&["20200101T000000Z-0000"]).expect_code(1);
    run(&["sometime"]).expect_code(2);
    run(&["--target", "immediate", "--rpo", "5min"]).expect_code(2).expect_stderr(&["--rpo", "HINT: "]);
    run(&["--seed", "7"]).expect_code(2);
    run(&["--amcheck-time", "1min"]).expect_code(2);
    run(&["--sql", "/nonexistent/orders.sql"]).expect_code(1).expect_stderr(&["/nonexistent/orders.sql"]);
    run(&["--report", "/nonexistent/drill.html"]).expect_code(1).expect_stderr(&["/nonexistent"]);
    basebackup(&past.repository, &["drill", "--directory", "/nonexistent"]).finish().expect_code(1);
    let elsewhere = basebackup(&past.repository, &["drill", "--pg-bindir", "/nonexistent"]).finish();
    elsewhere.expect_code(1).expect_stderr(&["was not found on this host", "HINT: ", "--pg-bindir"]);
    let nothing = Repository::directory();
    drilling(&nothing, &place, &[]).finish().expect_code(1);
    if user::is_root() {
        let root = Run::new(binaries::basebackup()).args(["drill"]).envs(past.repository.environment()).as_caller();
        root.finish().expect_code(2).expect_stderr(&["will not run as root"]);
    }
}
