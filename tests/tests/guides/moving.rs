//! Another archiver beside ours, and Patroni.

use std::fs;
use std::path::Path;

use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::repository::Repository;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::wait::{SOON, until};

use super::document::Section;
use super::place::Place;
use crate::site::{archiving, basebackup, take};

/// What the guide has for the old archiver. Here it is one that stores a file again, as some of those do.
const OLD: &str = "pgbackrest --stanza=main archive-push %p";

#[test]
fn both_archivers_get_every_segment_until_the_old_one_is_cut_off() {
    let mut place = Place::with(Repository::directory(), |options| {
        options.configure("archive_mode = on").configure("archive_command = 'false'")
    });
    place.sh("mkdir -m 700 /srv/walkeep/old").expect_code(0);
    let old = place.path("/srv/walkeep/old/");
    place.replace(OLD, "cp %p /srv/walkeep/old/%f");
    let stored = |name: &str| old.join(name).exists();

    let mut section = Section::read("moving.md", "Both archivers in one command");
    section.run(&place);
    section.end();
    let both = place.server.finish_segment();
    place.server.wait_until_archived(&both);
    assert!(stored(&both));
    place.repository.find(&format!("{both}.zst"));

    // The second fails: nothing is acknowledged, and the first is called again.
    let away = place.repository.path().with_extension("away");
    fs::rename(place.repository.path(), &away).unwrap();
    let since = place.server.log().len();
    let late = place.server.finish_segment();
    place.server.wait_for_log(since, "failed too many times");
    assert!(stored(&late) && place.server.data().join(format!("pg_wal/archive_status/{late}.ready")).exists());
    fs::rename(&away, place.repository.path()).unwrap();
    place.server.finish_segment();
    place.server.wait_until_archived(&late);
    place.repository.find(&format!("{late}.zst"));

    place.sh("basebackup take").expect_code(0);
    let mut section = Section::read("moving.md", "Prove it");
    let said = section.run(&place);
    section.expect_of(&place, &said);
    section.end();

    let mut section = Section::read("moving.md", "Cut over");
    section.run(&place);
    section.end();
    let ours = place.server.finish_segment();
    place.server.wait_until_archived(&ours);
    assert!(!stored(&ours));
}

#[test]
fn a_standby_archives_beside_a_primary_that_knows_nothing_of_it() {
    let place = Place::with(Repository::directory(), |options| {
        options.configure("archive_mode = on").configure("archive_command = 'true'")
    });
    place
        .sh("pg_basebackup -R -D /srv/walkeep/standby -c fast -X stream; configure /srv/walkeep/standby
             pg_ctl -s -w -D /srv/walkeep/standby -o '-p 5433' -l /srv/walkeep/standby.log start")
        .expect_code(0);
    let mut section = Section::read("moving.md", "Or from a standby");
    place.server.finish_segment();
    place.server.finish_segment();
    let written = place.sql(5432, "select pg_current_wal_flush_lsn()");
    place.wait_for(5433, &format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
    section.run(&place);
    section.run(&place);
    section.end();
    let later = place.server.finish_segment();
    place.server.finish_segment();
    until("the standby archives what comes", SOON, || {
        place.repository.objects().iter().any(|key| key.ends_with(&format!("{later}.zst"))).then_some(())
    });
    place.sh("basebackup verify --all --wal").expect_code(0);
}

/// The options of the method `walkeep` in the example, as Patroni passes them on: every key but `command`, as it is.
fn options_of_the_example() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples/patroni.yml");
    let text = fs::read_to_string(path).unwrap();
    let method = text.split("\n  walkeep:\n").nth(1).expect("the method");
    let lines = method.lines().take_while(|line| line.starts_with("    ")).map(str::trim);
    let pairs = lines.filter(|line| !line.starts_with('#')).map(|line| line.split_once(": ").unwrap());
    let (command, options): (Vec<_>, Vec<_>) = pairs.partition(|(key, _)| *key == "command");
    assert_eq!(command, [("command", "basebackup restore")]);
    let python = |value: &str| if value == "true" { "True".to_owned() } else { value.to_owned() };
    options.into_iter().map(|(key, value)| format!("--{key}={}", python(value))).collect()
}

#[test]
fn patroni_makes_a_replica_with_the_lines_of_the_example() {
    let repository = Repository::directory();
    let mut leader = archiving(&repository).start();
    leader.sql("create table t as select 1 as i");
    take(&repository, &leader);
    leader.wait_until_archived(&leader.finish_segment());
    leader.stop(StopMode::Fast);

    // Without a leader.
    let place = Scratch::new("patroni");
    let data = place.path().join("data");
    let options = options_of_the_example();
    assert!(options.contains(&"--no_leader=True".to_owned()), "{options:?}");
    let call = basebackup(&repository, &["restore"]).args(options).args(["--scope=batman", "--role=replica"]);
    call.arg(format!("--datadir={}", data.display())).arg("--connstring=").finish().expect_code(0);
    let mut replica = Cluster::adopt(&data, Cluster::options().environment(repository.environment()));
    replica.start();
    assert_eq!(replica.sql("select i from t"), "1");
    replica.promote();
    replica.wait_until_archived(&replica.finish_segment());
    repository.find("00000002.history.zst");

    let mut section = Section::read("patroni.md", "Failover and rewind");
    let command = section.next("sh");
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    basebackup(&repository, &words).args(replica.connection()).finish().expect_code(0);
    section.end();
}
