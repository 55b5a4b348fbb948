//! The runbook: each of its scenarios is brought about, and got rid of by what it says.

use std::fs;

use walkeep_tests::ceph::{self, Credentials};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::wait::{SOON, until};

use super::document::Section;
use super::place::Place;

/// A host with a backup, some archived segments behind it, and all of them still in `pg_wal`; the last segments' names.
fn with_backup(place: &Place, segments: usize) -> Vec<String> {
    place.sh("basebackup take").expect_code(0);
    let names: Vec<String> = (0..segments).map(|_| place.server.finish_segment()).collect();
    for name in &names {
        place.server.wait_until_archived(name);
    }
    names
}

fn keeping() -> Place {
    Place::with(Repository::directory(), |options| {
        options.archive_command("archive-push %p").configure("wal_keep_size = '256MB'")
    })
}

/// Makes PostgreSQL try again at once, as the guide says.
fn try_again(place: &Place) {
    place.server.finish_segment();
}

/// Waits until everything that waited is archived.
#[track_caller]
fn drained(place: &Place) {
    let query = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
    until("everything is archived", SOON, || {
        let waiting = place.sql(5432, query);
        if waiting != "0" {
            try_again(place);
        }
        (waiting == "0").then_some(())
    });
}

#[test]
fn a_disk_that_fills_with_wal_is_relieved_by_another_repository_for_a_while() {
    let place = keeping();
    with_backup(&place, 1);
    let away = place.repository.path().with_extension("away");
    fs::rename(place.repository.path(), &away).unwrap();
    let since = place.server.log().len();
    try_again(&place);
    place.server.wait_for_log(since, "archive command failed with exit code 5");

    let mut section = Section::read("runbook.md", "The disk fills with WAL");
    place.wait_for(5432, "select failed_count > 0 from pg_stat_archiver", "t");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.run(&place);
    drained(&place);
    try_again(&place);
    drained(&place);
    fs::rename(&away, place.repository.path()).unwrap();
    let said = section.run(&place);
    assert!(said.stdout.contains("sound"), "{said}");
    try_again(&place);
    drained(&place);
    let said = section.run(&place);
    assert!(said.stdout.starts_with('t'), "{said}");
    section.end();
    place.sh("basebackup verify --all --wal").expect_code(0);
}

#[test]
fn an_outage_passes_without_anything_being_restarted() {
    let mut repository = Repository::ceph();
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    repository.configure("timeout = '2s'");
    let place = Place::with(repository, |options| options.archive_command("archive-push %p"));
    place.server.wait_until_archived(&place.server.finish_segment());
    proxy.add(Rule::all(Fault::ResetBeforeBody));
    let since = place.server.log().len();
    try_again(&place);

    let mut section = Section::read("runbook.md", "The repository cannot be reached");
    place.server.wait_for_log(since, "archive command failed with exit code 1");
    section.expect_said(&place, &place.server.log()[since..]);
    let said = section.try_run(&place);
    section.expect_of(&place, &said);
    proxy.clear();
    try_again(&place);
    drained(&place);
    let said = section.run(&place);
    assert!(said.stdout.lines().any(|line| line == "t"), "{said}");
    section.end();
}

#[test]
fn credentials_that_stopped_working_are_replaced_while_the_server_runs() {
    let mut repository = Repository::ceph();
    let owner = ceph::shared().owner.clone();
    repository.set_credentials(&Credentials { access_key: String::new(), secret_key: String::new() });
    repository.configure("timeout = '5s'");
    let mut place = Place::stopped(repository, |options| options.archive_command("archive-push %p"));
    let write = |place: &Place, secret: &str| {
        let text = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {secret}\n", owner.access_key);
        place.sh(&format!("mkdir -p ~/.aws && printf '{text}' >~/.aws/credentials")).expect_code(0);
    };
    place.unset_prefix("AWS_");
    write(&place, &owner.secret_key);
    place.sh("systemctl start postgresql@15-main").expect_code(0);
    place.server.wait_until_archived(&place.server.finish_segment());
    write(&place, "revoked");
    let since = place.server.log().len();
    try_again(&place);

    let mut section = Section::read("runbook.md", "Credentials do not work");
    place.server.wait_for_log(since, "archive command failed with exit code 5");
    section.expect_said(&place, &place.server.log()[since..]);
    let said = section.try_run(&place);
    section.expect_of(&place, &said);
    write(&place, &owner.secret_key);
    // There is no backup to list; what matters is that it may look.
    let said = section.try_run(&place);
    assert!(!said.stderr.contains("SignatureDoesNotMatch"), "{said}");
    section.end();
    drained(&place);
}

#[test]
fn a_conflict_is_settled_on_either_side() {
    let mut place = keeping();
    with_backup(&place, 1);
    place
        .sh("pg_basebackup -D /srv/walkeep/copy -c fast -X stream; configure /srv/walkeep/copy
         pg_ctl -s -w -D /srv/walkeep/copy -o '-p 5434' -l /srv/walkeep/copy.log start")
        .expect_code(0);
    // The copy is first.
    let name = place.sql(5434, "create table theirs (); select pg_walfile_name(pg_current_wal_insert_lsn())");
    place.sql(5434, "select pg_switch_wal()");
    until("the copy archives", SOON, || {
        place.repository.objects().iter().any(|key| key.ends_with(&format!("{name}.zst"))).then_some(())
    });
    let since = place.server.log().len();
    place.sql(5432, "create table ours ()");
    assert_eq!(place.server.finish_segment(), name);

    let mut section = Section::read("runbook.md", "A conflict");
    place.server.wait_for_log(since, "archive command failed with exit code 3");
    section.expect_said(&place, &place.server.log()[since..]);
    section.run(&place);
    // On the copy.
    let commands = section.next("sh").replace(
        "sudo systemctl restart postgresql@15-main",
        "pg_ctl -s -w -D /srv/walkeep/copy -l /srv/walkeep/copy.log restart",
    );
    place.sh(&format!("export PGPORT=5434\n{commands}")).expect_code(0);
    assert_eq!(place.sql(5434, "show archive_mode"), "off");
    place.set("SEGMENT", &name);
    section.run(&place);
    section.end();
    drained(&place);
    place.sh("basebackup verify --wal").expect_code(0);
}

#[test]
fn a_hole_is_filled_from_pg_wal_or_lived_with() {
    let mut place = keeping();
    let names = with_backup(&place, 3);
    place.repository.delete(&place.repository.find(&format!("{}.zst", names[1])));
    place.set("SEGMENT", &names[1]);

    let mut section = Section::read("runbook.md", "A hole in the archive");
    let refused = place.sh("basebackup restore -D /srv/walkeep/none");
    section.expect_of(&place, &refused);
    let said = section.try_run(&place);
    said.expect_code(4);
    section.expect_of(&place, &said);
    section.run(&place);
    place.repository.delete(&place.repository.find(&format!("{}.zst", names[1])));
    section.run(&place);
    section.run(&place);
    assert!(place.path("/srv/walkeep/restored/recovery.signal").exists());
    section.end();
}

#[test]
fn a_damaged_segment_is_replaced_and_recovery_goes_on() {
    let mut place = keeping();
    let names = with_backup(&place, 3);
    let key = place.repository.find(&format!("{}.zst", names[1]));
    place.repository.flip_bit(&key, 640);
    place.set("SEGMENT", &names[1]);
    place.sh("basebackup restore -D /srv/walkeep/restored --config-dir /srv/walkeep/restored.conf").expect_code(0);
    let started = place.sh("pg_ctl -D /srv/walkeep/restored.conf -o '-p 5433' -l /srv/walkeep/restored.log start");
    assert_ne!(started.code(), 0, "{started}");

    let mut section = Section::read("runbook.md", "A damaged segment");
    section.expect_said(&place, &fs::read_to_string(place.path("/srv/walkeep/restored.log")).unwrap());
    section.run(&place);
    let hole = place.sh("basebackup restore -D /srv/walkeep/none --until-hole --dry-run");
    assert!(hole.expect_code(0).stdout.contains(&format!("for \"{}\" is missing", names[1])), "{hole}");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();
    place.sh("pg_ctl -D /srv/walkeep/restored.conf -o '-p 5433' -l /srv/walkeep/restored.log start").expect_code(0);
    place.wait_for(5433, "select pg_is_in_recovery()", "f");
}

#[test]
fn a_damaged_backup_is_replaced_and_an_older_one_serves() {
    let mut place = keeping();
    let older = place.sh("basebackup take");
    let older = older.expect_code(0).stdout.trim().to_owned();
    place.sql(5432, "create table t (i int)");
    let damaged = place.sh("basebackup take");
    let damaged = damaged.expect_code(0).stdout.trim().to_owned();
    place.sql(5432, "insert into t values (1)");
    place.replace("2026-11-22 10:15:00+01", &place.sql(5432, "select clock_timestamp()"));
    place.sql(5432, "insert into t values (2)");
    place.server.wait_until_archived(&place.server.finish_segment());
    place.repository.flip_bit(&place.repository.find(&format!("{damaged}/pack-00001.tar.zst")), 5000);
    place.set("OTHER", &older);

    let mut section = Section::read("runbook.md", "A damaged backup");
    let said = place.sh("basebackup verify --all");
    said.expect_code(4);
    section.expect_of(&place, &said);
    section.run(&place);
    section.run(&place);
    section.end();
}

#[test]
fn a_recovery_that_is_slow_can_be_watched() {
    let place = keeping();
    with_backup(&place, 3);
    place
        .sh("basebackup restore -D /srv/walkeep/restored --config-dir /srv/walkeep/restored.conf --target=immediate")
        .expect_code(0);
    place.sh("pg_ctl -D /srv/walkeep/restored.conf -o '-p 5433' -l /srv/walkeep/restored.log start").expect_code(0);
    let mut section = Section::read("runbook.md", "Recovery takes too long");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();
}
