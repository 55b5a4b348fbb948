//! A server recovers through the segments.

use std::path::Path;
use std::time::{Duration, Instant};

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::tool;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::wait::{SOON, until};
use walkeep_tests::worker;

use crate::drain::command;
use crate::report::{Report, median, rate, times};
use crate::workload::{Workload, text};

const WHAT: &str = "recovery";

/// Measures.
pub(crate) fn measure(workload: &mut Workload, rounds: usize, report: &mut Report) {
    let plain = Scratch::new("plain");
    for file in workload.files() {
        tool("cp", [text(&file), text(plain.path())]);
    }
    let mut repository = Repository::directory();
    repository.configure("linger = 1");
    let _ = workload.drain(&command(&repository));
    // It would archive what the server ends with as well, and what lies between has been left out.
    until("the worker leaves", SOON, || worker::of(workload.cluster.data()).is_empty().then_some(()));
    workload.cluster.stop(StopMode::Fast);

    let cp = format!("cp {}/%f %p", plain.path().display());
    let get = format!("{} %f %p", binaries::archive_get().display());
    let (mut by_cp, mut by_get) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        by_cp.push(recover(&workload.before, &cp, &repository));
        by_get.push(recover(&workload.before, &get, &repository));
    }
    let (by_cp, by_get) = (median(&by_cp), median(&by_get));
    let bytes = workload.bytes();
    report.add(WHAT, "`cp` from a directory of plain files", rate(bytes, by_cp), "");
    let beside = format!("{:.2} × the time of `cp`", times(by_get, by_cp));
    report.add(WHAT, "archive-get, a local repository", rate(bytes, by_get), beside);
}

/// How long a copy of the cluster takes from its start until it has replayed everything.
fn recover(before: &Path, restore_command: &str, repository: &Repository) -> Duration {
    let place = Scratch::new("recovery");
    let data = place.path().join("data");
    tool("cp", ["-a", text(before), text(&data)]);
    place.write("data/recovery.signal", "");
    tool("sync", [""; 0]);
    let options = Cluster::options()
        .environment(repository.environment())
        .configure("archive_mode = off")
        .configure("hot_standby = off")
        .configure(format!("restore_command = '{restore_command}'"));
    let mut cluster = Cluster::adopt(&data, options);
    let begun = Instant::now();
    cluster.launch();
    let log = cluster.scratch().path().join("log");
    until("everything is replayed", Duration::from_secs(1800), || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(!log.contains("FATAL"), "{log}");
        log.contains("archive recovery complete").then_some(())
    });
    let taken = begun.elapsed();
    cluster.stop(StopMode::Immediate);
    taken
}
