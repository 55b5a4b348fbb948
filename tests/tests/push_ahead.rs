//! The worker in the background: faster for PostgreSQL, and never in its way.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, StopMode, program};
use walkeep_tests::daemon::{Daemon, Server};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};
use walkeep_tests::worker::{is_gone, processes, status};

use crate::archiving::{Archiving, bucket_behind_proxy, send};
use crate::samples::{DataDirectory, ours, unpacked};

/// The socket of the worker that runs for this repository's only server.
fn socket(repository: &Repository) -> PathBuf {
    let run = repository.scratch().path().join("run");
    let mut sockets = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let socket = sockets.find(|path| path.extension().is_some_and(|extension| extension == "sock"));
    socket.expect("a socket in the run directory")
}

/// The level in an object's header.
fn level(repository: &Repository, name: &str) -> i64 {
    let object = repository.read(&repository.find(&format!("/{name}.zst")));
    let text = String::from_utf8_lossy(&object[..4096.min(object.len())]).into_owned();
    let level = text.split("\"level\":").nth(1).expect("a level in the header");
    level.split([',', '}']).next().unwrap().parse().unwrap()
}

#[test]
fn a_backlog_is_drained_in_parallel_and_every_object_is_what_was_pushed() {
    let mut directory = Repository::directory();
    directory.configure("jobs = 3");
    let (mut bucket, proxy) = bucket_behind_proxy();
    bucket.configure("jobs = 3");
    for repository in [directory, bucket] {
        let server = Archiving::start(&repository);
        let names = server.fill(40);
        // Slow enough for uploads to meet.
        proxy.add(Rule::all(Fault::BytesPerSecond(20_000)).method("PUT"));
        server.open();
        server.wait_until_archived(&names);
        server.expect_all_kept(&repository, &names);
        assert_eq!(server.failures(), "0", "{}", server.cluster.log());
        assert_eq!(server.workers().len(), 1);
    }
    assert!((2..=3).contains(&proxy.most_at_once()), "{}", proxy.most_at_once());
}

#[test]
fn a_segment_costs_one_put_and_nothing_else_while_a_worker_answers() {
    let (repository, proxy) = bucket_behind_proxy();
    let server = Archiving::start(&repository);
    let first = server.fill(3);
    server.open();
    server.wait_until_archived(&first);
    server.wait_for_worker();
    proxy.forget_requests();
    let mut names = Vec::new();
    for batch in 0..4 {
        server.close();
        names.extend(server.fill(10 + batch));
        server.open();
        server.wait_until_archived(&names);
    }
    let requests = proxy.requests();
    assert_eq!(requests.len(), names.len(), "{requests:#?}");
    assert!(requests.iter().all(|request| request.method == "PUT"), "{requests:#?}");
    server.expect_all_kept(&repository, &names);
}

/// Sends the worker a signal while it uploads, and waits until everything is archived all the same.
fn disturb_uploads(repository: &Repository, proxy: &Proxy, signal: Signal) -> (Archiving, Vec<String>, i32) {
    let server = Archiving::start(repository);
    let names = server.fill(30);
    proxy.add(Rule::all(Fault::BytesPerSecond(500)).method("PUT").path(&names[0][..16]).after(1));
    server.open();
    let worker = server.wait_for_worker();
    until("uploads are under way", SOON, || (proxy.at_once() > 0).then_some(()));
    send(worker, signal);
    let sent = Instant::now();
    proxy.clear();
    server.wait_until_archived(&names);
    assert!(sent.elapsed() < Duration::from_secs(15), "{:?}", sent.elapsed());
    assert_eq!(server.failures(), "0", "{}", server.cluster.log());
    (server, names, worker)
}

#[test]
fn a_worker_that_is_killed_costs_nothing_but_its_uploads() {
    let (repository, proxy) = bucket_behind_proxy();
    let (server, names, worker) = disturb_uploads(&repository, &proxy, Signal::KILL);
    assert_ne!(server.wait_for_worker(), worker);
    server.expect_all_kept(&repository, &names);
}

#[test]
fn a_worker_that_is_stopped_is_waited_for_once_and_replaced() {
    let (repository, proxy) = bucket_behind_proxy();
    let (server, names, worker) = disturb_uploads(&repository, &proxy, Signal::STOP);
    assert!(server.workers().iter().any(|process| *process != worker), "another has taken its place");
    send(worker, Signal::CONT);
    until("the one that was stopped leaves", SOON, || is_gone(worker).then_some(()));
    server.expect_all_kept(&repository, &names);
}

#[test]
fn five_hundred_pushes_leave_nothing_behind() {
    let mut repository = Repository::directory();
    repository.configure("linger = 5");
    let held = repository.scratch().write("held", "");
    let before = format!("exec 7<{0} 8>>{0};", held.display());
    let server = Archiving::start_with(&repository, &before, Cluster::options());
    let names = server.fill(500);
    server.open();
    server.wait_until_archived(&names);
    let worker = server.wait_for_worker();

    let (_, fields) = status(worker).unwrap();
    assert_eq!(fields[3], worker.to_string(), "a session of its own: {fields:?}");
    assert_ne!(fields[1], server.cluster.id().to_string());
    assert_eq!(std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap(), Path::new("/"));
    // It has stopped uploading: what it has open now it has all the time.
    let data = std::fs::canonicalize(server.cluster.data()).unwrap();
    for entry in std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap() {
        let Ok(target) = std::fs::read_link(entry.unwrap().path()) else { continue };
        let own = ["/dev/null", "socket:", "anon_inode:"].iter().any(|own| target.to_string_lossy().starts_with(own));
        assert!(own && !target.starts_with(&data), "{}", target.display());
    }
    let text = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    let ignored = text.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    // Of those with a name only SIGPIPE, which a failing write tells of.
    assert_eq!(u64::from_str_radix(ignored, 16).unwrap() & 0x7FFF_FFFF, 1 << 12, "{ignored}");

    until("the idle worker leaves", SOON, || is_gone(worker).then_some(()));
    until("nobody is left to be reaped", SOON, || {
        let left = |process| status(process).is_some_and(|(name, fields)| name == "archive-push" && fields[0] == "Z");
        (!processes().any(left)).then_some(())
    });
    assert_eq!(std::fs::read_dir(repository.scratch().path().join("run")).unwrap().count(), 0);
    let mut strange = Vec::new();
    for directory in [data.clone(), data.join("pg_wal"), data.join("pg_wal/archive_status")] {
        let names =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        strange.extend(names.filter(|name| name.contains("walkeep") || name.contains("push") || name.contains("sock")));
    }
    assert_eq!(strange, Vec::<String>::new());
    assert_eq!(server.failures(), "0");
    server.expect_all_kept(&repository, &names);
}

#[test]
fn a_pg_wal_on_another_disk_is_pushed_ahead_as_well() {
    let repository = Repository::directory();
    let elsewhere = Scratch::new("wal");
    let wal = elsewhere.create_private("wal");
    let options = Cluster::options().initdb_option(&format!("--waldir={}", wal.display()));
    let server = Archiving::start_with(&repository, "", options);
    let names = server.fill(10);
    server.open();
    server.wait_until_archived(&names);
    server.wait_for_worker();
    // A base backup leaves a file that does not say by itself which cluster it belongs to.
    let backup = Run::new(program("pg_basebackup")).args(server.cluster.connection());
    let backup = backup.arg("-D").arg(server.kept.path().join("copy")).args(["-X", "none", "-c", "fast", "--no-sync"]);
    backup.finish().expect_code(0);
    let more = server.fill(10);
    server.wait_until_archived(&more);
    server.expect_all_kept(&repository, &[names, more].concat());
    assert!(repository.objects().iter().any(|key| key.ends_with(".backup.zst")));
    assert_eq!(server.failures(), "0", "{}", server.cluster.log());
}

#[test]
fn a_worker_leaves_with_its_server_which_starts_again_at_once() {
    let repository = Repository::directory();
    let mut server = Archiving::start(&repository);
    let names = server.fill(20);
    server.open();
    server.wait_until_archived(&names);
    let worker = server.wait_for_worker();
    server.cluster.stop(StopMode::Fast);
    let stopped = Instant::now();
    server.cluster.start();
    until("the worker leaves", SOON, || is_gone(worker).then_some(()));
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
    server.close();
    let more = server.fill(20);
    server.open();
    server.wait_until_archived(&more);
    assert_ne!(server.wait_for_worker(), worker);
    server.expect_all_kept(&repository, &more);
}

#[test]
fn each_cluster_has_a_worker_of_its_own() {
    let repository = Repository::directory();
    let servers = [Archiving::start(&repository), Archiving::start(&repository)];
    let names: Vec<_> = servers.iter().map(|server| server.fill(20)).collect();
    for server in &servers {
        server.open();
    }
    for (server, names) in servers.iter().zip(&names) {
        server.wait_until_archived(names);
        assert_eq!(server.failures(), "0", "{}", server.cluster.log());
    }
    assert_ne!(servers[0].wait_for_worker(), servers[1].wait_for_worker());
    for (server, names) in servers.iter().zip(&names) {
        for name in names {
            let folder = format!("{}/wal/{}/{name}.zst", server.cluster.system_identifier(), &name[..16]);
            let copy = std::fs::read(server.kept.path().join("copies").join(name)).unwrap();
            assert!(unpacked(&repository, &repository.find(&folder)) == copy, "{name}");
        }
    }
}

#[test]
fn another_configuration_means_another_worker() {
    let mut repository = Repository::directory();
    let server = Archiving::start(&repository);
    let names = server.fill(20);
    server.open();
    server.wait_until_archived(&names);
    let worker = server.wait_for_worker();
    assert_eq!(level(&repository, &names[2]), 1, "a backlog is compressed as fast as possible");
    assert_eq!(level(&repository, &names[19]), 3, "its end is not");
    server.close();
    repository.configure("compression_level = 7");
    until("the first worker leaves", SOON, || is_gone(worker).then_some(()));
    let names = server.fill(20);
    server.open();
    server.wait_until_archived(&names);
    for name in &names {
        assert_eq!(level(&repository, name), 7, "{name}");
    }
    assert_ne!(server.wait_for_worker(), worker);
}

#[test]
fn recovery_in_place_pushes_every_file_of_the_same_name_again() {
    let repository = Repository::directory();
    let mut server = Archiving::start(&repository);
    server.open();
    server.cluster.stop(StopMode::Fast);
    let data = server.cluster.data().to_owned();
    let old = server.kept.path().join("old");
    let copy = |from: &Path, to: &Path| {
        std::fs::remove_dir_all(to).ok();
        walkeep_tests::run::tool("cp", ["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
    };
    copy(&data, &old);
    let mut seen = Vec::new();
    for _ in 0..2 {
        server.close();
        server.cluster.start();
        let names = server.fill(20);
        server.open();
        server.wait_until_archived(&names);
        server.expect_all_kept(&repository, &names);
        assert_eq!(server.failures(), "0", "{}", server.cluster.log());
        seen.push((names.clone(), std::fs::read(server.kept.path().join("copies").join(&names[10])).unwrap()));
        // Another archive; run directory and spool stay. The worker of before may still be there.
        for key in repository.objects().iter().filter(|key| key.contains("/wal/")) {
            repository.delete(key);
        }
        server.cluster.stop(StopMode::Immediate);
        copy(&old, &data);
    }
    assert!(seen[0].0 == seen[1].0 && seen[0].1 != seen[1].1, "the same names with other contents");
}

/// Talks to a socket as PostgreSQL's user.
fn perl(script: &str, arguments: &[&str]) -> Run {
    Run::new("perl").args(["-MIO::Socket::UNIX", "-e", script]).args(arguments)
}

#[test]
fn a_call_of_another_version_is_sent_away_and_the_worker_leaves() {
    let repository = Repository::directory();
    for (protocol, version) in [(1, "0.0.1"), (1, "99.0.0"), (2, env!("CARGO_PKG_VERSION"))] {
        let server = Archiving::start(&repository);
        let names = server.fill(5);
        server.open();
        server.wait_until_archived(&names);
        let worker = server.wait_for_worker();
        let request = format!(
            "{{\"protocol\":{protocol},\"version\":\"{version}\",\"name\":\"{}\",\"system_identifier\":{},\
             \"stamp\":{{\"inode\":1,\"size\":1048576,\"modified\":\"2026-01-01T00:00:00Z\"}}}}",
            names[4],
            server.cluster.system_identifier()
        );
        let talk = "my $s = IO::Socket::UNIX->new($ARGV[0]) or die; print $s \"$ARGV[1]\\n\"; $s->flush; print <$s>;";
        let talked = perl(talk, &[socket(&repository).to_str().unwrap(), &request]).finish();
        assert!(talked.code() == 0 && talked.stdout.contains("not_mine"), "{talked}");
        until("the worker leaves", SOON, || is_gone(worker).then_some(()));
        server.cluster.wait_until_archived(&server.cluster.finish_segment());
    }
}

#[test]
fn only_a_worker_of_the_same_user_that_knows_the_file_is_believed() {
    let repository = Repository::directory();
    let server = Archiving::start(&repository);
    let names = server.fill(5);
    server.open();
    server.wait_until_archived(&names);
    let worker = server.wait_for_worker();
    server.close();
    let socket = socket(&repository);
    let listen = "my $l = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 5) or die; $| = 1; print \"ready\\n\";
                  my $s = $l->accept; print scalar <$s>; print $s \"$ARGV[1]\\n\"; close $s; sleep 60;";
    let answers = [("\"not_mine\"", false), ("nonsense", false), ("{\"stored\":{\"warnings\":[]}}", true)];
    for (answer, as_root) in answers {
        if as_root && !user::is_root() {
            continue;
        }
        if !is_gone(worker) {
            send(worker, Signal::KILL);
            until("the worker is gone", SOON, || is_gone(worker).then_some(()));
        }
        for other in server.workers() {
            send(other, Signal::KILL);
        }
        std::fs::remove_file(&socket).ok();
        let impostor = perl(listen, &[socket.to_str().unwrap(), answer]);
        let impostor = if as_root { impostor.as_caller().start() } else { impostor.start() };
        until("the impostor listens", SOON, || socket.exists().then_some(()));
        if as_root {
            // PostgreSQL's user may connect, so it is not for lack of permission that this one is not believed.
            std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        let name = server.cluster.finish_segment();
        server.open();
        server.cluster.wait_until_archived(&name);
        server.close();
        repository.find(&format!("/{name}.zst"));
        impostor.signal(Signal::KILL);
        impostor.finish();
    }
    assert_eq!(server.failures(), "0");
}

#[test]
fn nothing_is_pushed_beyond_a_conflict_which_postgresql_s_log_tells_of() {
    let mut repository = Repository::directory();
    repository.configure("jobs = 1");
    let server = Archiving::start(&repository);
    let names = server.fill(80);
    let conflicting = 8;
    let data = DataDirectory::new(ours());
    let pg_control = std::fs::read(server.cluster.data().join("global/pg_control")).unwrap();
    std::fs::write(data.path().join("global/pg_control"), pg_control).unwrap();
    let mut other = std::fs::read(server.cluster.data().join("pg_wal").join(&names[conflicting])).unwrap();
    other[3 * 8192 + 100] ^= 1;
    data.write(&names[conflicting], &other);
    data.push(&repository, &names[conflicting]).finish().expect_silent_success();

    server.open();
    server.cluster.wait_for_log(0, "archive command failed with exit code 3");
    let objects = repository.objects();
    server.cluster.wait_for("select failed_count >= 3 from pg_stat_archiver", "t");
    let log = server.cluster.log();
    assert!(log.contains("archive-push: ERROR: could not store") && log.contains("HINT: "), "{log}");
    assert_eq!(repository.objects(), objects, "nothing more since the first failure");
    let is_archived = |name: &String| objects.iter().any(|key| key.ends_with(&format!("/{name}.zst")));
    assert!(names[..=conflicting].iter().all(is_archived));
    // Another upload went on while the two contents were compared.
    assert!(!names[conflicting + 40..].iter().any(is_archived), "{objects:#?}");

    repository.delete(&repository.find(&format!("/{}.zst", names[conflicting])));
    let last = server.cluster.finish_segment();
    server.wait_until_archived(&names);
    server.cluster.wait_until_archived(&last);
    server.expect_all_kept(&repository, &names);
}

#[test]
fn where_postgresql_adopts_orphans_calls_push_ahead_by_themselves_and_backends_live_on() {
    let (mut repository, proxy) = bucket_behind_proxy();
    repository.configure("jobs = 3");
    let kept = Scratch::new("kept");
    kept.create_private("copies");
    let cluster = Archiving::options(&repository, "", Cluster::options(), &kept).create();
    let server = Archiving { cluster, kept };
    let postgres = program("postgres");
    let directory = server.cluster.socket_directory().to_str().unwrap().to_owned();
    let data = server.cluster.data().to_str().unwrap().to_owned();
    let mut arguments =
        ["--map-current-user", "--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned).to_vec();
    arguments.extend([postgres.to_str().unwrap().to_owned(), "-D".to_owned(), data, "-k".to_owned(), directory]);
    let mut container = Daemon::start(&Server {
        program: Path::new("unshare"),
        arguments,
        environment: &[repository.environment(), &[]].concat(),
        directory: server.cluster.socket_directory(),
        log: &server.cluster.socket_directory().join("log"),
        on_death: "KILL",
    });
    until("the server takes connections", SOON, || {
        assert!(container.ended().is_none(), "{}", server.cluster.log());
        server.cluster.try_sql("select 1").status.success().then_some(())
    });
    let backend = server.cluster.sql("select pg_postmaster_start_time()");
    let names = server.fill(40);
    proxy.add(Rule::all(Fault::BytesPerSecond(20_000)).method("PUT"));
    server.open();
    until("pushes are under way", SOON, || (proxy.most_at_once() > 1).then_some(()));
    // Whatever of ours is killed, in whatever state.
    let ours = processes().find(|process| {
        let is_push = status(*process).is_some_and(|(name, _)| name == "archive-push");
        let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let configuration = repository.configuration();
        is_push
            && environment.windows(4).count() > 0
            && String::from_utf8_lossy(&environment).contains(configuration.to_str().unwrap())
    });
    send(ours.expect("a call is under way"), Signal::KILL);
    assert_eq!(server.workers(), Vec::<i32>::new());
    // PostgreSQL starts its archiver again, the sooner when someone connects.
    server.cluster.wait_for(&format!("select last_archived_wal >= '{}' from pg_stat_archiver", names[39]), "t");
    server.wait_until_archived(&names);
    assert_eq!(server.workers(), Vec::<i32>::new());
    server.expect_all_kept(&repository, &names);
    let log = server.cluster.log();
    assert!(!log.contains("terminating any other active server processes"), "{log}");
    assert!(!log.contains("all server processes terminated"), "{log}");
    assert_eq!(server.cluster.sql("select pg_postmaster_start_time()"), backend);
    // Batches: later calls find most files stored already, and say so without sending them again.
    let puts = proxy.count("PUT", &names[0][..16]);
    assert!(puts < names.len() + 20, "{puts} puts for {} files", names.len());
    container.signal(Signal::KILL);
    container.wait(SOON);
}

#[test]
fn a_fast_shutdown_ends_although_the_store_is_dead_and_a_worker_hangs_in_it() {
    let (repository, proxy) = bucket_behind_proxy();
    let mut server = Archiving::start(&repository);
    let names = server.fill(10);
    server.open();
    server.wait_until_archived(&names);
    let worker = server.wait_for_worker();
    server.close();
    server.fill(20);
    proxy.add(Rule::all(Fault::Silence));
    server.open();
    until("the worker asks the silent store", SOON, || (proxy.at_once() > 0).then_some(()));
    let stopping = Instant::now();
    server.cluster.signal(Signal::INT);
    server.cluster.wait_for_end(SOON * 2);
    assert!(stopping.elapsed() < Duration::from_secs(45), "{:?}", stopping.elapsed());
    let stopped = Instant::now();
    until("the worker leaves", SOON, || is_gone(worker).then_some(()));
    assert!(stopped.elapsed() < Duration::from_secs(10), "{:?}", stopped.elapsed());
}

#[test]
fn an_upload_that_takes_longer_than_a_call_goes_on_and_is_counted() {
    let (mut repository, proxy) = bucket_behind_proxy();
    repository.configure("timeout = 3");
    let server = Archiving::start(&repository);
    // A segment of its own, full of what cannot be compressed.
    server.cluster.finish_segment();
    server.cluster.sql("select pg_logical_emit_message(false, 'x', string_agg(gen_random_uuid()::text, '')) from generate_series(1, 24000)");
    let name = server.cluster.finish_segment();
    proxy.add(Rule::all(Fault::BytesPerSecond(80_000)).method("PUT").path(&name));
    server.open();
    until("the slow upload is done", SOON * 3, || {
        server.cluster.data().join(format!("pg_wal/archive_status/{name}.done")).exists().then_some(())
    });
    server.expect_all_kept(&repository, std::slice::from_ref(&name));
    let log = server.cluster.log();
    // Which of the two is said depends on whose time is up first, the request's or the call's.
    let said = ["no answer from the repository", "without an answer"];
    assert!(said.iter().any(|said| log.contains(said)), "the first call alone had too little time\n{log}");
    assert!(!log.contains("did not answer within"), "a slow upload is not an outage\n{log}");
}

#[test]
fn few_descriptors_are_enough() {
    let (mut repository, _proxy) = bucket_behind_proxy();
    repository.configure("jobs = 200");
    let server = Archiving::start_with(&repository, "ulimit -n 64;", Cluster::options());
    let names = server.fill(60);
    server.open();
    server.wait_until_archived(&names);
    let worker = server.wait_for_worker();
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 64 ")), "{limits}");
    assert_eq!(server.failures(), "0", "{}", server.cluster.log());
    server.expect_all_kept(&repository, &names);
}

#[test]
fn a_store_that_wants_fewer_requests_is_given_time() {
    let (mut repository, proxy) = bucket_behind_proxy();
    repository.configure("jobs = 8");
    let server = Archiving::start(&repository);
    let first = server.fill(3);
    server.open();
    server.wait_until_archived(&first);
    server.wait_for_worker();
    server.close();
    let names = server.fill(40);
    // Few files share the refusals, because few are under way at a time.
    proxy.add(Rule::all(Fault::slow_down()).method("PUT").times(8));
    server.open();
    server.wait_until_archived(&names);
    assert_eq!(server.failures(), "0", "{}", server.cluster.log());
    server.expect_all_kept(&repository, &names);
}

#[test]
fn calls_whose_environment_differs_each_time_do_not_each_leave_a_worker() {
    for (before, most) in [("WAL_FILE=%f", 1), ("AWS_SESSION_TOKEN=%f", 2)] {
        let repository = Repository::directory();
        let server = Archiving::start_with(&repository, before, Cluster::options());
        let names = server.fill(40);
        server.open();
        let last = server.cluster.data().join(format!("pg_wal/archive_status/{}.done", names[39]));
        until("everything is archived", SOON, || {
            let workers = server.workers().len();
            assert!(workers <= most, "{workers} workers with {before}");
            last.exists().then_some(())
        });
        assert_eq!(server.failures(), "0", "{}", server.cluster.log());
        server.expect_all_kept(&repository, &names);
    }
}

#[test]
fn what_only_the_worker_cannot_do_the_call_does() {
    let repository = Repository::ceph();
    let owner = &ceph::shared().owner;
    // The worker has a working directory of its own.
    let before = "AWS_ACCESS_KEY_ID= AWS_SECRET_ACCESS_KEY= AWS_SHARED_CREDENTIALS_FILE=credentials";
    let server = Archiving::start_with(&repository, before, Cluster::options());
    let file =
        format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", owner.access_key, owner.secret_key);
    std::fs::write(server.cluster.data().join("credentials"), file).unwrap();
    user::give(&server.cluster.data().join("credentials"));
    let names = server.fill(8);
    server.open();
    server.wait_until_archived(&names);
    assert_eq!(server.failures(), "0", "{}", server.cluster.log());
    server.expect_all_kept(&repository, &names);
}

#[test]
fn a_worker_leaves_at_once_when_its_server_is_killed() {
    let (mut repository, proxy) = bucket_behind_proxy();
    // The archiver process goes with its server only when its command has ended.
    repository.configure("timeout = 3");
    let mut server = Archiving::start(&repository);
    let names = server.fill(10);
    server.open();
    server.wait_until_archived(&names);
    let worker = server.wait_for_worker();
    server.close();
    server.fill(20);
    proxy.add(Rule::all(Fault::Silence));
    server.open();
    until("the worker asks the silent store", SOON, || (proxy.at_once() > 0).then_some(()));
    // What it leaves behind says that a server runs.
    server.cluster.kill();
    assert!(server.cluster.data().join("postmaster.pid").exists());
    until("the worker leaves", Duration::from_secs(5), || is_gone(worker).then_some(()));
}

#[test]
fn an_unusable_run_directory_costs_a_warning_and_nothing_else() {
    let repository = Repository::directory();
    let run = repository.scratch().path().join("run");
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = Archiving::start(&repository);
    let names = server.fill(5);
    server.open();
    server.wait_until_archived(&names);
    assert_eq!(server.failures(), "0");
    assert_eq!(server.workers(), Vec::<i32>::new());
    let log = server.cluster.log();
    assert!(log.contains("archive-push: WARNING: cannot use run directory"), "{log}");
    server.expect_all_kept(&repository, &names);
}
