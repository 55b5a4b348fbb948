//! Real WAL: what pgbench writes, and the cluster as it was before.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walkeep_tests::cluster::{Cluster, StopMode, program};
use walkeep_tests::run::{Run, tool};
use walkeep_tests::wait::until;

/// What nothing here takes longer than.
const LONG: Duration = Duration::from_secs(1800);

/// A server with a queue of segments to archive, which can be filled again.
pub(crate) struct Workload {
    pub(crate) cluster: Cluster,
    /// Names of the segments, oldest first.
    pub(crate) segments: Vec<String>,
    /// The cluster before the first of them.
    pub(crate) before: PathBuf,
}

impl Workload {
    /// Makes so many segments.
    pub(crate) fn make(count: usize) -> Self {
        let options = Cluster::options()
            .configure("archive_mode = on")
            .configure("shared_buffers = 256MB")
            .configure("max_wal_size = 100GB")
            .configure("wal_keep_size = 100GB")
            .configure("checkpoint_timeout = 1d")
            .configure("autovacuum = off");
        let mut cluster = options.start();
        pgbench(&cluster, &["-i", "-q", "-s", "30"]);
        cluster.sql("checkpoint");
        cluster.finish_segment();
        cluster.stop(StopMode::Fast);
        let before = cluster.scratch().path().join("before");
        tool("cp", ["-a", text(cluster.data()), text(&before)]);
        cluster.start();
        let first = cluster.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
        let made = || waiting(cluster.data(), &first).len();
        while made() < count {
            // Full pages again and again, as on a busy server: without a checkpoint there would be fewer and fewer.
            pgbench(&cluster, &["-c", "4", "-T", "3"]);
            cluster.sql("checkpoint");
        }
        cluster.finish_segment();
        // Pages that are still to be written would be, while something is measured.
        cluster.sql("checkpoint");
        let mut segments = waiting(cluster.data(), &first);
        for surplus in segments.split_off(count) {
            done(cluster.data(), &surplus);
        }
        for name in waiting(cluster.data(), "").into_iter().filter(|name| *name < first) {
            done(cluster.data(), &name);
        }
        Self { cluster, segments, before }
    }

    /// The segments' files.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.segments.iter().map(|name| self.cluster.data().join("pg_wal").join(name)).collect()
    }

    /// How many bytes they are.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.len() as u64 * (16 << 20)
    }

    /// Fills the queue again, lets PostgreSQL archive all of it with this command, and returns how long that took.
    pub(crate) fn drain(&self, command: &str) -> Duration {
        self.queue();
        let begun = Instant::now();
        self.set_command(command);
        let last = self.status(self.segments.last().expect("a segment"), "done");
        until("the queue is empty", LONG, || last.exists().then_some(()));
        let taken = begun.elapsed();
        self.set_command("");
        let failed = self.cluster.sql("select failed_count from pg_stat_archiver");
        assert_eq!(failed, "0", "{}", self.cluster.log());
        taken
    }

    /// Every segment waits to be archived, and PostgreSQL does nothing about it.
    pub(crate) fn queue(&self) {
        for name in &self.segments {
            if self.status(name, "done").exists() {
                std::fs::rename(self.status(name, "done"), self.status(name, "ready")).expect("rename");
            }
        }
    }

    fn status(&self, name: &str, what: &str) -> PathBuf {
        self.cluster.data().join("pg_wal/archive_status").join(format!("{name}.{what}"))
    }

    fn set_command(&self, command: &str) {
        self.cluster.sql(&format!("alter system set archive_command = '{}'", command.replace('\'', "''")));
        self.cluster.reload();
    }
}

fn pgbench(cluster: &Cluster, words: &[&str]) {
    let run = Run::new(program("pgbench")).args(cluster.connection()).args(words).arg("postgres");
    run.timeout(LONG).finish().expect_code(0);
}

/// The segments from `first` on that wait to be archived, oldest first.
fn waiting(data: &Path, first: &str) -> Vec<String> {
    let entries = std::fs::read_dir(data.join("pg_wal/archive_status")).expect("archive_status");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<String> = names
        .filter_map(|name| name.strip_suffix(".ready").map(str::to_owned))
        .filter(|name| name.as_str() >= first)
        .collect();
    names.sort();
    names
}

fn done(data: &Path, name: &str) {
    let status = data.join("pg_wal/archive_status");
    std::fs::rename(status.join(format!("{name}.ready")), status.join(format!("{name}.done"))).expect("rename");
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
