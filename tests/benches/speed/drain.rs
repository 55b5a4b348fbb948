//! PostgreSQL's archiver empties a queue of segments.

use std::time::{Duration, Instant};

use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::proxy::Proxy;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::worker;

use crate::pgbackrest::PgBackRest;
use crate::report::{Report, median, rate, times};
use crate::workload::{Workload, text};

/// What everybody compresses with.
const LEVEL: u32 = 3;
const WHAT: &str = "draining a queue";

/// Measures.
pub(crate) fn measure(workload: &mut Workload, rounds: usize, report: &mut Report) {
    let pgbackrest = PgBackRest::of(&workload.cluster, LEVEL);
    let mut zstd = Vec::new();
    let (mut local, mut remote, mut other) = (Vec::new(), Vec::new(), Vec::new());
    let mut memory = 0;
    for _ in 0..rounds {
        zstd.push(compress(workload));
        let (time, peak) = push(workload, Repository::directory());
        local.push(time);
        memory = memory.max(peak);
        let (time, peak) = push(workload, Repository::ceph());
        remote.push(time);
        memory = memory.max(peak);
        if let Some(pgbackrest) = &pgbackrest {
            other.push(pgbackrest.drain(workload));
        }
    }
    let bytes = workload.bytes();
    let alone = median(&zstd);
    let beside = |time: Duration| format!("{:.2} × the speed of zstd alone", times(alone, time));
    report.add(WHAT, &format!("`zstd -{LEVEL} -T0` alone, fed by cat"), rate(bytes, alone), "");
    for (of, measured) in [("a local repository", &local), ("S3 (Ceph) on this machine", &remote)] {
        let time = median(measured);
        report.add(WHAT, &format!("archive-push, {of}"), rate(bytes, time), beside(time));
    }
    if !other.is_empty() {
        let time = median(&other);
        report.add(WHAT, "pgBackRest, asynchronous, a local repository", rate(bytes, time), beside(time));
    }
    report.add("memory", "the worker that pushes ahead, at most", format!("{} MiB", memory >> 10), "256 MiB allowed");
    requests(workload, report);
}

/// The same files through zstd alone, with all processors.
fn compress(workload: &Workload) -> Duration {
    let scratch = Scratch::new("zstd");
    let list = scratch.write("files", workload.files().iter().map(|file| text(file)).collect::<Vec<_>>().join("\n"));
    let command =
        format!("xargs cat < {} | zstd -q -{LEVEL} -T0 > {}", list.display(), scratch.path().join("all.zst").display());
    let begun = Instant::now();
    Run::new("sh").args(["-c", &command]).timeout(Duration::from_secs(600)).finish().expect_code(0);
    begun.elapsed()
}

/// The archiver's time with archive-push, and its worker's largest size in KiB.
fn push(workload: &mut Workload, mut repository: Repository) -> (Duration, u64) {
    repository.configure(&format!("compression_level = {LEVEL}"));
    let time = workload.drain(&command(&repository));
    let peaks = worker::of(workload.cluster.data()).into_iter().filter_map(peak_memory);
    let peak = peaks.max().unwrap_or_default();
    (time, peak)
}

/// The command, with the environment that a service would have: the server runs for all repositories here.
pub(crate) fn command(repository: &Repository) -> String {
    let variables = repository.environment().iter().map(|(name, value)| format!("{name}='{value}' "));
    format!("{}exec {} %p", variables.collect::<String>(), binaries::archive_push().display())
}

/// The largest size of a process so far, in KiB.
pub(crate) fn peak_memory(process: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().split(' ').next()?.parse().ok()
}

/// How many requests a segment costs on a host that knows the store.
fn requests(workload: &mut Workload, report: &mut Report) {
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let segments = workload.segments.clone();
    // The first one makes the store's acquaintance.
    workload.segments.truncate(1);
    let _ = workload.drain(&command(&repository));
    proxy.forget_requests();
    workload.segments = segments.iter().skip(1).take(32).cloned().collect();
    let _ = workload.drain(&command(&repository));
    let requests = proxy.requests();
    let puts = requests.iter().filter(|request| request.method == "PUT").count();
    let figure = format!("{puts} puts, {} other requests for 32 segments", requests.len() - puts);
    workload.segments = segments;
    report.add("requests", "archive-push, S3", figure, "one put each, and nothing else, allowed");
}
