//! Quick start, recovery, a new standby, drills.

use std::fs;

use walkeep_tests::repository::Repository;
use walkeep_tests::user;

use super::document::Section;
use super::place::Place;

const MOMENT: &str = "2026-11-22 10:15:00+01";
const LATER: &str = "2026-11-22 10:16:00+01";

#[test]
fn the_quick_start_leads_to_a_backup_that_is_known_to_restore() {
    let place = Place::stopped(Repository::directory(), |options| options);
    place.sh("systemctl start postgresql@15-main").expect_code(0);
    let mut section = Section::read("quick-start.md", "Name a repository");
    let line = place.adapted(&section.next("toml"));
    let configuration = fs::read_to_string(place.repository.configuration()).unwrap();
    assert!(configuration.contains(line.trim()), "{configuration}");
    section.end();

    let mut section = Section::read("quick-start.md", "Have PostgreSQL archive");
    section.run(&place);
    section.run(&place);
    place.wait_for(5432, "select last_archived_wal is not null from pg_stat_archiver", "t");
    section.end();

    let mut section = Section::read("quick-start.md", "Take a backup");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();

    let mut section = Section::read("quick-start.md", "Prove it");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();
}

#[test]
fn a_dropped_table_comes_back_by_the_guide() {
    let mut place = Place::new();
    place.sql(5432, "create table orders as select n as id from generate_series(1, 1000) n");
    place.sh("basebackup take").expect_code(0);
    place.sql(5432, "insert into orders values (1001)");
    let moment = place.sql(5432, "select clock_timestamp()");
    place.sql(5432, "create table later (i int)");
    let later = place.sql(5432, "select clock_timestamp()");
    place.sql(5432, "drop table orders");
    place.sql(5432, "create table after_all (i int)");
    place.replace(MOMENT, &moment);
    place.replace(LATER, &later);

    let mut section = Section::read("point-in-time-recovery.md", "Bring the archive up to date");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();
    place.server.wait_until_archived(&place.server.finish_segment());

    let mut section = Section::read("point-in-time-recovery.md", "Find the moment");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();

    let mut section = Section::read("point-in-time-recovery.md", "Try it dry");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    assert!(!place.path("/srv/walkeep/restored").exists());
    section.end();

    let mut section = Section::read("point-in-time-recovery.md", "Restore beside");
    section.run(&place);
    section.end();

    let paused = || place.wait_for(5433, "select pg_get_wal_replay_pause_state()", "paused");
    let tables = || place.sql(5433, "select count(*) from pg_class where relname in ('orders', 'later')");
    let mut section = Section::read("point-in-time-recovery.md", "Look while it is paused");
    paused();
    let said = section.run(&place);
    section.expect_of(&place, &said);
    assert_eq!(tables(), "1");
    section.run(&place);
    paused();
    assert_eq!(tables(), "2", "the target was moved on");
    section.run(&place);
    paused();
    assert_eq!(tables(), "1", "the target was moved back");
    section.end();

    let mut section = Section::read("point-in-time-recovery.md", "Open it");
    section.run(&place);
    place.wait_for(5433, "select pg_is_in_recovery()", "f");
    section.end();

    let mut section = Section::read("point-in-time-recovery.md", "Take what is missing");
    let said = section.run(&place);
    assert!(said.stdout.lines().any(|line| line == "1001"), "{said}");
    section.end();

    let mut section = Section::read("point-in-time-recovery.md", "Put it in the old place");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    place.wait_for(5432, "select pg_is_in_recovery()", "f");
    assert_eq!(place.sql(5432, "select count(*) from orders"), "1001");
    let said = section.run(&place);
    assert!(said.stdout.lines().any(|line| line.starts_with("2 ")), "a window on the new timeline\n{said}");
    section.end();
}

#[test]
fn a_standby_made_by_the_guide_streams_and_archives_once_it_is_promoted() {
    let mut place = Place::new();
    place.sql(5432, "create table t as select 1 as i");
    place.sh("basebackup take").expect_code(0);
    let socket = place.server.socket_directory().display().to_string();
    place.replace("host=db1", &format!("host={socket}"));

    let mut section = Section::read("new-standby.md", "On the primary");
    section.run(&place);
    section.end();

    let mut section = Section::read("new-standby.md", "On the new host");
    section.run(&place);
    section.run(&place);
    section.end();

    place.wait_for(5433, "select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
    let mut section = Section::read("new-standby.md", "See that it follows");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();

    place.sh("systemctl stop postgresql@15-main").expect_code(0);
    let mut section = Section::read("new-standby.md", "When it is promoted");
    section.run(&place);
    section.end();
    place.repository.find("00000002.history.zst");
}

#[test]
fn drills_by_the_guide_leave_the_evidence_it_promises() {
    let place = Place::new();
    place.sql(5432, "create table orders as select n as id, now() as created from generate_series(1, 1000) n");
    place.sh("basebackup take").expect_code(0);
    place.sql(5432, "insert into orders values (1001, now())");
    place.server.wait_until_archived(&place.server.finish_segment());

    let mut section = Section::read("drills.md", "Write down the rule");
    place.sh("mkdir /srv/walkeep/drill").expect_code(0);
    let file = place.path("/srv/walkeep/drill/orders.sql");
    fs::write(&file, section.next("sql")).unwrap();
    user::give(&file);
    section.end();

    let mut section = Section::read("drills.md", "Run it");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.next("text");
    section.end();

    let mut section = Section::read("drills.md", "When one fails");
    section.run(&place);
    section.end();

    let mut section = Section::read("drills.md", "What to hand over");
    section.run(&place);
    let sums = fs::read_to_string(place.path("/srv/walkeep/evidence/SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), 3, "two records and a page\n{sums}");
    section.run(&place);
    let record = fs::read_to_string(place.path("/srv/walkeep/evidence/now.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["verdict"], "passed");
    section.end();
}
