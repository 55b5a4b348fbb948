//! `basebackup take` from a standby, and from a server that was one.

use std::time::Duration;

use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, program};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::wait::{SOON, until};

use crate::format_recipe::{Extracted, archiving, take, take_backup};
use crate::samples::unpacked;
use crate::take::{Load, check_relations, expect_no_backup, json};

#[test]
fn an_idle_standby_is_backed_up_with_its_unfinished_segment() {
    let repository = Repository::directory();
    let primary = archiving(&repository).start();
    // A standby refuses to read in a transaction of this level.
    primary
        .sql("create role keeper superuser login; alter role keeper set default_transaction_isolation = serializable");
    primary.sql("create table t as select n from generate_series(1, 1000) n");
    let mut standby = primary.standby(Cluster::options());
    standby.start();
    primary.wait_until_archived(&primary.finish_segment());
    primary.sql("insert into t select n from generate_series(1001, 1234) n");
    let written = primary.sql("select pg_current_wal_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");

    let taken = Run::new(binaries::basebackup()).args(["take", "--wal-timeout", "20s", "-U", "keeper", "-h"]);
    let taken = taken.arg(standby.socket_directory()).envs(repository.environment()).finish();
    let id = taken.expect_code(0).stdout.trim_end().to_owned();
    let shown = json(&repository, &["show", &id]);
    assert_eq!(shown["from_standby"], true);
    let kept = shown["kept_wal"].as_array().unwrap();
    assert_eq!(kept.len(), 1, "{shown}");
    assert_eq!(kept[0], shown["stop_wal"]);
    repository.find(&format!("base/{id}/wal/{}.zst", kept[0].as_str().unwrap()));

    let extracted = Extracted::new(&repository, &id);
    extracted.verify();
    let recovered = extracted.recover(Cluster::options());
    assert_eq!(recovered.cluster.sql("select count(*) from t"), "1234");
    check_relations(&recovered.cluster);
}

#[test]
fn a_standby_is_backed_up_while_its_primary_writes() {
    let repository = Repository::directory();
    let primary = archiving(&repository).checksums().start();
    Run::new(program("pgbench"))
        .args(primary.connection())
        .args(["-i", "-q", "-s", "2", "postgres"])
        .finish()
        .expect_code(0);
    let mut standby = primary.standby(Cluster::options());
    standby.start();
    let load = Load::start(&primary);
    standby.wait_for("select count(*) > 100 from pgbench_history", "t");
    let id = take_backup(&standby, &repository);
    let rows: u64 = primary.sql("select count(*) from pgbench_history").parse().unwrap();
    primary.wait_until_archived(&primary.finish_segment());
    drop(load);

    let extracted = Extracted::new(&repository, &id);
    extracted.verify();
    let recovered = extracted.recover(Cluster::options());
    let balances = recovered.cluster.sql(
        "select (select sum(delta) from pgbench_history) = (select sum(abalance) from pgbench_accounts), \
         (select count(*) from pgbench_history)",
    );
    let (sums_agree, found) = balances.split_once('|').unwrap();
    assert!(sums_agree == "t" && found.parse::<u64>().unwrap() >= rows, "{balances}, {rows} rows before the end");
    check_relations(&recovered.cluster);
}

/// The primary says that everything is archived, and nothing is: nobody else has what the standby's backup needs.
#[test]
fn what_nobody_archives_is_archived_by_the_standby_s_backup() {
    let repository = Repository::directory();
    let mut primary = Cluster::options().segment_size(1).archive_command("true").start();
    primary.sql("create table t as select n from generate_series(1, 1000) n");
    let mut standby = primary.standby(archiving(&repository));
    standby.start();
    primary.sql("checkpoint");
    let names: Vec<String> = (0..3).map(|_| primary.finish_segment()).collect();
    primary.sql("insert into t values (1001)");
    let written = primary.sql("select pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
    primary.kill();

    let taken = take(&standby, &repository).finish();
    let id = taken.expect_code(0).stdout.trim_end().to_owned();
    assert!(taken.elapsed < Duration::from_secs(60), "{taken}");
    for name in &names {
        taken.expect_stderr(&[&format!("\"{name}\" was not archived so far; it is now")]);
        let object = repository.find(&format!("wal/{}/{name}.zst", &name[..16]));
        let original = std::fs::read(primary.data().join("pg_wal").join(name)).unwrap();
        assert!(unpacked(&repository, &object) == original, "{name}");
        // Whoever archives it after all finds it done.
        let push = Run::new(binaries::archive_push()).arg(format!("pg_wal/{name}")).current_dir(primary.data());
        push.envs(repository.environment()).finish().expect_code(0);
    }
    let extracted = Extracted::new(&repository, &id);
    extracted.verify();
    assert_eq!(extracted.recover(Cluster::options()).cluster.sql("select count(*) from t"), "1001");
}

#[test]
fn a_standby_that_is_promoted_ends_its_backup_at_once() {
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let primary = archiving(&repository).start();
    let mut standby = primary.standby(Cluster::options());
    standby.start();
    proxy.add(Rule::all(Fault::slow_down()).method("POST").path("pack-00001"));
    let mut running = take(&standby, &repository).start();
    until("take stores a pack", SOON, || {
        assert!(!running.has_ended());
        (proxy.count("POST", "pack-00001") > 0).then_some(())
    });
    standby.promote();
    // The store still does not take the pack.
    let failed = running.finish();
    proxy.clear();
    failed.expect_stderr(&["the standby was promoted during the backup"]);
    expect_no_backup(&standby, &repository, &failed);
}

#[test]
fn a_backup_after_a_promotion_brings_its_timeline_s_history_along() {
    let repository = Repository::directory();
    let primary = Cluster::options().segment_size(1).start();
    primary.sql("create table t as select n from generate_series(1, 1000) n");
    let command = format!("{} %p", binaries::archive_push().display());
    let options = Cluster::options().environment(repository.environment()).archive_command(&command);
    let mut standby = primary.standby(options);
    standby.start();
    let written = primary.sql("select pg_current_wal_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
    drop(primary);
    standby.promote();
    standby.wait_until_archived(&standby.finish_segment());
    // Gone behind the back of archive-push, which has seen it a moment ago.
    repository.delete(&repository.find("wal/00000002.history.zst"));
    let id = take_backup(&standby, &repository);
    assert_eq!(json(&repository, &["show", &id])["timeline"], 2);
    let history = std::fs::read(standby.data().join("pg_wal/00000002.history")).unwrap();
    assert!(unpacked(&repository, &repository.find("wal/00000002.history.zst")) == history);
    let recovered =
        Extracted::new(&repository, &id).recover(Cluster::options().configure("recovery_target_timeline = 2"));
    assert_eq!(recovered.cluster.sql("select count(*) from t"), "1000");
}
