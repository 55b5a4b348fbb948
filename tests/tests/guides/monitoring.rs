//! Monitoring.

use std::fs;

use walkeep_tests::repository::Repository;

use super::document::Section;
use super::place::Place;

#[test]
fn how_things_stand_is_told_to_people_and_to_monitoring() {
    let place = Place::with(Repository::ceph(), |options| {
        options.archive_command("archive-push %p").configure("archive_timeout = '60s'")
    });
    place.sh("basebackup take; mkdir /srv/metrics").expect_code(0);
    place.server.wait_until_archived(&place.server.finish_segment());

    let mut section = Section::read("monitoring.md", "By hand");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();

    let mut section = Section::read("monitoring.md", "Prometheus");
    section.run(&place);
    let metrics = fs::read_to_string(place.path("/srv/metrics/walkeep.prom")).unwrap();
    assert!(metrics.contains("walkeep_repository_up{cluster=\"main\"} 1"), "{metrics}");
    section.next("text");
    section.end();

    place.sh("systemctl stop postgresql@15-main").expect_code(0);
    let mut section = Section::read("monitoring.md", "From another host");
    section.run(&place);
    section.end();
}
