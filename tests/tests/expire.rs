//! `basebackup expire`, `pin`, `unpin` and `delete`: what is kept restores, and nothing else goes than was said.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use walkeep_tests::cluster::{StopMode, bin_directory};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, tool};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::site::{Place, Shared, archiving, basebackup, copy_of, snapshot, take, taking, verify, wait_until_open};
use crate::take::peak_memory;

type Spoil<'s> = &'s dyn Fn(&Repository, &str);

/// Three backups of one timeline with WAL between them.
struct Past {
    repository: Repository,
    backups: [String; 3],
}

impl Past {
    fn shared() -> Arc<Self> {
        static SHARED: Shared<Past> = Shared::new();
        SHARED.get(|| Self::make(Repository::directory()))
    }

    fn make(repository: Repository) -> Self {
        let mut server = archiving(&repository).checksums().start();
        server.sql("create table t (n int)");
        let backups = [1, 2, 3].map(|number| {
            for _ in 0..2 {
                server.wait_until_archived(&server.finish_segment());
            }
            server.sql(&format!("insert into t values ({number})"));
            take(&repository, &server)
        });
        server.sql("insert into t values (4)");
        server.wait_until_archived(&server.finish_segment());
        server.stop(StopMode::Fast);
        Self { repository, backups }
    }
}

fn expire(repository: &Repository, words: &[&str]) -> Finished {
    basebackup(repository, &["expire"]).args(words).finish()
}

fn plan(repository: &Repository, words: &[&str]) -> Value {
    let printed = expire(repository, &[words, &["--dry-run", "--format", "json"]].concat());
    let plan: Value = serde_json::from_str(&printed.expect_code(0).stdout).unwrap_or_else(|_| panic!("{printed}"));
    plan["clusters"][0].clone()
}

/// The ids of complete backups.
fn listed(repository: &Repository) -> Vec<String> {
    let listed = basebackup(repository, &["list", "--format", "json"]).finish();
    let listed: Value = serde_json::from_str(&listed.expect_code(0).stdout).unwrap();
    let backups = listed["clusters"][0]["backups"].as_array().unwrap();
    backups.iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// Everything but the records of what was removed.
fn objects(repository: &Repository) -> BTreeSet<String> {
    repository.objects().into_iter().filter(|key| !key.contains("/expire/")).collect()
}

fn segments(repository: &Repository) -> BTreeSet<String> {
    let names = repository.objects().into_iter().filter(|key| key.contains("/wal/0") && !key.contains("/base/"));
    names.filter_map(|key| key.rsplit('/').next()?.get(..24).map(str::to_owned)).collect()
}

/// What a backup holds when it is recovered so far.
fn rows(repository: &Repository, words: &[&str]) -> String {
    let place = Place::new();
    place.restore(repository, &[words, &["--target-action=promote"]].concat());
    verify(&place.data());
    let mut server = place.server(repository);
    server.start();
    wait_until_open(&server);
    server.sql("select string_agg(n::text, ' ' order by n) from t")
}

fn start_wal(repository: &Repository, id: &str) -> String {
    let shown = basebackup(repository, &["show", id, "--format", "json"]).finish();
    let shown: Value = serde_json::from_str(&shown.expect_code(0).stdout).unwrap();
    shown["start_wal"].as_str().unwrap().to_owned()
}

fn age(directory: &Path, when: &str) {
    let path = directory.to_str().unwrap();
    tool("find", [path, "-type", "f", "-exec", "touch", "-d", when, "{}", "+"]);
}

fn expect_sound(repository: &Repository) {
    let verified = basebackup(repository, &["verify", "--all", "--wal"]).finish();
    assert!(verified.expect_code(0).stdout.ends_with(": sound\n"), "{verified}");
}

#[test]
fn what_the_policy_keeps_restores_and_what_it_does_not_is_gone() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let [first, second, third] = &past.backups;
    let before = snapshot(&repository);
    let dry = expire(&repository, &["--keep-full", "2", "--dry-run"]);
    assert!(dry.expect_code(0).stdout.contains("number 2 of the newest 2"), "{dry}");
    assert!(snapshot(&repository) == before, "a dry run changes nothing");
    let planned = plan(&repository, &["--keep-full", "2"]);
    assert_eq!(planned["removed"][0]["id"], first.as_str());
    assert_eq!(planned["kept"][0]["reasons"][0]["because"], "full");

    let start = start_wal(&repository, second);
    let expected: BTreeSet<String> = segments(&repository).into_iter().filter(|name| *name >= start).collect();
    let done = expire(&repository, &["--keep-full", "2"]);
    assert!(done.expect_code(0).stdout.contains("Removed "), "{done}");
    assert_eq!(listed(&repository), [second.clone(), third.clone()]);
    assert_eq!(segments(&repository), expected, "WAL from the oldest kept backup on");
    assert!(!repository.path().join(format!("main/{}/base/{first}", system(&repository))).exists());
    let of_run = |key: &String| key.contains("/expire/") && !key.ends_with("done");
    let records = repository.objects().into_iter().filter(of_run).collect::<Vec<_>>();
    let record: Value = serde_json::from_slice(&repository.read(&records[0])).unwrap();
    assert_eq!((records.len(), record["removed"][0]["id"].as_str()), (1, Some(first.as_str())));
    expect_sound(&repository);
    let again = expire(&repository, &["--keep-full", "2"]);
    assert!(again.expect_code(0).stdout.contains("nothing to remove"), "{again}");
    assert_eq!(rows(&repository, &[second]), "1 2 3 4");
    assert_eq!(rows(&repository, &[second, "--target=immediate"]), "1 2");
}

fn system(repository: &Repository) -> String {
    let key = repository.objects().into_iter().find(|key| key.ends_with("/identity.json")).unwrap();
    key.split('/').nth(1).unwrap().to_owned()
}

#[test]
fn a_pinned_backup_keeps_what_makes_it_consistent_until_it_is_unpinned() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let [first, second, third] = &past.backups;
    basebackup(&repository, &["pin", first, "--until", "2000-01-01 00:00:00Z"]).finish().expect_code(2);
    basebackup(&repository, &["pin", "20200101T000000Z-0000"]).finish().expect_code(1);
    basebackup(&repository, &["pin", first, "--note", "before the upgrade"]).finish().expect_code(0);
    let refused = basebackup(&repository, &["delete", first]).finish();
    refused.expect_code(1).expect_stderr(&["is pinned", "unpin"]);
    let shown = basebackup(&repository, &["list"]).finish();
    assert!(shown.stdout.contains("pinned (before the upgrade)"), "{shown}");

    expire(&repository, &["--keep-full", "1"]).expect_code(0);
    assert_eq!(listed(&repository), [first.clone(), third.clone()]);
    expect_sound(&repository);
    let windows = basebackup(&repository, &["list"]).finish();
    assert!(windows.stdout.contains("expired WAL"), "{windows}");
    // Drilled as far as it goes: what the policy removed is no damage.
    let place = Scratch::new("drills");
    let drilling = basebackup(&repository, &["drill", "oldest", "--directory"]).arg(place.path());
    let drilled = drilling.arg("--pg-bindir").arg(bin_directory()).timeout(Duration::from_secs(180)).finish();
    assert!(drilled.expect_code(0).stdout.contains("immediate"), "{drilled}");
    assert_eq!(rows(&repository, &[first, "--target=immediate"]), "1");
    let place = Place::new();
    let refused = place.restoring(&repository, &[first]).finish();
    refused.expect_code(1).expect_stderr(&["removed by basebackup expire", "--target=immediate"]);
    assert!(place.is_untouched());
    assert_eq!(rows(&repository, &[]), "1 2 3 4");

    basebackup(&repository, &["unpin", first]).finish().expect_code(0);
    basebackup(&repository, &["unpin", second]).finish().expect_code(1);
    expire(&repository, &["--keep-full", "1"]).expect_code(0);
    assert_eq!(listed(&repository), slice::from_ref(third));
    let start = start_wal(&repository, third);
    assert!(segments(&repository).iter().all(|name| *name >= start));
    expect_sound(&repository);
}

#[test]
fn killed_at_any_step_it_leaves_whole_backups_and_is_finished_by_the_next_run() {
    let past = Past::shared();
    let whole = copy_of(&past.repository);
    expire(&whole, &["--keep-full", "1"]).expect_code(0);
    let expected = objects(&whole);
    let mut killed = 0;
    'calls: for call in ["unlink", "rmdir", "fsync"] {
        for count in 1.. {
            let repository = copy_of(&past.repository);
            let inject = format!("inject={call}:signal=KILL:when={count}");
            let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject];
            let run = basebackup(&repository, &["expire", "--keep-full", "1"]).under(wrapper).finish();
            if run.code() == 0 {
                continue 'calls;
            }
            killed += 1;
            for id in listed(&repository) {
                let verified = basebackup(&repository, &["verify", &id]).finish();
                assert_eq!(verified.code(), 0, "killed at {call} {count}: {id} is offered\n{verified}");
            }
            expire(&repository, &["--keep-full", "1"]).expect_code(0);
            assert_eq!(objects(&repository), expected, "killed at {call} {count}");
        }
    }
    assert!(killed >= 6, "only {killed} were killed");
    assert_eq!(rows(&whole, &[]), "1 2 3 4");
}

#[test]
fn a_backup_under_way_is_left_alone_and_its_wal_too() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    server.sql("create table t as select 1 as n");
    take(&repository, &server);
    let slow = taking(&repository, &server).args(["--max-rate", "8M"]).start();
    let begun = || repository.objects().into_iter().filter(|key| key.ends_with("begin.json")).count() == 2;
    until("the second backup begins", SOON, || begun().then_some(()));
    for _ in 0..3 {
        server.wait_until_archived(&server.finish_segment());
        let left = expire(&repository, &["--keep-full", "1"]);
        assert!(left.expect_code(0).stdout.contains("left alone"), "{left}");
    }
    slow.finish().expect_code(0);
    expire(&repository, &["--keep-full", "1"]).expect_code(0);
    assert_eq!(listed(&repository).len(), 1);
    expect_sound(&repository);
    assert_eq!(rows(&repository, &[]), "1");
}

#[test]
fn a_dead_backup_is_claimed_after_two_days_and_whoever_is_still_at_it_fails() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    take(&repository, &server);
    let slow = taking(&repository, &server).args(["--max-rate", "4M"]).start();
    let unfinished = || {
        let objects = repository.objects();
        let mut begun = objects.iter().filter_map(|key| key.strip_suffix("/begin.json"));
        begun.find(|folder| !objects.contains(&format!("{folder}/backup.json"))).map(str::to_owned)
    };
    let folder = until("the second backup begins", SOON, unfinished);
    age(&repository.path().join(&folder), "3 days ago");
    let swept = expire(&repository, &["--keep-full", "5"]);
    assert!(swept.expect_code(0).stdout.contains("What is left of backup"), "{swept}");
    let failed = slow.finish();
    assert_eq!(failed.code(), 1, "{failed}");
    assert_eq!(listed(&repository).len(), 1);
    // The mark stays for as long as somebody might still be at it.
    assert!(repository.path().join(&folder).join("backup.json").exists());
    age(&repository.path().join(&folder), "3 days ago");
    expire(&repository, &["--keep-full", "5"]).expect_code(0);
    assert!(!repository.path().join(&folder).exists());
    expect_sound(&repository);
}

#[test]
fn leftovers_go_after_two_days_and_not_before() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let base = format!("main/{}/base/{}", system(&repository), past.backups[2]);
    let staged = repository.path().join(format!("main/{}/wal/000000010000000000000001.zst#1", system(&repository)));
    let policy = ["--keep-full", "9"];
    expire(&repository, &policy).expect_code(0);
    let clean = objects(&repository);
    repository.write(&format!("{base}/pack-00099.tar.zst"), b"x");
    std::fs::write(&staged, "x").unwrap();
    user::give(&staged);
    assert!(expire(&repository, &policy).expect_code(0).stdout.contains("nothing to remove"));
    age(repository.path(), "3 days ago");
    let dry = expire(&repository, &[&policy[..], &["--dry-run"]].concat());
    assert!(dry.stdout.contains("pack-00099.tar.zst") && dry.stdout.contains("never became objects: 1"), "{dry}");
    expire(&repository, &policy).expect_code(0);
    assert!(!staged.exists());
    assert_eq!(objects(&repository), clean);
}

#[test]
fn in_doubt_nothing_is_removed_unless_it_is_forced() {
    let past = Past::shared();
    let id = &past.backups[0];
    let spoil = |what: Spoil<'_>| {
        let repository = copy_of(&past.repository);
        let folder = format!("main/{}", system(&repository));
        what(&repository, &folder);
        repository
    };
    let cases: [(&str, Spoil<'_>); 4] = [
        ("cannot be used", &|repository, folder| repository.write(&format!("{folder}/base/{id}/backup.json"), b"{")),
        ("was changed since", &|repository, folder| {
            let key = format!("{folder}/base/{id}/backup.json");
            let text = String::from_utf8(repository.read(&key)).unwrap();
            repository.write(&key, text.replace("\"label\": \"", "\"label\": \"x").as_bytes());
        }),
        ("cannot be read", &|repository, folder| {
            repository.write(&format!("{folder}/pins/20260101T000000Z-0000.json"), b"{}");
        }),
        ("history of timeline 2 is not archived", &|repository, folder| {
            repository.write(&format!("{folder}/wal/0000000200000000/000000020000000000000003.zst"), b"x");
        }),
    ];
    for (words, what) in cases {
        let repository = spoil(what);
        let before = snapshot(&repository);
        let refused = expire(&repository, &["--keep-full", "1"]);
        refused.expect_code(1).expect_stderr(&[words, "--force"]);
        assert!(snapshot(&repository) == before, "{words}: something was changed");
        expire(&repository, &["--keep-full", "1", "--force"]).expect_code(0);
        assert_eq!(listed(&repository), [past.backups[2].clone()], "{words}");
    }
    expire(&past.repository, &[]).expect_code(2).expect_stderr(&["no retention is configured"]);
    expire(&past.repository, &["--keep-full", "0"]).expect_code(2);
}

#[test]
fn the_policy_is_read_from_the_configuration_and_a_flag_wins() {
    let past = Past::shared();
    let mut repository = copy_of(&past.repository);
    repository.configure_s3("[retention]\nkeep_full = 2\n");
    assert_eq!(plan(&repository, &[])["removed"].as_array().unwrap().len(), 1);
    assert_eq!(plan(&repository, &["--keep-full", "1"])["removed"].as_array().unwrap().len(), 2);
    assert_eq!(plan(&repository, &["--keep-days", "1"])["removed"].as_array().unwrap().len(), 0);
}

#[test]
fn one_backup_is_deleted_by_name_but_not_the_last_that_restores() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let [first, second, third] = &past.backups;
    let wal = segments(&repository);
    basebackup(&repository, &["delete", second]).finish().expect_code(0);
    basebackup(&repository, &["delete", second]).finish().expect_code(1).expect_stderr(&["there is no base backup"]);
    assert_eq!(listed(&repository), [first.clone(), third.clone()]);
    assert_eq!(segments(&repository), wal, "WAL is the policy's");
    let key = repository.find(&format!("{first}/pack-00001.tar.zst"));
    repository.delete(&key);
    let refused = basebackup(&repository, &["delete", third]).finish();
    refused.expect_code(1).expect_stderr(&["only backup that can be restored", "--force"]);
    basebackup(&repository, &["delete", first]).finish().expect_code(0);
    assert_eq!(rows(&repository, &[third]), "1 2 3 4");
    repository.write(&repository.find(&format!("{third}/backup.json")), b"{");
    basebackup(&repository, &["delete", third]).finish().expect_code(1);
    basebackup(&repository, &["delete", third, "--force"]).finish().expect_code(0);
    assert!(listed(&repository).is_empty());
}

#[test]
fn what_may_not_be_deleted_stays_whole_is_reported_and_tried_again() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let [first, _, third] = &past.backups;
    let locked = repository.path().join(format!("main/{}/base/{first}", system(&repository)));
    let mode = |mode| std::fs::set_permissions(&locked, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o500);
    let run = expire(&repository, &["--keep-full", "1"]);
    run.expect_code(0).expect_stderr(&["WARNING", "not deleted", "next run"]);
    assert_eq!(listed(&repository), [first.clone(), third.clone()]);
    basebackup(&repository, &["verify", first]).finish().expect_code(0);
    assert_eq!(rows(&repository, &[first, "--target=immediate"]), "1");
    let nothing = expire(&repository, &["--keep-full", "1"]);
    nothing.expect_code(1).expect_stderr(&["nothing could be deleted"]);
    mode(0o700);
    expire(&repository, &["--keep-full", "1"]).expect_code(0);
    assert_eq!(listed(&repository), slice::from_ref(third));
}

#[test]
fn an_old_branch_goes_when_nothing_is_added_to_it_and_the_new_one_restores() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let place = Place::new();
    place
        .restore(&repository, &[&past.backups[1], "--target=immediate", "--target-action=promote", "--keep-archiving"]);
    let mut server = place.server(&repository);
    server.start();
    wait_until_open(&server);
    server.sql("insert into t values (20)");
    let promoted = take(&repository, &server);
    server.sql("insert into t values (21)");
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);

    expire(&repository, &["--keep-full", "1"]).expect_code(0);
    assert_eq!(listed(&repository), [past.backups[2].clone(), promoted.clone()], "the old branch keeps its newest");
    let of_first = |repository: &Repository| segments(repository).iter().any(|name| name.starts_with("00000001"));
    assert!(of_first(&repository), "the old branch may still be in use");
    expect_sound(&repository);
    age(repository.path(), "3 days ago");
    expire(&repository, &["--keep-full", "1"]).expect_code(0);
    assert_eq!(listed(&repository), slice::from_ref(&promoted));
    assert!(!of_first(&repository), "{:?}", segments(&repository));
    assert!(repository.objects().iter().any(|key| key.ends_with("00000002.history.zst")), "histories stay");
    expect_sound(&repository);
    assert_eq!(rows(&repository, &[]), "1 2 20 21");
}

#[test]
fn the_branch_that_is_lived_on_keeps_the_backup_it_came_from_however_idle_it_is() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let [first, _, third] = &past.backups;
    let place = Place::new();
    place.restore(&repository, &[first, "--target=immediate", "--target-action=promote", "--keep-archiving"]);
    let mut server = place.server(&repository);
    server.start();
    wait_until_open(&server);
    server.sql("insert into t values (20)");
    server.wait_until_archived(&server.finish_segment());
    server.stop(StopMode::Fast);
    age(repository.path(), "3 days ago");
    let kept = expire(&repository, &["--keep-full", "1"]);
    assert!(kept.expect_code(0).stdout.contains("on the way to timeline 2"), "{kept}");
    assert_eq!(listed(&repository), [first.clone(), third.clone()]);
    expect_sound(&repository);
    assert_eq!(rows(&repository, &[]), "1 20");
}

#[test]
fn a_wrong_clock_and_a_second_removal_at_the_same_time_remove_nothing() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let before = snapshot(&repository);
    let wrong = basebackup(&repository, &["expire", "--keep-full", "2"]).under(["faketime", "-f", "+40d"]).finish();
    wrong.expect_code(1).expect_stderr(&["clock", "Nothing was removed"]);
    assert!(snapshot(&repository) == before, "not even a record stays");
    basebackup(&repository, &["delete", &past.backups[0]]).finish().expect_code(0);
    let before = repository.objects().len();
    // Held up between its record and its first deletion.
    let stopped = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=unlink",
        "-e",
        "inject=unlink:delay_enter=3000000:when=1",
    ];
    let slow = basebackup(&repository, &["delete", &past.backups[1]]).under(stopped).start();
    until("the record is there", SOON, || (repository.objects().len() > before).then_some(()));
    let second = basebackup(&repository, &["delete", &past.backups[2]]).finish();
    second.expect_code(1).expect_stderr(&["only backup that can be restored"]);
    slow.finish().expect_code(0);
    assert_eq!(listed(&repository), slice::from_ref(&past.backups[2]));
    assert_eq!(rows(&repository, &[]), "1 2 3 4");
}

#[test]
fn the_last_backup_of_a_cluster_that_is_no_more_stays_until_it_is_forgotten() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let old = system(&repository);
    let lonely = copy_of(&repository);
    age(lonely.path(), "3 days ago");
    expire(&lonely, &["--forget-system", &old]).expect_code(1).expect_stderr(&["no other cluster"]);
    let mut server = archiving(&repository).start();
    server.sql("create table t as select 7 as n");
    take(&repository, &server);
    take(&repository, &server);
    server.stop(StopMode::Fast);
    let new = server.system_identifier().to_string();
    expire(&repository, &["--keep-full", "1"]).expect_code(0);
    let backups = |system: &str| {
        let of_it = format!("main/{system}/base/");
        repository.objects().iter().filter(|key| key.starts_with(&of_it) && key.ends_with("backup.json")).count()
    };
    assert_eq!((backups(&old), backups(&new)), (1, 1));
    expire(&repository, &["--forget-system", &old]).expect_code(1).expect_stderr(&["within the last two days"]);
    age(&repository.path().join(format!("main/{old}")), "3 days ago");
    expire(&repository, &["--forget-system", &old]).expect_code(0);
    assert_eq!((backups(&old), backups(&new)), (0, 1));
    let left: Vec<String> = repository.objects().into_iter().filter(|key| key.contains(&old)).collect();
    assert!(!left.iter().any(|key| key.contains("/wal/0") || key.contains("/base/")), "{left:?}");
    assert_eq!(rows(&repository, &["--system-identifier", &new]), "7");
}

#[test]
fn a_bucket_is_emptied_in_batches_and_a_short_listing_is_no_evidence() {
    let mut past = Past::make(Repository::ceph());
    let repository = &mut past.repository;
    let folder = format!("main/{}", system(repository));
    for number in 0..1500 {
        let key = format!("{folder}/wal/0000000100000000/000000010000000000000001.fork.{number:016x}.zst");
        repository.write(&key, b"x");
    }
    let endpoint = std::fs::read_to_string(repository.configuration()).unwrap();
    let endpoint = endpoint.split("endpoint = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let proxy = Proxy::start(&endpoint);
    repository.set_proxy(&proxy);
    let empty = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    for folder in ["base", "wal"] {
        let headers = vec!["Content-Type: application/xml".to_owned()];
        let answer = Fault::Answer { status: 200, headers, body: empty.to_owned() };
        proxy.add(
            Rule::all(answer)
                .method("GET")
                .path(&format!("?list-type=2&prefix=test%2Fmain%2F{}%2F{folder}%2F", system(&past.repository))),
        );
        let before = past.repository.objects();
        let refused = expire(&past.repository, &["--keep-full", "1"]);
        refused.expect_code(1).expect_stderr(&["disagree", "Nothing was removed"]);
        assert_eq!(past.repository.objects(), before);
        proxy.clear();
    }
    proxy.forget_requests();
    expire(&past.repository, &["--keep-full", "1"]).expect_code(0);
    assert_eq!(proxy.count("DELETE", ""), 0);
    let batches = proxy.count("POST", "?delete");
    assert!((3..20).contains(&batches), "{batches} batches");
    let left = past.repository.objects();
    assert!(!left.iter().any(|key| key.contains(".fork.")));
    assert_eq!(listed(&past.repository), [past.backups[2].clone()]);
    expect_sound(&past.repository);
    assert_eq!(rows(&past.repository, &[]), "1 2 3 4");
}

#[test]
fn a_plan_for_a_hundred_thousand_objects_needs_listings_and_little_memory() {
    let past = Past::shared();
    let repository = copy_of(&past.repository);
    let folder = repository.path().join(format!("main/{}/wal/0000000100000000", system(&repository)));
    for number in 0..100_000 {
        std::fs::write(folder.join(format!("000000010000000000000001.fork.{number:016x}.zst")), "").unwrap();
    }
    let run = basebackup(&repository, &["expire", "--keep-full", "1"]).timeout(Duration::from_secs(120));
    let (kibibytes, run) = peak_memory(run.start());
    run.expect_code(0);
    assert!(kibibytes < 128 * 1024, "{kibibytes} KiB");
    let start = start_wal(&repository, &past.backups[2]);
    assert!(segments(&repository).iter().all(|name| *name >= start));
}
