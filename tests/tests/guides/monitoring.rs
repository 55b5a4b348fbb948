//! Monitoring and retention.

use std::fs;

use walkeep_tests::repository::Repository;

use super::document::Section;
use super::place::Place;

#[test]
fn how_things_stand_is_told_to_people_and_to_monitoring() {
    let place = Place::with(Repository::ceph(), |options| {
        options.archive_command("archive-push %p").configure("archive_timeout = '60s'").configure("fsync = on")
    });
    place.sh("basebackup take; mkdir /srv/walkeep/metrics").expect_code(0);
    place.server.wait_until_archived(&place.server.finish_segment());

    let mut section = Section::read("monitoring.md", "By hand");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();

    let mut section = Section::read("monitoring.md", "Prometheus");
    section.run(&place);
    let metrics = fs::read_to_string(place.path("/srv/walkeep/metrics/walkeep.prom")).unwrap();
    assert!(metrics.contains("walkeep_repository_up{cluster=\"main\"} 1"), "{metrics}");
    section.next("text");
    section.end();

    let mut section = Section::read("monitoring.md", "Nagios, Icinga, Checkmk");
    let said = section.try_run(&place);
    section.expect_of(&place, &said);
    section.next("text");
    section.end();

    place.sh("systemctl stop postgresql@15-main").expect_code(0);
    let mut section = Section::read("monitoring.md", "From another host");
    section.run(&place);
    section.end();
}

#[test]
fn what_is_kept_follows_the_guide() {
    let mut place = Place::new();
    for _ in 0..3 {
        place.sh("basebackup take").expect_code(0);
    }
    let mut section = Section::read("retention.md", "Say what to keep");
    let lines = section.next("toml");
    place.sh(&format!("cat >>/etc/walkeep/walkeep.toml <<'END'\n{lines}END")).expect_code(0);
    section.end();

    let mut section = Section::read("retention.md", "Look first");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();

    let mut section = Section::read("retention.md", "Let it run");
    section.run(&place);
    section.end();

    let list = place.sh("basebackup list --format json").stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let id = list.pointer("/clusters/0/backups/0/id").and_then(|id| id.as_str()).unwrap_or_else(|| panic!("{list:#}"));
    place.set("ID", id);
    let mut section = Section::read("retention.md", "Keep one, or drop one");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.run(&place);
    section.end();
    assert!(!place.repository.objects().iter().any(|key| key.contains(&format!("/base/{id}/"))));
}
