//! `basebackup restore` against real servers: every target is reached, nothing else is touched, nothing half starts.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, Options, StopMode, major, program};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::wait::{SOON, until};

/// A server that archives, a backup of it, and rows 1 to 4 after the backup, each in a segment of its own.
struct Source {
    repository: Repository,
    cluster: Cluster,
    backup: String,
}

/// Where and what the third row was.
struct Third {
    lsn: String,
    xid: String,
    time: String,
}

const ROWS: &str = "select coalesce(string_agg(i::text, ',' order by i), '') from t";

impl Source {
    fn new(repository: Repository) -> Self {
        let archive = format!("{} %p", binaries::archive_push().display());
        let options = Cluster::options().segment_size(1).checksums().environment(repository.environment());
        let cluster = options.archive_command(&archive).start();
        for name in ["fast", "slow"] {
            let directory = cluster.scratch().create_private(name);
            cluster.sql(&format!("create tablespace {name} location '{}'", directory.display()));
        }
        cluster.sql("create table t (i int); create table f (i int) tablespace fast; insert into f values (7)");
        cluster.sql("create table s tablespace slow as select i, repeat('x', 100) x from generate_series(1, 20000) i");
        let mut source = Self { repository, cluster, backup: String::new() };
        source.backup = source.take();
        source
    }

    fn basebackup(&self, command: &str) -> Run {
        Run::new(binaries::basebackup()).envs(self.repository.environment()).arg(command)
    }

    fn take(&self) -> String {
        let run = self.basebackup("take").args(self.cluster.connection()).finish();
        run.expect_code(0).stdout.trim().to_owned()
    }

    fn row(&self, number: u32) -> String {
        self.cluster.sql(&format!("insert into t values ({number})"));
        self.cluster.finish_segment()
    }

    /// Adds four rows, with a restore point after the third.
    fn rows(&self) -> Third {
        let _ = (self.row(1), self.row(2));
        let xid = self.cluster.sql("begin; insert into t values (3); select txid_current(); commit");
        let lsn = self.cluster.sql("select pg_current_wal_lsn()");
        let time = self.cluster.sql("select clock_timestamp()");
        self.cluster.sql("select pg_create_restore_point('after three')");
        self.cluster.wait_until_archived(&self.row(4));
        Third { lsn, xid: xid.lines().last().unwrap().to_owned(), time }
    }

    /// Restores beside the original, tablespaces moved.
    fn restore(&self, target: &Scratch, arguments: &[&str]) -> Finished {
        self.restore_run(target, arguments).finish()
    }

    fn restore_run(&self, target: &Scratch, arguments: &[&str]) -> Run {
        let mapping = |name: &str| {
            let (old, new) = (self.cluster.scratch().path().join(name), target.path().join(name));
            format!("{}={}", old.display(), new.display())
        };
        let run = self.basebackup("restore").arg("-D").arg(target.path().join("data"));
        run.args(["-T", &mapping("fast"), "-T", &mapping("slow")]).args(arguments)
    }

    fn options(&self) -> Options {
        Cluster::options().environment(self.repository.environment())
    }

    /// The restored server, started.
    fn start(&self, target: &Scratch) -> Cluster {
        let mut restored = Cluster::adopt(&target.path().join("data"), self.options());
        restored.start();
        restored
    }
}

fn verify(target: &Scratch) {
    Run::new(program("pg_verifybackup")).arg("-n").arg(target.path().join("data")).finish().expect_code(0);
}

fn paused(cluster: &Cluster) {
    let function =
        if major() >= 14 { "pg_get_wal_replay_pause_state() = 'paused'" } else { "pg_is_wal_replay_paused()" };
    cluster.wait_for(&format!("select {function}"), "t");
}

#[test]
fn every_target_is_reached_exactly() {
    let source = Source::new(Repository::directory());
    let third = source.rows();
    let after_three = ["--target-name", "after three"];
    for (arguments, rows) in [
        (&["--target=immediate"][..], ""),
        (&["--target-xid", &third.xid], "1,2,3"),
        (&["--target-xid", &third.xid, "--target-inclusive", "false"], "1,2"),
        (&["--target-lsn", &third.lsn], "1,2,3"),
        (&["--target-time", &third.time], "1,2,3"),
        (&after_three, "1,2,3"),
    ] {
        let target = Scratch::new("to");
        source.restore(&target, arguments).expect_code(0);
        verify(&target);
        let restored = source.start(&target);
        paused(&restored);
        assert_eq!(restored.sql(ROWS), rows, "{arguments:?}");
        assert_eq!(restored.sql("show archive_mode"), "off");
    }
    let target = Scratch::new("to");
    source.restore(&target, &[]).expect_code(0);
    let restored = source.start(&target);
    restored.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(restored.sql(ROWS), "1,2,3,4");
}

#[test]
fn targets_that_cannot_be_reached_are_refused_before_anything_is_written() {
    let source = Source::new(Repository::directory());
    let third = source.rows();
    let target = Scratch::new("to");
    for (arguments, code, texts) in [
        (&["--target-time", "2001-01-01 00:00Z"][..], 1, &["no base backup can reach", &source.backup][..]),
        (&["--target-time", "2101-01-01 00:00Z"], 1, &["last archived end of a transaction", "--target-lsn="]),
        (&["--target-lsn", "FF/0"], 1, &["is not archived"]),
        (&["--target-lsn", "0/100"], 1, &["behind the target"]),
        (&["--target-xid", "3"], 1, &["may have ended before"]),
        (&["--target-timeline", "9"], 1, &["nothing of timeline 9"]),
        (&["--target-time", "tomorrow"], 2, &["is not a time"]),
        (&["--target-lsn", "0/1", "--target-xid", "7"], 2, &["cannot be used with"]),
        (&["20200101T000000Z-0000"], 1, &["there is no base backup"]),
    ] {
        source.restore(&target, arguments).expect_code(code).expect_stderr(texts);
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0, "{arguments:?}");
    }
    let plan = source.restore(&target, &["--dry-run", "--format", "json", "--target-xid", &third.xid]);
    assert!(plan.expect_code(0).stdout.contains(&source.backup), "{plan}");
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
}

#[test]
fn a_hole_is_refused_unless_recovery_is_to_end_there() {
    let source = Source::new(Repository::directory());
    let segments = [1, 2, 3, 4].map(|number| source.row(number));
    source.cluster.wait_until_archived(&segments[3]);
    source.repository.delete(&source.repository.find(&format!("{}.zst", segments[2])));
    let target = Scratch::new("to");
    source.restore(&target, &[]).expect_code(1).expect_stderr(&[&segments[2], "--until-hole"]);
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    source.restore(&target, &["--until-hole"]).expect_code(0);
    let restored = source.start(&target);
    restored.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(restored.sql(ROWS), "1,2");
}

#[test]
fn a_backup_of_the_branch_that_was_left_is_not_used_for_the_new_one() {
    let source = Source::new(Repository::directory());
    let third = source.rows();
    let target = Scratch::new("to");
    let arguments = ["--target-xid", &third.xid, "--target-action", "promote", "--keep-archiving"];
    source.restore(&target, &arguments).expect_code(0);
    let mut second = source.start(&target);
    second.wait_for("select pg_is_in_recovery()", "f");
    second.sql("insert into t values (22)");
    second.wait_until_archived(&second.finish_segment());
    second.stop(StopMode::Fast);
    // The original goes on, and has the newer backup.
    let later = source.take();

    let latest = Scratch::new("to");
    source.restore(&latest, &[]).expect_code(0).expect_stderr(&[&later, "left timeline 1"]);
    let restored = source.start(&latest);
    restored.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(restored.sql(ROWS), "1,2,3,22");

    let first = Scratch::new("to");
    source.restore(&first, &[&later]).expect_code(1).expect_stderr(&["left timeline 1"]);
    source.restore(&first, &["--target-timeline", "1"]).expect_code(0);
    let restored = source.start(&first);
    restored.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(restored.sql(ROWS), "1,2,3,4");
}

#[test]
fn moved_tablespaces_leave_the_original_server_alone() {
    let source = Source::new(Repository::directory());
    source.rows();
    let target = Scratch::new("to");
    // Where the tablespaces were, a server runs.
    let bare = source.basebackup("restore").arg("-D").arg(target.path().join("data")).finish();
    bare.expect_code(1).expect_stderr(&["is not empty", "--tablespace-mapping"]);
    source.restore(&target, &["--target=immediate", "--target-action=promote"]).expect_code(0);
    verify(&target);
    let restored = source.start(&target);
    restored.wait_for("select pg_is_in_recovery()", "f");
    restored.sql("update f set i = 8; checkpoint");
    assert_eq!(source.cluster.sql("checkpoint; select i from f"), "7");
    let locations = "select string_agg(pg_tablespace_location(oid), ',') from pg_tablespace where oid > 9999";
    for location in restored.sql(locations).split(',') {
        assert!(Path::new(location).starts_with(target.path()), "{location}");
    }
}

#[test]
fn a_killed_restore_never_starts_and_delta_finishes_it() {
    let source = Source::new(Repository::directory());
    source.rows();
    let target = Scratch::new("to");
    let data = target.path().join("data");
    let mut kills = 0;
    // Later and later, until it is through before it is killed.
    for files in (1..).map(|step| step * 150) {
        let arguments: &[&str] = if data.join("PG_VERSION").exists() { &["--delta"] } else { &[] };
        let mut restore = source.restore_run(&target, arguments).start();
        until("some files, or the end", SOON, || (restore.has_ended() || count(&data) > files).then_some(()));
        if restore.has_ended() {
            restore.finish().expect_code(0);
            break;
        }
        restore.signal(Signal::KILL);
        assert_eq!(restore.finish().code(), 128 + 9);
        kills += 1;
        if data.join("global/pg_control").exists() {
            break;
        }
        let started = Run::new(program("postgres")).arg("-D").arg(&data).finish();
        assert_ne!(started.code(), 0, "a server started on half a restore\n{started}");
    }
    assert!(kills > 0);
    source.restore(&target, &["--delta"]).expect_code(0);
    verify(&target);
    let restored = source.start(&target);
    restored.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(restored.sql(ROWS), "1,2,3,4");
}

/// Files in the directories of databases, where most of them are.
fn count(data: &Path) -> usize {
    let databases = fs::read_dir(data.join("base")).into_iter().flatten().flatten();
    databases.map(|database| fs::read_dir(database.path()).into_iter().flatten().count()).sum()
}

#[test]
fn delta_trusts_contents_alone_and_touches_nothing_of_others() {
    let source = Source::new(Repository::directory());
    source.rows();
    let target = Scratch::new("to");
    source.restore(&target, &[]).expect_code(0);
    let data = target.path().join("data");
    let relation = |number: usize| -> PathBuf {
        let database = fs::read_dir(data.join("base/1")).unwrap().flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = database.filter(|path| path.metadata().unwrap().len() == 16384).collect();
        files.sort();
        files[number].clone()
    };
    // Other bytes, the same size and times.
    let (changed, longer) = (relation(0), relation(1));
    let (before, times) = (fs::read(&changed).unwrap(), fs::metadata(&changed).unwrap().modified().unwrap());
    let mut damaged = before.clone();
    damaged[9000] ^= 1;
    fs::write(&changed, &damaged).unwrap();
    fs::File::options().write(true).open(&changed).unwrap().set_modified(times).unwrap();
    fs::write(&longer, [fs::read(&longer).unwrap(), vec![1; 8192]].concat()).unwrap();
    let outside = target.create_private("outside");
    fs::write(outside.join("mine"), "mine").unwrap();
    std::os::unix::fs::symlink(&outside, data.join("base/link")).unwrap();
    fs::create_dir(data.join("base/4711")).unwrap();
    fs::write(data.join("base/4711/1"), "extra").unwrap();
    fs::create_dir(target.path().join("fast/other")).unwrap();
    fs::write(target.path().join("fast/other/theirs"), "theirs").unwrap();
    walkeep_tests::user::give(&data.join("base/4711"));

    let again = source.restore(&target, &["--delta"]);
    assert!(again.expect_code(0).stdout.contains("were the same"), "{again}");
    assert_eq!(fs::read(&changed).unwrap(), before);
    assert_eq!(fs::metadata(&longer).unwrap().len(), 16384);
    assert!(!data.join("base/4711").exists() && fs::symlink_metadata(data.join("base/link")).is_err());
    assert_eq!(fs::read_to_string(outside.join("mine")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(target.path().join("fast/other/theirs")).unwrap(), "theirs");

    let foreign = Cluster::options().create();
    let other = source.basebackup("restore").arg("-D").arg(foreign.data()).args(["--delta", "--target=immediate"]);
    let mappings = ["fast", "slow"].map(|name| {
        format!("-T{}={}", source.cluster.scratch().path().join(name).display(), outside.join(name).display())
    });
    other.args(mappings).finish().expect_code(1).expect_stderr(&["system identifier"]);
    let running = source.basebackup("restore").arg("-D").arg(source.cluster.data()).arg("--delta").finish();
    running.expect_code(1).expect_stderr(&["a server may be running"]);
}

#[test]
fn damage_in_the_repository_leaves_nothing_that_starts() {
    let source = Source::new(Repository::directory());
    source.rows();
    let pack = source.repository.find("pack-00001.tar.zst");
    let whole = source.repository.read(&pack);
    source.repository.flip_bit(&pack, whole.len() / 2);
    let target = Scratch::new("to");
    source.restore(&target, &[]).expect_code(1).expect_stderr(&["pack-00001.tar.zst", "damaged"]);
    assert!(!target.path().join("data/global/pg_control").exists());
    source.repository.write(&pack, &whole);
    source.restore(&target, &["--delta"]).expect_code(0);
    let index = source.repository.find("files.ndjson.zst");
    source.repository.truncate(&index, 100);
    let other = Scratch::new("to");
    source.restore(&other, &[]).expect_code(1).expect_stderr(&["files.ndjson.zst"]);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
}
