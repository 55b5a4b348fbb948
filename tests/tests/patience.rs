//! How long one call of `archive-push` takes: with a server that shuts down, a store that hangs or a slow link.

use std::time::Duration;

use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::user;

use crate::archiving::bucket_behind_proxy;
use crate::samples::{DataDirectory, archive, ours};

/// The data directory of a running server with this process and status, whose WAL files all wait to be archived.
fn served(process: u32, status: &str) -> DataDirectory {
    let directory = DataDirectory::with_wal(ours());
    let file = directory.path().join("postmaster.pid");
    std::fs::write(&file, format!("{process}\n/data\n1790000000\n5432\n/tmp\nlocalhost\n  99 1\n{status}\n")).unwrap();
    user::give(&file);
    for name in ours().segments(1) {
        directory.write(&format!("archive_status/{name}.ready"), b"");
    }
    directory
}

/// A bucket in which the first segment is archived already.
fn known_bucket() -> (Repository, Proxy) {
    let (repository, proxy) = bucket_behind_proxy();
    archive(ours(), &repository, [ours().segments(1)[0]]);
    proxy.forget_requests();
    (repository, proxy)
}

#[test]
fn while_the_server_stops_an_upload_gets_its_last_chance_once() {
    let (mut repository, proxy) = known_bucket();
    repository.configure("timeout = 5");
    let directory = served(4_000_000, "stopping");
    // The store answers, and takes nothing.
    proxy.add(Rule::all(Fault::Silence).method("PUT"));
    let name = ours().segments(1)[1];
    let first = directory.push(&repository, name).finish();
    assert!(first.code() == 1 && first.elapsed > Duration::from_secs(4), "{first}");
    let second = directory.push(&repository, name).finish();
    assert!(second.code() == 1 && second.elapsed < Duration::from_millis(4300), "{second}");
    second.expect_stderr(&["gave up because the server is shutting down"]);
    // The next server's is its own.
    let directory = served(4_000_001, "stopping");
    let third = directory.push(&repository, name).finish();
    assert!(third.code() == 1 && third.elapsed > Duration::from_secs(4), "{third}");
}

#[test]
fn a_dead_mount_is_not_waited_for_while_the_server_stops() {
    let repository = Repository::directory();
    let names = ours().segments(1);
    archive(ours(), &repository, [names[0]]);
    let directory = served(4_000_000, "stopping");
    // Ends by itself, because strace waits for it.
    let trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=statx:delay_enter=6000000", "-P"];
    let trace = trace.into_iter().chain([repository.path().to_str().unwrap()]);
    let pushed = directory.push(&repository, names[1]).under(trace).finish();
    pushed.expect_code(1).expect_stderr(&["the repository did not answer within 3 s"]);
}

#[test]
fn a_probe_that_gets_no_answer_leaves_the_file_its_time() {
    let (mut repository, proxy) = bucket_behind_proxy();
    repository.configure("timeout = 12");
    let name = ours().segments(1)[0];
    proxy.add(Rule::all(Fault::Silence).method("PUT").path("/probe/"));
    proxy.add(Rule::all(Fault::BytesPerSecond(object_bytes(name) / 2)).method("PUT").path(name));
    DataDirectory::with_wal(ours()).push(&repository, name).finish().expect_code(0);
    repository.find(&format!("/{name}.zst"));
}

/// The size of the object that a file becomes.
fn object_bytes(name: &str) -> u64 {
    let repository = Repository::directory();
    archive(ours(), &repository, [name]);
    repository.read(&repository.find(&format!("/{name}.zst"))).len() as u64
}

#[test]
fn where_no_worker_may_live_the_file_that_is_asked_for_has_a_slow_link_for_itself() {
    let (repository, proxy) = known_bucket();
    let directory = served(1, "ready");
    let names = ours().segments(1);
    proxy.add(Rule::all(Fault::BytesPerSecond(object_bytes(names[1]) / 3)).method("PUT").path(names[1]));
    directory.push(&repository, names[1]).finish().expect_code(0);
    assert_eq!((proxy.count("PUT", "/wal/"), proxy.most_at_once()), (1, 1), "{:#?}", proxy.requests());
    // Others follow where it is quick.
    directory.push(&repository, names[2]).finish().expect_silent_success();
    assert!(proxy.count("PUT", "/wal/") > 2, "{:#?}", proxy.requests());
}

#[test]
fn without_a_memory_nothing_is_pushed_that_later_calls_would_push_again() {
    let (repository, proxy) = known_bucket();
    std::fs::remove_dir_all(repository.spool()).unwrap();
    std::fs::write(repository.spool(), "").unwrap();
    let directory = served(1, "ready");
    for name in &ours().segments(1)[1..3] {
        proxy.forget_requests();
        directory.push(&repository, name).finish().expect_code(0);
        assert_eq!(proxy.count("PUT", "/wal/"), 1, "{:#?}", proxy.requests());
    }
}

#[test]
fn a_file_that_cannot_be_read_is_no_outage_of_the_store() {
    let (mut repository, proxy) = known_bucket();
    repository.configure("timeout = 3");
    let directory = served(4_000_000, "ready");
    let name = ours().segments(1)[1];
    let file = directory.wal(name);
    let outages = || {
        let facts = std::fs::read_dir(repository.spool()).unwrap();
        facts.filter(|fact| fact.as_ref().unwrap().file_name().to_string_lossy().starts_with("outage-")).count()
    };
    let trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=read:error=EIO", "-P", file.to_str().unwrap()];
    let pushed = directory.push(&repository, name).under(trace).finish();
    pushed.expect_code(1).expect_stderr(&["Input/output error"]);
    assert_eq!(outages(), 0);
    proxy.add(Rule::all(Fault::ResetBeforeBody));
    directory.push(&repository, name).finish().expect_code(1);
    assert_eq!(outages(), 1);
}
