//! Everything fails at random for a while, under load; then the cluster is restored and compared.
//!
//! Fifteen seconds in the suite. `make soak` makes it ten minutes, or `$WALKEEP_SOAK` seconds.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, StopMode, program};
use walkeep_tests::dice::Dice;
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::wait::until;
use walkeep_tests::worker::{self, processes, status};

use crate::archiving::{Archiving, send};
use crate::site::{Load, Place, take, verify, wait_until_open};

/// What the last commits may take to be archived, a minute's pause of the archiver included.
const CATCH_UP: Duration = Duration::from_secs(240);

#[test]
fn after_random_kills_of_worker_archiver_and_store_the_restored_cluster_is_the_same() {
    let seconds =
        std::env::var("WALKEEP_SOAK").map_or(15, |seconds| seconds.parse().expect("WALKEEP_SOAK is a number"));
    let mut dice = Dice::new();
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    repository.configure("timeout = 5");
    let mut server = Archiving::start_recycling(&repository);
    server.open();
    let load = Load::of(&server.cluster, 200);
    take(&repository, &server.cluster);

    let end = Instant::now() + Duration::from_secs(seconds);
    let mut done = Vec::new();
    while Instant::now() < end {
        std::thread::sleep(dice.up_to(Duration::from_millis(1500)));
        done.push(disturb(&mut dice, &server, &proxy));
    }
    proxy.clear();
    load.stop();
    let archived = server.cluster.finish_segment();
    until("archiving catches up", CATCH_UP, || {
        let last = server.cluster.sql("select coalesce(last_archived_wal, '') from pg_stat_archiver");
        (last >= archived).then_some(())
    });
    let before = dump(&server.cluster);
    let acknowledged = server.copies();
    server.expect_all_kept(&repository, &acknowledged);
    server.cluster.stop(StopMode::Immediate);
    let place = Place::new();
    place.restore(&repository, &[]);
    verify(&place.data());
    let mut restored = place.server(&repository);
    restored.start();
    wait_until_open(&restored);
    assert!(dump(&restored) == before, "the restored cluster differs after {done:?}");
    assert!(acknowledged.len() > 10, "only {} segments were archived", acknowledged.len());
}

/// One thing goes wrong.
fn disturb(dice: &mut Dice, server: &Archiving, proxy: &Proxy) -> &'static str {
    match dice.below(8) {
        0 | 1 => {
            for worker in server.workers() {
                kill(worker, Signal::KILL);
            }
            "worker killed"
        }
        2 => {
            for worker in server.workers() {
                kill(worker, Signal::STOP);
            }
            "worker stopped"
        }
        3 => {
            for call in calls(server) {
                kill(call, Signal::KILL);
            }
            "call killed"
        }
        4 => {
            let archiver = server.cluster.sql("select pid from pg_stat_activity where backend_type = 'archiver'");
            if let Ok(archiver) = archiver.parse() {
                kill(archiver, Signal::TERM);
            }
            "archiver ended"
        }
        5 => {
            proxy.clear();
            proxy.add(Rule::all(Fault::LoseAnswer).times(usize::try_from(dice.below(20)).unwrap()));
            "answers lost"
        }
        6 => {
            proxy.clear();
            proxy.add(Rule::all(Fault::ResetBeforeBody));
            "store gone"
        }
        _ => {
            proxy.clear();
            "store back"
        }
    }
}

/// A process that may have ended by itself.
fn kill(process: i32, signal: Signal) {
    if std::path::Path::new(&format!("/proc/{process}")).exists() {
        send(process, signal);
    }
}

/// Calls of the server's `archive_command` that are under way.
fn calls(server: &Archiving) -> Vec<i32> {
    let workers = worker::of(server.cluster.data());
    let data = std::fs::canonicalize(server.cluster.data()).unwrap();
    let is_call = |process: &i32| {
        status(*process).is_some_and(|(name, _)| name == "archive-push")
            && std::fs::read_link(format!("/proc/{process}/cwd")).is_ok_and(|directory| directory == data)
    };
    processes().filter(is_call).filter(|process| !workers.contains(process)).collect()
}

/// All rows of all tables, in the order they lie in.
fn dump(cluster: &Cluster) -> String {
    let run = Run::new(program("pg_dump")).args(cluster.connection()).arg("postgres");
    let finished = run.finish();
    finished.expect_code(0);
    // Newer clients wrap the dump into a key that is drawn at random.
    finished.stdout.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}
