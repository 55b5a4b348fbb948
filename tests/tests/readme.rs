//! The commands of the README do what it says.

use std::path::Path;

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;

/// The commands of the first shell block below a heading.
fn commands(heading: &str) -> String {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let section = readme.split(&format!("\n## {heading}\n")).nth(1).expect("the section");
    let block = section.split("```sh\n").nth(1).expect("a block of commands");
    block.split("```").next().unwrap().to_owned()
}

/// Replaces what is different on this machine; each must be there, or the README has changed.
fn adapted(text: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "the README no longer says {from:?}\n{text}");
        text.replace(from, to)
    })
}

#[test]
fn the_quick_start_archives_and_takes_a_backup_and_the_restore_brings_it_back() {
    let scratch = Scratch::new("readme");
    let place = scratch.create_private("place").display().to_string();
    let mut cluster = Cluster::options().start();
    let programs = binaries::archive_push().parent().unwrap().display().to_string();

    let lines = commands("Quick start");
    assert_eq!(lines.trim().lines().count(), 5, "the quick start has five commands");
    let (install, rest) = lines.split_once('\n').unwrap();
    assert_eq!(install, "make packages && sudo apt install ./target/packages/walkeep_*.deb");
    let script = adapted(
        rest,
        &[
            ("sudo install -d -o postgres -m 700 /var/backups/walkeep", "install -d -m 700 /var/backups/walkeep"),
            ("&& echo", "&& mkdir /etc/walkeep && echo"),
            ("sudo tee", "tee"),
            ("sudo -u postgres ", ""),
            ("/var/backups/walkeep", &format!("{place}/repository")),
            ("/etc/walkeep", &format!("{place}/etc")),
            ("'archive-push %p'", &format!("'{programs}/archive-push %p'")),
            ("sudo systemctl restart postgresql", "true"),
        ],
    );
    let (before, after) = script.split_once("&& true\n").expect("the restart");
    let environment: Vec<(String, String)> = [
        ("PATH", format!("{programs}:/usr/bin:/bin")),
        ("PGHOST", cluster.socket_directory().display().to_string()),
        ("PGUSER", "postgres".to_owned()),
        ("WALKEEP_CONFIG", format!("{place}/etc/walkeep.toml")),
        ("XDG_STATE_HOME", format!("{place}/state")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let shell = |script: &str| Run::new("sh").args(["-ec", script]).envs(&environment).finish();
    shell(before.trim_end()).expect_code(0);
    cluster.set_environment(&environment);
    cluster.stop(StopMode::Fast);
    cluster.start();
    cluster.sql("create table t as select generate_series(1, 1000) as i");
    let taken = shell(after);
    assert!(taken.code() == 0 && taken.stdout.contains("Recovery is possible"), "{taken}");

    let moment = cluster.sql("select clock_timestamp()");
    cluster.sql("drop table t");
    cluster.wait_until_archived(&cluster.finish_segment());
    let restore = adapted(
        &commands("Restoring"),
        &[("/srv/restored", &format!("{place}/restored")), ("2026-11-22 10:15:00+01", &moment)],
    );
    shell(&restore).expect_code(0);
    let mut restored =
        Cluster::adopt(Path::new(&format!("{place}/restored")), Cluster::options().environment(&environment));
    restored.start();
    restored.wait_for("select pg_is_wal_replay_paused()", "t");
    // The lock of the DROP has been replayed, its end has not.
    restored.sql("select pg_wal_replay_resume()");
    restored.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(restored.sql("select count(*) from t"), "1000");
}

#[test]
fn every_configuration_key_of_the_readme_is_known() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let section = readme.split("\n## Configuration\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let keys: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert!(keys.len() >= 10, "{keys:?}");
    let repository = Repository::directory();
    for key in &keys {
        // An unknown key is refused as such; a known one with a senseless value for another reason.
        let (table, name) = key.rsplit_once('.').map_or(("", *key), |(table, name)| (table, name));
        let header = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
        let configuration = repository.scratch().write("key.toml", format!("{header}{name} = []\n"));
        let listed = Run::new(binaries::basebackup()).args(["list", "--config"]).arg(&configuration).finish();
        assert_eq!(listed.code(), 2, "{key}\n{listed}");
        assert!(!listed.stderr.contains("unknown configuration key"), "{key}\n{listed}");
    }
}
