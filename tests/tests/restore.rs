//! `basebackup restore`, with a real server at both ends.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, tool};
use walkeep_tests::user;
use walkeep_tests::wait::SOON;

use crate::site::{
    Load, Place, Shared, archiving, basebackup, copy_of, expect_balanced, expect_no_start, server_on, snapshot, take,
    verify, wait_until_open,
};

/// A server with a past, and by which names each moment of it can be asked for.
struct Past {
    repository: Repository,
    /// How much pgbench has changed.
    changes: u64,
    /// Taken under load, before the table.
    first: String,
    /// The end of the transaction that inserted the second row.
    second_row: String,
    second_row_xid: String,
    /// A position after that, before the third row.
    after_second_row: String,
    /// A moment after the third row, before the table was dropped.
    before_the_drop: String,
    /// Taken after the drop.
    second: String,
    /// The last transaction that is archived.
    last_commit: String,
}

const RESTORE_POINT: &str = "before the third row";
const ROWS: &str = "select count(*) from precious";
const NO_TABLE: &str = "select to_regclass('precious') is null";

impl Past {
    /// The one that all tests look back on, which goes with the last of them.
    fn shared() -> Arc<Self> {
        static SHARED: Shared<Past> = Shared::new();
        SHARED.get(Self::make)
    }

    fn make() -> Self {
        let repository = Repository::directory();
        let options = archiving(&repository).checksums().configure("track_commit_timestamp = on");
        let mut server = options.configure("autovacuum = off").configure("timezone = 'GMT'").start();
        let load = Load::start(&server);
        let first = take(&repository, &server);
        load.stop();

        let committed = |sql: &str| {
            let xid = server.sql(&format!("{sql}; select txid_current()"));
            let time = format!("select {} from pg_xact_commit_timestamp('{xid}'::xid) as time", time_text("time"));
            (server.sql(&time), xid)
        };
        server.sql("create table precious (n int)");
        server.sql("insert into precious values (1)");
        let (second_row, second_row_xid) = committed("insert into precious values (2)");
        let after_second_row = server.sql("select pg_current_wal_insert_lsn()");
        server.sql(&format!("select pg_create_restore_point('{RESTORE_POINT}')"));
        server.sql("insert into precious values (3)");
        let before_the_drop = server.sql(&format!("select {}", time_text("clock_timestamp()")));
        server.sql("drop table precious");
        let second = take(&repository, &server);
        let (last_commit, _) = committed("create table afterwards ()");
        let changes = expect_balanced(&server);
        // Everything is archived then.
        server.stop(StopMode::Fast);
        Self {
            repository,
            changes,
            first,
            second_row,
            second_row_xid,
            after_second_row,
            before_the_drop,
            second,
            last_commit,
        }
    }

    /// A backup as `show` describes it.
    fn show(&self, id: &str) -> Value {
        let shown = basebackup(&self.repository, &["show", id, "--format", "json"]).finish();
        serde_json::from_str(&shown.expect_code(0).stdout).unwrap()
    }
}

/// A time in UTC without saying so.
fn time_text(expression: &str) -> String {
    format!("to_char({expression} at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')")
}

/// The same moment on the clocks of another zone.
fn elsewhere(utc: &str, zone: &str) -> String {
    tool("env", [&format!("TZ={zone}"), "date", "-d", &format!("{utc}Z"), "+%F %T.%6N"])
}

/// Restores, starts the server, and waits until it has come to the target.
fn recover(place: &Place, past: &Past, words: &[&str]) -> Cluster {
    place.restore(&past.repository, words);
    verify(&place.data());
    let mut server = place.server(&past.repository);
    server.start();
    server
}

#[test]
fn everything_archived_comes_back_and_the_server_opens() {
    let past = Past::shared();
    let place = Place::new();
    let restored = place.restore(&past.repository, &["--format", "text"]);
    assert!(restored.stdout.contains(&past.second), "the newest backup\n{restored}");
    verify(&place.data());
    let before = snapshot(&past.repository);
    let mut server = place.server(&past.repository);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql("select to_regclass('afterwards') is not null and to_regclass('precious') is null"), "t");
    assert_eq!(expect_balanced(&server), past.changes);

    // It is not the server of the backup, so what it writes stays with it.
    assert!(restored.stdout.contains("Archiving") && restored.stdout.contains("off"), "{restored}");
    assert_eq!(server.sql("show archive_mode"), "off");
    for _ in 0..3 {
        server.sql("create table if not exists own (n int); insert into own values (1)");
        server.finish_segment();
    }
    server.sql("checkpoint");
    server.stop(StopMode::Fast);
    assert!(snapshot(&past.repository) == before, "the restored server wrote into the archive");
}

#[test]
fn the_moment_before_the_drop_comes_back_whichever_way_the_time_is_written() {
    let past = Past::shared();
    let read_in = |zone| elsewhere(&past.before_the_drop, zone);
    for (time, zone) in [
        (format!("{}-05:00", read_in("Etc/GMT+5")), "UTC"),
        (format!("{} Europe/Berlin", read_in("Europe/Berlin")), "UTC"),
        (read_in("Asia/Seoul"), "Asia/Seoul"),
    ] {
        let place = Place::new();
        let restore = place.restoring(&past.repository, &["--target-time", &time]).env("TZ", zone);
        let restored = restore.finish();
        restored.expect_code(0);
        assert!(restored.stdout.contains(&past.first), "the newer backup is too new\n{restored}");
        assert_eq!(restored.stdout.contains("Asia/Seoul"), zone == "Asia/Seoul", "an assumed zone is said\n{restored}");
        let mut server = place.server(&past.repository);
        server.start();
        server.wait_for("select pg_is_wal_replay_paused()", "t");
        // The lock for the drop was replayed, so here a query of the table would wait.
        server.sql("select pg_wal_replay_resume()");
        wait_until_open(&server);
        assert_eq!(server.sql(ROWS), "3", "{time}");
        expect_balanced(&server);
    }
}

#[test]
fn each_target_is_reached_and_each_action_taken() {
    let past = Past::shared();
    let (time, lsn, xid) = (format!("{}+00", past.second_row), &past.after_second_row, &past.second_row_xid);
    let exclusive = "--target-inclusive=false";
    let cases: [(&[&str], &str, &str); 8] = [
        (&["--target-time", &time], ROWS, "2"),
        (&["--target-time", &time, exclusive, "--target-action", "promote"], ROWS, "1"),
        (&["--target-xid", xid, "--target-action", "pause"], ROWS, "2"),
        (&["--target-xid", xid, exclusive], ROWS, "1"),
        (&["--target-lsn", lsn, "--target-action", "promote"], ROWS, "2"),
        (&["--target-lsn", lsn, exclusive], ROWS, "2"),
        (&["--target-name", RESTORE_POINT, &past.first, "--target-action=promote"], ROWS, "2"),
        (&["--target=immediate", &past.first], NO_TABLE, "t"),
    ];
    for (words, query, answer) in cases {
        let place = Place::new();
        let server = recover(&place, &past, words);
        if words.iter().any(|word| word.ends_with("promote")) {
            wait_until_open(&server);
        } else {
            server.wait_for("select pg_is_wal_replay_paused()", "t");
            assert_eq!(server.sql("select pg_is_in_recovery()"), "t", "{words:?}");
        }
        assert_eq!(server.sql(query), answer, "{words:?}");
        expect_balanced(&server);
    }

    let place = Place::new();
    place.restore(&past.repository, &["--target-xid", xid, "--target-action", "shutdown"]);
    let mut server = place.server(&past.repository);
    server.launch();
    server.wait_for_end(SOON);
    assert_eq!(server.control("Database cluster state"), "shut down in recovery");
    assert!(server.log().contains("shutdown at recovery target"), "{}", server.log());
}

/// Nothing at all may have been made.
#[track_caller]
fn expect_refusal(past: &Past, words: &[&str], code: i32, texts: &[&str]) -> Finished {
    let place = Place::new();
    let refused = place.restoring(&past.repository, words).finish();
    refused.expect_code(code).expect_stderr(&["basebackup: ERROR: "]).expect_stderr(texts);
    // Of what is only mistyped the message itself says what it should be.
    assert!(code == 2 || refused.stderr.contains("HINT: "), "{refused}");
    assert!(place.is_untouched(), "something was made\n{refused}");
    refused
}

#[test]
fn a_target_that_cannot_be_reached_is_refused_before_anything_is_written() {
    let past = Past::shared();
    let stop_time = past.show(&past.first)["stop_time"].as_str().unwrap().to_owned();
    let stop_lsn = past.show(&past.first)["stop_lsn"].as_str().unwrap().to_owned();
    let start_lsn = past.show(&past.first)["start_lsn"].as_str().unwrap().to_owned();
    expect_refusal(&past, &["--target-time", &stop_time], 1, &[&past.first, &past.second, "ended at"]);
    expect_refusal(&past, &["--target-lsn", &start_lsn], 1, &[&past.first, &stop_lsn]);
    expect_refusal(&past, &["--target-time", "1999-12-31 23:59:59+00"], 1, &["no base backup can reach"]);
    expect_refusal(&past, &["--target-time", &past.before_the_drop, &past.second], 1, &[&past.second, "ended at"]);
    expect_refusal(&past, &["--target-xid", "3"], 1, &["transaction 3"]);
    expect_refusal(&past, &["--target-lsn", "F/0"], 1, &["F/0 is not archived"]);
    expect_refusal(&past, &["--target-name", RESTORE_POINT], 2, &[&past.first, &past.second]);
    expect_refusal(&past, &["--target-timeline", "7"], 1, &["timeline 7"]);
    expect_refusal(&past, &["--target-time", "tomorrow"], 2, &["\"tomorrow\" is not a time"]);
    expect_refusal(&past, &["--target-lsn", "0/1", "--target-xid", "7"], 2, &["cannot be used with"]);
    expect_refusal(&past, &["20200101T000000Z-0000"], 1, &["20200101T000000Z-0000"]);

    let late = expect_refusal(&past, &["--target-time", "2199-01-01 00:00:00Z"], 1, &[&past.last_commit]);
    let (_, lsn) = late.stderr.split_once("--target-lsn=").expect("a target to use instead");
    let lsn = lsn.split('.').next().unwrap();
    let place = Place::new();
    let server = recover(&place, &past, &["--target-lsn", lsn]);
    server.wait_for("select pg_is_wal_replay_paused()", "t");
    assert_eq!(server.sql("select to_regclass('afterwards') is not null"), "t", "that transaction included");
}

#[test]
fn a_time_after_a_backup_without_any_later_transaction_is_refused() {
    let past = Past::shared();
    let second = past.show(&past.second);
    let stop = second["stop_wal"].as_str().unwrap();
    let idle = copy_of(&past.repository);
    for key in idle.objects().iter().filter(|key| key.contains("/wal/0") && !key.contains(".backup")) {
        let name = key.rsplit('/').next().unwrap().trim_end_matches(".zst");
        if name > stop {
            idle.delete(key);
        }
    }
    let place = Place::new();
    let refused = place.restoring(&idle, &["--target-time", "2199-01-01 00:00:00Z"]).finish();
    refused.expect_code(1).expect_stderr(&["no transaction", &past.second, "HINT: "]);
    assert!(place.is_untouched());
}

#[test]
fn a_transaction_that_never_was_does_not_open_the_server() {
    let past = Past::shared();
    let place = Place::new();
    let restored = place.restore(&past.repository, &["--target-xid", "99999999", "--target-action=promote"]);
    assert!(restored.stdout.contains("fails if it is not before"), "the plan says how far the WAL goes\n{restored}");
    let mut server = place.server(&past.repository);
    server.launch();
    assert!(!server.wait_for_end(SOON).success());
    assert!(server.log().contains("recovery ended before configured recovery target was reached"));
}

#[test]
fn a_plan_is_printed_and_nothing_is_made() {
    let past = Past::shared();
    let place = Place::new();
    let time = format!("{}+00", past.before_the_drop);
    let words = ["--dry-run", "--target-time", &time, "--target-action", "promote"];
    let text = place.restore(&past.repository, &words).stdout;
    for expected in
        [past.first.as_str(), &past.before_the_drop, "promote", "Timeline", "WAL", "Time ", "Archiving", "needed"]
    {
        assert!(text.contains(expected), "{expected:?} in\n{text}");
    }
    let json = place.restore(&past.repository, &[&words[..], &["--format", "json"]].concat()).stdout;
    let plan: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["backup"]["id"], past.first.as_str(), "{json}");
    assert_eq!(plan["settings"]["recovery_target_time"], time.as_str());
    assert_eq!(plan["settings"]["recovery_target_action"], "promote");
    assert_eq!(plan["settings"]["recovery_target_timeline"], "1");
    assert_eq!(plan["archiving"], false);
    assert!(plan["estimated_seconds"].as_u64() >= plan["copy_seconds"].as_u64(), "{json}");
    assert_eq!(plan["data_directory"], place.data().to_str().unwrap());
    assert!(place.is_untouched());
}

#[test]
fn a_directory_in_use_is_refused() {
    let past = Past::shared();
    let place = Place::new();
    std::fs::create_dir(place.data()).unwrap();
    user::give(&place.data());
    let file = place.around().write("data/notes.txt", "mine");
    let refused = place.restoring(&past.repository, &[]).finish();
    refused.expect_code(1).expect_stderr(&["not empty", "notes.txt", "HINT: "]);
    let refused = place.restoring(&past.repository, &["--delta"]).finish();
    refused.expect_code(1).expect_stderr(&["PG_VERSION", "HINT: "]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(place.data()).unwrap().count(), 1);

    // A running server's directory, and another cluster's.
    let mut other = Cluster::options().start();
    let data = other.data().to_str().unwrap().to_owned();
    let over = |words: &[&str]| basebackup(&past.repository, &["restore", "-D", &data]).args(words).finish();
    for words in [&["--delta"][..], &[]] {
        over(words).expect_code(1).expect_stderr(&["server may be running", "HINT: "]);
    }
    // The plan does not wait until the server is stopped: with it one decides whether to.
    for words in [&["--delta", "--dry-run"][..], &["--dry-run"]] {
        let planned = over(words);
        planned.expect_code(1).expect_stderr(&["server may be running", "HINT: "]);
        assert!(planned.stdout.contains("Timeline") && planned.stdout.contains("needed"), "{planned}");
    }
    assert_eq!(other.sql("select 1"), "1");
    let identifier = other.system_identifier().to_string();
    other.stop(StopMode::Fast);
    let before = tree_of(other.data());
    over(&["--delta"]).expect_code(1).expect_stderr(&["system identifier", &identifier, "HINT: "]);
    assert_eq!(tree_of(other.data()), before);
}

/// The largest file of the database's own relations, relative to the data directory.
fn some_relation(data: &Path) -> String {
    let sizes =
        tool("sh", ["-c", "cd \"$0\" && du -ab base/*/[0-9]* | sort -n | tail -1 | cut -f2", data.to_str().unwrap()]);
    assert!(sizes.starts_with("base/"), "{sizes}");
    sizes
}

#[test]
fn a_delta_restore_believes_contents_and_touches_only_its_own_directories() {
    let past = Past::shared();
    let place = Place::new();
    place.restore(&past.repository, &[]);
    let data = place.data();
    let mut server = place.server(&past.repository);
    server.start();
    wait_until_open(&server);
    let load = Load::go_on(&server);
    server.sql("create table of_another_life as select generate_series(1, 1000) n");
    load.stop();
    server.stop(StopMode::Fast);

    // The same size and the same times, but other contents.
    let wrong = data.join(some_relation(&data));
    let times = place.around().path().join("times");
    tool("cp", ["-a", wrong.to_str().unwrap(), times.to_str().unwrap()]);
    let mut bytes = std::fs::read(&wrong).unwrap();
    bytes[8192 + 4000] ^= 1;
    std::fs::write(&wrong, &bytes).unwrap();
    tool("touch", ["-r", times.to_str().unwrap(), wrong.to_str().unwrap()]);
    // Longer, too much, and a link to somewhere else.
    tool("sh", ["-c", "cat \"$0\" \"$0\" >\"$0.x\" && mv \"$0.x\" \"$0\"", data.join("global/1262").to_str().unwrap()]);
    place.around().write("data/base/extra", "not of the backup");
    let unrelated = place.around().create_private("unrelated");
    let kept = place.around().write("unrelated/1262", "mine");
    let database = data.join("base/1");
    std::fs::remove_dir_all(&database).unwrap();
    symlink(&unrelated, &database).unwrap();
    std::fs::write(unrelated.join("112"), "mine too").unwrap();

    let restored = place.restore(&past.repository, &["--delta"]);
    assert!(restored.stdout.contains("were the same and stayed"), "{restored}");
    verify(&data);
    assert_eq!(std::fs::read_to_string(kept).unwrap(), "mine");
    assert_eq!(std::fs::read_to_string(unrelated.join("112")).unwrap(), "mine too");
    assert!(database.symlink_metadata().unwrap().is_dir(), "the link is no longer there");
    assert!(!data.join("base/extra").exists());
    let mut server = place.server(&past.repository);
    server.start();
    wait_until_open(&server);
    assert_eq!(expect_balanced(&server), past.changes);
    assert_eq!(server.sql("select to_regclass('of_another_life') is null"), "t");
}

#[test]
fn wal_goes_where_it_is_told_to() {
    let past = Past::shared();
    let place = Place::new();
    let wal = place.around().path().join("wal");
    let server = recover(&place, &past, &["--waldir", wal.to_str().unwrap()]);
    wait_until_open(&server);
    assert_eq!(std::fs::read_link(place.data().join("pg_wal")).unwrap(), wal);
    assert!(wal.join(server.finish_segment()).exists());
    drop(server);

    let other = Place::new();
    let words = ["--waldir", wal.to_str().unwrap()];
    other.restoring(&past.repository, &words).finish().expect_code(1).expect_stderr(&["not empty", "--waldir"]);
    assert!(other.is_untouched());
}

/// Replaces an object that `backup.json` has the size and hash of, and puts those right.
fn replace_index(repository: &Repository, id: &str, change: impl Fn(&str) -> String) {
    let key = repository.find(&format!("{id}/files.ndjson.zst"));
    let plain = String::from_utf8(crate::samples::unpacked(repository, &key)).unwrap();
    let changed = repository.scratch().write("index", change(&plain));
    let packed = repository.scratch().path().join("index.zst");
    tool("zstd", ["-q", "-f", changed.to_str().unwrap(), "-o", packed.to_str().unwrap()]);
    let digest = tool("sha256sum", [&packed]);
    let bytes = std::fs::read(&packed).unwrap();
    let record = repository.find(&format!("{id}/backup.json"));
    let mut backup: Value = serde_json::from_slice(&repository.read(&record)).unwrap();
    backup["index"]["size"] = bytes.len().into();
    backup["index"]["sha256"] = digest.split_whitespace().next().unwrap().into();
    repository.write(&key, &bytes);
    repository.write(&record, &serde_json::to_vec(&backup).unwrap());
}

#[test]
fn an_index_that_leads_outside_is_refused() {
    let past = Past::shared();
    for path in ["../outside", "base/../../outside", "/tmp/walkeep-outside", "base//1", ""] {
        let repository = copy_of(&past.repository);
        replace_index(&repository, &past.second, |index| {
            let changed = index.replace("\"path\":\"PG_VERSION\"", &format!("\"path\":\"{path}\""));
            assert_ne!(changed, index);
            changed
        });
        let place = Place::new();
        let refused = place.restoring(&repository, &[]).finish();
        refused.expect_code(1).expect_stderr(&["files.ndjson.zst", "damaged"]);
        assert!(place.is_untouched(), "{refused}");
    }
    assert!(!Path::new("/tmp/walkeep-outside").exists());
}

#[test]
fn a_damaged_backup_is_named_and_leaves_nothing_that_starts() {
    let past = Past::shared();
    let spoilt = |spoil: &dyn Fn(&Repository)| {
        let repository = copy_of(&past.repository);
        spoil(&repository);
        let place = Place::new();
        let refused = place.restoring(&repository, &[&past.second]).finish();
        refused.expect_code(1);
        expect_no_start(&place.data());
        assert!(!place.data().join("global/pg_control").exists());
        refused
    };
    let key = |name: &str| past.repository.find(&format!("{}/{name}", past.second));
    let middle = |name: &str| past.repository.read(&key(name)).len() / 2;
    for name in ["pack-00001.tar.zst", "pack-00002.tar.zst", "files.ndjson.zst", "backup_manifest.zst"] {
        let (key, middle) = (key(name), middle(name));
        spoilt(&|repository| repository.flip_bit(&key, middle)).expect_stderr(&[name, "damaged", "HINT: "]);
        spoilt(&|repository| repository.truncate(&key, middle)).expect_stderr(&[name, "damaged"]);
        spoilt(&|repository| repository.delete(&key)).expect_stderr(&[name, "missing"]);
    }
    let record = key("backup.json");
    spoilt(&|repository| repository.truncate(&record, middle("backup.json"))).expect_stderr(&[&past.second]);
    spoilt(&|repository| repository.write(&record, b"")).expect_stderr(&[&past.second]);

    // Without a name the older one serves, and it is said that the newer one does not.
    let repository = copy_of(&past.repository);
    repository.truncate(&record, middle("backup.json"));
    let place = Place::new();
    place.restore(&repository, &[]).expect_stderr(&["WARNING", &past.second]);
    verify(&place.data());
}

#[test]
fn what_cannot_be_read_is_listed_as_such_and_hides_nothing_else() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let record = repository.find(&format!("{}/backup.json", past.second));
    let list = |format: &str| {
        let listed = basebackup(&repository, &["list", "--format", format]).finish();
        listed.expect_code(0).stdout.clone()
    };
    let cluster = || serde_json::from_str::<Value>(&list("json")).unwrap()["clusters"][0].take();
    let sound = cluster();
    assert_eq!(sound["unusable"], Value::Array(Vec::new()));
    let ids = |cluster: &Value| -> Vec<String> {
        let backups = cluster["backups"].as_array().unwrap();
        backups.iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
    };
    let others: Vec<String> = ids(&sound).into_iter().filter(|id| *id != past.second).collect();

    // More than any record has, and without a copy of it in memory.
    let huge = std::fs::OpenOptions::new().write(true).open(repository.path().join(&record)).unwrap();
    huge.set_len(300 << 20).unwrap();
    let spoilt = cluster();
    assert_eq!(ids(&spoilt), others);
    assert_eq!(spoilt["unusable"][0]["id"], past.second.as_str());
    assert!(list("text").contains(&format!("{}  cannot be used: ", past.second)));

    // The last segment of a window cannot say when it was written: the window is there all the same.
    let last = sound["windows"].as_array().unwrap().last().unwrap()["last_segment"].as_str().unwrap().to_owned();
    repository.flip_bit(&repository.find(&format!("/{last}.zst")), 12);
    let window = cluster()["windows"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&window["to_time"], window["last_segment"].as_str().unwrap()), (&Value::Null, last.as_str()));
}

#[test]
fn in_its_old_place_the_server_goes_on_archiving_and_old_targets_are_gone() {
    let repository = Repository::ceph();
    let mut server = archiving(&repository).configure("autovacuum = off").start();
    let data = server.data().to_owned();
    server.sql("create table t as select 1 as n");
    take(&repository, &server);
    server.sql("insert into t values (2)");
    server.sql("select pg_create_restore_point('two')");
    server.sql("insert into t values (3)");
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);
    drop(server);
    // The scratch directory went with the server: what is restored is a new one of the same name.
    let around = data.parent().unwrap();
    std::fs::create_dir(around).unwrap();
    user::give(around);

    let restore = |words: &[&str]| {
        let restored = basebackup(&repository, &["restore", "-D", data.to_str().unwrap()]).args(words).finish();
        restored.expect_code(0);
        restored
    };
    let restored = restore(&["--target-name", "two", "--target-action", "promote"]);
    assert!(restored.stdout.contains("host and data directory are those of the backup"), "{restored}");
    let mut server = server_on(&data, &repository);
    server.start();
    wait_until_open(&server);
    assert_eq!((server.sql("select count(*) from t"), server.sql("show archive_mode")), ("2".into(), "on".into()));
    server.sql("insert into t values (22)");
    server.wait_until_archived(&server.finish_segment());
    repository.find("wal/00000002.history.zst");
    // This one was taken of a server with a target in its configuration.
    let second = take(&repository, &server);
    assert!(std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap().contains("recovery_target_name"));
    server.sql("insert into t values (23)");
    let lsn = server.sql("select pg_current_wal_insert_lsn()");
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);

    let place = Place::new();
    let restored = place.restore(&repository, &["--target-lsn", &lsn, "--target-action=promote"]);
    assert!(restored.stdout.contains(&second), "{restored}");
    verify(&place.data());
    let settings = std::fs::read_to_string(place.data().join("postgresql.auto.conf")).unwrap();
    assert!(!settings.contains("recovery_target_name") && settings.contains("recovery_target_lsn"), "{settings}");
    let mut restored = place.server(&repository);
    restored.start();
    wait_until_open(&restored);
    assert_eq!(restored.sql("select string_agg(n::text, ',' order by n) from t"), "1,2,22,23");
    drop(restored);

    if user::is_root() {
        restores_belong_to_the_recorded_owner_or_to_whoever_restores(&repository);
    }
    std::fs::remove_dir_all(around).unwrap();
}

/// Root gives the files to who owned them; anybody else can only have them.
fn restores_belong_to_the_recorded_owner_or_to_whoever_restores(repository: &Repository) {
    let owners =
        |place: &Place| tool("sh", ["-c", "find \"$0\" -printf '%U\\n' | sort -u", place.data().to_str().unwrap()]);
    let place = Place::new();
    place.restoring(repository, &[]).as_caller().finish().expect_code(0);
    assert_eq!(owners(&place), user::unprivileged().uid.to_string());
    let mut server = place.server(repository);
    server.start();
    wait_until_open(&server);
    drop(server);

    let place = Place::new();
    std::fs::set_permissions(place.around().path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    place.restoring(repository, &[]).as_caller().under(nobody).finish().expect_code(0);
    assert_eq!(owners(&place), "65534");
}

#[test]
fn tablespaces_move_and_those_of_the_running_original_stay_as_they_are() {
    let repository = Repository::directory();
    let server = archiving(&repository).group_access().start();
    let original = server.scratch().create_private("fast disk");
    server.sql(&format!("create tablespace fast location '{}'", original.display()));
    let load = Load::start(&server);
    server.sql(
        "create table here (n int) with (autovacuum_enabled = off) tablespace fast;
         insert into here select generate_series(1, 20000)",
    );
    // So that reading it gives the running server nothing to write there: neither hint bits nor maps.
    server.sql("vacuum (freeze) here");
    server.sql("checkpoint");
    take(&repository, &server);
    let mark = server.sql("create table mark (); select pg_current_wal_insert_lsn()");
    server.finish_segment();

    // Still in use.
    let place = Place::new();
    let refused = place.restoring(&repository, &[]).finish();
    refused.expect_code(1).expect_stderr(&["not empty", original.to_str().unwrap(), "--tablespace-mapping"]);
    assert!(place.is_untouched());
    server.wait_for(&format!("select last_archived_wal > pg_walfile_name('{mark}') from pg_stat_archiver"), "t");

    let moved = place.around().path().join("moved = here");
    let mapping = format!("{}={}", original.display(), moved.display().to_string().replace('=', "\\="));
    let before = tree_of(&original);
    let words = ["-T", &mapping, "--target-lsn", &mark, "--target-action", "promote"];
    place.restore(&repository, &words);
    verify(&place.data());
    let map = std::fs::read_to_string(place.data().join("tablespace_map")).unwrap();
    assert!(map.contains("moved = here") && !map.contains("fast disk"), "{map}");
    expect_group_access(&place.data());
    expect_group_access(&moved);

    let mut restored = place.server(&repository);
    restored.start();
    wait_until_open(&restored);
    let location = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'";
    assert_eq!(restored.sql(location), moved.to_str().unwrap());
    assert_eq!(server.sql(location), original.to_str().unwrap());
    assert_eq!(restored.sql("delete from here where n > 10; select count(*) from here"), "10");
    restored.sql("vacuum here");
    restored.sql("checkpoint");
    assert_eq!(server.sql("select count(*) from here"), "20000");
    assert!(tree_of(&original) == before, "the original's tablespace was touched");
    restored.stop(StopMode::Fast);
    load.stop();

    // Over itself: what does not belong into the tablespace goes, what is beside it stays.
    let own = std::fs::read_dir(&moved).unwrap().next().unwrap().unwrap().path();
    std::fs::write(own.join("extra"), "x").unwrap();
    std::fs::write(moved.join("beside"), "mine").unwrap();
    place.restore(&repository, &["-T", &mapping, "--delta"]);
    assert!(!own.join("extra").exists());
    std::fs::remove_file(moved.join("beside")).unwrap();
    verify(&place.data());
    let mut restored = place.server(&repository);
    restored.start();
    wait_until_open(&restored);
    assert_eq!(restored.sql("select count(*) from here"), "20000");
    expect_balanced(&restored);
}

/// Every file and what is in it.
fn tree_of(directory: &Path) -> String {
    tool("sh", ["-c", "cd \"$0\" && find . -type f -exec sha256sum {} + | sort -k2", directory.to_str().unwrap()])
}

fn expect_group_access(directory: &Path) {
    let wrong = "find \"$0\" -type d ! -perm 0750 -o -type f ! -perm 0640";
    assert_eq!(tool("sh", ["-c", wrong, directory.to_str().unwrap()]), "");
    assert_eq!(directory.metadata().unwrap().mode() & 0o777, 0o750);
}

#[test]
fn a_restored_standby_follows_its_primary_and_its_own_backup_restores() {
    let repository = Repository::directory();
    let primary = archiving(&repository).start();
    primary.sql("create table t as select 1 as n; select pg_create_physical_replication_slot('follower')");
    take(&repository, &primary);
    primary.sql("insert into t values (2)");
    primary.wait_until_archived(&primary.finish_segment());
    primary.sql("insert into t values (3)");

    let place = Place::new();
    let conninfo = format!("host={} user=postgres", primary.socket_directory().display());
    place.restore(&repository, &["--standby", "--primary-conninfo", &conninfo, "--slot", "follower"]);
    assert!(place.data().join("standby.signal").exists() && !place.data().join("recovery.signal").exists());
    let mut standby = place.server(&repository);
    standby.start();
    standby.wait_for("select count(*) from t", "3");
    primary.wait_for("select active from pg_replication_slots where slot_name = 'follower'", "t");
    primary.sql("insert into t values (4)");
    standby.wait_for("select count(*) from t", "4");

    // The last segment of this one is nowhere but in the standby's pg_wal.
    let id = take(&repository, &standby);
    let shown = basebackup(&repository, &["show", &id, "--format", "json"]).finish();
    let backup: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!((&backup["from_standby"], backup["kept_wal"].as_array().unwrap().len()), (&Value::from(true), 1));
    drop(standby);
    drop(primary);
    let copy = Place::new();
    let restored = copy.restore(&repository, &[]);
    assert!(restored.stdout.contains(&id), "{restored}");
    verify(&copy.data());
    let mut server = copy.server(&repository);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql("select count(*) from t"), "4");
}
