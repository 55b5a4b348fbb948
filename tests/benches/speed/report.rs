//! The table: printed, and kept.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What was measured so far.
pub(crate) struct Report {
    mebibytes: usize,
    segments: usize,
    rounds: usize,
    rows: Vec<[String; 4]>,
}

impl Report {
    /// An empty one.
    pub(crate) fn new(mebibytes: usize, segments: usize, rounds: usize) -> Self {
        Self { mebibytes, segments, rounds, rows: Vec::new() }
    }

    /// Adds a line: what was measured, of what, how much, and beside what.
    pub(crate) fn add(&mut self, what: &str, of: &str, figure: impl Into<String>, beside: impl Into<String>) {
        let row = [what.to_owned(), of.to_owned(), figure.into(), beside.into()];
        eprintln!("{}", row.join(" | "));
        self.rows.push(row);
    }

    /// Prints everything, and keeps it in `bench/results/`.
    pub(crate) fn finish(self) {
        let date = output("date", &["-u", "+%Y-%m-%d"]);
        let mut text = format!("# Speed, {date}\n\n{}\n", self.machine());
        text.push_str("| what | of | figure | beside |\n| --- | --- | --- | --- |\n");
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.each_ref().map(|cell| cell.replace('|', "\\|")).join(" | "));
        }
        println!("{text}");
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/results");
        std::fs::create_dir_all(&directory).expect("create a directory");
        let file = directory.join(format!("{date}.md"));
        std::fs::write(&file, text).expect("write the results");
        eprintln!("kept in {}", file.canonicalize().expect("a path").display());
    }

    fn machine(&self) -> String {
        let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
        let processor = processor.trim_start_matches([' ', '\t', ':']).to_owned();
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory: u64 = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok())
            .unwrap_or_default();
        format!(
            "{count} processors ({processor}), {} GiB of memory, Linux {}; PostgreSQL {}, {}.\n\
             A database of {} MiB, {} segments of 16 MiB by pgbench; medians of {} turns.\n",
            memory >> 20,
            output("uname", &["-r"]),
            walkeep_tests::cluster::major(),
            output("zstd", &["--version"]).trim_matches(['*', ' ']),
            self.mebibytes,
            self.segments,
            self.rounds,
        )
    }
}

/// What a program prints.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("run a program");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The one in the middle.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Bytes in a time.
pub(crate) fn rate(bytes: u64, time: Duration) -> String {
    let megabytes = u32::try_from(bytes / 1_000_000).map_or(f64::MAX, f64::from);
    format!("{:.1} s, {:.0} MB/s", time.as_secs_f64(), megabytes / time.as_secs_f64())
}

/// How much one time is of another.
pub(crate) fn times(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}
