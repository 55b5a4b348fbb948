//! After a failover the archive is unbroken across the fork, whatever the lost primary had not archived.

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, Options};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::wait::{SOON, until};
use walkeep_tests::worker;

fn archiving(repository: &Repository) -> Options {
    let command = format!("{} %p", binaries::archive_push().display());
    let options = Cluster::options().segment_size(1).environment(repository.environment());
    // The worker of a server that does not archive any more leaves soon.
    options.environment(&[("WALKEEP_LINGER".to_owned(), "1s".to_owned())]).archive_command(&command)
}

/// A primary that archived its first segments and then no more, and a standby that has streamed all of it.
fn primary_and_standby(repository: &Repository) -> (Cluster, Cluster, Vec<String>) {
    let primary = archiving(repository).start();
    primary.sql("create table t (batch int)");
    primary.wait_until_archived(&primary.finish_segment());
    let mut standby = primary.standby(archiving(repository));
    standby.start();
    primary.sql("alter system set archive_command = 'false'");
    primary.reload();
    until("nothing pushes ahead any more", SOON, || worker::of(primary.data()).is_empty().then_some(()));
    let segments: Vec<String> = (1..=6)
        .map(|batch| {
            primary.sql(&format!("insert into t values ({batch})"));
            primary.finish_segment()
        })
        .collect();
    standby.wait_for("select count(*) from t", "6");
    let position = primary.sql("select pg_current_wal_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{position}'"), "t");
    (primary, standby, segments)
}

fn archived(repository: &Repository, name: &str) -> bool {
    repository.objects().iter().any(|key| key.ends_with(&format!("/{name}.zst")))
}

#[test]
fn segments_the_lost_primary_never_archived_are_archived_by_its_successor_before_the_new_history() {
    let repository = Repository::directory();
    let (mut primary, standby, segments) = primary_and_standby(&repository);
    assert!(!archived(&repository, &segments[0]), "the primary must not have archived it");
    primary.kill();
    standby.promote();
    until("the new history to be archived", SOON, || archived(&repository, "00000002.history").then_some(()));
    for segment in &segments {
        assert!(archived(&repository, segment), "{segment} is missing although the new timeline is known");
    }
    standby.sql("insert into t values (7)");
    standby.wait_until_archived(&standby.finish_segment());
}

#[test]
fn a_history_is_not_archived_while_its_past_cannot_be() {
    let mut repository = Repository::ceph();
    repository.configure("timeout = 4");
    let proxy = Proxy::start(&walkeep_tests::ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let (mut primary, standby, segments) = primary_and_standby(&repository);
    // The third segment cannot be stored for a while.
    proxy.add(Rule::all(Fault::s3_error(500, "InternalError", "Try again.")).method("PUT").path(&segments[2]));
    primary.kill();
    standby.promote();
    until("the segments before it to be archived", SOON, || archived(&repository, &segments[1]).then_some(()));
    standby.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    assert!(!archived(&repository, "00000002.history"));
    proxy.clear();
    until("the new history to be archived", SOON, || archived(&repository, "00000002.history").then_some(()));
    for segment in &segments {
        assert!(archived(&repository, segment), "{segment}");
    }
}

#[test]
fn a_history_that_was_deleted_comes_back_with_a_later_segment() {
    let repository = Repository::directory();
    let (mut primary, standby, _) = primary_and_standby(&repository);
    primary.kill();
    standby.promote();
    until("the new history to be archived", SOON, || archived(&repository, "00000002.history").then_some(()));
    repository.delete(&repository.find("00000002.history.zst"));
    standby.sql("insert into t values (7)");
    standby.wait_until_archived(&standby.finish_segment());
    assert!(archived(&repository, "00000002.history"));
}
