//! Bad input and bad surroundings: one clear line, what to do about it, the documented exit code, and nothing lost.

use std::path::{Path, PathBuf};

use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::StopMode;
use walkeep_tests::emulator::free_port;
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, tool};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;

use crate::samples::{DataDirectory, archive, ours, theirs};
use crate::site::{Place, archiving, basebackup, snapshot, take, taking};

/// One error, named by the program, with these texts in it, and one hint; where the error says what is expected, the
/// hint may be left away.
#[track_caller]
fn expect_explained(finished: &Finished, code: i32, texts: &[&str]) {
    finished.expect_code(code).expect_stderr(texts);
    let starts = |start: &str| finished.stderr.lines().filter(|line| line.contains(start)).count();
    let hinted = starts("HINT: ") == 1 || starts("HINT: ") == 0 && finished.stderr.contains("expected");
    assert!(starts(": ERROR: ") + starts(": WARNING: ") == 1 && hinted, "{finished}");
    assert!(finished.stderr.lines().all(|line| !line.contains("panicked")), "{finished}");
    assert!(finished.stdout.is_empty(), "{finished}");
}

#[test]
fn a_file_that_is_no_wal_of_this_cluster_is_refused_and_told_why() {
    let repository = Repository::directory();
    let segments = ours().segments(1);
    archive(ours(), &repository, [segments[0]]);
    let before = snapshot(&repository);
    let name = segments[1];
    let right = &ours().files[name];
    let zeros = vec![0; right.len()];
    for (what, content) in [
        ("32768 bytes", &right[..32768]),
        ("shorter than", &[]),
        ("system identifier", &theirs().files[name]),
        ("name", &ours().files[segments[2]]),
        ("magic", &zeros),
    ] {
        let directory = DataDirectory::with_wal(ours());
        directory.write(name, content);
        expect_explained(&directory.push(&repository, name).finish(), 4, &[name, what]);
    }
    let directory = DataDirectory::with_wal(ours());
    tool("chmod", [PathBuf::from("000"), directory.wal(name)]);
    expect_explained(&directory.push(&repository, name).finish(), 4, &[name, "Permission denied"]);
    tool("chmod", [PathBuf::from("600"), directory.wal(name)]);
    assert!(snapshot(&repository) == before);
    directory.push(&repository, name).finish().expect_silent_success();
}

/// Each of the programs at its most ordinary work, with the exit code of the kind of failure: push, get, basebackup.
#[track_caller]
fn expect_of_all(repository: &Repository, codes: [i32; 3], texts: &[&str]) {
    let directory = DataDirectory::with_wal(ours());
    let name = ours().segments(1)[1];
    expect_explained(&directory.push(repository, name).finish(), codes[0], texts);
    expect_explained(&directory.get(repository, ours().segments(1)[0]).finish(), codes[1], texts);
    directory.signal("recovery.signal");
    let recovering = directory.get(repository, ours().segments(1)[0]).finish();
    expect_explained(&recovering, codes[1] + 100, texts);
    assert!(!directory.wal("RECOVERYXLOG").exists());
    let place = Place::new();
    for run in [basebackup(repository, &["list"]), place.restoring(repository, &[])] {
        expect_explained(&run.finish(), codes[2], texts);
    }
    assert!(place.is_untouched());
}

const USAGE: [i32; 3] = [2, 104, 2];
const REFUSED: [i32; 3] = [5, 104, 1];

#[test]
fn mistakes_in_the_configuration_are_named_by_every_program() {
    let mut unknown = Repository::directory();
    unknown.configure("compresion_level = 5");
    expect_of_all(&unknown, USAGE, &["compresion_level", "compression_level", "line 2", "walkeep.toml"]);
    let mut value = Repository::directory();
    value.configure("timeout = \"soon\"");
    expect_of_all(&value, USAGE, &["timeout", "walkeep.toml"]);
    for url in ["bucket/path", "s3:/bucket", "s3://", "ftp://host/path", "file://relative", "", "http://[::1"] {
        let mut repository = Repository::directory();
        repository.set_url(url);
        expect_of_all(&repository, USAGE, &[url]);
    }
    let mut secret = Repository::directory();
    secret.set_url("s3://key:a-secret@bucket");
    expect_of_all(&secret, USAGE, &["credentials", "expected"]);
    let pushed = DataDirectory::with_wal(ours()).push(&secret, ours().segments(1)[0]).finish();
    assert!(!pushed.to_string().contains("a-secret"), "{pushed}");
}

#[test]
fn a_bucket_that_refuses_us_is_named_by_every_program() {
    let mut repository = Repository::ceph();
    archive(ours(), &repository, [ours().segments(1)[0]]);
    let before = snapshot(&repository);
    let right = repository.url().to_owned();
    repository.set_url("s3://no-such-bucket/test");
    expect_of_all(&repository, REFUSED, &["no-such-bucket"]);
    repository.set_url(&right);

    let mut wrong = ceph::shared().owner.clone();
    wrong.secret_key.push('x');
    for credentials in [&wrong, &ceph::shared().stranger] {
        repository.set_credentials(credentials);
        expect_of_all(&repository, REFUSED, &[]);
    }
    repository.set_credentials(&ceph::shared().owner);

    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    proxy.add(Rule::all(Fault::s3_error(403, "RequestTimeTooSkewed", "The difference is too large.")));
    expect_of_all(&repository, REFUSED, &["clock"]);
    proxy.clear();
    assert!(snapshot(&repository) == before);
    DataDirectory::with_wal(ours()).push(&repository, ours().segments(1)[1]).finish().expect_code(0);
}

/// A file system of so many bytes (and more of mount's options, if any), for as long as the test runs.
pub(crate) struct SmallDisk {
    directory: PathBuf,
    /// Goes after it was unmounted.
    scratch: Option<Scratch>,
}

impl SmallDisk {
    /// None without the right to mount.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let scratch = Scratch::new("disk");
        let mut disk = Self::mount_at(&scratch.create_private("disk"), size)?;
        disk.scratch = Some(scratch);
        Some(disk)
    }

    /// Takes the place of a directory.
    pub(crate) fn mount_at(directory: &Path, size: &str) -> Option<Self> {
        let user = user::unprivileged();
        let options = format!("size={size},mode=0700,uid={},gid={}", user.uid, user.gid);
        let mount = Run::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(directory).as_caller().finish();
        mount.status.success().then(|| Self { directory: directory.to_owned(), scratch: None })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Run::new("umount").arg(self.path()).as_caller().finish();
    }
}

#[test]
fn a_full_disk_is_temporary_and_leaves_nothing_half() {
    let Some(disk) = SmallDisk::mount("2m") else { return };
    let mut repository = Repository::directory();
    repository.set_url(&format!("file://{}", disk.path().display()));
    repository.configure("timeout = 3");
    let directory = DataDirectory::with_wal(ours());
    let (first, second) = (ours().segments(1)[0], ours().segments(1)[1]);
    directory.push(&repository, first).finish().expect_silent_success();
    // Random bytes do not compress, so this fills all that is left.
    let filler = disk.path().join("filler");
    Run::new("dd").args(["if=/dev/urandom", "bs=4k", &format!("of={}", filler.display())]).finish();
    let full = directory.push(&repository, second).finish();
    expect_explained(&full, 1, &[second, "No space left on device"]);
    directory.get(&repository, first).finish().expect_silent_success();
    assert_eq!(tool("find", [disk.path().to_str().unwrap(), "-name", &format!("*{second}*")]), "");
    std::fs::remove_file(&filler).unwrap();
    directory.push(&repository, second).finish().expect_silent_success();
    directory.get(&repository, second).finish().expect_silent_success();

    // A whole backup does not fit; the WAL that is archived meanwhile may.
    let server = archiving(&repository).start();
    let failed = taking(&repository, &server).finish();
    failed.expect_code(1).expect_stderr(&["basebackup: ERROR: ", "No space left on device"]);
    let listed = basebackup(&repository, &["list"]).finish();
    assert!(failed.stdout.is_empty() && !listed.stdout.contains("walkeep base backup"), "{listed}");
}

#[test]
fn a_disk_that_is_too_small_for_a_restore_is_noticed_before_anything_is_written() {
    let Some(disk) = SmallDisk::mount("8m") else { return };
    let mut repository = Repository::directory();
    repository.configure("timeout = 3");
    let server = archiving(&repository).start();
    take(&repository, &server);
    let target = disk.path().join("data");
    let refused = basebackup(&repository, &["restore", "-D", target.to_str().unwrap()]).finish();
    refused.expect_code(1).expect_stderr(&["not enough space", target.to_str().unwrap(), "needed", "free", "HINT: "]);
    assert!(!target.exists());
    if let Some(roomy) = SmallDisk::mount("1g,nr_inodes=100") {
        let target = roomy.path().join("data");
        let refused = basebackup(&repository, &["restore", "-D", target.to_str().unwrap()]).finish();
        refused.expect_code(1).expect_stderr(&["not enough inodes", target.to_str().unwrap(), "free", "HINT: "]);
        assert!(refused.stdout.contains("files needed") && !target.exists(), "{refused}");
    }
    // WAL that does not fit beside the database stops recovery, and is no end of it.
    let directory = DataDirectory::new(ours());
    archive(ours(), &repository, [ours().segments(1)[0]]);
    let target = disk.path().join("RECOVERYXLOG");
    let filler = disk.path().join("filler");
    Run::new("dd").args(["if=/dev/zero", "bs=4k", &format!("of={}", filler.display())]).finish();
    let get = Run::new(binaries::archive_get()).arg(ours().segments(1)[0]).arg(&target).envs(repository.environment());
    let full = get.current_dir(directory.path()).finish();
    full.expect_code(101).expect_stderr(&["No space left on device"]);
    assert!(!target.exists());
}

#[test]
fn a_server_that_cannot_be_backed_up_says_what_to_do() {
    let repository = Repository::directory();
    let mut server = archiving(&repository).start();
    server.wait_until_archived(&server.finish_segment());
    server.sql("create role reader login");
    let objects = repository.objects();
    let take_as = |words: &[&str]| basebackup(&repository, &["take"]).args(words).finish();
    let socket = server.socket_directory().to_str().unwrap().to_owned();

    let port = free_port().to_string();
    expect_explained(&take_as(&["-h", "127.0.0.1", "-p", &port]), 1, &["could not connect", "127.0.0.1", &port]);
    expect_explained(&take_as(&["-h", "/tmp", "-p", &port]), 1, &["could not connect", "/tmp"]);
    expect_explained(&take_as(&["-h", &socket, "-U", "nobody_here"]), 1, &["nobody_here"]);
    let poor = take_as(&["-h", &socket, "-U", "reader", "-d", "postgres"]);
    expect_explained(
        &poor,
        1,
        &["role reader lacks rights", "GRANT EXECUTE ON FUNCTION", "GRANT pg_read_all_settings"],
    );
    // What the hint says is enough.
    let (_, grants) = poor.stderr.split_once("run in database postgres: ").unwrap();
    server.sql(grants.trim());
    take_as(&["-h", &socket, "-U", "reader", "-d", "postgres"]).expect_code(0);
    if user::is_root() {
        let root = basebackup(&repository, &["take", "-h", &socket, "-U", "postgres"]).as_caller().finish();
        expect_explained(&root, 2, &["root", "--allow-root"]);
    }
    let taken = repository.objects().iter().filter(|key| key.ends_with("begin.json")).count();
    assert!(taken == 1 && objects.iter().all(|key| repository.objects().contains(key)), "only the one that was taken");

    server.stop(StopMode::Fast);
    server.configure(&["archive_mode = off"]);
    server.start();
    expect_explained(&taking(&repository, &server).finish(), 1, &["archive_mode is off", "archive-push %p"]);
}
