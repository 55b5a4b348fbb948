//! What the harness promises the other tests.

use std::time::{Duration, Instant};

use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, StopMode, program};
use walkeep_tests::emulator::{Azurite, S3rver};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run};

#[test]
fn a_server_starts_answers_crashes_and_recovers() {
    let mut cluster = Cluster::options().segment_size(1).checksums().start();
    cluster.sql("create table t as select generate_series(1, 1000) n");
    cluster.kill();
    cluster.start();
    assert_eq!(cluster.sql("select count(*) from t"), "1000");
    assert_eq!(cluster.sql("show wal_segment_size"), "1MB");
    assert!(cluster.stop(StopMode::Fast).success());
    assert_eq!(cluster.control("Database cluster state"), "shut down");
}

#[test]
fn a_server_archives_with_a_command_of_the_test() {
    let cluster = Cluster::options().segment_size(1).archive_command("test ! -e %f && cp %p ../%f").start();
    let name = cluster.finish_segment();
    cluster.wait_until_archived(&name);
    assert_eq!(std::fs::metadata(cluster.scratch().path().join(name)).unwrap().len(), 1 << 20);
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let primary = Cluster::options().start();
    primary.sql("create table t (n int)");
    let mut standby = primary.standby(Cluster::options());
    standby.start();
    primary.sql("insert into t values (42)");
    standby.wait_for("select n from t", "42");
    standby.promote();
    assert_eq!(standby.control("Latest checkpoint's TimeLineID").parse::<u32>().unwrap().max(2), 2);
    standby.sql("insert into t values (43)");
}

#[test]
fn a_server_in_a_directory_with_blanks_and_quotes_starts() {
    let cluster = Cluster::options().data_directory_name("it's data").start();
    assert_eq!(
        cluster.system_identifier().to_string(),
        cluster.sql("select system_identifier from pg_control_system()")
    );
}

/// An S3 client that is not ours, through a proxy or straight.
fn curl(endpoint: &str, repository: &Repository, method: &str, path: &str, options: &[&str]) -> Finished {
    let variable = |wanted: &str| {
        let (_, value) = repository.environment().iter().find(|(name, _)| name == wanted).unwrap();
        value.clone()
    };
    let user = format!("{}:{}", variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
    let bucket = repository.url().strip_prefix("s3://").unwrap();
    Run::new("curl")
        .args([
            "-sS",
            "--max-time",
            "20",
            "--aws-sigv4",
            "aws:amz:us-east-1:s3",
            "-H",
            "x-amz-content-sha256: UNSIGNED-PAYLOAD",
        ])
        .args(["-u", &user, "-X", method, "-w", "\nstatus %{http_code}"])
        .args(options)
        .arg(format!("{endpoint}/{bucket}/{path}"))
        .finish()
}

#[test]
fn ceph_enforces_signatures_and_creates_conditionally() {
    let mut repository = Repository::ceph();
    repository.write("a/b", b"one");
    assert_eq!((repository.objects(), repository.read("a/b")), (vec!["a/b".to_owned()], b"one".to_vec()));

    let endpoint = &ceph::shared().endpoint;
    let only_new = ["-H", "If-None-Match: *", "--data-binary", "two"];
    assert!(curl(endpoint, &repository, "PUT", "a/b", &only_new).stdout.ends_with("status 412"));
    assert!(curl(endpoint, &repository, "PUT", "a/c", &only_new).stdout.ends_with("status 200"));
    assert_eq!(repository.read("a/c"), b"two");

    repository.set_credentials(&ceph::shared().stranger);
    assert!(curl(endpoint, &repository, "GET", "a/b", &[]).stdout.ends_with("status 403"));
    repository.delete("a/b");
    assert_eq!(repository.objects(), ["a/c"]);
}

#[test]
fn ceph_is_reached_by_tls_with_its_own_authority_only() {
    let ceph = ceph::shared();
    let repository = Repository::ceph_with_tls();
    repository.write("a", b"secret");
    let authority = ["--cacert", ceph.ca.to_str().unwrap()];
    assert!(curl(&ceph.tls_endpoint, &repository, "GET", "a", &authority).stdout.starts_with("secret\n"));
    assert_eq!(curl(&ceph.tls_endpoint, &repository, "GET", "a", &[]).code(), 60, "an unknown authority is refused");
}

#[test]
fn s3rver_overwrites_what_a_conditional_put_should_have_kept() {
    let server = S3rver::start("bucket");
    let repository = Repository::s3rver(&server, "bucket");
    repository.write("a", b"one");
    let only_new = ["-H", "If-None-Match: *", "--data-binary", "two"];
    assert!(curl(&server.endpoint, &repository, "PUT", "a", &only_new).stdout.ends_with("status 200"));
    assert_eq!(repository.read("a"), b"two");
}

#[test]
fn azurite_keeps_what_is_written() {
    let server = Azurite::start("container");
    let repository = Repository::azurite(&server, "container");
    repository.write("a/b", b"one");
    repository.flip_bit("a/b", 0);
    assert_eq!((repository.objects(), repository.read("a/b")), (vec!["a/b".to_owned()], b"nne".to_vec()));
}

#[test]
fn the_proxy_passes_on_and_counts_and_fails_what_it_is_told_to() {
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    let endpoint = proxy.endpoint();
    let put = |path: &str, body: &str| {
        curl(&endpoint, &repository, "PUT", path, &["-H", "If-None-Match: *", "--data-binary", body])
    };

    assert!(put("plain", "1").stdout.ends_with("status 200"), "the signature holds through the proxy");
    assert_eq!((proxy.count("PUT", "plain"), proxy.count("GET", ""), proxy.connections()), (1, 0, 1));

    let failing = |path: &'static str, fault: Fault| {
        proxy.add(Rule::all(fault).method("PUT").path(path).times(1));
        let body = "x".repeat(100_000);
        let first = put(path, &body);
        let stored = repository.objects().contains(&path.to_owned());
        let second = put(path, &body);
        (first.code(), stored, second.stdout.lines().last().unwrap().to_owned())
    };
    let reset = 56;
    for (path, fault) in
        [("before", Fault::ResetBeforeBody), ("during", Fault::ResetDuringBody), ("after", Fault::ResetAfterBody)]
    {
        let (code, stored, then) = failing(path, fault);
        assert!([reset, 55, 52].contains(&code), "{path}: curl exit {code}");
        assert!(!stored, "{path}");
        assert_eq!(then, "status 200", "{path}");
    }
    assert_eq!(failing("lost", Fault::LoseAnswer), (reset, true, "status 412".to_owned()));

    proxy.add(Rule::all(Fault::slow_down()).path("busy").after(1).times(2));
    let answers = [0, 1, 2, 3].map(|n| put(&format!("busy{n}"), "1").stdout.lines().last().unwrap().to_owned());
    assert_eq!(answers, ["status 200", "status 503", "status 503", "status 200"]);
    proxy.add(Rule::all(Fault::web_page(404)).method("GET"));
    assert!(curl(&endpoint, &repository, "GET", "plain", &[]).stdout.contains("It works!"));
    proxy.clear();
    assert!(curl(&endpoint, &repository, "GET", "plain", &[]).stdout.starts_with("1\n"));
    let bucket = repository.url().trim_end_matches("/test").to_owned();
    repository.set_url(&bucket);
    let listing = curl(&endpoint, &repository, "GET", "?list-type=2", &[]);
    assert!(listing.stdout.contains("<Key>test/plain</Key>"), "{listing}");
}

#[test]
fn the_proxy_slows_down_cuts_and_stalls() {
    let repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    let get = |options: &[&str]| curl(&proxy.endpoint(), &repository, "GET", "big", options);
    repository.write("big", &vec![b'x'; 200_000]);

    proxy.add(Rule::all(Fault::BytesPerSecond(100_000)).times(1));
    let started = Instant::now();
    assert_eq!(get(&[]).code(), 0);
    assert!(started.elapsed() > Duration::from_millis(1800), "{:?}", started.elapsed());

    proxy.add(Rule::all(Fault::CutAnswer(1000)).times(1));
    let cut = get(&[]);
    assert!(cut.code() == 56 && cut.stdout.starts_with(&"x".repeat(1000)), "{} {}", cut.code(), cut.stdout.len());

    for fault in [Fault::Silence, Fault::StallAfterHeader] {
        proxy.add(Rule::all(fault).times(1));
        assert_eq!(get(&["--max-time", "1"]).code(), 28, "a time-out");
    }
    assert_eq!(get(&[]).code(), 0);
}

#[test]
fn a_run_shows_what_happened_and_leaves_nothing_behind() {
    let finished =
        Run::new("sh").args(["-c", "echo out; echo err >&2; id -u >&2; umask; kill -TERM $$"]).umask(0o27).finish();
    assert_eq!((finished.code(), finished.stdout.as_str()), (143, "out\n0027\n"));
    assert!(finished.stderr.starts_with("err\n") && !finished.stderr.contains("\n0\n"), "never as root\n{finished}");
    assert!(program("psql").exists());
}
