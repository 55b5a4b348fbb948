//! `basebackup status`: after every event the figures are what they must be, and none of them is old without saying so.

use std::collections::BTreeSet;
use std::fmt::{Debug, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Value, json};
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, bin_directory};
use walkeep_tests::daemon::{Daemon, Server};
use walkeep_tests::emulator::{free_port, tools_directory};
use walkeep_tests::proxy::Proxy;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, tool};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};
use walkeep_tests::worker;

use crate::site::{Shared, archiving, basebackup, copy_of, take};

/// One segment.
const MIB: u64 = 1 << 20;

fn running(repository: &Repository, server: Option<&Cluster>, words: &[&str]) -> Run {
    let status = basebackup(repository, &["status"]);
    let status = match server {
        Some(server) => status.args(server.connection()),
        None => status.args(["-h", "/nonexistent"]),
    };
    status.args(words)
}

fn status(repository: &Repository, server: Option<&Cluster>, words: &[&str]) -> Finished {
    running(repository, server, words).finish()
}

/// The one cluster's part, and the server's.
#[track_caller]
fn json(repository: &Repository, server: Option<&Cluster>) -> (Value, Value) {
    let finished = status(repository, server, &["--format", "json"]);
    let mut all: Value = serde_json::from_str(&finished.expect_code(0).stdout).unwrap();
    assert_eq!(all["clusters"].as_array().unwrap().len(), 1, "{all:#}");
    (all["clusters"][0].take(), all["server"].take())
}

/// What is said of a timeline.
fn timeline(cluster: &Value, timeline: u32) -> &Value {
    let rows = cluster["timelines"].as_array().unwrap();
    rows.iter().find(|row| row["timeline"] == timeline).unwrap_or_else(|| panic!("{cluster:#}"))
}

fn names(values: &Value) -> BTreeSet<String> {
    values.as_object().unwrap().keys().cloned().collect()
}

/// The metrics of a page.
fn metrics(page: &str) -> BTreeSet<String> {
    page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).map(str::to_owned).collect()
}

/// The value of a metric's only sample.
#[track_caller]
fn sample<T: FromStr<Err: Debug>>(page: &str, metric: &str) -> T {
    let mut samples = page.lines().filter(|line| line.starts_with(metric) && line[metric.len()..].starts_with('{'));
    let (Some(sample), None) = (samples.next(), samples.next()) else { panic!("not one {metric}\n{page}") };
    sample.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Fails the test unless Prometheus' own checker has nothing to say.
#[track_caller]
fn expect_clean(page: &str) {
    let scratch = Scratch::new("page");
    let file = scratch.write("page.prom", page);
    let promtool = tools_directory().join("promtool");
    let check = Run::new("sh").args(["-c", "exec \"$0\" check metrics <\"$1\""]).arg(promtool).arg(file).finish();
    assert!(check.code() == 0 && check.stdout.is_empty() && check.stderr.is_empty(), "{check}\n{page}");
}

/// Fails the test unless these alerts fire, and no others, two hours after this page, if nothing changes but its time.
#[track_caller]
fn expect_alerts(page: &str, expected: &[&str]) {
    let measured: f64 = sample(page, "walkeep_status_timestamp_seconds");
    let rules = example("prometheus-alerts.yml").display().to_string();
    let mut test = format!("rule_files: [{rules:?}]\nevaluation_interval: 1m\ntests:\n");
    test.push_str("  - interval: 1m\n    input_series:\n");
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        // Time begins with 0 there.
        let values = match series.split('{').next().unwrap() {
            "walkeep_status_timestamp_seconds" => "0+60x120".to_owned(),
            name if name.ends_with("_timestamp_seconds") => {
                format!("{:.3}x120", value.parse::<f64>().unwrap() - measured)
            }
            _ => format!("{value}x120"),
        };
        let series = series.replacen('{', "{instance=\"db\",", 1);
        write!(test, "      - series: '{series}'\n        values: '{values}'\n").unwrap();
    }
    let samples = expected.iter().map(|name| format!("{{labels: '{{alertname={name:?}}}', value: 1}}"));
    let samples = samples.collect::<Vec<_>>().join(", ");
    test.push_str("    promql_expr_test:\n      - expr: count by (alertname) (ALERTS{alertstate=\"firing\"})\n");
    write!(test, "        eval_time: 2h\n        exp_samples: [{samples}]\n").unwrap();
    let scratch = Scratch::new("alerts");
    let promtool = Run::new(tools_directory().join("promtool")).args(["test", "rules"]);
    let tested = promtool.arg(scratch.write("test.yml", &test)).as_caller().finish();
    assert!(tested.code() == 0, "{tested}\n{page}");
}

fn object_of(segment: &str, repository: &Repository) -> String {
    repository.find(&format!("/{segment}.zst"))
}

/// Archives so many segments, and returns the names.
fn archive(server: &Cluster, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|_| server.finish_segment()).collect();
    server.wait_until_archived(names.last().unwrap());
    names
}

/// A server with a backup that was verified and drilled.
struct Healthy {
    repository: Repository,
    server: Cluster,
    backup: String,
}

impl Healthy {
    fn shared() -> Arc<Self> {
        static SHARED: Shared<Healthy> = Shared::new();
        SHARED.get(|| {
            let repository = Repository::directory();
            let server = archiving(&repository).start();
            let backup = take(&repository, &server);
            archive(&server, 2);
            basebackup(&repository, &["verify", "--wal"]).finish().expect_code(0);
            drill(&repository, &[]).expect_code(0);
            Self { repository, server, backup }
        })
    }

    fn page(&self) -> String {
        status(&self.repository, Some(&self.server), &["--format", "prometheus"]).expect_code(0).stdout.clone()
    }
}

fn drill(repository: &Repository, words: &[&str]) -> Finished {
    let place = Scratch::new("drills");
    let drill = basebackup(repository, &["drill", "--directory"]).arg(place.path());
    drill.arg("--pg-bindir").arg(bin_directory()).args(words).finish()
}

#[test]
fn the_end_of_the_archive_is_the_end_of_what_has_no_hole() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    let first = archive(&server, 2);
    let (cluster, said) = json(&repository, Some(&server));
    assert_eq!(timeline(&cluster, 1)["last_segment"], first[1].as_str());
    assert_eq!((&cluster["windows"], &cluster["rpo_seconds"]), (&json!([]), &Value::Null), "{cluster:#}");
    assert_eq!(cluster["system_identifier"], server.system_identifier().to_string());
    assert!(cluster["behind_bytes"].as_u64().unwrap() < MIB && cluster["last_backup"].is_null(), "{cluster:#}");
    assert_eq!((&said["queue"]["files"], &said["archiving_fails"]), (&0.into(), &false.into()), "{said:#}");
    let text = status(&repository, Some(&server), &[]).stdout;
    assert!(text.contains("NOT POSSIBLE") && text.contains("no file waits"), "{text}");
    let page = status(&repository, Some(&server), &["--format", "prometheus"]).stdout;
    expect_alerts(&page, &["WalkeepNothingRecoverable"]);

    let backup = take(&repository, &server);
    let later = archive(&server, 4);
    let (cluster, _) = json(&repository, Some(&server));
    assert_eq!((&cluster["last_backup"]["id"], &cluster["backups"]), (&backup.as_str().into(), &1.into()));
    assert_eq!((&timeline(&cluster, 1)["last_segment"], &cluster["holes"]), (&later[3].as_str().into(), &json!([])));
    assert!(cluster["rpo_seconds"].as_f64().unwrap() < 60.0, "{cluster:#}");
    assert_eq!(cluster["windows"].as_array().unwrap().len(), 1);

    // Two are left behind the hole; they count for nothing.
    repository.delete(&object_of(&later[1], &repository));
    let (cluster, _) = json(&repository, Some(&server));
    let row = timeline(&cluster, 1);
    assert_eq!((&row["last_segment"], &row["hole"]), (&later[0].as_str().into(), &later[1].as_str().into()));
    assert_eq!(cluster["holes"], json!([later[1]]));
    assert!(cluster["behind_bytes"].as_u64().unwrap() >= 3 * MIB, "{cluster:#}");
    assert_eq!(cluster["windows"][0]["last_segment"], later[0].as_str());
    let finished = status(&repository, Some(&server), &[]);
    let recovery = format!("on timeline 1, then a HOLE: {} is missing", later[1]);
    assert!(finished.expect_code(0).stdout.contains(&recovery), "{finished}");
    let page = status(&repository, Some(&server), &["--format", "prometheus"]).stdout;
    assert!(sample::<u64>(&page, "walkeep_wal_gaps") == 1, "{page}");
    expect_alerts(&page, &["WalkeepWalMissing"]);

    // With a later backup everything after it can be reached again, and the hole is still said.
    take(&repository, &server);
    let last = archive(&server, 1);
    let (cluster, _) = json(&repository, Some(&server));
    assert_eq!(timeline(&cluster, 1)["last_segment"], last[0].as_str());
    assert_eq!(cluster["windows"].as_array().unwrap().len(), 2, "{cluster:#}");
    assert_eq!(cluster["holes"], json!([later[1]]));
    assert!(cluster["behind_bytes"].as_u64().unwrap() < MIB);
}

#[test]
fn a_failing_archiver_turns_the_status_red() {
    let mut repository = Repository::directory();
    repository.configure("linger = 1");
    let server = archiving(&repository).start();
    take(&repository, &server);
    // What pushes ahead would store the files all the same, and it begins with the last file that PostgreSQL archives.
    server.wait_for("select count(*) from pg_ls_archive_statusdir() where name like '%.ready'", "0");
    until("nobody pushes ahead", SOON, || worker::of(server.data()).is_empty().then_some(()));
    server.sql("alter system set archive_command = 'exit 1'");
    server.reload();
    server.wait_for("show archive_command", "exit 1");
    let waiting: Vec<String> = (0..3).map(|_| server.finish_segment()).collect();
    server.wait_for(&format!("select last_failed_wal = '{}' from pg_stat_archiver", waiting[0]), "t");
    let (cluster, said) = json(&repository, Some(&server));
    assert_eq!((&said["queue"]["files"], &said["archiving_fails"]), (&3.into(), &true.into()), "{said:#}");
    assert_eq!(said["last_failed"]["file"], waiting[0].as_str());
    assert!(said["queue"]["oldest"].is_string(), "{said:#}");
    assert!(cluster["behind_bytes"].as_u64().unwrap() > 2 * MIB, "{cluster:#}\n{said:#}");
    let text = status(&repository, Some(&server), &[]).stdout;
    for words in ["3 files wait to be archived, the oldest since", &format!("FAILS: \"{}\"", waiting[0])] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    let page = status(&repository, Some(&server), &["--format", "prometheus"]).stdout;
    assert!(
        sample::<u64>(&page, "walkeep_archive_ready_files") == 3
            && sample::<u64>(&page, "walkeep_archive_lag_bytes") > 2 * MIB
    );
    assert!(metrics(&page).contains("walkeep_archive_ready_oldest_timestamp_seconds"));
    assert!(metrics(&page).contains("walkeep_archive_last_failure_timestamp_seconds"));
    expect_clean(&page);
    expect_alerts(&page, &["WalkeepArchivingStuck"]);
}

#[test]
fn after_a_promotion_the_new_timeline_counts_and_the_old_one_is_kept() {
    let repository = Repository::directory();
    let primary = archiving(&repository).start();
    take(&repository, &primary);
    let mut standby = primary.standby(archiving(&repository));
    standby.start();
    let before = archive(&primary, 2);
    primary.sql("create table in_the_unfinished_segment ()");
    let written = primary.sql("select pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
    // A standby with archive_mode = on archives nothing, and says so.
    let (cluster, said) = json(&repository, Some(&standby));
    assert_eq!((&said["archives"], &said["in_recovery"]), (&false.into(), &true.into()));
    assert_eq!(
        (&cluster["is_of_server"], &timeline(&cluster, 1)["last_segment"]),
        (&true.into(), &before[1].as_str().into())
    );
    let text = status(&repository, Some(&standby), &[]).stdout;
    assert!(text.contains("this server does not archive: it is a standby"), "{text}");
    drop(primary);
    standby.promote();
    until("the history is archived", SOON, || {
        repository.objects().iter().any(|key| key.ends_with("/00000002.history.zst")).then_some(())
    });
    let (cluster, said) = json(&repository, Some(&standby));
    assert_eq!((&said["timeline"], &cluster["current_timeline"]), (&2.into(), &2.into()), "{cluster:#}");
    assert!(timeline(&cluster, 2)["awaited"].is_string() && cluster["holes"] == json!([]), "{cluster:#}");
    let after = archive(&standby, 1);
    let (cluster, _) = json(&repository, Some(&standby));
    assert_eq!(timeline(&cluster, 2)["last_segment"], after[0].as_str());
    assert_eq!(timeline(&cluster, 2)["parent"], 1);
    let timelines: Vec<&Value> =
        cluster["windows"].as_array().unwrap().iter().map(|window| &window["timeline"]).collect();
    assert_eq!(timelines, [1, 2], "{cluster:#}");
    let text = status(&repository, Some(&standby), &[]).stdout;
    assert!(text.contains("on timeline 1\n") && text.contains("on timeline 2\n"), "{text}");
}

#[test]
fn what_was_proven_last_and_with_what_result_is_told() {
    let healthy = Healthy::shared();
    let repository = copy_of(&healthy.repository);
    let (cluster, _) = json(&repository, None);
    assert_eq!(cluster["last_verify"], Value::Null, "another host, as it were");
    assert_eq!(
        (&cluster["last_drill"]["verdict"], &cluster["last_drill"]),
        (&"passed".into(), &cluster["last_passed_drill"])
    );
    let passed = cluster["last_drill"]["id"].clone();
    basebackup(&repository, &["verify"]).finish().expect_code(0);
    let (cluster, _) = json(&repository, None);
    let last = &cluster["last_verify"];
    assert_eq!((&last["verdict"], &last["backups"]), (&"sound".into(), &json!([healthy.backup])));

    let pack = repository.find("/pack-00001.tar.zst");
    repository.flip_bit(&pack, repository.read(&pack).len() / 2);
    basebackup(&repository, &["verify"]).finish().expect_code(4);
    drill(&repository, &[]).expect_code(4);
    let (cluster, _) = json(&repository, None);
    assert_eq!(
        (&cluster["last_verify"]["verdict"], &cluster["last_verify"]["findings"]),
        (&"damaged".into(), &1.into())
    );
    assert_eq!((&cluster["last_drill"]["verdict"], &cluster["last_passed_drill"]["id"]), (&"failed".into(), &passed));
    let page = status(&repository, None, &["--format", "prometheus"]).stdout;
    assert!(page.contains("result=\"failed\"} 1") && page.contains("result=\"passed\"} 0"), "{page}");
    assert!(sample::<u64>(&page, "walkeep_verify_last_findings") == 1);
    assert!(!metrics(&page).contains("walkeep_verify_last_success_timestamp_seconds"));
    expect_alerts(&page, &["WalkeepServerUnknown", "WalkeepVerifyFoundDamage", "WalkeepDrillFailed"]);
    let text = status(&repository, None, &[]).stdout;
    for words in ["Last verify  1 object DAMAGED", "Last drill   FAILED", "Last passed  PASSED"] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

#[test]
fn without_a_server_its_part_is_unknown_and_says_so() {
    let healthy = Healthy::shared();
    let (cluster, said) = json(&healthy.repository, None);
    assert!(said["problem"].as_str().unwrap().contains("could not connect"), "{said:#}");
    assert_eq!((&cluster["behind_bytes"], &cluster["is_of_server"]), (&Value::Null, &false.into()));
    assert!(cluster["rpo_seconds"].as_f64().unwrap() > 0.0);
    let finished = status(&healthy.repository, None, &[]);
    for words in ["Server       UNKNOWN: could not connect", "Queue        unknown", "Behind       unknown"] {
        assert!(finished.expect_code(0).stdout.contains(words), "{words}\n{finished}");
    }
    let page = status(&healthy.repository, None, &["--format", "prometheus"]).stdout;
    assert!(sample::<u64>(&page, "walkeep_server_up") == 0 && sample::<u64>(&page, "walkeep_repository_up") == 1);
    for unknown in ["ready_files", "lag_bytes", "pushed_total"] {
        assert!(!metrics(&page).iter().any(|metric| metric.ends_with(unknown)), "{unknown}\n{page}");
    }
    // A server of another cluster is not taken for this one's.
    let other = Cluster::options().start();
    let text = status(&healthy.repository, Some(&other), &[]).stdout;
    assert!(text.contains(&format!("its cluster {} there is nothing", other.system_identifier())), "{text}");
    let (cluster, _) = json(&healthy.repository, Some(&other));
    assert_eq!((&cluster["behind_bytes"], &cluster["is_of_server"]), (&Value::Null, &false.into()));
}

#[test]
fn the_fields_of_the_json_are_these() {
    let healthy = Healthy::shared();
    let (cluster, server) = json(&healthy.repository, Some(&healthy.server));
    let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let expected = [
        "system_identifier",
        "current_timeline",
        "is_of_server",
        "behind_bytes",
        "rpo_seconds",
        "timelines",
        "windows",
        "holes",
        "backups",
        "unfinished_backups",
        "unusable_backups",
        "last_backup",
        "last_verify",
        "last_drill",
        "last_passed_drill",
        "stored_wal_bytes",
        "stored_backup_bytes",
    ];
    assert_eq!(names(&cluster), set(&expected));
    let expected = [
        "timeline",
        "parent",
        "switch_point",
        "problem",
        "last_segment",
        "end_lsn",
        "written",
        "archived",
        "hole",
        "awaited",
    ];
    assert_eq!(names(&cluster["timelines"][0]), set(&expected));
    let expected = [
        "timeline",
        "first_backup",
        "from_lsn",
        "from_time",
        "to_lsn",
        "to_time",
        "last_segment",
        "hole",
        "expired",
        "awaited",
    ];
    assert_eq!(names(&cluster["windows"][0]), set(&expected));
    let expected = [
        "problem",
        "system_identifier",
        "version",
        "in_recovery",
        "timeline",
        "position",
        "archives",
        "queue",
        "archiving_fails",
        "last_archived",
        "last_failed",
        "archived_count",
        "failed_count",
    ];
    assert_eq!(names(&server), set(&expected));
}

#[test]
fn prometheus_takes_every_page_without_a_complaint() {
    let healthy = Healthy::shared();
    let page = healthy.page();
    expect_clean(&page);
    expect_alerts(&page, &[]);
    for (metric, least, most) in [
        ("walkeep_repository_up", 1.0, 1.0),
        ("walkeep_server_up", 1.0, 1.0),
        ("walkeep_archive_ready_files", 0.0, 0.0),
        ("walkeep_wal_gaps", 0.0, 0.0),
        ("walkeep_backups", 1.0, 1.0),
        ("walkeep_checksum_failures", 0.0, 0.0),
        ("walkeep_verify_last_findings", 0.0, 0.0),
        ("walkeep_archive_failed_total", 0.0, 0.0),
        ("walkeep_drill_rto_seconds", 0.001, 600.0),
    ] {
        let value: f64 = sample(&page, metric);
        assert!((least..=most).contains(&value), "{metric} is {value}\n{page}");
    }
    let written: f64 = sample(&page, "walkeep_status_timestamp_seconds");
    for metric in metrics(&page).iter().filter(|metric| metric.ends_with("_timestamp_seconds")) {
        let age = written - sample::<f64>(&page, metric);
        assert!((0.0..3600.0).contains(&age), "{metric} is {age} s old\n{page}");
    }
    expect_clean(&status(&healthy.repository, None, &["--format", "prometheus"]).stdout);
}

#[test]
fn a_page_is_replaced_at_once_and_everyone_may_read_it() {
    let healthy = Healthy::shared();
    let place = Scratch::new("textfile");
    let file = place.create_private("collector").join("walkeep.prom");
    let write = || {
        let written = running(&healthy.repository, Some(&healthy.server), &["--format", "prometheus", "--output"]);
        written.arg(&file).finish().expect_silent_success();
    };
    write();
    // Whoever has the old page open goes on to read the old page.
    let old = place.path().join("old.prom");
    std::fs::hard_link(&file, &old).unwrap();
    let before = std::fs::read_to_string(&file).unwrap();
    write();
    assert_eq!(std::fs::read_to_string(&old).unwrap(), before);
    assert_ne!(std::fs::read_to_string(&file).unwrap(), before, "the time of the measurement is in it");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    let nowhere = running(&healthy.repository, None, &["--output", "/nonexistent/walkeep.prom"]).finish();
    nowhere.expect_code(1).expect_stderr(&["could not write file \"/nonexistent/walkeep.prom\""]);
}

#[test]
fn a_repository_that_cannot_be_reached_leaves_no_old_figures() {
    let healthy = Healthy::shared();
    let mut repository = copy_of(&healthy.repository);
    let place = Scratch::new("textfile");
    let file = place.create_private("collector").join("walkeep.prom");
    let write = |repository: &Repository| {
        let words = ["--format", "prometheus", "--output", file.to_str().unwrap()];
        let finished = status(repository, Some(&healthy.server), &words);
        (finished, std::fs::read_to_string(&file).unwrap())
    };
    assert_eq!(sample::<u64>(&write(&repository).1, "walkeep_repository_up"), 1);
    let gone = Repository::directory();
    repository.set_url(gone.url());
    for url in [gone.url().to_owned(), "file:///nonexistent".to_owned()] {
        repository.set_url(&url);
        let (finished, page) = write(&repository);
        finished.expect_code(1).expect_stderr(&["basebackup: ERROR: ", "HINT: "]);
        assert_eq!(sample::<u64>(&page, "walkeep_repository_up"), 0);
        expect_clean(&page);
        expect_alerts(&page, &["WalkeepRepositoryUnreachable"]);
        // What the server says is as true as ever.
        let kept: BTreeSet<String> =
            metrics(&page).iter().filter(|name| !name.contains("_archive_")).cloned().collect();
        let names = ["build_info", "status_timestamp_seconds", "repository_up", "server_up"];
        assert_eq!(kept, names.iter().map(|name| format!("walkeep_{name}")).collect());
        assert!(sample::<u64>(&page, "walkeep_archive_ready_files") == 0 && !page.contains("archive_end_bytes"));
        let text = status(&repository, Some(&healthy.server), &[]);
        text.expect_code(1);
        assert!(text.stdout.contains("UNKNOWN") && text.stdout.contains("no file waits"), "{text}");
    }
}

#[test]
fn what_a_status_costs_does_not_grow_with_drills_and_segments() {
    let mut repository = Repository::ceph();
    let server = archiving(&repository).start();
    take(&repository, &server);
    drill(&repository, &["--target", "immediate"]).expect_code(0);
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let cost = || {
        proxy.forget_requests();
        json(&repository, Some(&server));
        let mut requests: Vec<String> = proxy.requests().iter().map(|request| request.method.clone()).collect();
        requests.sort();
        requests
    };
    // The clusters, the backups, the drills, the WAL and the records of what was removed are listed; backup.json, the newest drill's record and the header of
    // the last segment are read.
    let few = cost();
    assert_eq!(few, ["GET"; 8], "{:#?}", proxy.requests());
    assert_eq!(proxy.requests().iter().filter(|request| request.path.contains("list-type=2")).count(), 5);
    archive(&server, 12);
    let record = repository.read(repository.objects().iter().find(|key| key.contains("/drills/")).unwrap());
    let key = repository.objects().into_iter().find(|key| key.contains("/drills/")).unwrap();
    for day in 10..30 {
        repository.write(&format!("{}/202610{day}T000000Z-0000.json", key.rsplit_once('/').unwrap().0), &record);
    }
    assert_eq!(cost(), few, "{:#?}", proxy.requests());
}

#[test]
fn node_exporter_picks_the_page_up() {
    let healthy = Healthy::shared();
    let place = Scratch::new("textfile");
    let collector = place.create_private("collector");
    let written = running(&healthy.repository, Some(&healthy.server), &["--format", "prometheus", "--output"]);
    written.arg(collector.join("walkeep.prom")).finish().expect_code(0);
    let port = free_port();
    let mut options = vec!["--collector.disable-defaults".to_owned(), "--collector.textfile".to_owned()];
    options.push(format!("--collector.textfile.directory={}", collector.display()));
    options.push(format!("--web.listen-address=127.0.0.1:{port}"));
    let exporter = Daemon::start(&Server {
        program: &tools_directory().join("prometheus-node-exporter"),
        arguments: options,
        environment: &[],
        directory: place.path(),
        log: &place.path().join("log"),
        on_death: "KILL",
    });
    until("node_exporter listens", SOON, || TcpStream::connect(("127.0.0.1", port)).ok());
    let scraped = tool("curl", ["-sSf", &format!("http://127.0.0.1:{port}/metrics")]);
    assert!(
        scraped.contains("node_textfile_scrape_error 0")
            && scraped.contains("walkeep_repository_up{cluster=\"main\"} 1")
    );
    drop(exporter);
}

#[test]
fn root_looks_and_leaves_nothing_behind() {
    if !user::is_root() {
        return;
    }
    let healthy = Healthy::shared();
    let repository = copy_of(&healthy.repository);
    let run = || running(&repository, None, &["--format", "json"]).as_caller().finish();
    let entries = || std::fs::read_dir(repository.spool()).unwrap().count();
    run().expect_code(0);
    basebackup(&repository, &["verify"]).as_caller().finish().expect_code(0);
    assert_eq!(entries(), 0);
    // What the others have noted it may read.
    basebackup(&repository, &["verify"]).finish().expect_code(0);
    let told: Value = serde_json::from_str(&run().stdout).unwrap();
    assert_eq!(told["clusters"][0]["last_verify"]["verdict"], "sound", "{told:#}");
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples").join(name)
}

#[test]
fn alerts_and_dashboard_speak_of_metrics_that_there_are() {
    let promtool =
        Run::new(tools_directory().join("promtool")).args(["check", "rules"]).arg(example("prometheus-alerts.yml"));
    promtool.as_caller().finish().expect_code(0);
    let alerts = std::fs::read_to_string(example("prometheus-alerts.yml")).unwrap();
    let dashboard = std::fs::read_to_string(example("grafana-dashboard.json")).unwrap();
    let parsed: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(parsed["panels"].as_array().unwrap().len() > 10);
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let section = readme.split("\n## Monitoring\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: BTreeSet<String> = words(section);
    for used in words(&alerts).union(&words(&dashboard)) {
        assert!(documented.contains(used), "{used}");
    }
    // And every metric that is written is documented.
    let written = metrics(&Healthy::shared().page());
    assert!(written.len() > 25 && written.is_subset(&documented), "{:?}", written.difference(&documented));
}

/// The names of metrics in a text.
fn words(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("walkeep_") && *word != "walkeep_");
    names.map(str::to_owned).collect()
}

#[test]
fn servers_that_share_a_name_in_the_repository_are_told_apart_by_their_directories() {
    let repository = Repository::directory();
    let servers = [(); 2].map(|()| archiving(&repository).start());
    let ids = [&servers[0], &servers[1]].map(|server| take(&repository, server));
    let named = |server: &Cluster, words: &[&str]| {
        let said = basebackup(&repository, words).arg("--server").arg(server.data()).finish();
        said.expect_code(0).stdout.clone()
    };
    let mut samples = Vec::new();
    for (server, id) in servers.iter().zip(&ids) {
        let page = named(server, &["status", "--format", "prometheus"]);
        expect_clean(&page);
        assert!(page.contains(&server.system_identifier().to_string()));
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        samples.extend(lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()));
        assert!(named(server, &["show", "latest"]).contains(id));
        assert!(named(server, &["verify"]).contains(&server.system_identifier().to_string()));
        let programs = bin_directory().display().to_string();
        assert!(named(server, &["drill", "--pg-bindir", &programs]).contains(id));
    }
    let all = samples.len();
    samples.sort();
    samples.dedup();
    assert_eq!(samples.len(), all, "a sample is in both pages");
}
