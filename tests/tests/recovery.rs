//! What PostgreSQL makes of `archive-get`'s answers: it stops where WAL is missing, and ends only at the end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, Options, StopMode, program, setting};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::wait::{SOON, until};

/// A copy of a server from before most of its rows, and the archive that holds the rest.
struct Disaster {
    repository: Repository,
    copy: PathBuf,
    segments: Vec<String>,
    _lost: Cluster,
}

impl Disaster {
    /// Ten batches of rows after the copy, each in its own segment, all archived.
    fn strike(repository: Repository) -> Self {
        let command = format!("{} %p", binaries::archive_push().display());
        let cluster = Cluster::options().segment_size(1).environment(repository.environment());
        let cluster = cluster.archive_command(&command).start();
        cluster.sql("create table t (batch int)");
        let copy = cluster.scratch().path().join("copy");
        let backup = Run::new(program("pg_basebackup")).args(cluster.connection()).arg("-D").arg(&copy);
        backup.args(["-X", "none", "-c", "fast", "--no-sync"]).finish().expect_code(0);
        let batch = |number| {
            cluster.sql(&format!("insert into t values ({number})"));
            cluster.finish_segment()
        };
        let segments: Vec<String> = (1..=10).map(batch).collect();
        cluster.wait_until_archived(segments.last().unwrap());
        Self { repository, copy, segments, _lost: cluster }
    }

    /// The copy as a server that recovers from the archive.
    fn recovering(&self, signal: &str) -> Cluster {
        let command = format!("{} %f %p", binaries::archive_get().display());
        let options: Options = Cluster::options().environment(self.repository.environment());
        let options = options.configure(setting("restore_command", &command)).configure("archive_mode = off");
        let cluster = Cluster::adopt(&self.copy, options.configure("wal_retrieve_retry_interval = '200ms'"));
        let file = self.copy.join(signal);
        std::fs::write(&file, "").unwrap();
        walkeep_tests::user::give(&file);
        cluster
    }

    fn object(&self, segment: usize) -> String {
        self.repository.find(&format!("{}.zst", self.segments[segment]))
    }
}

const ALL_ROWS: &str = "select count(*), min(batch), max(batch) from t";

/// The server must have stopped without having opened the database: no new timeline, still in recovery.
fn assert_not_promoted(cluster: &Cluster) {
    assert_eq!(cluster.control("Database cluster state"), "in archive recovery");
    assert!(cluster.data().join("recovery.signal").exists());
    assert!(!cluster.data().join("pg_wal/00000002.history").exists());
}

#[test]
fn recovery_reaches_the_last_archived_row_and_opens_the_database() {
    for repository in [Repository::directory(), Repository::ceph()] {
        let disaster = Disaster::strike(repository);
        let mut cluster = disaster.recovering("recovery.signal");
        cluster.start();
        cluster.wait_for("select pg_is_in_recovery()", "f");
        assert_eq!(cluster.sql(ALL_ROWS), "10|1|10");
    }
}

#[test]
fn a_hole_stops_the_server_instead_of_opening_it_with_half_its_rows() {
    let disaster = Disaster::strike(Repository::directory());
    let key = disaster.object(5);
    let stored = disaster.repository.read(&key);
    disaster.repository.delete(&key);
    let mut cluster = disaster.recovering("recovery.signal");
    cluster.launch();
    assert!(!cluster.wait_for_end(SOON).success());
    assert_not_promoted(&cluster);
    assert!(cluster.log().contains("archive-get: ERROR:") && cluster.log().contains(&disaster.segments[5]));

    disaster.repository.write(&key, &stored);
    cluster.start();
    cluster.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(cluster.sql(ALL_ROWS), "10|1|10");
}

#[test]
fn damage_stops_the_server_instead_of_opening_it_with_half_its_rows() {
    let disaster = Disaster::strike(Repository::directory());
    let key = disaster.object(5);
    let length = disaster.repository.read(&key).len();
    disaster.repository.flip_bit(&key, length / 2);
    let mut cluster = disaster.recovering("recovery.signal");
    cluster.launch();
    assert!(!cluster.wait_for_end(SOON).success());
    assert_not_promoted(&cluster);
    disaster.repository.flip_bit(&key, length / 2);
    cluster.start();
    cluster.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(cluster.sql(ALL_ROWS), "10|1|10");
}

#[test]
fn an_outage_in_recovery_stops_the_server_and_a_restart_goes_on() {
    for fault in [Fault::slow_down(), Fault::ResetBeforeBody] {
        let mut disaster = Disaster::strike(Repository::ceph());
        let proxy = Proxy::start(&ceph::shared().endpoint);
        disaster.repository.set_proxy(&proxy);
        disaster.repository.configure("timeout = 3");
        proxy.add(Rule::all(fault).path(&disaster.segments[5]));
        let mut cluster = disaster.recovering("recovery.signal");
        cluster.launch();
        assert!(!cluster.wait_for_end(SOON).success());
        assert_not_promoted(&cluster);
        proxy.clear();
        cluster.start();
        cluster.wait_for("select pg_is_in_recovery()", "f");
        assert_eq!(cluster.sql(ALL_ROWS), "10|1|10");
    }
}

#[test]
fn a_standby_survives_an_outage_and_catches_up() {
    let mut disaster = Disaster::strike(Repository::ceph());
    let proxy = Proxy::start(&ceph::shared().endpoint);
    disaster.repository.set_proxy(&proxy);
    disaster.repository.configure("timeout = 2");
    proxy.add(Rule::all(Fault::slow_down()).path(&disaster.segments[5]));
    let mut cluster = disaster.recovering("standby.signal");
    cluster.start();
    cluster.wait_for("select max(batch) from t", "5");
    until("the standby has asked in vain", SOON, || {
        (cluster.log().matches("archive-get: WARNING:").count() > 1).then_some(())
    });
    assert!(cluster.is_running());
    proxy.clear();
    cluster.wait_for(ALL_ROWS, "10|1|10");
    assert_eq!(cluster.sql("select pg_is_in_recovery()"), "t");
}

#[test]
fn a_server_that_is_stopped_while_it_waits_for_wal_stops_at_once() {
    let mut disaster = Disaster::strike(Repository::ceph());
    let proxy = Proxy::start(&ceph::shared().endpoint);
    disaster.repository.set_proxy(&proxy);
    proxy.add(Rule::all(Fault::Silence).path(&disaster.segments[5]));
    let mut cluster = disaster.recovering("standby.signal");
    cluster.launch();
    until("the server waits", SOON, || (proxy.count("GET", &disaster.segments[5]) > 0).then_some(()));
    let started = Instant::now();
    let status = cluster.stop(StopMode::Fast);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?} {status}\n{}", started.elapsed(), cluster.log());
}
