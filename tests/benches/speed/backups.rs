//! Base backups: taken and restored beside what else does that, and what taking one costs a server at work.

use std::time::{Duration, Instant};

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, program};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Run, Running, tool};
use walkeep_tests::scratch::Scratch;

use crate::drain::{command, peak_memory};
use crate::pgbackrest::PgBackRest;
use crate::report::{Report, median, rate, times};
use crate::workload::text;

/// What everybody compresses with.
const LEVEL: u32 = 3;
const LONG: Duration = Duration::from_secs(3600);
/// How long pgbench runs to show what a backup costs.
const BENCH_SECONDS: &str = "15";
const SLOW: &str = "20M";

/// A server with tables that compress, tables that do not, and many small ones.
struct Site {
    cluster: Cluster,
    /// Bytes of its files without WAL.
    bytes: u64,
    processors: usize,
}

/// What one run cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    time: Duration,
    /// Processor time in seconds, of all processes.
    processor: f64,
    /// The largest size in KiB.
    memory: u64,
}

/// Measures.
pub(crate) fn measure(mebibytes: u64, rounds: usize, report: &mut Report) {
    eprintln!("making a database of {mebibytes} MiB …");
    let site = Site::make(mebibytes);
    take(&site, rounds, report);
    restore(&site, rounds, report);
    disturbance(&site, rounds, report);
}

fn take(site: &Site, rounds: usize, report: &mut Report) {
    let pgbackrest = PgBackRest::of(&site.cluster, LEVEL);
    let (local, remote) = (Repository::directory(), Repository::ceph());
    let names = [
        "`tar | zstd -T0`, and sync",
        "pg_basebackup, zstd by the client",
        "take, a local repository",
        "take, S3 (Ceph) on this machine",
        "pgBackRest, a local repository",
    ];
    let mut costs: [Vec<Cost>; 5] = Default::default();
    // Nothing is removed meanwhile: who writes next would have memory that is at hand, the others would not.
    let places: Vec<Scratch> = (0..rounds).map(|_| Scratch::new("alternatives")).collect();
    for place in &places {
        let tar = format!(
            "tar -C {} --exclude=./pg_wal -cf - . | zstd -q -{LEVEL} -T0 > {1} && sync {1}",
            text(site.cluster.data()),
            text(&place.path().join("all.tar.zst"))
        );
        costs[0].push(run(Run::new("sh").args(["-c", &tar])));
        // It waits until the WAL it needs is archived, as everybody does here.
        site.archive_to(&command(&local));
        let plain = Run::new(program("pg_basebackup")).args(site.cluster.connection());
        let compress = format!("--compress=client-zstd:level={LEVEL},workers={}", site.processors);
        let plain = plain.args(["-Ft", "-X", "none", "-c", "fast", &compress, "-D"]);
        costs[1].push(run(plain.arg(place.path().join("copy"))));
        for (repository, of) in [(&local, 2), (&remote, 3)] {
            site.archive_to(&command(repository));
            costs[of].push(run(site.taking(repository)));
        }
        if let Some(pgbackrest) = &pgbackrest {
            let (prepared, backup) = pgbackrest.backup();
            site.archive_to(&prepared);
            costs[4].push(run(backup));
        }
    }
    let alone = middle(&costs[0]).time;
    for (of, costs) in names.iter().zip(&costs).filter(|(_, costs)| !costs.is_empty()) {
        let cost = middle(costs);
        let beside = format!("{:.2} × the speed of tar and zstd; {}", times(alone, cost.time), cost.to_text());
        report.add("taking a base backup", of, rate(site.bytes, cost.time), beside);
    }
}

fn restore(site: &Site, rounds: usize, report: &mut Report) {
    let repository = Repository::directory();
    site.archive_to(&command(&repository));
    run(site.taking(&repository));
    let pgbackrest = PgBackRest::of(&site.cluster, LEVEL);
    if let Some(pgbackrest) = &pgbackrest {
        let (prepared, backup) = pgbackrest.backup();
        site.archive_to(&prepared);
        run(backup);
    }
    let place = Scratch::new("restores");
    let packed = place.path().join("all.tar.zst");
    let pack = format!(
        "tar -C {} --exclude=./pg_wal -cf - . | zstd -q -{LEVEL} -T0 > {}",
        text(site.cluster.data()),
        text(&packed)
    );
    Run::new("sh").args(["-c", &pack]).timeout(LONG).finish().expect_code(0);
    let names = [
        "`zstd -d` alone",
        "`zstd -d | tar x`, and sync",
        "`tar c | tar x`, and sync",
        "restore, a local repository",
        "pgBackRest, a local repository",
    ];
    let mut costs: [Vec<Cost>; 5] = Default::default();
    for round in 0..rounds {
        // Nothing is removed meanwhile: a file system that has just lost many files is slow to make new ones.
        let new = |name: &str| place.create_private(&format!("{name}{round}"));
        let shell = |line: String| Run::new("sh").args(["-c", &line]);
        let (unpacked, copied) = (new("unpacked"), new("copied"));
        costs[0].push(run(shell(format!("zstd -dc {} > /dev/null", text(&packed)))));
        let line = format!("zstd -dc {} | tar -C {1} -xf - && sync -f {1}", text(&packed), text(&unpacked));
        costs[1].push(run(shell(line)));
        let line = format!("tar -C {} -cf - . | tar -C {1} -xf - && sync -f {1}", text(&unpacked), text(&copied));
        costs[2].push(run(shell(line)));
        let restoring = Run::new(binaries::basebackup()).arg("restore").envs(repository.environment()).arg("-D");
        costs[3].push(run(restoring.arg(new("restored"))));
        if let Some(pgbackrest) = &pgbackrest {
            costs[4].push(run(pgbackrest.restoring(&new("pgbackrest"))));
        }
    }
    let slower = middle(&costs[0]).time.max(middle(&costs[2]).time);
    for (of, costs) in names.iter().zip(&costs).filter(|(_, costs)| !costs.is_empty()) {
        let cost = middle(costs);
        let beside = format!(
            "{:.2} × the speed of the slower of unpacking and writing; {}",
            times(slower, cost.time),
            cost.to_text()
        );
        report.add("restoring a base backup", of, rate(site.bytes, cost.time), beside);
    }
}

/// What pgbench manages meanwhile.
fn disturbance(site: &Site, rounds: usize, report: &mut Report) {
    let repository = Repository::directory();
    site.archive_to(&command(&repository));
    let backup = |words: &[&str]| site.taking(&repository).args(words);
    let legs = [
        ("alone", None),
        ("while one backup after the other is taken", Some(&[][..])),
        ("the same with --low-priority", Some(&["--low-priority"][..])),
        ("the same with --max-rate 20M", Some(&["--max-rate", SLOW][..])),
    ];
    let mut found: [Vec<f64>; 4] = Default::default();
    for _ in 0..rounds {
        for ((_, words), found) in legs.iter().zip(&mut found) {
            // What the leg before has left to write is not counted here.
            site.cluster.sql("checkpoint");
            found.push(site.transactions(words.map(|words| move || backup(words)).as_ref()));
        }
    }
    let medians = found.map(|mut found| {
        found.sort_by(f64::total_cmp);
        found.get(found.len() / 2).copied().unwrap_or_default()
    });
    let [alone, ..] = medians;
    for ((of, _), median) in legs.iter().zip(medians) {
        report.add("pgbench", of, format!("{median:.0} tps"), format!("{:.2} × alone", median / alone));
    }
}

impl Site {
    fn make(mebibytes: u64) -> Self {
        let cluster = Cluster::options()
            .checksums()
            .configure("archive_mode = on")
            .configure("shared_buffers = 256MB")
            .configure("max_wal_size = 10GB")
            .configure("autovacuum = off")
            .start();
        // Half of it compresses, the other half does not.
        let scale = (mebibytes / 2 / 15).max(1).to_string();
        let fill = Run::new(program("pgbench")).args(cluster.connection()).args(["-i", "-q", "-s", &scale, "postgres"]);
        fill.timeout(LONG).finish().expect_code(0);
        // 2000 bytes a row, drawn at random a mebibyte at a time.
        cluster.sql("create table random (bytes bytea); alter table random alter bytes set storage external");
        for _ in 0..mebibytes / 2 {
            cluster.sql(
                "insert into random select decode(string_agg(md5(random()::text), ''), 'hex')
                    from generate_series(1, 65536) g group by g / 125",
            );
        }
        cluster.sql(
            "do $$ begin for i in 1..3000 loop
                execute format('create table small%s as select generate_series(1, 50) g', i);
                if i % 500 = 0 then commit; end if;
            end loop; end $$",
        );
        cluster.sql("checkpoint");
        let bytes = tool("du", ["-sb", "--exclude=pg_wal", text(cluster.data())]);
        let bytes = bytes.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).expect("a number");
        Self { cluster, bytes, processors: std::thread::available_parallelism().map_or(1, usize::from) }
    }

    fn archive_to(&self, command: &str) {
        self.cluster.sql(&format!("alter system set archive_command = '{}'", command.replace('\'', "''")));
        self.cluster.reload();
        // What is left from before goes there too, and is not measured.
        self.cluster.wait_until_archived(&self.cluster.finish_segment());
    }

    fn taking(&self, repository: &Repository) -> Run {
        let level = LEVEL.to_string();
        let take = Run::new(binaries::basebackup()).args(["take", "--compress", &level]);
        take.args(self.cluster.connection()).envs(repository.environment())
    }

    /// Transactions per second of pgbench, while this is done over and over.
    fn transactions(&self, meanwhile: Option<&impl Fn() -> Run>) -> f64 {
        let bench = Run::new(program("pgbench")).args(self.cluster.connection());
        let mut bench = bench.args(["-n", "-c", "4", "-T", BENCH_SECONDS, "postgres"]).timeout(LONG).start();
        let mut backup: Option<Running> = None;
        while !bench.has_ended() {
            if let Some(meanwhile) = meanwhile
                && backup.as_mut().is_none_or(Running::has_ended)
            {
                backup.take().map(|ended| ended.finish().expect_code(0).code());
                backup = Some(meanwhile().timeout(LONG).start());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let said = bench.finish().expect_code(0).stdout.clone();
        if let Some(running) = backup {
            running.signal(rustix::process::Signal::TERM);
            running.finish();
        }
        let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        tps.expect("transactions per second")
    }
}

impl Cost {
    fn to_text(self) -> String {
        let memory = if self.memory == 0 { String::new() } else { format!(", {} MiB", self.memory >> 10) };
        format!("{:.1} s of processor time{memory}", self.processor)
    }
}

/// Runs something to its end. The size is that of the process itself.
fn run(run: Run) -> Cost {
    let before = processor_time();
    let begun = Instant::now();
    let mut running = run.timeout(LONG).start();
    let process = i32::try_from(running.id()).expect("a process id");
    let mut memory = 0;
    while !running.has_ended() {
        memory = memory.max(peak_memory(process).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(10));
    }
    let time = begun.elapsed();
    running.finish().expect_code(0);
    Cost { time, processor: processor_time() - before, memory }
}

/// Seconds that this process's children that have ended were at work, with their own.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    // Behind the name, which may have blanks, come the state and from there on numbers: cutime and cstime.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks: f64 = [13, 14].iter().filter_map(|&field| fields.get(field)?.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// The cost of the turn that took the time in the middle.
fn middle(costs: &[Cost]) -> Cost {
    let time = median(&costs.iter().map(|cost| cost.time).collect::<Vec<_>>());
    let memory = costs.iter().map(|cost| cost.memory).max().unwrap_or_default();
    let cost = costs.iter().find(|cost| cost.time == time).copied().unwrap_or_default();
    Cost { memory, ..cost }
}
