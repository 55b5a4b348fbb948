//! Least rights: each program does its work with the policy that the examples have for it, and can do no more.

use std::fs;
use std::path::Path;

use walkeep_tests::ceph::{self, Credentials, REGION};
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run};

use super::document::Section;
use crate::site::{Place, archiving, basebackup, take, taking, wait_until_open};

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A repository in a bucket, and users of it.
struct Bucket {
    repository: Repository,
}

impl Bucket {
    fn new() -> Self {
        Self { repository: Repository::ceph() }
    }

    /// A user with the rights of this example.
    fn user(&self, example_name: &str) -> Credentials {
        let (bucket, prefix) = self.repository.url().strip_prefix("s3://").unwrap().split_once('/').unwrap();
        let policy = example(&format!("iam/{example_name}")).replace("BUCKET", bucket).replace("PREFIX", prefix);
        ceph::shared().create_user(&policy)
    }

    /// The status of a bare request for an object.
    fn status(&self, user: &Credentials, method: &str, key: &str) -> String {
        let url = format!("{}/{}/{key}", ceph::shared().endpoint, self.repository.url().strip_prefix("s3://").unwrap());
        let user = format!("{}:{}", user.access_key, user.secret_key);
        let empty = "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let curl = Run::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-X", method, "-H", empty]);
        // A put without a body.
        let curl = curl.args(["-H", "Content-Length: 0"]);
        let signing = format!("aws:amz:{REGION}:s3");
        curl.args(["--aws-sigv4", &signing, "-u", &user, &url]).finish().expect_code(0).stdout.clone()
    }

    /// Fails the test if the user can delete or replace what is stored.
    #[track_caller]
    fn expect_harmless(&self, user: &Credentials, keys: &[String]) {
        for key in keys {
            assert_eq!(self.status(user, "DELETE", key), "403", "DELETE {key}");
        }
    }

    #[track_caller]
    fn expect_unwritable(&self, user: &Credentials, keys: &[String]) {
        for key in keys {
            assert_eq!(self.status(user, "PUT", key), "403", "PUT {key}");
        }
    }

    #[track_caller]
    fn expect_unreadable(&self, user: &Credentials, keys: &[String]) {
        for key in keys {
            assert_eq!(self.status(user, "GET", key), "403", "GET {key}");
        }
    }

    /// From now on, programs are this user.
    fn become_user(&mut self, user: &Credentials) -> &Repository {
        self.repository.set_credentials(user);
        &self.repository
    }

    /// The keys with this in their name.
    fn keys(&self, part: &str) -> Vec<String> {
        let keys: Vec<String> = self.repository.objects().into_iter().filter(|key| key.contains(part)).collect();
        assert!(!keys.is_empty(), "nothing has {part:?} in its key");
        keys
    }
}

#[track_caller]
fn expect_forbidden(finished: &Finished) {
    finished.expect_code(1).expect_stderr(&["403", "AccessDenied", "HINT: The credentials need"]);
}

#[test]
fn each_program_does_its_work_with_its_own_rights_and_no_others() {
    let mut bucket = Bucket::new();
    let names = ["archive-push", "take", "read", "drill", "expire"];
    let [push, take_, read, drill, expire] = names.map(|name| bucket.user(&format!("s3-{name}.json")));

    // archive-push: the first segment of an empty bucket, and a promotion with what it makes up for.
    let mut server = archiving(bucket.become_user(&push)).configure("wal_keep_size = '256MB'").start();
    server.wait_until_archived(&server.finish_segment());
    expect_forbidden(&taking(&bucket.repository, &server).finish());

    // take: with credentials of its own, while the server archives with the others.
    bucket.become_user(&take_);
    let id = take(&bucket.repository, &server);
    let base = bucket.keys(&format!("/base/{id}/"));
    let (wal, identity) = (bucket.keys("/wal/"), bucket.keys("identity.json"));
    bucket.expect_unreadable(&push, &base);
    bucket.expect_unwritable(&push, &base);
    for user in [&push, &take_, &read, &drill] {
        bucket.expect_harmless(user, &[&base[..], &wal, &identity].concat());
    }
    for user in [&read, &drill] {
        bucket.expect_unwritable(user, &[&base[..], &wal, &identity].concat());
    }
    bucket.expect_unwritable(&take_, &[wal[0].replace("/wal/", "/drills/")]);

    promote_in_place(&mut server);
    server.wait_until_archived(&server.finish_segment());
    bucket.keys("00000002.history.zst");

    // check, as the same: it sees that these credentials cannot delete.
    let checked = basebackup(&bucket.repository, &["check", "--repository-only"]).finish();
    assert!(checked.expect_code(0).stdout.contains("these credentials cannot delete"), "{checked}");

    // Reading, with a recovery through archive-get.
    bucket.become_user(&read);
    for words in [&["list"][..], &["show", "latest"], &["verify", "--all", "--wal"]] {
        basebackup(&bucket.repository, words).finish().expect_code(0);
    }
    let place = Place::new();
    place.restore(&bucket.repository, &[]);
    let mut restored = place.server(&bucket.repository);
    restored.start();
    wait_until_open(&restored);
    expect_forbidden(&taking(&bucket.repository, &server).finish());

    // A drill, which leaves its record.
    bucket.become_user(&drill);
    let drilled = basebackup(&bucket.repository, &["drill", "--directory"]).arg(place.around().path()).finish();
    drilled.expect_code(0);
    assert!(drilled.stderr.is_empty(), "{drilled}");
    bucket.expect_harmless(&drill, &bucket.keys("/drills/"));

    // Expiring, which deletes backups and WAL, and nothing else.
    bucket.become_user(&take_);
    let [older, newer] = [(); 2].map(|()| take(&bucket.repository, &server));
    bucket.become_user(&expire);
    basebackup(&bucket.repository, &["pin", &newer]).finish().expect_code(0);
    basebackup(&bucket.repository, &["expire", "--keep-full", "1"]).finish().expect_code(0);
    let left = bucket.keys(&newer);
    assert!(!bucket.repository.objects().iter().any(|key| key.contains(&older)), "{left:#?}");
    bucket.expect_harmless(
        &expire,
        &[bucket.keys("/drills/"), bucket.keys("identity.json"), bucket.keys("/expire/")].concat(),
    );
    bucket.expect_unwritable(&expire, &bucket.keys("/wal/"));
}

/// Makes the server a standby of nobody, and a primary again: on a new timeline, whose history it archives.
fn promote_in_place(server: &mut Cluster) {
    server.stop(StopMode::Fast);
    fs::write(server.data().join("standby.signal"), "").unwrap();
    walkeep_tests::user::give(&server.data().join("standby.signal"));
    server.start();
    server.promote();
}

#[test]
fn the_examples_of_policies_are_what_their_stores_read() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples/iam");
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let policy: serde_json::Value = serde_json::from_str(&example(&format!("iam/{name}"))).unwrap();
        let has = match name.split('-').next() {
            Some("s3") => policy["Statement"].as_array().is_some_and(|statements| !statements.is_empty()),
            Some("gcs") => policy["includedPermissions"].as_array().is_some_and(|rights| !rights.is_empty()),
            Some("azure") => policy["DataActions"].as_array().is_some_and(|rights| !rights.is_empty()),
            _ => false,
        };
        assert!(has, "{name}: {policy}");
    }
}

#[test]
fn a_backup_is_taken_with_just_the_role_of_the_example() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    server.sql("create table t as select 1 as i");
    server.sql(&example("create-role.sql"));
    let [host, socket, ..] = server.connection();
    let run = |words: &[&str]| basebackup(&repository, words).args([&host, &socket]).args(["-U", "walkeep"]).finish();
    run(&["take"]).expect_code(0);
    let read = server.try_sql("set role walkeep; select * from t");
    assert!(read.stderr.contains("permission denied"), "{read}");
    assert_eq!(server.sql("select rolsuper or rolreplication from pg_roles where rolname = 'walkeep'"), "f");
}

#[test]
fn a_compatible_store_is_set_up_by_the_guide() {
    let repository = Repository::ceph_with_tls();
    let place = super::place::Place::with(repository, |options| options.archive_command("archive-push %p"));
    let mut section = Section::read("stores.md", "MinIO, Ceph, Garage and others");
    let lines = section.next("toml");
    let configuration = fs::read_to_string(place.repository.configuration()).unwrap();
    for key in lines.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key) {
        assert!(configuration.contains(&format!("{key} = ")), "{key}\n{configuration}");
    }
    section.run(&place);
    section.end();
}
