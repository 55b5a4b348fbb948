//! A server whose archiving is held up and let go, and what it had when it was told that a file is safe.

use std::collections::BTreeSet;

use rustix::process::{Pid, Signal, kill_process};
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, Options};
use walkeep_tests::proxy::Proxy;
use walkeep_tests::repository::Repository;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::wait::{SOON, until};
use walkeep_tests::worker;

use crate::samples::unpacked;

/// A server whose `archive_command` waits at a gate, pushes, and keeps a copy of what was pushed.
pub(crate) struct Archiving {
    pub(crate) cluster: Cluster,
    pub(crate) kept: Scratch,
}

impl Archiving {
    pub(crate) fn start(repository: &Repository) -> Self {
        Self::start_with(repository, "", Cluster::options())
    }

    /// `before` comes before the program in the command.
    pub(crate) fn start_with(repository: &Repository, before: &str, options: Options) -> Self {
        let kept = Scratch::new("kept");
        kept.create_private("copies");
        let cluster = Self::options(repository, before, options, &kept).start();
        Self { cluster, kept }
    }

    /// One that uses its segments again as soon as they are archived.
    pub(crate) fn start_recycling(repository: &Repository) -> Self {
        let kept = Scratch::new("kept");
        kept.create_private("copies");
        let options = Self::options(repository, "", Cluster::options(), &kept).configure("wal_keep_size = 0");
        let options = options.configure("max_wal_size = 8MB").configure("min_wal_size = 2MB");
        Self { cluster: options.start(), kept }
    }

    /// Its options. Whatever is copied into `kept` was archived before.
    pub(crate) fn options(repository: &Repository, before: &str, options: Options, kept: &Scratch) -> Options {
        let directory = kept.path().display();
        let push = binaries::archive_push();
        let command = format!(
            "while ! test -e {directory}/open; do sleep 0.02; done; {before} {} %p && \
             cp %p {directory}/copies/.%f && mv {directory}/copies/.%f {directory}/copies/%f",
            push.display()
        );
        let options = options.segment_size(1).environment(repository.environment()).archive_command(&command);
        // Everything stays where it is, and PostgreSQL itself never makes a segment of its own accord.
        options.configure("wal_keep_size = 1GB").configure("autovacuum = off").configure("checkpoint_timeout = 1h")
    }

    /// Lets PostgreSQL's calls through from now on.
    pub(crate) fn open(&self) {
        self.kept.write("open", "");
    }

    /// Holds PostgreSQL's calls up from now on.
    pub(crate) fn close(&self) {
        std::fs::remove_file(self.kept.path().join("open")).unwrap();
    }

    /// Ends so many segments, with something random in each.
    pub(crate) fn fill(&self, segments: usize) -> Vec<String> {
        let names = self.cluster.sql(&format!(
            "select pg_walfile_name(pg_switch_wal()) from (
                 select n, pg_logical_emit_message(false, 'walkeep', md5(random()::text)) from generate_series(1, {segments}) n
             ) written"
        ));
        let names: Vec<String> = names.lines().map(str::to_owned).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), segments, "{names:?}");
        names
    }

    pub(crate) fn wait_until_archived(&self, names: &[String]) {
        for name in names {
            self.cluster.wait_until_archived(name);
        }
    }

    pub(crate) fn failures(&self) -> String {
        self.cluster.sql("select failed_count from pg_stat_archiver")
    }

    /// Every file whose push ended with success is in the repository as it was then.
    pub(crate) fn expect_all_kept(&self, repository: &Repository, names: &[String]) {
        let objects = repository.objects();
        for name in names {
            let key = objects.iter().find(|key| key.ends_with(&format!("/{name}.zst")));
            let key = key.unwrap_or_else(|| panic!("{name} is not archived\n{objects:#?}"));
            let copy = std::fs::read(self.kept.path().join("copies").join(name)).unwrap();
            assert!(unpacked(repository, key) == copy, "{name}");
        }
    }

    /// The names of all files whose push ended with success.
    pub(crate) fn copies(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.kept.path().join("copies")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with('.')).collect()
    }

    pub(crate) fn workers(&self) -> Vec<i32> {
        worker::of(self.cluster.data())
    }

    pub(crate) fn wait_for_worker(&self) -> i32 {
        until("a worker pushes ahead", SOON, || self.workers().first().copied())
    }
}

/// Sends a signal to a process.
pub(crate) fn send(process: i32, signal: Signal) {
    kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
}

/// A bucket that is reached through a proxy.
pub(crate) fn bucket_behind_proxy() -> (Repository, Proxy) {
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    (repository, proxy)
}
