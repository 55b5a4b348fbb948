//! How fast the programs are, beside the alternatives, on this machine and in this run.
//!
//! `make bench` builds the programs as they are shipped and prints one table; the same goes to `bench/results/`. Every
//! comparison is measured in turns, and the medians of the turns are compared, for a machine's speed drifts.
//!
//! | variable | default | |
//! | --- | --- | --- |
//! | `BENCH_DATABASE_MIB` | 3072 | how large the database is that is backed up |
//! | `BENCH_SEGMENTS` | 256 | how many segments of 16 MiB pgbench makes; 0 leaves WAL out |
//! | `BENCH_ROUNDS` | 3 | how many turns each comparison takes |
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "it measures for people"
)]

mod backups;
mod call;
mod drain;
mod pgbackrest;
mod recovery;
mod report;
mod workload;

use report::Report;
use workload::Workload;

fn main() {
    // `cargo test` and `cargo clippy` build and even run every target; this one only means something on request.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mebibytes = number("BENCH_DATABASE_MIB", 3072);
    let segments = number("BENCH_SEGMENTS", 256);
    let rounds = number("BENCH_ROUNDS", 3);
    let mut report = Report::new(mebibytes, segments, rounds);
    backups::measure(mebibytes as u64, rounds, &mut report);
    if segments == 0 {
        return report.finish();
    }
    eprintln!("making {segments} segments with pgbench …");
    let mut workload = Workload::make(segments);
    drain::measure(&mut workload, rounds, &mut report);
    call::measure(&mut workload, &mut report);
    recovery::measure(&mut workload, rounds, &mut report);
    report.finish();
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}
