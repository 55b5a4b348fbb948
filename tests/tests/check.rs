//! `basebackup check`: what is well is green, and each thing that is not turns its own line red and says what to type.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, Options, StopMode, bin_directory, major, setting};
use walkeep_tests::emulator::S3rver;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, tool};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;

use crate::site::{Place, archiving, basebackup, server_on, take};

/// A server on which nothing is to be found.
fn healthy(repository: &Repository) -> Options {
    archiving(repository).checksums().configure("fsync = on").configure("archive_timeout = '60s'")
}

fn checking(repository: &Repository, server: &Cluster, words: &[&str]) -> Run {
    basebackup(repository, &["check"]).args(server.connection()).args(words)
}

/// Everything that was found.
struct Report {
    finished: Finished,
    json: Value,
}

impl Report {
    fn of(run: Run) -> Self {
        let finished = run.args(["--format", "json"]).finish();
        let json: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{finished}"));
        let bad = |outcome: &str| json["findings"].as_array().unwrap().iter().any(|found| found["outcome"] == outcome);
        finished.expect_code(i32::from(bad("failed")));
        Self { finished, json }
    }

    /// The names and outcomes of what is not well.
    fn bad(&self) -> Vec<String> {
        let findings = self.json["findings"].as_array().unwrap();
        let bad = findings.iter().filter(|found| found["outcome"] == "warning" || found["outcome"] == "failed");
        let mut bad: Vec<String> = bad
            .map(|found| {
                assert!(found["fix"].is_string(), "it does not say what to type: {found}");
                format!("{} {}", found["check"].as_str().unwrap(), found["outcome"].as_str().unwrap())
            })
            .collect();
        // Of directories below /tmp none is on another disk than the servers'.
        bad.retain(|bad| bad != "other_disk failed");
        // Of a major without fixes it is true whatever else is.
        bad.retain(|bad| major() > 13 || bad != "version warning");
        bad
    }

    #[track_caller]
    fn expect(&self, bad: &[&str]) -> &Self {
        assert!(self.bad() == bad, "expected {bad:?}, found {:?}\n{}", self.bad(), self.finished);
        self
    }

    /// The worst finding of this name.
    #[track_caller]
    fn finding(&self, check: &str) -> &Value {
        let findings = self.json["findings"].as_array().unwrap();
        let found = findings.iter().rev().find(|found| found["check"] == check && found["outcome"] == "failed");
        let found = found.or_else(|| findings.iter().rev().find(|found| found["check"] == check));
        found.unwrap_or_else(|| panic!("no check {check}\n{}", self.finished))
    }

    #[track_caller]
    fn fix(&self, check: &str) -> String {
        self.finding(check)["fix"].as_str().unwrap_or_else(|| panic!("no fix of {check}")).to_owned()
    }
}

/// Reads what a plugin prints as monitoring does, strictly: state, then label, value, unit and limits of each figure.
#[track_caller]
fn nagios(finished: &Finished) -> (String, Vec<(String, f64)>) {
    let line = finished.stdout.lines().next().unwrap_or_else(|| panic!("{finished}"));
    let (text, figures) = line.split_once(" | ").unwrap_or((line, ""));
    let (state, words) = text.strip_prefix("WALKEEP ").and_then(|rest| rest.split_once(" - ")).unwrap();
    let code = ["OK", "WARNING", "CRITICAL", "UNKNOWN"].iter().position(|known| *known == state).unwrap();
    assert!(finished.code() == i32::try_from(code).unwrap() && !words.is_empty(), "{finished}");
    assert_eq!(finished.stdout.matches('|').count(), usize::from(!figures.is_empty()), "{finished}");
    let figures = figures.split_whitespace().map(|figure| {
        let (label, rest) = figure.strip_prefix('\'').and_then(|rest| rest.split_once("'=")).unwrap();
        assert!(!label.contains(['=', '\'']) && !label.is_empty(), "{figure}");
        let fields: Vec<&str> = rest.split(';').collect();
        assert_eq!(fields.len(), 5, "{figure}");
        let unit = fields[0].find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-').unwrap_or(fields[0].len());
        assert!(["", "s", "B"].contains(&&fields[0][unit..]), "{figure}");
        for limit in &fields[1..3] {
            assert!(limit.is_empty() || limit.trim_end_matches(':').parse::<f64>().is_ok(), "{figure}");
        }
        (label.to_owned(), fields[0][..unit].parse().unwrap())
    });
    (state.to_owned(), figures.collect())
}

/// Sets a setting at once.
fn set(server: &Cluster, name: &str, value: &str) {
    server.sql(&format!("alter system set {}", setting(name, value)));
    server.sql("select pg_reload_conf()");
    server.wait_for(&format!("select current_setting('{name}') = {}", literal(value)), "t");
}

fn reset(server: &Cluster, name: &str) {
    server.sql(&format!("alter system reset {name}"));
    server.sql("select pg_reload_conf()");
}

/// Types what a finding says, statement by statement: not everything may stand in one transaction.
fn type_sql(server: &Cluster, fix: &str) {
    for statement in fix.split_terminator(';') {
        server.sql(statement);
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[test]
fn what_is_well_is_green_in_every_format_and_leaves_no_more_than_a_probe() {
    let repository = Repository::ceph();
    let mut server = healthy(&repository).start();
    take(&repository, &server);
    Report::of(checking(&repository, &server, &[])).expect(&["drill warning"]);
    let place = Scratch::new("drills");
    let drill = basebackup(&repository, &["drill", "--directory"]).arg(place.path()).arg("--pg-bindir");
    drill.arg(bin_directory()).timeout(Duration::from_secs(180)).finish().expect_code(0);
    let before = repository.objects();

    let report = Report::of(checking(&repository, &server, &[]));
    report.expect(&[]);
    for check in ["configuration", "user", "rights", "archive_command", "access", "create_only", "clock", "delete"] {
        report.finding(check);
    }
    assert!(report.finding("round_trip")["text"].as_str().unwrap().contains("both hashes right"));
    assert!(report.finding("delete")["text"].as_str().unwrap().contains("can delete"));
    let text = checking(&repository, &server, &[]).finish();
    assert!(text.expect_code(0).stdout.ends_with("checks)\n"), "{text}");
    assert!(!text.stdout.contains("FAIL") && !text.stdout.contains("WARN"), "{text}");
    let (state, figures) = nagios(&checking(&repository, &server, &["--format", "nagios"]).finish());
    assert_eq!(state, "OK");
    for name in ["round_trip", "ready_files", "oldest_ready", "backup_age", "drill_age", "clock_skew", "wal_disk_free"]
    {
        assert!(figures.iter().any(|(label, value)| label == name && *value >= 0.0), "{name}: {figures:?}");
    }
    // Nothing is deleted, and however often it is run, the repository grows by WAL alone.
    let after = repository.objects();
    assert!(before.iter().all(|key| after.contains(key)));
    assert!(after.iter().all(|key| before.contains(key) || key.contains("/wal/")), "{after:#?}");

    // What was archived and is gone again is missed, and what PostgreSQL still has is brought back by what is said.
    let last = after.iter().rfind(|key| key.contains("/wal/0") && !key.contains(".backup.")).unwrap();
    repository.delete(last);
    let report = Report::of(checking(&repository, &server, &[]));
    report.expect(&["acknowledged failed", "wal failed"]);
    let fix = report.fix("acknowledged");
    let file = fix.split("archive-push ").nth(1).unwrap().split(';').next().unwrap();
    let push = Run::new(binaries::archive_push()).arg(file).envs(repository.environment()).current_dir(server.data());
    push.finish().expect_code(0);
    Report::of(checking(&repository, &server, &[])).expect(&[]);

    // A drill that failed stays red until one is passed.
    let key = repository.objects().into_iter().find(|key| key.contains("/drills/")).unwrap();
    let mut record: Value = serde_json::from_slice(&repository.read(&key)).unwrap();
    record["verdict"] = "failed".into();
    for time in ["started", "finished"] {
        record[time] =
            server.sql("select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')").into();
    }
    record["id"] = "20991122T064500Z-3fa9".into();
    let folder = key.rsplit_once('/').unwrap().0;
    repository.write(&format!("{folder}/20991122T064500Z-3fa9.json"), &serde_json::to_vec(&record).unwrap());
    Report::of(checking(&repository, &server, &[])).expect(&["drill failed"]);

    // Without the server, what is stored is judged all the same.
    server.stop(StopMode::Fast);
    Report::of(basebackup(&repository, &["check", "--repository-only"])).expect(&["drill failed"]);
    Report::of(checking(&repository, &server, &[])).expect(&["connection failed", "drill failed"]);
    let old = ["check", "--repository-only", "--max-backup-age", "1ms", "--max-drill-age", "1ms"];
    Report::of(basebackup(&repository, &old)).expect(&["backup_age failed", "drill failed"]);
    repository.delete(&format!("{folder}/20991122T064500Z-3fa9.json"));
    Report::of(basebackup(&repository, &old)).expect(&["backup_age failed", "drill warning"]);
}

#[test]
fn each_misconfiguration_of_the_server_turns_its_line_red() {
    let mut repository = Repository::directory();
    // What pushes ahead would archive for a while whatever archive_command says.
    repository.configure("linger = '1ms'");
    let mut server = healthy(&repository).start();
    take(&repository, &server);
    let check = |server: &Cluster| Report::of(checking(&repository, server, &["--archive-timeout", "30s"]));
    let well = ["drill warning"];
    let report = check(&server);
    report.expect(&well);
    assert_eq!(report.finding("other_disk")["outcome"], "failed", "{}", report.finished);

    for (name, value, found) in [
        ("full_page_writes", "off", "full_page_writes failed"),
        ("fsync", "off", "fsync failed"),
        ("archive_timeout", "0", "archive_timeout warning"),
        ("zero_damaged_pages", "on", "hidden_damage warning"),
    ] {
        set(&server, name, value);
        check(&server).expect(&[found, well[0]]);
        reset(&server, name);
    }

    // A command that fails, one that only pretends, one that is not there, another version, another repository.
    let failing = |archive_command: &str| {
        set(&server, "archive_command", archive_command);
        check(&server)
    };
    let report = failing("/bin/false");
    report.expect(&["archive_command warning", "round_trip failed", "archiver failed", well[0]]);
    let status = server.data().join("pg_wal/archive_status");
    tool("find", [status.to_str().unwrap(), "-name", "*.ready", "-exec", "touch", "-d", "20 minutes ago", "{}", "+"]);
    let report = failing("archive-push-that-is-not-there %p");
    report.expect(&["archive_command failed", "archiver failed", "queue failed", well[0]]);
    failing("").expect(&["settings failed", "archiver failed", "queue failed", well[0]]);
    let elsewhere = format!("WALKEEP_CLUSTER=other {} %p", binaries::archive_push().display());
    failing(&elsewhere).expect(&["archive_command failed", "round_trip failed", "acknowledged failed", well[0]]);
    let report = failing("/bin/true");
    report.expect(&["archive_command warning", "round_trip failed", "acknowledged failed", well[0]]);
    // What was said is typed.
    type_sql(&server, &report.fix("archive_command"));
    push_what_is_marked(&repository, &server);
    check(&server).expect(&well);

    let scratch = Scratch::new("other");
    let old = scratch.write(
        "archive-push",
        format!(
            "#!/bin/sh\n[ \"$1\" != --version ] || {{ echo archive-push 0.0.9; exit; }}\nexec {} \"$@\"\n",
            binaries::archive_push().display()
        ),
    );
    tool("chmod", ["755", old.to_str().unwrap()]);
    failing(&format!("{} %p", old.display())).expect(&["archive_command warning", well[0]]);
    reset(&server, "archive_command");
    check(&server).expect(&well);

    // A role without rights is told which, and with them it is enough.
    server.sql("create role watcher login");
    let as_watcher =
        || Report::of(basebackup(&repository, &["check", "-U", "watcher", "-h"]).arg(server.socket_directory()));
    let report = as_watcher();
    report.expect(&["rights failed", "rights failed", "queue warning", well[0]]);
    for found in report.json["findings"].as_array().unwrap().iter().filter(|found| found["check"] == "rights") {
        type_sql(&server, found["fix"].as_str().unwrap().split_once(": ").unwrap().1);
    }
    as_watcher().expect(&well);

    server.stop(StopMode::Fast);
    server.configure(&["archive_mode = off"]);
    server.start();
    check(&server).expect(&["settings failed", well[0]]);
}

/// Archives by hand what PostgreSQL believes to be archived.
fn push_what_is_marked(repository: &Repository, server: &Cluster) {
    let script = "cd pg_wal/archive_status && for done in 0*.done; do \
                  name=${done%.done}; [ ! -e ../$name ] || (cd ../.. && \"$0\" pg_wal/$name) || exit 1; done";
    let push = Run::new("sh").args(["-c", script]).arg(binaries::archive_push());
    push.envs(repository.environment()).current_dir(server.data()).finish().expect_code(0);
}

#[test]
fn what_is_missing_or_damaged_in_the_repository_turns_its_line_red() {
    let repository = Repository::directory();
    let server = healthy(&repository).start();
    let before = Report::of(checking(&repository, &server, &[]));
    before.expect(&["backup_age failed", "drill warning"]);
    let id = take(&repository, &server);
    let segments: Vec<String> = (0..4).map(|_| server.finish_segment()).collect();
    for name in &segments {
        server.wait_until_archived(name);
    }
    let check = || Report::of(checking(&repository, &server, &[]));
    check().expect(&["drill warning"]);

    for (suffix, length, found) in [
        (format!("{}.zst", segments[1]), None, &["acknowledged failed", "wal failed", "drill warning"][..]),
        (format!("{id}/pack-00001.tar.zst"), None, &["objects failed", "drill warning"]),
        (format!("{id}/backup_manifest.zst"), Some(20), &["objects failed", "drill warning"]),
        (format!("{id}/backup.json"), Some(20), &["backup_age failed", "unusable_backup failed", "drill warning"]),
    ] {
        let key = repository.find(&format!("/{suffix}"));
        let bytes = repository.read(&key);
        match length {
            None => repository.delete(&key),
            Some(length) => repository.truncate(&key, length),
        }
        check().expect(found);
        repository.write(&key, &bytes);
    }
    check().expect(&["drill warning"]);

    // A later backup makes up for a hole; what it cost is still said.
    let key = repository.find(&format!("/{}.zst", segments[1]));
    let bytes = repository.read(&key);
    repository.delete(&key);
    take(&repository, &server);
    let bad = check().bad();
    assert!(bad.contains(&"old_hole warning".to_owned()) && !bad.contains(&"wal failed".to_owned()), "{bad:?}");
    repository.write(&key, &bytes);

    // A directory nobody may write to, one that is not mounted, and one that is gone.
    let path = repository.path().to_str().unwrap().to_owned();
    tool("chmod", ["-R", "a-w", &path]);
    let report = check();
    tool("chmod", ["-R", "u+w", &path]);
    report.expect(&["access failed", "round_trip failed", "archiver failed", "drill warning"]);
    let aside = format!("{path}.aside");
    std::fs::rename(&path, &aside).unwrap();
    check().expect(&["access failed", "archiver failed"]);
    std::fs::create_dir(&path).unwrap();
    user::give(&PathBuf::from(&path));
    let report = check();
    report.expect(&["access failed", "archiver failed"]);
    assert!(report.fix("access").contains("mounted"), "{}", report.finished);
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    check().expect(&["drill warning"]);
}

#[test]
fn a_store_that_overwrites_refuses_or_has_another_time_turns_its_line_red() {
    let s3rver = S3rver::start("probed");
    let overwrites = Repository::s3rver(&s3rver, "probed");
    let server = healthy(&overwrites).start();
    take(&overwrites, &server);
    Report::of(checking(&overwrites, &server, &[])).expect(&["create_only warning", "drill warning"]);

    let mut repository = Repository::ceph();
    let bucket = repository.url().split('/').nth(2).unwrap().to_owned();
    ceph::shared().deny_deletion(&bucket);
    let server = healthy(&repository).start();
    take(&repository, &server);
    let report = Report::of(checking(&repository, &server, &[]));
    assert!(report.expect(&["drill warning"]).finding("delete")["text"].as_str().unwrap().contains("cannot delete"));
    let with_clock = |offset: &str| {
        let run = checking(&repository, &server, &[]).under(["faketime", "-f", offset]);
        Report::of(run.env("DONT_FAKE_MONOTONIC", "1"))
    };
    let report = with_clock("-2m");
    report.expect(&["clock warning", "drill warning"]);
    assert!(report.finding("clock")["text"].as_str().unwrap().contains("s ahead of"), "{}", report.finished);
    with_clock("+10m").expect(&["clock failed", "drill warning"]);
    let report = with_clock("+30m");
    assert!(report.bad().contains(&"access failed".to_owned()), "{}", report.finished);
    assert!(report.fix("access").contains("clock"), "{}", report.finished);

    repository.set_credentials(&ceph::shared().stranger);
    let report = Report::of(checking(&repository, &server, &[]));
    report.expect(&["access failed"]);
    assert!(report.fix("access").contains("s3:PutObject"), "{}", report.finished);
}

#[test]
fn a_standby_is_checked_for_what_it_has_to_do_and_so_is_what_becomes_of_it() {
    let repository = Repository::directory();
    let mut primary = healthy(&repository).start();
    take(&repository, &primary);
    let place = Place::new();
    let conninfo = format!("host={} user=postgres", primary.socket_directory().display());
    place.restore(&repository, &["--standby", "--primary-conninfo", &conninfo, "--keep-archiving"]);
    let mut standby = server_on(&place.data(), &repository);
    standby.configure(&["fsync = on"]);
    standby.start();
    let check = |server: &Cluster| Report::of(checking(&repository, server, &[]));
    let report = check(&standby);
    report.expect(&["drill warning"]);
    assert_eq!(report.finding("read_back")["outcome"], "passed");
    assert!(report.finding("restore_command")["text"].as_str().unwrap().contains("archive-get"), "{}", report.finished);
    for command in ["", "cp /nowhere/%f %p"] {
        // PostgreSQL 13 reads it only when it starts.
        standby.sql(&format!("alter system set {}", setting("restore_command", command)));
        standby.stop(StopMode::Fast);
        standby.start();
        check(&standby).expect(&["restore_command warning", "drill warning"]);
    }

    // On a new timeline, what only the server that wrote it can miss is missed: the end of the archive, and its history.
    primary.stop(StopMode::Fast);
    standby.promote();
    standby.wait_until_archived(&standby.finish_segment());
    check(&standby).expect(&["drill warning"]);
    let objects = repository.objects();
    let last = objects.iter().rfind(|key| key.contains("/wal/00000002") && !key.ends_with(".history.zst")).unwrap();
    for (key, found) in [
        (last.as_str(), &["acknowledged failed", "wal failed", "drill warning"][..]),
        (repository.find("/00000002.history.zst").as_str(), &["history failed", "drill warning"]),
    ] {
        let bytes = repository.read(key);
        repository.delete(key);
        check(&standby).expect(found);
        repository.write(key, &bytes);
    }
    check(&standby).expect(&["drill warning"]);
}

#[test]
fn monitoring_is_told_apart_what_is_bad_and_what_could_not_be_checked() {
    let repository = Repository::directory();
    let (state, figures) =
        nagios(&basebackup(&repository, &["check", "--repository-only", "--format=nagios"]).finish());
    assert_eq!((state.as_str(), figures.len()), ("CRITICAL", 0), "nothing is stored there");
    let wrong = basebackup(&repository, &["check", "--format", "nagios", "--no-such-option"]).finish();
    assert_eq!(nagios(&wrong).0, "UNKNOWN");
    basebackup(&repository, &["check", "--no-such-option"]).finish().expect_code(2);
    let unconfigured = Run::new(binaries::basebackup()).args(["check", "--format", "nagios"]);
    let unconfigured = unconfigured.env("WALKEEP_CONFIG", "/nonexistent/walkeep.toml").finish();
    assert_eq!(nagios(&unconfigured).0, "UNKNOWN");
    if user::is_root() {
        let as_root = basebackup(&repository, &["check", "--format", "nagios"]).as_caller().finish();
        assert_eq!(nagios(&as_root).0, "UNKNOWN");
    }
}

#[test]
fn files_that_others_can_read_or_write_are_named() {
    let mut repository = Repository::ceph();
    let home = Scratch::new("home");
    let secrets = home.write("credentials", "[default]\n");
    tool("chmod", ["644", secrets.to_str().unwrap()]);
    tool("chmod", ["666", repository.configuration().to_str().unwrap()]);
    repository.configure("timeout = 30");
    let check = || {
        let run = basebackup(&repository, &["check", "--repository-only"]);
        Report::of(run.env("AWS_SHARED_CREDENTIALS_FILE", secrets.to_str().unwrap()))
    };
    let report = check();
    report.expect(&["configuration_file failed", "secrets failed", "cluster failed"]);
    for check in ["configuration_file", "secrets"] {
        let fix = report.fix(check);
        tool("sh", ["-c", &fix]);
    }
    check().expect(&["cluster failed"]);
}
