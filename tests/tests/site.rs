//! A server that archives, its base backups, and what they are restored to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, Options, major, program};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, Running, tool};
use walkeep_tests::scratch::Scratch;

/// A cluster of 1 MiB segments that archives into this repository.
pub(crate) fn archiving(repository: &Repository) -> Options {
    let command = format!("{} %p", binaries::archive_push().display());
    Cluster::options().segment_size(1).environment(repository.environment()).archive_command(&command)
}

/// `basebackup` with these words.
pub(crate) fn basebackup(repository: &Repository, words: &[&str]) -> Run {
    Run::new(binaries::basebackup()).args(words).envs(repository.environment())
}

/// `basebackup take`, about to run.
pub(crate) fn taking(repository: &Repository, server: &Cluster) -> Run {
    basebackup(repository, &["take"]).args(server.connection())
}

/// Takes a backup and returns its id.
pub(crate) fn take(repository: &Repository, server: &Cluster) -> String {
    let taken = taking(repository, server).finish();
    taken.expect_code(0);
    taken.stdout.trim_end().to_owned()
}

/// A directory of our own with room for one data directory, which does not exist yet.
#[derive(Debug)]
pub(crate) struct Place {
    scratch: Scratch,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { scratch: Scratch::new("restore") }
    }

    /// The data directory to be.
    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The directory around it.
    pub(crate) fn around(&self) -> &Scratch {
        &self.scratch
    }

    /// `basebackup restore` to here, about to run.
    pub(crate) fn restoring(&self, repository: &Repository, words: &[&str]) -> Run {
        basebackup(repository, &["restore"]).arg("-D").arg(self.data()).args(words)
    }

    /// Restores to here, and returns what the tool said.
    pub(crate) fn restore(&self, repository: &Repository, words: &[&str]) -> Finished {
        let restored = self.restoring(repository, words).finish();
        restored.expect_code(0);
        restored
    }

    /// The server on what was restored, not started yet.
    pub(crate) fn server(&self, repository: &Repository) -> Cluster {
        server_on(&self.data(), repository)
    }

    /// Whether nothing at all was made here.
    pub(crate) fn is_untouched(&self) -> bool {
        std::fs::read_dir(self.scratch.path()).unwrap().next().is_none()
    }
}

/// The server on a restored data directory, not started yet.
pub(crate) fn server_on(data: &Path, repository: &Repository) -> Cluster {
    let options = Cluster::options().environment(repository.environment());
    Cluster::adopt(data, options.configure("wal_retrieve_retry_interval = '200ms'"))
}

/// Waits until recovery has come to an end and the server takes writes.
#[track_caller]
pub(crate) fn wait_until_open(server: &Cluster) {
    server.wait_for("select pg_is_in_recovery()", "f");
}

/// Fails the test unless PostgreSQL refuses to start on this directory.
#[track_caller]
pub(crate) fn expect_no_start(data: &Path) {
    if !data.join("PG_VERSION").exists() {
        return;
    }
    let log = tool("mktemp", ["-u", "/tmp/walkeep-start-XXXXXX"]);
    let start = Run::new(program("pg_ctl")).args(["start", "-w", "-t", "30", "-l", &log, "-o", "-c listen_addresses="]);
    let started = start.arg("-D").arg(data).finish();
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    std::fs::remove_file(&log).ok();
    if started.status.success() {
        Run::new(program("pg_ctl")).args(["stop", "-m", "immediate", "-D"]).arg(data).finish();
        panic!("PostgreSQL starts on a directory that was not completely restored\n{started}\n{said}");
    }
}

/// PostgreSQL's own check of a data directory against its manifest, which must have nothing to say.
#[track_caller]
pub(crate) fn verify(data: &Path) {
    Run::new(program("pg_verifybackup")).args(["-n", "-e"]).arg(data).finish().expect_code(0);
}

/// Has `pg_amcheck`, which came with 14, look at tables and indexes of these databases, where this build of PostgreSQL
/// brings the extension.
#[track_caller]
pub(crate) fn check_indexes(server: &Cluster, databases: &[&str]) {
    let has_amcheck = server.sql("select count(*) from pg_available_extensions where name = 'amcheck'") == "1";
    if major() < 14 || !has_amcheck {
        return;
    }
    let check = Run::new(program("pg_amcheck")).args(server.connection()).args(databases);
    let checked = check.args(["--install-missing", "--heapallindexed", "--parent-check"]).finish();
    assert!(checked.code() == 0 && checked.stdout.is_empty(), "{checked}");
}

/// pgbench under way against a server; what it has filled first is 100 000 accounts.
pub(crate) struct Load {
    running: Running,
}

impl Load {
    /// Fills the tables and begins to change them.
    pub(crate) fn start(server: &Cluster) -> Self {
        Self::fill(server);
        Self::go_on(server)
    }

    /// So many transactions a second on new tables.
    pub(crate) fn of(server: &Cluster, rate: u32) -> Self {
        Self::fill(server);
        Self::run(server, &["-R", &rate.to_string()])
    }

    /// Begins to change tables that are there.
    pub(crate) fn go_on(server: &Cluster) -> Self {
        Self::run(server, &[])
    }

    /// Fills the tables.
    pub(crate) fn fill(server: &Cluster) {
        let fill = Run::new(program("pgbench")).args(["-i", "-q"]).args(server.connection()).arg("postgres");
        fill.finish().expect_code(0);
    }

    fn run(server: &Cluster, words: &[&str]) -> Self {
        // Much longer than any test: it is stopped.
        let run = Run::new(program("pgbench")).args(["-n", "-c", "2", "-T", "86400"]).args(words);
        Self { running: run.timeout(Duration::from_secs(86400)).args(server.connection()).arg("postgres").start() }
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        self.running.signal(rustix::process::Signal::TERM);
        self.running.finish();
    }
}

/// What pgbench keeps true: every balance is the sum of the changes in its history. Answers with the number of changes.
#[track_caller]
pub(crate) fn expect_balanced(server: &Cluster) -> u64 {
    let sums = server.sql(
        "select sum(abalance) = (select sum(tbalance) from pgbench_tellers)
            and sum(abalance) = (select sum(bbalance) from pgbench_branches)
            and sum(abalance) = (select coalesce(sum(delta), 0) from pgbench_history)
            and count(*) = 100000 from pgbench_accounts",
    );
    assert_eq!(sums, "t", "an inconsistent state was recovered");
    server.sql("select count(*) from pgbench_history").parse().unwrap()
}

/// Something that takes long to make and that tests only look at: made for the first that asks, gone with the last.
pub(crate) struct Shared<T>(Mutex<Weak<T>>);

impl<T> Shared<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    pub(crate) fn get(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let made = Arc::new(make());
            *shared = Arc::downgrade(&made);
            made
        })
    }
}

/// Every object with its contents.
pub(crate) fn snapshot(repository: &Repository) -> BTreeMap<String, Vec<u8>> {
    repository.objects().into_iter().map(|key| (key.clone(), repository.read(&key))).collect()
}

/// Another repository with the same objects, to be spoilt.
pub(crate) fn copy_of(repository: &Repository) -> Repository {
    let copy = Repository::directory();
    tool("cp", ["-a", &format!("{}/.", repository.path().display()), &copy.path().display().to_string()]);
    copy
}
