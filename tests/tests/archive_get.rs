//! `archive-get`: what PostgreSQL is told in every situation, by who asks.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use rustix::process::Signal;
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::emulator::free_port;
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, tool};
use walkeep_tests::wait::{SOON, until};

use crate::samples::{DataDirectory, archive, ours, theirs};

/// A repository with all of our files.
fn full(repository: Repository) -> Repository {
    archive(ours(), &repository, ours().files.keys().map(String::as_str));
    repository
}

/// A segment with others before and after it.
fn middle() -> &'static str {
    ours().segments(1)[1]
}

/// The name after the last of the newest timeline.
fn beyond_the_end() -> String {
    let last = *ours().segments(2).last().unwrap();
    let part = u32::from_str_radix(&last[16..], 16).unwrap() + 1;
    format!("{}{part:08X}", &last[..16])
}

/// Asks as a server in recovery, as a standby and by hand, and checks what each is told: `base` + 100, `base`, `base`,
/// or the same of 0 and 1. Nothing may be left in `pg_wal` on failure.
fn expect(what: &str, base: i32, ask: impl Fn(&DataDirectory) -> Run) {
    for signal in [None, Some("standby.signal"), Some("recovery.signal")] {
        let directory = DataDirectory::new(ours());
        if let Some(signal) = signal {
            directory.signal(signal);
        }
        let finished = ask(&directory).finish();
        let expected = if base > 1 && signal == Some("recovery.signal") { base + 100 } else { base };
        assert!(finished.code() == expected, "{what}, {signal:?}: expected {expected}\n{finished}");
        check_output(what, base, &finished);
        let left = std::fs::read_dir(directory.path().join("pg_wal")).unwrap().count();
        // Only archive_status, and what was fetched.
        assert_eq!(left, if base == 0 { 2 } else { 1 }, "{what}, {signal:?}\n{finished}");
    }
}

fn check_output(what: &str, base: i32, finished: &Finished) {
    assert!(finished.stdout.is_empty(), "{what}\n{finished}");
    if base <= 1 {
        assert!(finished.stderr.is_empty(), "{what}: fetched and the end of WAL are silent\n{finished}");
    } else {
        // The latter is how the parser of arguments begins.
        let explained = ["archive-get: ", "error: "].iter().any(|start| finished.stderr.starts_with(start));
        assert!(explained, "{what}\n{finished}");
    }
}

#[test]
fn what_is_archived_comes_back_byte_for_byte() {
    for repository in [Repository::directory(), Repository::ceph()] {
        let repository = full(repository);
        for (name, content) in &ours().files {
            let directory = DataDirectory::new(ours());
            directory.get(&repository, name).finish().expect_silent_success();
            let fetched = directory.wal("RECOVERYXLOG");
            assert!(std::fs::read(&fetched).unwrap() == *content, "{name}");
            assert_eq!(fetched.metadata().unwrap().mode() & 0o777, 0o600, "{name}");
        }
        expect("present", 0, |directory| directory.get(&repository, middle()));
    }
}

#[test]
fn the_end_of_wal_is_said_only_where_it_is() {
    for repository in [Repository::directory(), Repository::ceph()] {
        let repository = full(repository);
        expect("beyond the end", 1, |directory| directory.get(&repository, &beyond_the_end()));
        expect("the next timeline", 1, |directory| directory.get(&repository, "00000003.history"));
        expect("the first timeline's history", 1, |directory| directory.get(&repository, "00000001.history"));
    }
}

#[test]
fn a_missing_segment_with_later_ones_is_a_hole() {
    for repository in [Repository::directory(), Repository::ceph()] {
        let repository = full(repository);
        repository.delete(&repository.find(&format!("{}.zst", middle())));
        expect("hole", 102, |directory| directory.get(&repository, middle()));
    }
}

#[test]
fn a_segment_the_newer_timeline_was_built_on_is_a_hole_too() {
    let repository = full(Repository::directory());
    // The last whole segment before the promotion: nothing of its own timeline follows, but the history says it was.
    let last = *ours().segments(1).last().unwrap();
    repository.delete(&repository.find(&format!("{last}.zst")));
    expect("before the switch", 102, |directory| directory.get(&repository, last));
    // The segment of the switch itself: its copy under the new timeline will do, unless that is missing too.
    let switch = ours().one(".partial").strip_suffix(".partial").unwrap();
    expect("the switch", 1, |directory| directory.get(&repository, switch));
    let copy = format!("00000002{}", &switch[8..]);
    repository.delete(&repository.find(&format!("{copy}.zst")));
    expect("the switch without its copy", 102, |directory| directory.get(&repository, switch));
}

#[test]
fn a_missing_history_is_a_hole_while_its_timeline_has_segments() {
    let repository = full(Repository::directory());
    repository.delete(&repository.find("00000002.history.zst"));
    expect("history", 102, |directory| directory.get(&repository, "00000002.history"));
}

#[test]
fn a_hole_that_is_filled_while_it_is_looked_at_is_none() {
    let repository = full(Repository::directory());
    let key = repository.find(&format!("{}.zst", middle()));
    let stored = repository.read(&key);
    repository.delete(&key);
    let directory = DataDirectory::new(ours());
    let trace = repository.scratch().path().join("trace");
    let wrapper = ["strace", "-f", "-e", "trace=openat,open,stat,statx,newfstatat", "-o", trace.to_str().unwrap()];
    let running = directory.get(&repository, middle()).under(wrapper).start();
    until("the missing segment has been looked for", SOON, || {
        let seen = std::fs::read_to_string(&trace).unwrap_or_default();
        seen.lines().any(|line| line.contains(middle()) && line.contains("ENOENT")).then_some(())
    });
    repository.write(&key, &stored);
    running.finish().expect_silent_success();
}

#[test]
fn damage_is_never_handed_out() {
    let repository = full(Repository::directory());
    let key = repository.find(&format!("{}.zst", middle()));
    let good = repository.read(&key);
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let other_segment = repository.read(&repository.find(&format!("{}.zst", ours().segments(1)[0])));
    let foreign = Repository::directory();
    archive(theirs(), &foreign, [middle()]);
    let foreign = foreign.read(&foreign.find(&format!("{}.zst", middle())));
    let cases = [
        ("a bit of the header", flipped(30)),
        ("a bit of the first frame's header", flipped(good.len() / 4)),
        ("a bit in the middle", flipped(good.len() / 2)),
        ("the last bit", flipped(good.len() - 1)),
        ("empty", Vec::new()),
        ("cut in the header", good[..20].to_vec()),
        ("cut in the middle", good[..good.len() / 2].to_vec()),
        ("without its last byte", good[..good.len() - 1].to_vec()),
        ("with more behind it", [good.as_slice(), b"x"].concat()),
        ("twice", [good.as_slice(), good.as_slice()].concat()),
        ("zeros", vec![0; good.len()]),
        ("another segment's object", other_segment),
        ("another cluster's object", foreign),
        ("an ordinary zstd file", {
            let plain = repository.scratch().write("plain", &ours().files[middle()]);
            tool("zstd", ["-q", "-f", plain.to_str().unwrap()]);
            std::fs::read(plain.with_extension("zst")).unwrap()
        }),
    ];
    for (what, bytes) in cases {
        repository.write(&key, &bytes);
        expect(what, 103, |directory| directory.get(&repository, middle()));
    }
}

#[test]
fn every_bit_of_an_object_counts() {
    let repository = full(Repository::directory());
    let key = repository.find("00000002.history.zst");
    let good = repository.read(&key);
    let directory = DataDirectory::new(ours());
    for at in (0..good.len()).step_by(7) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        repository.write(&key, &bytes);
        let finished = directory.get(&repository, "00000002.history").finish();
        // A changed version in the header is a matter of configuration: a newer program wrote it, for all we know.
        assert!([103, 104].contains(&finished.code()), "byte {at} of {}\n{finished}", good.len());
    }
}

#[test]
fn an_outage_is_not_the_end_of_wal() {
    let mut repository = full(Repository::ceph());
    repository.configure("timeout = 2");
    repository.set_endpoint(&format!("http://127.0.0.1:{}", free_port()));
    expect("unreachable", 101, |directory| directory.get(&repository, middle()));
    expect("unreachable, beyond the end", 101, |directory| directory.get(&repository, &beyond_the_end()));

    // A standby may be told to stop instead.
    repository.configure("standby_outage = \"fatal\"");
    let directory = DataDirectory::new(ours());
    directory.signal("standby.signal");
    directory.get(&repository, middle()).finish().expect_code(201);
}

#[test]
fn the_wrong_place_is_not_the_end_of_wal() {
    let mut repository = full(Repository::ceph());
    let right = repository.url().to_owned();
    let wrong = [
        ("no such bucket", "s3://no-such-bucket/test".to_owned()),
        ("an empty bucket", format!("s3://{}/test", ceph::shared().create_bucket())),
        ("another prefix", format!("{right}/deeper")),
    ];
    for (what, url) in wrong {
        repository.set_url(&url);
        expect(what, 104, |directory| directory.get(&repository, middle()));
    }
    repository.set_url(&right);
    expect("another cluster name", 104, |directory| directory.get(&repository, middle()).args(["--cluster", "other"]));
    repository.set_credentials(&ceph::shared().stranger);
    expect("no permission", 104, |directory| directory.get(&repository, middle()));

    let mut repository = full(Repository::directory());
    tool("chmod", ["000", repository.path().to_str().unwrap()]);
    expect("no permission", 104, |directory| directory.get(&repository, middle()));
    tool("chmod", ["700", repository.path().to_str().unwrap()]);
    let missing = repository.scratch().path().join("missing");
    repository.set_url(&format!("file://{}", missing.display()));
    expect("not mounted", 104, |directory| directory.get(&repository, middle()));
    repository.set_url(&format!("file://{}", repository.scratch().create_private("empty").display()));
    expect("an empty directory", 104, |directory| directory.get(&repository, middle()));
}

#[test]
fn misuse_is_not_the_end_of_wal() {
    let mut repository = full(Repository::directory());
    let get = |directory: &DataDirectory, arguments: &[&str]| {
        Run::new(binaries::archive_get()).args(arguments).envs(repository.environment()).current_dir(directory.path())
    };
    expect("swapped", 104, |directory| get(directory, &["pg_wal/RECOVERYXLOG", middle()]));
    expect("no arguments", 104, |directory| get(directory, &[]));
    expect("one argument", 104, |directory| get(directory, &[middle()]));
    expect("an unknown option", 104, |directory| get(directory, &["--prefetch", middle(), "pg_wal/RECOVERYXLOG"]));
    expect("not a WAL file", 104, |directory| get(directory, &["passwd", "pg_wal/RECOVERYXLOG"]));
    expect("a path for a name", 104, |directory| get(directory, &[&format!("../{}", middle()), "pg_wal/RECOVERYXLOG"]));
    expect("nowhere to write", 104, |directory| get(directory, &[middle(), "no/such/directory/RECOVERYXLOG"]));
    expect("no configuration", 104, |directory| {
        Run::new(binaries::archive_get()).args([middle(), "pg_wal/RECOVERYXLOG"]).current_dir(directory.path())
    });
    repository.configure("repositry = \"typo\"");
    expect("an unknown key", 104, |directory| directory.get(&repository, middle()));
}

#[test]
fn the_last_segment_to_recover_ends_wal_before_a_known_hole() {
    let repository = full(Repository::directory());
    let hole = ours().segments(1)[2];
    repository.delete(&repository.find(&format!("{hole}.zst")));
    let last = format!("1/{}", middle());
    let limited =
        |directory: &DataDirectory, name: &str| directory.get(&repository, name).args(["--last-segment", &last]);
    expect("up to it", 0, |directory| limited(directory, middle()));
    expect("the hole behind it", 1, |directory| limited(directory, hole));
    expect("what is behind the hole", 1, |directory| limited(directory, ours().segments(1)[3]));
    expect("the newer timeline", 1, |directory| limited(directory, ours().segments(2)[0]));
    expect("a hole before it", 102, |directory| {
        directory.get(&repository, hole).args(["--last-segment", &format!("1/{}", ours().segments(1)[3])])
    });
}

#[test]
fn a_file_asked_for_under_its_own_name_gets_standby_codes() {
    let repository = full(Repository::directory());
    repository.delete(&repository.find(&format!("{}.zst", middle())));
    let directory = DataDirectory::new(ours());
    directory.signal("recovery.signal");
    let rewind = |name: &str| {
        let get = Run::new(binaries::archive_get()).arg(name).arg(directory.wal(name));
        get.envs(repository.environment()).current_dir("/")
    };
    rewind(middle()).finish().expect_code(102);
    let name = ours().segments(1)[0];
    rewind(name).finish().expect_silent_success();
    assert!(std::fs::read(directory.wal(name)).unwrap() == ours().files[name]);
}

#[test]
fn the_cluster_is_found_without_a_data_directory_when_the_repository_holds_only_one() {
    let repository = full(Repository::directory());
    let target = repository.scratch().create_private("elsewhere").join(middle());
    let get = Run::new(binaries::archive_get()).arg(middle()).arg(&target).envs(repository.environment());
    get.clone().finish().expect_silent_success();
    assert!(std::fs::read(&target).unwrap() == ours().files[middle()]);
    archive(theirs(), &repository, [middle()]);
    get.clone().finish().expect_code(104).expect_stderr(&["--system-identifier"]);
    let number = theirs().system_identifier.to_string();
    get.args(["--system-identifier", &number]).finish().expect_silent_success();
    assert!(std::fs::read(&target).unwrap() == theirs().files[middle()]);
}

#[test]
fn a_miss_is_not_remembered() {
    let repository = Repository::directory();
    archive(ours(), &repository, [ours().segments(1)[0]]);
    let directory = DataDirectory::with_wal(ours());
    directory.get(&repository, middle()).finish().expect_code(1);
    directory.push(&repository, middle()).finish().expect_silent_success();
    directory.get(&repository, middle()).finish().expect_silent_success();
}

#[test]
fn the_group_may_read_what_is_fetched_where_it_may_read_the_cluster() {
    let repository = full(Repository::directory());
    let directory = DataDirectory::new(ours());
    for path in [directory.path().to_owned(), directory.path().join("pg_wal")] {
        tool("chmod", ["750", path.to_str().unwrap()]);
    }
    directory.get(&repository, middle()).finish().expect_silent_success();
    assert_eq!(directory.wal("RECOVERYXLOG").metadata().unwrap().mode() & 0o777, 0o640);
}

#[test]
fn the_oldest_file_still_needed_may_be_given() {
    let repository = full(Repository::directory());
    let oldest = "000000000000000000000000";
    expect("%r", 0, |directory| directory.get(&repository, middle()).arg(oldest));
}

#[test]
fn a_killed_call_leaves_nothing_that_stands_in_the_way() {
    let mut repository = full(Repository::ceph());
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    proxy.add(Rule::all(Fault::StallAfterHeader).method("GET").path(middle()));
    for (signal, number) in [(Signal::TERM, 15), (Signal::KILL, 9)] {
        let directory = DataDirectory::new(ours());
        directory.signal("recovery.signal");
        proxy.forget_requests();
        let running = directory.get(&repository, middle()).timeout(Duration::from_secs(10)).start();
        until("the request is made", SOON, || (proxy.count("GET", middle()) > 0).then_some(()));
        running.signal(signal);
        let finished = running.finish();
        assert_eq!(finished.status.signal(), Some(number), "PostgreSQL wants to see the signal\n{finished}");
        assert!(!directory.wal("RECOVERYXLOG").exists());
        let name = ours().segments(1)[0];
        directory.get(&repository, name).finish().expect_silent_success();
        assert!(std::fs::read(directory.wal("RECOVERYXLOG")).unwrap() == ours().files[name]);
    }
}

#[test]
fn a_standby_waits_long_for_a_dead_repository_only_once() {
    let mut repository = full(Repository::ceph());
    repository.configure("timeout = 6");
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    proxy.add(Rule::all(Fault::Silence));
    let standby = DataDirectory::new(ours());
    standby.signal("standby.signal");
    let ask = |directory: &DataDirectory| directory.get(&repository, middle()).finish();
    let first = ask(&standby);
    first.expect_code(101);
    let second = ask(&standby);
    second.expect_code(101);
    assert!(first.elapsed > Duration::from_secs(5) && second.elapsed < Duration::from_secs(5), "{first}\n{second}");
    // A server that recovers has nowhere else to turn to, and stops: it waits each time.
    let recovering = DataDirectory::new(ours());
    recovering.signal("recovery.signal");
    let waited = ask(&recovering);
    waited.expect_code(201);
    assert!(waited.elapsed > Duration::from_secs(5), "{waited}");
    proxy.clear();
    ask(&standby).expect_silent_success();
}
