//! `archive-push` and `archive-get` against stores that fail, lie and dawdle.

use std::time::Duration;

use walkeep_tests::ceph;
use walkeep_tests::emulator::{S3rver, free_port};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;

use crate::samples::{DataDirectory, archive, ours, unpacked};

/// A bucket behind a proxy, which this host knows: one segment is archived already.
fn known_bucket() -> (Repository, Proxy, DataDirectory) {
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    archive(ours(), &repository, [ours().segments(1)[0]]);
    proxy.forget_requests();
    (repository, proxy, DataDirectory::with_wal(ours()))
}

#[test]
fn a_segment_costs_one_put_and_nothing_else() {
    let (repository, proxy, directory) = known_bucket();
    for name in &ours().segments(1)[1..] {
        directory.push(&repository, name).finish().expect_silent_success();
    }
    let requests = proxy.requests();
    assert_eq!(requests.len(), ours().segments(1).len() - 1, "{requests:#?}");
    assert!(requests.iter().all(|request| request.method == "PUT"), "{requests:#?}");
}

#[test]
fn fetching_a_segment_costs_one_get() {
    let (repository, proxy, directory) = known_bucket();
    directory.get(&repository, ours().segments(1)[0]).finish().expect_silent_success();
    let requests = proxy.requests();
    assert!(requests.len() == 1 && requests[0].method == "GET", "{requests:#?}");
}

#[test]
fn a_passing_fault_costs_a_retry_and_leaves_one_whole_object() {
    let faults = [
        ("reset before the body", Fault::ResetBeforeBody),
        ("reset during the body", Fault::ResetDuringBody),
        ("reset after the body", Fault::ResetAfterBody),
        ("answer lost", Fault::LoseAnswer),
        ("slow down", Fault::slow_down()),
        ("internal error", Fault::s3_error(500, "InternalError", "We encountered an internal error.")),
        ("time skew", Fault::s3_error(403, "RequestTimeTooSkewed", "The difference is too large.")),
        ("time-out", Fault::s3_error(400, "RequestTimeout", "Your socket connection was not read from.")),
        ("a conflict that stored nothing", Fault::s3_error(409, "ConditionalRequestConflict", "Retry the upload.")),
        ("another's success", Fault::s3_error(412, "PreconditionFailed", "At least one did not hold.")),
    ];
    let (repository, proxy, directory) = known_bucket();
    let name = ours().segments(1)[1];
    for (what, fault) in faults {
        proxy.add(Rule::all(fault).method("PUT").path(name).times(1));
        let pushed = directory.push(&repository, name).finish();
        assert_eq!(pushed.code(), 0, "{what}\n{pushed}");
        let key = repository.find(&format!("{name}.zst"));
        assert!(unpacked(&repository, &key) == ours().files[name], "{what}");
        repository.delete(&key);
    }
}

#[test]
fn a_lasting_outage_is_temporary_and_ends_within_the_time_allowed() {
    let faults = [
        ("reset", Fault::ResetBeforeBody),
        ("slow down", Fault::slow_down()),
        ("silence", Fault::Silence),
        ("bad gateway", Fault::web_page(502)),
    ];
    for (what, fault) in faults {
        let (mut repository, proxy, directory) = known_bucket();
        repository.configure("timeout = 4");
        proxy.add(Rule::all(fault));
        let name = ours().segments(1)[1];
        let pushed = directory.push(&repository, name).finish();
        assert_eq!(pushed.code(), 1, "{what}\n{pushed}");
        assert!(pushed.elapsed < Duration::from_secs(6), "{what}\n{pushed}");
        pushed.expect_stderr(&["archive-push: ERROR:"]);
        let got = directory.get(&repository, ours().segments(1)[0]).finish();
        assert!(got.code() == 101 && got.elapsed < Duration::from_secs(6), "{what}\n{got}");
        proxy.clear();
        directory.push(&repository, name).finish().expect_silent_success();
    }
}

#[test]
fn an_answer_that_breaks_off_is_fetched_again() {
    for fault in [Fault::CutAnswer(1000), Fault::LoseAnswer, Fault::slow_down()] {
        let (repository, proxy, directory) = known_bucket();
        let name = ours().segments(1)[0];
        proxy.add(Rule::all(fault.clone()).method("GET").path(name).times(2));
        let got = directory.get(&repository, name).finish();
        assert!(got.code() == 0, "{fault:?}\n{got}");
        assert!(std::fs::read(directory.wal("RECOVERYXLOG")).unwrap() == ours().files[name], "{fault:?}");
    }
}

#[test]
fn a_slow_link_that_makes_progress_is_enough() {
    let (repository, proxy, directory) = known_bucket();
    let name = ours().segments(1)[1];
    proxy.add(Rule::all(Fault::BytesPerSecond(20_000)).method("PUT"));
    let pushed = directory.push(&repository, name).finish();
    pushed.expect_code(0);
    proxy.clear();
    proxy.add(Rule::all(Fault::BytesPerSecond(20_000)).method("GET"));
    directory.get(&repository, name).finish().expect_silent_success();
}

#[test]
fn a_refusal_is_not_repeated_and_not_called_temporary() {
    let name = ours().segments(1)[1];
    let (mut repository, proxy, directory) = known_bucket();
    repository.set_credentials(&ceph::shared().stranger);
    let refused = directory.push(&repository, name).finish();
    refused.expect_code(5);
    assert!(proxy.count("PUT", name) <= 1, "{:#?}", proxy.requests());
    directory.get(&repository, ours().segments(1)[0]).finish().expect_code(104);

    repository.set_credentials(&ceph::shared().owner);
    proxy.add(Rule::all(Fault::s3_error(403, "RequestTimeTooSkewed", "The difference is too large.")));
    directory.push(&repository, name).finish().expect_code(5).expect_stderr(&["clock"]);
    proxy.clear();

    let mut wrong_secret = ceph::shared().owner.clone();
    wrong_secret.secret_key.push('x');
    repository.set_credentials(&wrong_secret);
    directory.push(&repository, name).finish().expect_code(5);
    directory.get(&repository, ours().segments(1)[0]).finish().expect_code(104);
    for secret in [&wrong_secret.secret_key, &ceph::shared().owner.secret_key] {
        assert!(!refused.to_string().contains(secret.as_str()), "{refused}");
    }

    repository.set_credentials(&ceph::shared().owner);
    repository.set_url("s3://no-such-bucket/test");
    directory.push(&repository, name).finish().expect_code(5).expect_stderr(&["no-such-bucket"]);
    directory.get(&repository, name).finish().expect_code(104).expect_stderr(&["no-such-bucket"]);
}

#[test]
fn a_segment_that_may_not_be_replaced_is_found_to_be_there() {
    let (repository, proxy, directory) = known_bucket();
    let [there, missing] = [ours().segments(1)[0], ours().segments(1)[1]];
    let words = "caller does not have storage.objects.delete access";
    proxy.add(Rule::all(Fault::s3_error(403, "AccessDenied", words)).method("PUT"));
    directory.push(&repository, there).finish().expect_silent_success();
    directory.push(&repository, missing).finish().expect_code(5).expect_stderr(&[words]);
}

#[test]
fn an_endpoint_nobody_listens_on_is_an_outage() {
    let (mut repository, _proxy, directory) = known_bucket();
    repository.configure("timeout = 3");
    repository.set_endpoint(&format!("http://127.0.0.1:{}", free_port()));
    directory.push(&repository, ours().segments(1)[1]).finish().expect_code(1);
    directory.get(&repository, ours().segments(1)[0]).finish().expect_code(101);
    repository.set_endpoint("http://no-such-host.invalid");
    directory.push(&repository, ours().segments(1)[1]).finish().expect_code(1);
    directory.get(&repository, ours().segments(1)[0]).finish().expect_code(101);
}

#[test]
fn a_web_server_s_404_is_not_taken_for_the_end_of_wal() {
    let (repository, proxy, directory) = known_bucket();
    proxy.add(Rule::all(Fault::web_page(404)));
    let got = directory.get(&repository, ours().segments(1)[0]).finish();
    assert_ne!(got.code(), 1, "{got}");
    assert!((101..=104).contains(&got.code()), "{got}");
}

#[test]
fn a_private_authority_is_trusted_only_when_the_configuration_names_it() {
    let repository = Repository::ceph_with_tls();
    let name = ours().segments(1)[0];
    archive(ours(), &repository, [name]);
    let directory = DataDirectory::with_wal(ours());
    directory.get(&repository, name).finish().expect_silent_success();

    let mut untrusting = Repository::ceph();
    untrusting.configure("timeout = 3");
    untrusting.set_endpoint(&ceph::shared().tls_endpoint);
    directory.push(&untrusting, name).finish().expect_code(1).expect_stderr(&["certificate"]);
    directory.get(&untrusting, name).finish().expect_code(101);
}

#[test]
fn nothing_is_overwritten_where_the_store_ignores_conditional_puts() {
    let server = S3rver::start("bucket");
    let repository = Repository::s3rver(&server, "bucket");
    let name = ours().segments(1)[0];
    archive(ours(), &repository, [name]);
    let key = repository.find(&format!("{name}.zst"));
    let stored = repository.read(&key);
    let directory = DataDirectory::with_wal(ours());
    directory.push(&repository, name).finish().expect_silent_success();
    let mut other = ours().files[name].clone();
    other[500_000] ^= 1;
    directory.write(name, &other);
    for _ in 0..2 {
        directory.push(&repository, name).finish().expect_code(3);
        assert!(repository.read(&key) == stored);
    }
    directory.get(&repository, name).finish().expect_silent_success();
}
