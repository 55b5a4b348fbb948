//! Read-ahead: what is served through the spool is what the archive holds, and nothing depends on the worker.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Run, tool};
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, try_until, until};

use crate::samples::{DataDirectory, Samples, archive, ours, theirs};

/// A data directory whose server recovers, as far as `archive-get` can tell.
struct Recovering {
    directory: DataDirectory,
    repository: Repository,
    samples: &'static Samples,
    environment: Vec<(String, String)>,
}

impl Recovering {
    /// With all files of the samples archived.
    fn new(repository: Repository) -> Self {
        archive(ours(), &repository, ours().files.keys().map(String::as_str));
        Self::of(ours(), repository)
    }

    fn of(samples: &'static Samples, repository: Repository) -> Self {
        let directory = DataDirectory::new(samples);
        directory.signal("recovery.signal");
        let recovering = Self { directory, repository, samples, environment: Vec::new() };
        recovering.start_server(4711);
        recovering
    }

    /// The bucket behind a proxy.
    fn behind_proxy() -> (Self, Proxy) {
        let mut recovering = Self::new(Repository::ceph());
        let proxy = Proxy::start(&ceph::shared().endpoint);
        recovering.repository.set_proxy(&proxy);
        (recovering, proxy)
    }

    /// Writes what the postmaster writes when it starts.
    fn start_server(&self, process: u32) {
        let path = self.directory.path().join("postmaster.pid");
        let data = self.directory.path().display();
        fs::write(&path, format!("{process}\n{data}\n1795336942\n5432\n/tmp\n\n  77 1\nstarting\n")).unwrap();
        user::give(&path);
    }

    fn segment(&self, index: usize) -> &'static str {
        self.samples.segments(1)[index]
    }

    fn get(&self, name: &str) -> Run {
        self.directory.get(&self.repository, name).envs(&self.environment)
    }

    fn set_spool(&mut self, path: &Path) {
        self.environment.push(("WALKEEP_SPOOL_DIRECTORY".to_owned(), path.display().to_string()));
    }

    /// Gets a segment, which must be the right one, as PostgreSQL does, and takes it away as PostgreSQL does.
    #[track_caller]
    fn expect(&self, name: &str) {
        self.get(name).finish().expect_silent_success();
        self.check(name);
    }

    #[track_caller]
    fn check(&self, name: &str) {
        let path = self.directory.wal("RECOVERYXLOG");
        assert!(fs::read(&path).unwrap() == self.samples.files[name], "{name} differs");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        fs::remove_file(path).unwrap();
    }

    /// Where segments lie ready: in the configured spool, or beside the data directory.
    fn spool(&self) -> Option<PathBuf> {
        let beside = self.directory.path().parent().unwrap().to_owned();
        let set = self.environment.iter().map(|(_, spool)| PathBuf::from(spool));
        let places: Vec<PathBuf> =
            set.chain([self.repository.spool(), beside]).filter(|place| place.is_dir()).collect();
        let entries = places.iter().flat_map(|place| fs::read_dir(place).unwrap()).map(|entry| entry.unwrap());
        let is_spool = |name: &str| name.starts_with("read-ahead-") || name.starts_with(".walkeep-");
        entries.filter(|entry| is_spool(entry.file_name().to_str().unwrap())).map(|entry| entry.path()).next()
    }

    /// Files in the spool that begin and end so.
    fn spooled(&self, start: &str, partial: bool) -> Vec<PathBuf> {
        let entries = self.spool().into_iter().filter_map(|spool| fs::read_dir(spool).ok()).flatten().flatten();
        let entries = entries.filter(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(start) && name.contains(".part") == partial && name != "requests"
        });
        entries.map(|entry| entry.path()).collect()
    }

    #[track_caller]
    fn wait_until_ready(&self, name: &str) {
        until(&format!("{name} is ready"), SOON, || (!self.spooled(name, false).is_empty()).then_some(()));
    }

    fn workers(&self) -> Vec<u32> {
        workers(self.directory.path())
    }

    #[track_caller]
    fn worker(&self) -> u32 {
        until("there is a worker", SOON, || match self.workers().as_slice() {
            [only] => Some(*only),
            _ => None,
        })
    }

    /// Waits for the worker's end; the spool must be gone too.
    #[track_caller]
    fn wait_until_gone(&self) {
        until("the worker leaves", Duration::from_secs(10), || {
            (self.workers().is_empty() && self.spool().is_none()).then_some(())
        });
    }

    /// What lies in `pg_wal`.
    fn wal(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path().join("pg_wal")).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Recovering {
    /// The server ends, and so does the worker.
    fn drop(&mut self) {
        fs::remove_file(self.directory.path().join("postmaster.pid")).ok();
        try_until(SOON, || self.workers().is_empty().then_some(()));
    }
}

/// The processes that read ahead for a data directory.
pub(crate) fn workers(data: &Path) -> Vec<u32> {
    let works_here = |id: &u32| {
        let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let directory = fs::read_link(format!("/proc/{id}/cwd")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("--read-ahead") && directory == data
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(works_here).collect()
}

fn signal(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(process.cast_signed()).unwrap(), signal).unwrap();
}

#[test]
fn what_is_ready_is_served_without_a_request_a_thread_or_a_connection() {
    let (recovering, proxy) = Recovering::behind_proxy();
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(3));
    for index in 1..4 {
        let name = recovering.segment(index);
        let requests = proxy.count("GET", name);
        let trace = recovering.repository.scratch().path().join(format!("trace{index}"));
        let wrapper = ["strace", "-f", "-e", "trace=clone,clone3,vfork,socket,connect", "-o", trace.to_str().unwrap()];
        recovering.get(name).under(wrapper).finish().expect_silent_success();
        recovering.check(name);
        assert_eq!(proxy.count("GET", name), requests, "{name}");
        let trace = fs::read_to_string(&trace).unwrap();
        assert!(trace.lines().all(|line| line.contains("+++ exited with 0 +++")), "{trace}");
    }
    assert_eq!(recovering.workers().len(), 1);
}

#[test]
fn every_segment_is_fetched_from_the_archive_once() {
    let (recovering, proxy) = Recovering::behind_proxy();
    let segments = recovering.samples.segments(1);
    for name in &segments {
        recovering.expect(name);
        if let Some(next) = segments.iter().find(|other| *other > name) {
            recovering.wait_until_ready(next);
        }
    }
    for name in &segments {
        assert_eq!(proxy.count("GET", name), 1, "{name}");
    }
}

#[test]
fn a_slow_store_yields_the_same_bytes_and_is_asked_only_once() {
    let (recovering, proxy) = Recovering::behind_proxy();
    // A few seconds for a segment: the worker is in the middle of each one when it is asked for.
    proxy.add(Rule::all(Fault::BytesPerSecond(150_000)).method("GET").path("/wal/"));
    let segments = recovering.samples.segments(1);
    for (index, name) in segments.iter().enumerate() {
        recovering.expect(name);
        if let Some(next) = segments.get(index + 1) {
            until("the next one comes", SOON, || {
                let coming = !recovering.spooled(next, true).is_empty() || !recovering.spooled(next, false).is_empty();
                coming.then_some(())
            });
        }
    }
    for name in &segments[1..] {
        assert_eq!(proxy.count("GET", name), 1, "{name}");
    }
}

#[test]
fn a_worker_that_is_told_to_end_or_whose_server_is_killed_leaves_nothing() {
    let recovering = Recovering::new(Repository::directory());
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(1));
    signal(recovering.worker(), Signal::TERM);
    recovering.wait_until_gone();

    let server = Run::new("sleep").arg("600").start();
    recovering.start_server(server.id());
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(1));
    server.signal(Signal::KILL);
    server.finish();
    recovering.wait_until_gone();
}

#[test]
fn across_a_switch_of_timelines_the_childs_segments_are_ready() {
    let recovering = Recovering::new(Repository::directory());
    let history = ours().one(".history");
    recovering.directory.write(history, &ours().files[history]);
    recovering.expect(recovering.segment(0));
    let child = ours().segments(2)[0];
    recovering.wait_until_ready(child);
    // The parent's segment of that place is not the one that recovery reads.
    assert!(recovering.spooled(&format!("00000001{}", &child[8..]), false).is_empty());
    for name in recovering.samples.segments(1).iter().skip(1).chain(&ours().segments(2)) {
        recovering.expect(name);
    }
}

#[test]
fn history_files_are_never_fetched_ahead() {
    let (recovering, proxy) = Recovering::behind_proxy();
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(1));
    assert_eq!(proxy.count("GET", ".history"), 0);
    recovering.expect(ours().one(".history"));
    assert_eq!(proxy.count("GET", ".history"), 1);
}

#[test]
fn a_stopped_or_killed_worker_costs_a_download_at_most() {
    for number in [Signal::STOP, Signal::KILL] {
        let (recovering, proxy) = Recovering::behind_proxy();
        proxy.add(Rule::all(Fault::StallAfterHeader).method("GET").path(recovering.segment(1)).times(1));
        recovering.expect(recovering.segment(0));
        until("the worker is in the middle", SOON, || {
            (!recovering.spooled(recovering.segment(1), true).is_empty()).then_some(())
        });
        let worker = recovering.worker();
        signal(worker, number);
        let begun = Instant::now();
        recovering.expect(recovering.segment(1));
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        for index in 2..4 {
            recovering.expect(recovering.segment(index));
        }
        if number == Signal::STOP {
            signal(worker, Signal::CONT);
        }
        // Whatever the first one was stopped in the middle of: there is a worker, and what it has is right.
        recovering.expect(recovering.segment(0));
        recovering.wait_until_ready(recovering.segment(2));
        assert_eq!(recovering.workers().len(), 1);
        recovering.expect(recovering.segment(1));
        recovering.expect(recovering.segment(2));
    }
}

#[test]
fn damage_is_never_served_and_told_by_the_call_that_meets_it() {
    let recovering = Recovering::new(Repository::directory());
    let (good, damaged) = (recovering.segment(1), recovering.segment(2));
    let key = recovering.repository.find(&format!("{damaged}.zst"));
    let length = recovering.repository.read(&key).len();
    recovering.repository.flip_bit(&key, length / 2);
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(good);
    recovering.expect(good);
    recovering.get(damaged).finish().expect_code(203).expect_stderr(&["archive-get: ERROR:", damaged]);
    assert!(recovering.spooled(damaged, false).is_empty());
    assert_eq!(recovering.wal(), ["archive_status"]);

    recovering.repository.flip_bit(&key, length / 2);
    recovering.expect(damaged);
}

#[test]
fn what_is_missing_at_first_is_found_as_soon_as_it_is_archived() {
    let repository = Repository::directory();
    archive(ours(), &repository, [ours().segments(1)[0]]);
    let recovering = Recovering::of(ours(), repository);
    recovering.expect(recovering.segment(0));
    let worker = recovering.worker();
    for index in 1..4 {
        let name = recovering.segment(index);
        recovering.get(name).finish().expect_code(1);
        archive(ours(), &recovering.repository, [name]);
        recovering.expect(name);
    }
    assert_eq!(recovering.worker(), worker);
}

#[test]
fn polling_at_the_end_of_the_archive_does_not_make_the_worker_poll() {
    let (recovering, proxy) = Recovering::behind_proxy();
    let last = *ours().segments(2).last().unwrap();
    let part = u32::from_str_radix(&last[16..], 16).unwrap() + 1;
    let beyond = format!("{}{part:08X}", &last[..16]);
    recovering.expect(last);
    until("the worker has looked for more", SOON, || (proxy.count("GET", &beyond) == 1).then_some(()));
    for call in 1..=5 {
        recovering.get(&beyond).finish().expect_code(1);
        assert_eq!(proxy.count("GET", &beyond), 1 + call, "one by the worker, the others by the calls");
    }
}

#[test]
fn a_worker_leaves_with_its_server_and_at_the_end_of_recovery() {
    let ends: [fn(&Recovering); 3] = [
        |recovering| fs::remove_file(recovering.directory.path().join("postmaster.pid")).unwrap(),
        |recovering| recovering.start_server(4712),
        |recovering| fs::remove_file(recovering.directory.path().join("recovery.signal")).unwrap(),
    ];
    for end in ends {
        // In the middle of a download that makes no progress.
        let (recovering, proxy) = Recovering::behind_proxy();
        proxy.add(Rule::all(Fault::StallAfterHeader).method("GET").path(recovering.segment(2)));
        recovering.expect(recovering.segment(0));
        recovering.wait_until_ready(recovering.segment(1));
        assert_eq!(recovering.workers().len(), 1);
        end(&recovering);
        recovering.wait_until_gone();
        assert_eq!(recovering.wal(), ["archive_status"]);
    }
}

#[test]
fn nothing_in_pg_wal_is_touched_but_the_file_that_was_asked_for() {
    let recovering = Recovering::new(Repository::directory());
    let trace = recovering.repository.scratch().path().join("trace");
    // strace ends only when the worker has left.
    let wrapper = ["strace", "-f", "-y", "-e", "trace=%file,ftruncate", "-o", trace.to_str().unwrap()];
    let running = recovering.get(recovering.segment(0)).under(wrapper).start();
    recovering.wait_until_ready(recovering.segment(3));
    fs::remove_file(recovering.directory.path().join("recovery.signal")).unwrap();
    running.finish().expect_silent_success();
    recovering.check(recovering.segment(0));
    assert_eq!(recovering.wal(), ["archive_status"]);
    let trace = fs::read_to_string(trace).unwrap();
    let changes = ["O_WRONLY", "O_RDWR", "O_CREAT", "rename", "unlink", "mkdir", "mknod", "link"];
    let in_pg_wal = trace.lines().filter(|line| line.contains("pg_wal") && changes.iter().any(|c| line.contains(c)));
    let other: Vec<_> = in_pg_wal.filter(|line| !line.contains("RECOVERYXLOG") && !line.contains("readlink")).collect();
    assert!(other.is_empty(), "{other:#?}");
    assert!(trace.contains(&format!("{}.", recovering.segment(3))), "the worker was seen at all");
}

#[test]
fn two_clusters_with_segments_of_the_same_names_keep_apart() {
    let first = Recovering::new(Repository::directory());
    archive(theirs(), &first.repository, theirs().segments(1));
    let directory = DataDirectory::new(theirs());
    directory.signal("recovery.signal");
    fs::copy(first.directory.path().join("postmaster.pid"), directory.path().join("postmaster.pid")).unwrap();
    user::give(&directory.path().join("postmaster.pid"));
    for name in theirs().segments(1).into_iter().filter(|name| ours().files.contains_key(*name)) {
        for _ in 0..2 {
            directory.get(&first.repository, name).finish().expect_silent_success();
            assert!(fs::read(directory.wal("RECOVERYXLOG")).unwrap() == theirs().files[name], "{name}");
            first.expect(name);
        }
    }
    fs::remove_file(directory.path().join("postmaster.pid")).unwrap();
    until("their worker leaves and ours stays", SOON, || {
        let spools = fs::read_dir(first.repository.spool()).unwrap().map(|entry| entry.unwrap().file_name());
        (spools.filter(|name| name.to_str().unwrap().starts_with("read-ahead-")).count() == 1).then_some(())
    });
}

#[test]
fn what_an_earlier_recovery_left_is_neither_served_nor_kept() {
    let recovering = Recovering::new(Repository::directory());
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(3));
    signal(recovering.worker(), Signal::KILL);
    until("the worker is dead", SOON, || recovering.workers().is_empty().then_some(()));
    let left = recovering.spooled(recovering.segment(2), false);
    fs::write(&left[0], "not what it was").unwrap();

    recovering.start_server(4712);
    recovering.expect(recovering.segment(2));
    until("what was left is gone", SOON, || (!left[0].exists()).then_some(()));
}

#[test]
fn what_a_recovery_that_never_goes_on_left_is_removed_by_the_next_one() {
    let recovering = Recovering::new(Repository::directory());
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(3));
    let left = recovering.spool().unwrap();
    signal(recovering.worker(), Signal::KILL);
    until("the worker is dead", SOON, || recovering.workers().is_empty().then_some(()));

    let other = DataDirectory::new(ours());
    other.signal("recovery.signal");
    fs::copy(recovering.directory.path().join("postmaster.pid"), other.path().join("postmaster.pid")).unwrap();
    user::give(&other.path().join("postmaster.pid"));
    other.get(&recovering.repository, recovering.segment(0)).finish().expect_silent_success();
    until("what was left is gone", SOON, || (!left.exists()).then_some(()));
    fs::remove_file(other.path().join("postmaster.pid")).unwrap();
    until("the other worker leaves", SOON, || recovering.spool().is_none().then_some(()));
}

#[test]
fn a_file_in_the_spool_that_is_not_the_segment_is_not_served() {
    let recovering = Recovering::new(Repository::directory());
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(3));
    let ready = |index| recovering.spooled(recovering.segment(index), false).remove(0);
    fs::copy(ready(3), ready(1)).unwrap();
    fs::File::options().write(true).open(ready(2)).unwrap().set_len(1 << 19).unwrap();
    for index in 1..4 {
        recovering.expect(recovering.segment(index));
    }
}

#[test]
fn the_spool_belongs_to_one_user_and_never_holds_more_than_is_wanted() {
    let mut recovering = Recovering::new(Repository::directory());
    recovering.repository.configure("prefetch = 2");
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(2));
    let spool = recovering.spool().unwrap();
    assert_eq!(spool.metadata().unwrap().mode() & 0o777, 0o700);
    assert!(spool.join("requests").symlink_metadata().unwrap().file_type().is_fifo());
    recovering.expect(recovering.segment(1));
    recovering.wait_until_ready(recovering.segment(3));
    assert_eq!(recovering.spooled("", false).len(), 2);
    // One that recovery has passed goes.
    recovering.expect(recovering.segment(3));
    until("the second goes", SOON, || recovering.spooled(recovering.segment(2), false).is_empty().then_some(()));
}

#[test]
fn read_ahead_can_be_turned_off_and_is_not_for_requests_by_hand() {
    let mut recovering = Recovering::new(Repository::directory());
    let name = recovering.segment(0);
    let quiet = |recovering: &Recovering, what: &str| {
        assert!(recovering.workers().is_empty() && recovering.spool().is_none(), "{what}");
    };
    let by_hand = Run::new(binaries::archive_get()).arg(name).arg(recovering.directory.wal(name));
    let by_hand = by_hand.envs(recovering.repository.environment()).current_dir(recovering.directory.path());
    by_hand.finish().expect_silent_success();
    quiet(&recovering, "under its own name");
    fs::remove_file(recovering.directory.path().join("recovery.signal")).unwrap();
    recovering.expect(name);
    quiet(&recovering, "outside of recovery");
    recovering.directory.signal("standby.signal");
    recovering.repository.configure("prefetch = 0");
    recovering.expect(name);
    quiet(&recovering, "turned off");
}

#[test]
fn an_unusable_spool_means_another_place() {
    let mut recovering = Recovering::new(Repository::directory());
    let file = recovering.repository.scratch().write("file", "");
    recovering.set_spool(&file);
    recovering.expect(recovering.segment(0));
    recovering.wait_until_ready(recovering.segment(1));
    let spool = recovering.spool().unwrap();
    assert_eq!(spool.parent(), recovering.directory.path().parent());
    recovering.expect(recovering.segment(1));
}

#[test]
fn without_any_place_there_is_one_warning_and_no_failure() {
    let recovering = Recovering::new(Repository::directory());
    let beside = recovering.directory.path().parent().unwrap().to_owned();
    tool("chmod", ["555", beside.to_str().unwrap()]);
    // A name that somebody else has taken.
    let hash = {
        recovering.expect(recovering.segment(0));
        recovering.wait_until_ready(recovering.segment(1));
        recovering.spool().unwrap().file_name().unwrap().to_owned()
    };
    recovering.start_server(4712);
    recovering.wait_until_gone();
    let taken = recovering.repository.spool().join(hash);
    fs::write(&taken, "").unwrap();
    let warned = recovering.get(recovering.segment(0)).finish();
    warned.expect_code(0).expect_stderr(&["archive-get: WARNING: no segments are fetched ahead"]);
    recovering.check(recovering.segment(0));
    assert_eq!(warned.stderr.lines().count(), 1, "{warned}");
    recovering.expect(recovering.segment(1));
    assert!(recovering.workers().is_empty());
    fs::remove_file(taken).unwrap();
}

/// A small file system that is taken away again.
struct Mounted(PathBuf);

impl Mounted {
    /// In place of the spool, with nothing else to use beside the data directory. Only root can mount one.
    fn new(recovering: &mut Recovering, megabytes: u32) -> Self {
        let place = recovering.repository.scratch().create_private("small");
        let owner = user::unprivileged();
        let options = format!("size={megabytes}m,mode=700,uid={},gid={}", owner.uid, owner.gid);
        let options = ["-t", "tmpfs", "-o", &options, "none", place.to_str().unwrap()];
        Run::new("mount").args(options).as_caller().finish().expect_silent_success();
        tool("chmod", ["555", recovering.directory.path().parent().unwrap().to_str().unwrap()]);
        recovering.set_spool(&place);
        Self(place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Run::new("umount").arg("-l").arg(&self.0).as_caller().finish();
    }
}

#[test]
fn a_file_is_copied_where_it_cannot_be_moved_and_a_spool_that_fills_up_is_harmless() {
    if !user::is_root() {
        return;
    }
    let mut recovering = Recovering::new(Repository::directory());
    let mounted = Mounted::new(&mut recovering, 7);
    let names = recovering.samples.segments(1);
    recovering.expect(names[0]);
    recovering.wait_until_ready(names[3]);
    let spool = recovering.spool().unwrap();
    assert!(spool.starts_with(&mounted.0));
    // Four segments stay free for whoever needs them.
    let ready = fs::read_dir(&spool).unwrap().count() - 1;
    assert_eq!(ready, 3);
    recovering.expect(names[1]);
    fs::write(mounted.0.join("ballast"), vec![0; 6 << 20]).ok();
    for name in &names[2..] {
        recovering.expect(name);
    }
    fs::remove_file(recovering.directory.path().join("postmaster.pid")).unwrap();
    until("the worker leaves", SOON, || recovering.workers().is_empty().then_some(()));
}

#[test]
fn a_spool_without_room_is_told_once() {
    if !user::is_root() {
        return;
    }
    let mut recovering = Recovering::new(Repository::directory());
    let _mounted = Mounted::new(&mut recovering, 4);
    for server in [4711, 4712] {
        recovering.start_server(server);
        let warned = recovering.get(recovering.segment(0)).finish();
        warned.expect_code(0).expect_stderr(&["archive-get: WARNING: no segments are fetched ahead", "space"]);
        assert_eq!(warned.stderr.lines().count(), 1, "{warned}");
        recovering.check(recovering.segment(0));
        recovering.expect(recovering.segment(1));
        assert!(recovering.workers().is_empty() && recovering.spool().is_none());
    }
}

#[test]
fn few_descriptors_are_enough() {
    let recovering = Recovering::new(Repository::ceph());
    let limited = |name| recovering.get(name).under(["prlimit", "--nofile=64"]);
    limited(recovering.segment(0)).finish().expect_silent_success();
    recovering.wait_until_ready(recovering.segment(3));
    limited(recovering.segment(1)).finish().expect_silent_success();
    recovering.check(recovering.segment(1));
}

#[test]
fn a_worker_has_nothing_of_postgresqls() {
    let recovering = Recovering::new(Repository::directory());
    let kept_open = recovering.repository.scratch().write("kept-open", "");
    let script = "exec 7<\"$KEPT_OPEN\" 8>>\"$KEPT_OPEN\" && exec \"$0\" \"$@\"";
    let get = recovering.get(recovering.segment(0)).env("KEPT_OPEN", kept_open.to_str().unwrap());
    // It must not hold the output either, or this would not end.
    get.under(["sh", "-c", script]).finish().expect_silent_success();
    recovering.wait_until_ready(recovering.segment(1));
    let worker = recovering.worker();
    let descriptors = fs::read_dir(format!("/proc/{worker}/fd")).unwrap().flatten();
    let descriptors: Vec<PathBuf> = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    assert!(!descriptors.contains(&kept_open), "{descriptors:?}");
    assert!(descriptors.iter().filter(|path| *path == Path::new("/dev/null")).count() >= 3, "{descriptors:?}");
    let status = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let fields: Vec<&str> = status.rsplit_once(") ").unwrap().1.split(' ').collect();
    let [group, session] = [fields[2], fields[3]];
    assert_eq!((group, session), (worker.to_string().as_str(), worker.to_string().as_str()));
}

#[test]
fn no_worker_is_left_to_a_postgresql_that_is_the_first_process() {
    if !user::is_root() {
        // Only root can make a container's view of processes.
        return;
    }
    let recovering = Recovering::new(Repository::directory());
    let owner = user::unprivileged();
    let shell = recovering.repository.scratch().path().join("postgres");
    fs::copy("/bin/sh", &shell).unwrap();
    let identity = [format!("--reuid={}", owner.uid), format!("--regid={}", owner.gid)];
    let inside = |first: &Path| {
        let script = "\"$0\" \"$@\" || exit; ps -eo args | grep -c -e '[-]-read-ahead' || :";
        let wrapper = ["unshare", "--pid", "--fork", "--mount-proc", "setpriv", "--clear-groups"].map(str::to_owned);
        let wrapper = wrapper.into_iter().chain(identity.clone());
        let wrapper = wrapper.chain([first.display().to_string(), "-c".to_owned(), script.to_owned()]);
        let finished = recovering.get(recovering.segment(0)).under(wrapper).as_caller().finish();
        finished.expect_code(0);
        recovering.check(recovering.segment(0));
        finished.stdout.trim().to_owned()
    };
    assert_eq!(inside(&shell), "0");
    assert_eq!(inside(Path::new("/bin/sh")), "1", "elsewhere there is one");
}
