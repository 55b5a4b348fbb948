//! A server archives, through its worker, into a store and onto disks that fail: nothing acknowledged is missing, what
//! failed is counted, the server keeps running, and archiving catches up by itself.

use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::emulator::free_port;
use walkeep_tests::proxy::{Fault, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::wait::{SOON, until};

use crate::archiving::{Archiving, bucket_behind_proxy, send};
use crate::bad_input::SmallDisk;
use crate::site::{Place, take, wait_until_open};

/// A server whose commits are counted, and a backup of it from before all faults.
fn with_backup(repository: &Repository, before: &str) -> Archiving {
    let server = Archiving::start_with(repository, before, Cluster::options());
    server.open();
    server.cluster.sql("create table acknowledged (what text)");
    take(repository, &server.cluster);
    server
}

/// Commits something, and ends a few segments behind it, all of which wait.
fn commit(server: &Archiving, what: &str) -> Vec<String> {
    server.cluster.sql(&format!("insert into acknowledged values ('{what}')"));
    server.fill(6)
}

/// After three failures PostgreSQL waits a minute, or until there is something new.
fn try_again(server: &Archiving) {
    server.cluster.finish_segment();
}

fn failures(server: &Archiving) -> u64 {
    server.failures().parse().unwrap()
}

/// Recovery from the repository reaches the last commit of the last segment that was acknowledged.
fn expect_recovery(repository: &Repository, mut server: Archiving) {
    let rows = server.cluster.sql("select count(*) from acknowledged");
    server.cluster.wait_until_archived(&server.cluster.finish_segment());
    server.cluster.stop(StopMode::Immediate);
    let place = Place::new();
    place.restore(repository, &[]);
    let mut restored = place.server(repository);
    restored.start();
    wait_until_open(&restored);
    assert_eq!(restored.sql("select count(*) from acknowledged"), rows);
}

#[test]
fn faults_that_pass_cost_neither_a_failure_nor_a_segment() {
    let retry_later = match Fault::slow_down() {
        Fault::Answer { status, mut headers, body } => {
            headers.push("Retry-After: 1".to_owned());
            Fault::Answer { status, headers, body }
        }
        other => other,
    };
    let faults = [
        ("reset before the body", Fault::ResetBeforeBody),
        ("reset during the body", Fault::ResetDuringBody),
        ("reset after the body", Fault::ResetAfterBody),
        ("answer lost", Fault::LoseAnswer),
        ("an error under 200", Fault::s3_error(200, "InternalError", "We encountered an internal error.")),
        ("internal error", Fault::s3_error(500, "InternalError", "We encountered an internal error.")),
        ("come back later", retry_later),
        ("conflict", Fault::s3_error(409, "ConditionalRequestConflict", "Retry the upload.")),
        ("exists", Fault::s3_error(412, "PreconditionFailed", "At least one did not hold.")),
        ("skew", Fault::s3_error(403, "RequestTimeTooSkewed", "The difference is too large.")),
        ("expired token", Fault::s3_error(400, "ExpiredToken", "The provided token has expired.")),
        ("a page of a proxy", Fault::web_page(502)),
    ];
    let (mut repository, proxy) = bucket_behind_proxy();
    repository.configure("jobs = 3");
    let server = with_backup(&repository, "");
    let before = failures(&server);
    let mut all = Vec::new();
    for (what, fault) in faults {
        server.close();
        let names = commit(&server, what);
        // Every second upload, so that some of those that are under way together fail.
        for name in names.iter().step_by(2) {
            proxy.add(Rule::all(fault.clone()).method("PUT").path(name).times(1));
        }
        server.open();
        server.wait_until_archived(&names);
        assert_eq!(failures(&server), before, "{what}\n{}", server.cluster.log());
        all.extend(names);
    }
    server.expect_all_kept(&repository, &all);
    expect_recovery(&repository, server);
}

#[test]
fn outages_are_counted_and_waited_out_while_the_server_works_on() {
    let (mut repository, proxy) = bucket_behind_proxy();
    repository.configure("timeout = 3");
    let server = with_backup(&repository, "");
    let through_proxy = proxy.endpoint();
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut all = Vec::new();
    for (what, endpoint, fault) in [
        ("a name nobody knows", Some("http://walkeep.invalid:80"), None),
        ("nobody listens", Some(nobody.as_str()), None),
        ("an authority nobody knows", Some(ceph::shared().tls_endpoint.as_str()), None),
        ("overload", None, Some(Fault::slow_down())),
        ("resets", None, Some(Fault::ResetDuringBody)),
    ] {
        server.close();
        let before = failures(&server);
        if let Some(endpoint) = endpoint {
            repository.set_endpoint(endpoint);
        }
        proxy.add(fault.map_or(Rule::all(Fault::ResetBeforeBody).times(0), Rule::all));
        let names = commit(&server, what);
        server.open();
        until(what, SOON, || (failures(&server) > before).then_some(()));
        // Whatever the archiver meets, the server takes commits.
        server.cluster.sql(&format!("insert into acknowledged values ('during: {what}')"));
        repository.set_endpoint(&through_proxy);
        proxy.clear();
        try_again(&server);
        server.wait_until_archived(&names);
        all.extend(names);
    }
    server.expect_all_kept(&repository, &all);
    expect_recovery(&repository, server);
}

#[test]
fn a_spool_that_is_full_or_closed_costs_a_warning_and_a_full_repository_a_failure() {
    let mut repository = Repository::directory();
    let Some(disk) = SmallDisk::mount_at(repository.path(), "8m") else { return };
    let Some(spool) = SmallDisk::mount("256k") else { return };
    repository.configure("timeout = 3");
    let variable = ("WALKEEP_SPOOL_DIRECTORY".to_owned(), spool.path().display().to_string());
    let fill_up = |directory: &std::path::Path| {
        let filler = directory.join("filler");
        let words = ["if=/dev/urandom", "bs=1k", &format!("of={}", filler.display())];
        walkeep_tests::run::Run::new("dd").args(words).finish();
        filler
    };
    let full = fill_up(spool.path());
    let server = Archiving::start_with(&repository, "", Cluster::options().environment(&[variable]));
    server.open();
    let names = server.fill(4);
    server.wait_until_archived(&names);
    std::fs::remove_file(full).unwrap();
    std::fs::set_permissions(spool.path(), std::fs::Permissions::from_mode(0o500)).unwrap();
    let more = server.fill(4);
    server.wait_until_archived(&more);
    assert_eq!(server.failures(), "0", "{}", server.cluster.log());

    server.close();
    let filler = fill_up(disk.path());
    let late = server.fill(6);
    server.open();
    server.cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    server.cluster.wait_for_log(0, "No space left on device");
    std::fs::remove_file(filler).unwrap();
    try_again(&server);
    server.wait_until_archived(&late);
    server.expect_all_kept(&repository, &[names, more, late].concat());
}

#[test]
fn a_disk_that_fails_to_synchronize_or_link_is_never_called_durable() {
    for call in ["fsync", "linkat"] {
        let mut repository = Repository::directory();
        repository.configure("timeout = 3");
        let inject = format!("strace -f -qq -e trace={call} -e inject={call}:error=EIO -o /dev/null");
        let wrapper = repository.scratch().write("wrapper", inject);
        let before = format!("$(cat {})", wrapper.display());
        let server = Archiving::start_with(&repository, &before, Cluster::options());
        let names = server.fill(3);
        server.open();
        server.cluster.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
        server.cluster.wait_for_log(0, "Input/output error");
        assert_eq!(server.copies(), Vec::<String>::new(), "{call}");
        repository.scratch().write("wrapper", "");
        try_again(&server);
        server.wait_until_archived(&names);
        server.expect_all_kept(&repository, &names);
    }
}

fn done(name: &str) -> String {
    format!("pg_wal/archive_status/{name}.done")
}

#[test]
fn too_little_memory_fails_or_succeeds_and_never_in_between() {
    for kibibytes in [20_000, 60_000, 120_000, 400_000] {
        let repository = Repository::directory();
        let before = format!("ulimit -v {kibibytes};");
        let server = Archiving::start_with(&repository, &before, Cluster::options());
        let names = server.fill(12);
        server.open();
        until("the queue is tried", SOON, || {
            (server.failures() != "0" || server.cluster.data().join(done(&names[11])).exists()).then_some(())
        });
        server.expect_all_kept(&repository, &server.copies());
        assert_eq!(server.cluster.sql("select 1"), "1", "{}", server.cluster.log());
    }
}

#[test]
fn a_worker_told_to_end_is_replaced() {
    let repository = Repository::directory();
    let server = Archiving::start(&repository);
    let names = server.fill(30);
    server.open();
    send(server.wait_for_worker(), Signal::TERM);
    server.wait_until_archived(&names);
    assert_eq!(server.failures(), "0", "{}", server.cluster.log());
    server.expect_all_kept(&repository, &names);
}
