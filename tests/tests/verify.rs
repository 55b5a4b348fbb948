//! `basebackup verify`: a sound repository is called sound, and nothing that is spoilt is.

use std::sync::Arc;

use serde_json::Value;
use walkeep_tests::cluster::StopMode;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, tool};

use crate::site::{Place, Shared, archiving, basebackup, copy_of, snapshot, take, wait_until_open};

/// A repository with an object of every kind.
pub(crate) struct Estate {
    pub(crate) repository: Repository,
    /// Taken from the primary, whose configuration lies elsewhere.
    pub(crate) first: String,
    /// Taken from a standby, with its last segment.
    pub(crate) of_standby: String,
    /// Taken from the primary once more.
    pub(crate) second: String,
    /// Taken on timeline 2.
    pub(crate) promoted: String,
}

impl Estate {
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Shared<Estate> = Shared::new();
        SHARED.get(Self::make)
    }

    fn make() -> Self {
        let repository = Repository::directory();
        let mut primary = archiving(&repository).checksums().start();
        primary.stop(StopMode::Fast);
        let elsewhere = primary.scratch().create_private("configuration");
        primary.move_configuration(&elsewhere);
        primary.start();
        primary.sql("create table t as select generate_series(1, 1000) n");
        let first = take(&repository, &primary);
        primary.sql("insert into t values (1001)");
        primary.wait_until_archived(&primary.finish_segment());

        let place = Place::new();
        let conninfo = format!("host={} user=postgres", primary.socket_directory().display());
        let config = place.around().create_private("configuration");
        let standby = ["--standby", "--primary-conninfo", &conninfo, "--config-dir", config.to_str().unwrap()];
        place.restore(&repository, &standby);
        let mut standby = server_on_configured(&place, &config, &repository);
        standby.start();
        primary.sql("insert into t values (1002)");
        standby.wait_for("select count(*) from t", "1002");
        let of_standby = take(&repository, &standby);
        standby.stop(StopMode::Fast);

        for _ in 0..4 {
            primary.sql("insert into t values (1003)");
            primary.wait_until_archived(&primary.finish_segment());
        }
        let second = take(&repository, &primary);
        primary.sql("insert into t values (1004)");
        primary.wait_until_archived(&primary.finish_segment());
        primary.stop(StopMode::Fast);

        let place = Place::new();
        let config = place.around().create_private("configuration");
        let words = ["--target-action=promote", "--target=immediate", "--keep-archiving", "--config-dir"];
        place.restore(&repository, &[&words[..], &[config.to_str().unwrap(), &second]].concat());
        let mut successor = server_on_configured(&place, &config, &repository);
        successor.start();
        wait_until_open(&successor);
        let promoted = take(&repository, &successor);
        successor.sql("insert into t values (1005)");
        successor.wait_until_archived(&successor.finish_segment());
        successor.stop(StopMode::Fast);
        Self { repository, first, of_standby, second, promoted }
    }
}

fn server_on_configured(
    place: &Place,
    config: &std::path::Path,
    repository: &Repository,
) -> walkeep_tests::cluster::Cluster {
    use walkeep_tests::cluster::Cluster;
    let options = Cluster::options().environment(repository.environment());
    Cluster::adopt_configured(&place.data(), config, options.configure("wal_retrieve_retry_interval = '200ms'"))
}

fn verify(repository: &Repository, words: &[&str]) -> Finished {
    basebackup(repository, &["verify"]).args(words).finish()
}

/// What was found, by the keys of the objects.
pub(crate) fn findings(repository: &Repository, words: &[&str]) -> Vec<Value> {
    let verified = verify(repository, &[words, &["--format", "json"]].concat());
    let report: Value = serde_json::from_str(&verified.stdout).unwrap_or_else(|_| panic!("{verified}"));
    let findings = report["clusters"][0]["findings"].as_array().unwrap().clone();
    assert_eq!(report["verdict"], if findings.is_empty() { "sound" } else { "damaged" });
    verified.expect_code(if findings.is_empty() { 0 } else { 4 });
    findings
}

/// A backup as `show` describes it.
pub(crate) fn show(repository: &Repository, id: &str) -> Value {
    let shown = basebackup(repository, &["show", id, "--format", "json"]).finish();
    serde_json::from_str(&shown.expect_code(0).stdout).unwrap()
}

/// Makes everything that is there seven hours old.
fn age(repository: &Repository) {
    let path = repository.path().to_str().unwrap();
    tool("find", [path, "-type", "f", "-exec", "touch", "-d", "7 hours ago", "{}", "+"]);
}

pub(crate) fn names(finding: &Value, key: &str) -> bool {
    finding["object"].as_str().unwrap().ends_with(key)
}

#[test]
fn what_is_sound_is_called_sound() {
    let estate = Estate::shared();
    let before = snapshot(&estate.repository);
    for words in [
        &[][..],
        &["latest"],
        &["latest", "--wal"],
        &["--all"],
        &["--all", "--wal"],
        &["--all", "--wal", "--sample", "10%"],
        &["--all", "--wal", "--jobs", "1"],
        &[&estate.first],
        &[&estate.of_standby],
        &[&estate.second],
        &[&estate.promoted],
    ] {
        let verified = verify(&estate.repository, words);
        assert!(verified.expect_code(0).stdout.ends_with(": sound\n"), "{verified}");
        assert_eq!(verified.stdout.lines().count(), 1, "{verified}");
    }
    assert!(snapshot(&estate.repository) == before, "nothing is written");
}

#[test]
fn nothing_that_is_spoilt_passes() {
    let estate = Estate::shared();
    let repository = copy_of(&estate.repository);
    // An unfinished backup is no damage as long as it may still be under way.
    age(&repository);
    let objects: Vec<String> =
        repository.objects().into_iter().filter(|key| !key.starts_with("probe/") && !key.contains("/probe/")).collect();
    assert!(objects.iter().any(|key| key.ends_with("configuration.tar.zst")));
    assert!(objects.iter().any(|key| key.contains("/wal/") && key.contains("/base/")), "a segment kept with a backup");
    assert!(objects.iter().any(|key| key.ends_with(".history.zst")));
    // The timelines' last segments: without them the archive ends earlier. Only beside the server that wrote them can that be
    // noticed, by `check`.
    let segments = |timeline: &str| {
        let is_of_it = |key: &String| {
            key.contains(&format!("/wal/{timeline}")) && !key.contains("/base/") && !key.contains(".backup.")
        };
        objects.iter().rfind(|key| is_of_it(key) && !key.ends_with(".history.zst")).unwrap().clone()
    };
    let last = [segments("00000001"), segments("00000002")];
    // No backup needs what was archived before the first of them began.
    let start = show(&repository, &estate.first)["start_wal"].as_str().unwrap().to_owned();
    let is_before = |key: &str| {
        let name = key.rsplit('/').next().unwrap();
        key.contains("/wal/00000001") && !key.contains("/base/") && name[..24] < *start
    };
    let kind = |key: &str| {
        let name = key.rsplit('/').next().unwrap();
        (key.contains("/base/"), name.len(), name.split('.').skip(1).collect::<Vec<_>>().join("."))
    };
    let mut passed = Vec::new();
    for (number, key) in objects.iter().enumerate() {
        let bytes = repository.read(key);
        let swapped = objects.iter().find(|other| *other != key && kind(other) == kind(key));
        let swapped = swapped.map(|other| repository.read(other)).filter(|other| *other != bytes);
        let is_allowed_to_go = last.contains(key) || key.contains(".backup.") || is_before(key);
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        let mutations = [
            ("removed", (!is_allowed_to_go).then_some(None)),
            ("truncated", Some(Some(bytes[..bytes.len() / 2].to_vec()))),
            ("one byte short", Some(Some(bytes[..bytes.len() - 1].to_vec()))),
            ("one byte long", Some(Some([&bytes[..], b"x"].concat()))),
            ("one bit flipped", Some(Some(flipped))),
            ("swapped", swapped.map(Some)),
        ];
        // Of the many segments each is spoilt in another way.
        let is_one_of_many = key.contains("/wal/0000000") && !key.contains(".history.");
        let turn = number % mutations.len();
        let mutations = mutations.into_iter().enumerate().filter(|(way, _)| !is_one_of_many || *way == turn);
        for (_, (what, spoilt)) in mutations {
            match spoilt {
                None => continue,
                Some(None) => repository.delete(key),
                Some(Some(spoilt)) => repository.write(key, &spoilt),
            }
            let found = findings(&repository, &["--all", "--wal"]);
            if !found.iter().any(|finding| names(finding, key)) {
                passed.push(format!("{key} {what}: {found:?}"));
            }
            repository.write(key, &bytes);
        }
    }
    assert!(passed.is_empty(), "{}", passed.join("\n"));
    assert!(findings(&repository, &["--all", "--wal"]).is_empty());
}

#[test]
fn each_finding_says_what_is_lost_by_it() {
    let estate = Estate::shared();
    let repository = copy_of(&estate.repository);
    let show = |id: &str| show(&repository, id);
    let only = |words: &[&str]| {
        let mut found = findings(&repository, words);
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    };
    let lost_backups = |finding: &Value| finding["backups_lost"].clone();

    // A frame in the middle of a pack: the files in it are named.
    let key = repository.find(&format!("{}/pack-00001.tar.zst", estate.second));
    let bytes = repository.read(&key);
    repository.flip_bit(&key, bytes.len() / 2);
    let finding = only(&["--all", "--wal"]);
    assert_eq!(lost_backups(&finding), serde_json::json!([estate.second]));
    assert!(finding["problem"].as_str().unwrap().contains("which takes \""), "{finding}");
    let text = verify(&repository, &[&estate.second]);
    text.expect_code(4);
    assert!(text.stdout.contains(&format!("lost: backup {}\n", estate.second)), "{text}");
    assert!(text.stdout.ends_with(": 1 object DAMAGED\n"), "{text}");
    // It is another backup's.
    assert!(findings(&repository, &[&estate.first]).is_empty());
    repository.write(&key, &bytes);

    // A segment that the second backup needs to become consistent.
    let start = show(&estate.second)["start_wal"].as_str().unwrap().to_owned();
    let key = repository.find(&format!("/{start}.zst"));
    let bytes = repository.read(&key);
    repository.delete(&key);
    for words in [&["--all", "--wal"][..], &[&estate.second]] {
        let finding = only(words);
        assert!(names(&finding, &key));
        assert_eq!(lost_backups(&finding), serde_json::json!([estate.second]));
    }
    repository.write(&key, &bytes);

    // A segment between the first backups and the second: moments are lost, until the second begins.
    let number = |name: &str| u64::from_str_radix(&name[16..], 16).unwrap();
    let between = format!("{}{:08X}", &start[..16], number(&start) - 2);
    let key = repository.find(&format!("/{between}.zst"));
    let bytes = repository.read(&key);
    for spoil in [true, false] {
        if spoil {
            repository.flip_bit(&key, bytes.len() - 9);
        } else {
            repository.delete(&key);
        }
        let finding = only(&["--wal"]);
        assert!(names(&finding, &key));
        assert_eq!(lost_backups(&finding), serde_json::json!([]));
        let moments = finding["moments_lost"].as_array().unwrap();
        let of_first = moments.iter().find(|span| span["timeline"] == 1).unwrap();
        assert_eq!(of_first["to_lsn"], show(&estate.second)["stop_lsn"], "{finding}");
        assert!(of_first["from_time"].is_string(), "{finding}");
        // Nothing that is needed for a backup alone.
        assert!(findings(&repository, &["--all"]).is_empty());
    }
    repository.write(&key, &bytes);

    // Without its history nothing on timeline 2 can be recovered.
    let key = repository.find("/00000002.history.zst");
    let bytes = repository.read(&key);
    repository.delete(&key);
    let finding = only(&["latest"]);
    assert!(names(&finding, &key));
    assert_eq!(lost_backups(&finding), serde_json::json!([estate.promoted]));
    assert_eq!(finding["moments_lost"][0]["timeline"], 2);
    repository.write(&key, &bytes);
}

#[test]
fn a_verification_that_cannot_be_finished_is_no_verdict() {
    let estate = Estate::shared();
    let unknown = verify(&estate.repository, &["20200101T000000Z-0000"]);
    unknown.expect_code(1).expect_stderr(&["there is no base backup 20200101T000000Z-0000", "HINT: "]);
    verify(&estate.repository, &["--sample", "0"]).expect_code(2);
    verify(&estate.repository, &["--all", "latest"]).expect_code(2);

    // A store that cannot be read is no damage, and what was found before it is told.
    let repository = copy_of(&estate.repository);
    let key = repository.find(&format!("{}/files.ndjson.zst", estate.first));
    repository.truncate(&key, 10);
    let pack = repository.path().join(repository.find(&format!("{}/pack-00001.tar.zst", estate.second)));
    std::fs::set_permissions(&pack, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let refused = verify(&repository, &["--all", "--jobs", "1"]);
    refused.expect_code(1).expect_stderr(&["pack-00001.tar.zst"]);
    assert!(refused.stdout.contains("could not be finished"), "{refused}");

    let nothing = Repository::directory();
    verify(&nothing, &[]).expect_code(1).expect_stderr(&["HINT: "]);
}

#[test]
fn what_was_archived_without_any_backup_is_verified_as_well() {
    let repository = Repository::directory();
    let mut server = archiving(&repository).start();
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);
    verify(&repository, &[]).expect_code(1).expect_stderr(&["no base backups", "--wal"]);
    assert!(findings(&repository, &["--wal"]).is_empty());
    let first = repository.objects().into_iter().find(|key| key.contains("/wal/0")).unwrap();
    repository.flip_bit(&first, repository.read(&first).len() - 9);
    assert_eq!(findings(&repository, &["--wal"]).len(), 1);
}

#[test]
fn a_repository_in_a_bucket_is_verified_through_its_faults() {
    let repository = Repository::ceph();
    let mut server = archiving(&repository).start();
    server.sql("create table t as select generate_series(1, 100000) n");
    take(&repository, &server);
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);
    assert!(findings(&repository, &["--all", "--wal"]).is_empty());
    let key = repository.find("/pack-00001.tar.zst");
    repository.flip_bit(&key, 100_000);
    let found = findings(&repository, &["--all", "--wal"]);
    assert!(found.len() == 1 && names(&found[0], &key), "{found:?}");
}
