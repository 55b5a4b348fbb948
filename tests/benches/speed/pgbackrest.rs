//! pgBackRest in its asynchronous mode, where it is installed.

use std::path::Path;
use std::time::Duration;

use walkeep_tests::cluster::Cluster;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;

use crate::workload::{Workload, text};

/// A stanza for one cluster.
pub(crate) struct PgBackRest {
    scratch: Scratch,
}

impl PgBackRest {
    /// Nothing where it is not installed.
    pub(crate) fn of(cluster: &Cluster, level: u32) -> Option<Self> {
        let installed = std::process::Command::new("pgbackrest").arg("version").output().is_ok();
        if !installed {
            eprintln!("pgBackRest is not installed and is left out");
            return None;
        }
        let scratch = Scratch::new("pgbackrest");
        let directory = text(scratch.path());
        let processes = std::thread::available_parallelism().map_or(1, usize::from);
        scratch.write(
            "pgbackrest.conf",
            format!(
                "[global]\nrepo1-path={directory}/repo\nspool-path={directory}/spool\nlock-path={directory}/lock\n\
                 log-level-file=off\nlog-level-console=warn\nlog-level-stderr=off\narchive-async=y\n\
                 archive-push-queue-max=100GB\ncompress-type=zst\ncompress-level={level}\nprocess-max={processes}\n\
                 [bench]\npg1-path={}\npg1-socket-path={}\npg1-user=postgres\n",
                text(cluster.data()),
                text(cluster.socket_directory())
            ),
        );
        Some(Self { scratch })
    }

    /// The archiver's time, into a new repository.
    pub(crate) fn drain(&self, workload: &Workload) -> Duration {
        workload.drain(&self.renew())
    }

    /// A full backup into a new repository: the server's `archive_command` for it, and the run.
    pub(crate) fn backup(&self) -> (String, Run) {
        (self.renew(), self.run(&["--type=full", "--start-fast", "backup"]))
    }

    /// A restore of the latest backup.
    pub(crate) fn restoring(&self, data: &Path) -> Run {
        self.run(&["restore", &format!("--pg1-path={}", text(data))])
    }

    fn run(&self, words: &[&str]) -> Run {
        Run::new("pgbackrest").args(["--stanza=bench", &self.configuration()]).args(words)
    }

    fn configuration(&self) -> String {
        format!("--config={}", text(&self.scratch.path().join("pgbackrest.conf")))
    }

    /// Makes a new repository; returns the server's `archive_command` for it.
    fn renew(&self) -> String {
        for directory in ["repo", "spool", "lock"] {
            let path = self.scratch.path().join(directory);
            let _ = std::fs::remove_dir_all(&path);
            self.scratch.create_private(directory);
        }
        self.run(&["--no-online", "stanza-create"]).finish().expect_code(0);
        format!("exec pgbackrest --stanza=bench {} archive-push %p", self.configuration())
    }
}
