//! pgBackRest in its asynchronous mode, where it is installed.

use std::time::Duration;

use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;

use crate::workload::{Workload, text};

/// A stanza for the workload's cluster.
pub(crate) struct PgBackRest {
    scratch: Scratch,
}

impl PgBackRest {
    /// Nothing where it is not installed.
    pub(crate) fn prepare(workload: &Workload, level: u32) -> Option<Self> {
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
                text(workload.cluster.data()),
                text(workload.cluster.socket_directory())
            ),
        );
        Some(Self { scratch })
    }

    /// The archiver's time, into a new repository.
    pub(crate) fn drain(&self, workload: &Workload) -> Duration {
        for directory in ["repo", "spool", "lock"] {
            let path = self.scratch.path().join(directory);
            let _ = std::fs::remove_dir_all(&path);
            self.scratch.create_private(directory);
        }
        let configuration = format!("--config={}", text(&self.scratch.path().join("pgbackrest.conf")));
        let create = ["--stanza=bench", "--no-online", "stanza-create", &configuration];
        Run::new("pgbackrest").args(create).finish().expect_code(0);
        workload.drain(&format!("exec pgbackrest --stanza=bench {configuration} archive-push %p"))
    }
}
