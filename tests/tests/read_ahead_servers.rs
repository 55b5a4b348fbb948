//! Read-ahead under real servers: they end where they would end without it, and nothing of it stays.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use walkeep_common::wal::name::WalFileName;
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, Options, StopMode, program, setting};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::read_ahead::workers;

const BATCHES: u32 = 6;
const ALL_ROWS: &str = "select count(*), count(distinct batch), max(batch) from t";

fn archiving(repository: &Repository) -> Options {
    let command = format!("{} %p", binaries::archive_push().display());
    Cluster::options().environment(repository.environment()).archive_command(&command)
}

fn restore_command() -> String {
    format!("{} %f %p", binaries::archive_get().display())
}

/// Each batch of rows in a segment of its own, the last of which is archived.
fn insert(server: &Cluster, batches: impl Iterator<Item = u32>) -> Vec<String> {
    let batch = |number| {
        server.sql(&format!("insert into t select {number}, md5(n::text) from generate_series(1, 1000) n"));
        server.finish_segment()
    };
    let segments: Vec<String> = batches.map(batch).collect();
    server.wait_until_archived(segments.last().unwrap());
    segments
}

/// A copy from before all rows, and an archive that has them on two timelines.
struct Archived {
    repository: Repository,
    copy: PathBuf,
    segments: Vec<String>,
    _servers: [Cluster; 2],
}

impl Archived {
    fn new(repository: Repository, segment_size: u32) -> Self {
        let mut primary = archiving(&repository).segment_size(segment_size).start();
        primary.sql("create table t (batch int, filler text)");
        let copy = primary.scratch().path().join("copy");
        let backup = Run::new(program("pg_basebackup")).args(primary.connection()).arg("-D").arg(&copy);
        backup.args(["-X", "none", "-c", "fast", "--no-sync"]).finish().expect_code(0);
        let mut standby = primary.standby(archiving(&repository));
        standby.start();
        let mut segments = insert(&primary, 1..=BATCHES);
        let position = primary.sql("select pg_current_wal_lsn()");
        standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
        primary.kill();
        standby.promote();
        segments.extend(insert(&standby, BATCHES + 1..=2 * BATCHES));
        Self { repository, copy, segments, _servers: [primary, standby] }
    }

    /// Another copy of the copy, told to recover.
    fn recovering(&self, signal: &str, prefetch: u32, command: &str) -> Cluster {
        let data = self.copy.with_file_name(format!("recovered-{prefetch}"));
        Run::new("cp").arg("-a").arg(&self.copy).arg(&data).as_caller().finish().expect_code(0);
        let options = Cluster::options().environment(self.repository.environment());
        let options = options.environment(&[("WALKEEP_PREFETCH".to_owned(), prefetch.to_string())]);
        let options = options.configure(setting("restore_command", command)).configure("archive_mode = off");
        let cluster = Cluster::adopt(&data, options.configure("wal_retrieve_retry_interval = '200ms'"));
        let file = data.join(signal);
        fs::write(&file, "").unwrap();
        user::give(&file);
        cluster
    }
}

fn all_rows() -> String {
    format!("{}|{}|{1}", 2 * BATCHES * 1000, 2 * BATCHES)
}

/// Where recovery ended, by PostgreSQL's own word, and on which timeline the server goes on.
fn end(cluster: &Cluster) -> (String, String) {
    let log = cluster.log();
    let done = log.lines().rev().find_map(|line| line.split_once("redo done at ")).unwrap().1;
    let position = done.split(' ').next().unwrap().to_owned();
    (position, cluster.sql("select timeline_id from pg_control_checkpoint()"))
}

fn spools(repository: &Repository) -> usize {
    let names = fs::read_dir(repository.spool()).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with("read-ahead-")).count()
}

/// Neither a worker nor a spool, and nothing in `pg_wal` that PostgreSQL does not put there.
#[track_caller]
fn expect_nothing_left(cluster: &Cluster, repository: &Repository) {
    until("the worker leaves", Duration::from_secs(10), || workers(cluster.data()).is_empty().then_some(()));
    assert_eq!(spools(repository), 0);
    let names = fs::read_dir(cluster.data().join("pg_wal")).unwrap();
    for name in names.map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        // The second is new in PostgreSQL 17.
        let directories = ["archive_status", "summaries"];
        assert!(directories.contains(&name.as_str()) || name.parse::<WalFileName>().is_ok(), "{name}");
    }
}

#[test]
fn recovery_across_timelines_ends_where_it_ends_without_read_ahead() {
    let archived = Archived::new(Repository::directory(), 1);
    let mut ends = Vec::new();
    for prefetch in [0, 16] {
        let mut cluster = archived.recovering("recovery.signal", prefetch, &restore_command());
        cluster.start();
        cluster.wait_for("select pg_is_in_recovery()", "f");
        assert_eq!(cluster.sql(ALL_ROWS), all_rows());
        expect_nothing_left(&cluster, &archived.repository);
        ends.push(end(&cluster));
    }
    assert_eq!(ends[0], ends[1]);
}

#[test]
fn a_recovering_server_is_served_what_the_worker_fetched() {
    let mut archived = Archived::new(Repository::ceph(), 1);
    let proxy = Proxy::start(&ceph::shared().endpoint);
    archived.repository.set_proxy(&proxy);
    let held = archived.segments[3].clone();
    let gate = archived.repository.scratch().path().join("gate");
    let wait = format!("[ %f != {held} ] || until [ -e {} ]; do sleep 0.05; done", gate.display());
    let mut cluster = archived.recovering("standby.signal", 16, &format!("{wait}; {}", restore_command()));
    cluster.start();
    until("it lies ready", SOON, || {
        let spools = fs::read_dir(archived.repository.spool()).unwrap().flatten().map(|entry| entry.path());
        let files = spools.filter_map(|spool| fs::read_dir(spool).ok()).flatten().flatten();
        let mut names = files.map(|entry| entry.file_name().into_string().unwrap());
        names.any(|name| name.starts_with(&held) && !name.contains(".part")).then_some(())
    });
    fs::write(&gate, "").unwrap();
    cluster.wait_for(ALL_ROWS, &all_rows());
    assert_eq!(proxy.count("GET", &held), 1, "by the worker alone");
}

#[test]
fn a_standby_that_is_promoted_while_segments_are_fetched_ahead_keeps_nothing_of_it() {
    let mut archived = Archived::new(Repository::ceph(), 1);
    let proxy = Proxy::start(&ceph::shared().endpoint);
    archived.repository.set_proxy(&proxy);
    proxy.add(Rule::all(Fault::BytesPerSecond(20_000)).method("GET").path(&archived.segments[4]));
    let mut cluster = archived.recovering("standby.signal", 16, &restore_command());
    cluster.start();
    cluster.wait_for("select max(batch) >= 3 from t", "t");
    assert_eq!(workers(cluster.data()).len(), 1);
    cluster.promote();
    expect_nothing_left(&cluster, &archived.repository);
    // PostgreSQL reads the archive to its end before it opens.
    assert_eq!(cluster.sql(ALL_ROWS), all_rows());
}

#[test]
fn a_server_that_is_stopped_in_the_middle_takes_its_worker_along_and_can_go_on() {
    let mut archived = Archived::new(Repository::ceph(), 1);
    let proxy = Proxy::start(&ceph::shared().endpoint);
    archived.repository.set_proxy(&proxy);
    proxy.add(Rule::all(Fault::StallAfterHeader).method("GET").path(&archived.segments[4]));
    let mut cluster = archived.recovering("standby.signal", 16, &restore_command());
    cluster.start();
    cluster.wait_for("select max(batch) >= 3 from t", "t");
    assert_eq!(workers(cluster.data()).len(), 1);
    cluster.stop(StopMode::Fast);
    expect_nothing_left(&cluster, &archived.repository);
    proxy.clear();
    cluster.start();
    cluster.wait_for(ALL_ROWS, &all_rows());
    cluster.stop(StopMode::Immediate);
    expect_nothing_left(&cluster, &archived.repository);
}

#[test]
fn pg_rewind_fetches_the_wal_it_lacks_without_read_ahead() {
    let repository = Repository::directory();
    let restore = setting("restore_command", &restore_command());
    let rewindable = || archiving(&repository).configure("wal_log_hints = on").configure(restore.clone());
    let mut old = rewindable().segment_size(1).start();
    old.sql("create table t (batch int, filler text)");
    let mut new = old.standby(rewindable());
    new.start();
    let position = old.sql("select pg_current_wal_lsn()");
    new.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    new.promote();
    insert(&new, 1..=2);
    // The old primary goes on by itself, and then loses the WAL that tells what it changed.
    let segments = insert(&old, 11..=14);
    assert!(old.stop(StopMode::Fast).success());
    for segment in &segments {
        fs::remove_file(old.data().join("pg_wal").join(segment)).ok();
    }
    let rewind = |options: &[&str]| {
        let source = format!("host={} user=postgres dbname=postgres", new.socket_directory().display());
        let rewind = Run::new(program("pg_rewind")).arg("-D").arg(old.data()).arg("--source-server").arg(source);
        rewind.args(options).arg("--no-sync").envs(repository.environment()).finish()
    };
    assert_ne!(rewind(&[]).code(), 0, "the WAL must be needed");
    rewind(&["--restore-target-wal"]).expect_code(0);
    assert_eq!((workers(old.data()).len(), spools(&repository)), (0, 0));
}
