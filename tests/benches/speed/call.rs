//! One call of `archive-push` that its worker answers.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use walkeep_tests::binaries;
use walkeep_tests::repository::Repository;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::report::{Report, times};
use crate::workload::{Workload, text};

const WHAT: &str = "one call, whole process";

/// Measures.
pub(crate) fn measure(workload: &mut Workload, report: &mut Report) {
    let scratch = Scratch::new("empty");
    let source = scratch.write("empty.rs", "fn main() {}\n");
    let empty = scratch.path().join("empty");
    let built = Command::new("rustc").args(["-O", "-o", text(&empty), text(&source)]).status().expect("run rustc");
    assert!(built.success(), "{built}");

    let mut repository = Repository::directory();
    repository.configure("linger = 60");
    workload.queue();
    let data = workload.cluster.data();
    let push = |name: &str| {
        let mut command = Command::new(binaries::archive_push());
        command.arg(format!("pg_wal/{name}")).envs(repository.environment().iter().cloned()).current_dir(data);
        // It is the bench's own, and a setting unknown to the program.
        command.env_remove("WALKEEP_BINARIES");
        command
    };
    let (first, others) = workload.segments.split_first().expect("a segment");
    let _ = time(&mut push(first));
    let others = others.get(..others.len().min(250)).unwrap_or_default();
    let last = others.last().expect("several segments");
    until("the worker has stored them all", SOON * 4, || {
        repository.objects().iter().any(|key| key.contains(last.as_str())).then_some(())
    });
    let (mut pushes, mut empties, mut trues) = (Vec::new(), Vec::new(), Vec::new());
    for name in others {
        pushes.push(time(&mut push(name)));
        empties.push(time(&mut Command::new(&empty)));
        trues.push(time(&mut Command::new(Path::new("/bin/true"))));
    }
    for times in [&mut pushes, &mut empties, &mut trues] {
        times.sort();
    }
    let beside = format!("{:.2} × an empty Rust program", times(percentile(&pushes, 50), percentile(&empties, 50)));
    report.add(WHAT, "archive-push, answered by its worker", shown(&pushes), beside);
    report.add(WHAT, "an empty Rust program", shown(&empties), "");
    report.add(WHAT, "`/bin/true`", shown(&trues), "");
}

fn time(command: &mut Command) -> Duration {
    user::drop_privileges(command.stdin(Stdio::null()));
    let begun = Instant::now();
    let status = command.status().expect("run a program");
    let taken = begun.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    taken
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len() - 1)).copied().unwrap_or_default()
}

fn shown(sorted: &[Duration]) -> String {
    let ms = |percent| percentile(sorted, percent).as_secs_f64() * 1e3;
    format!("{:.2} ms, 99 % within {:.2} ms", ms(50), ms(99))
}
