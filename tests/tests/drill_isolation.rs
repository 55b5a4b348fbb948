//! `basebackup drill`: a restored copy is production's twin, and must not act as it. Each way in which it could is tried.

use std::sync::Arc;

use rustix::process::Signal;
use serde_json::Value;
use walkeep_tests::cluster::{Cluster, StopMode, program};
use walkeep_tests::proxy::{Fault, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::archiving::bucket_behind_proxy;
use crate::drill::{check, drill, drilling, place, sql};
use crate::site::{Shared, archiving, copy_of, snapshot, take};

/// A repository with the backup of a server on which everything is set that would reach out of a drill.
struct Hostile {
    repository: Repository,
    /// Where commands of the original would leave a mark.
    marks: Scratch,
}

impl Hostile {
    fn shared() -> Arc<Self> {
        static SHARED: Shared<Hostile> = Shared::new();
        SHARED.get(Self::make)
    }

    fn make() -> Self {
        let repository = Repository::directory();
        let marks = Scratch::new("marks");
        user::give(marks.path());
        let mark = |name: &str| format!("touch {}", marks.path().join(name).display());
        let mut server = archiving(&repository)
            .configure("max_connections = 250")
            .configure("max_worker_processes = 60")
            .configure("max_prepared_transactions = 5")
            .start();
        let space = server.scratch().create_private("space");
        server.sql(&format!("create tablespace space location '{}'", space.display()));
        server.sql("create table t (n int) tablespace space");
        server.sql("select pg_create_physical_replication_slot('followed', true)");
        server.sql("begin; create table p (n int); prepare transaction 'left over'");
        server.sql("create unlogged table u as select 1 as n");
        // Sessions in this database would not begin, would not write, and would not last.
        server.sql("create database hostile");
        let hostile = |statement: &str| {
            let psql = Run::new(program("psql")).args(server.connection());
            psql.args(["-qX", "-v", "ON_ERROR_STOP=1", "-d", "hostile", "-c", statement]).finish().expect_code(0);
        };
        hostile("create table h as select generate_series(1, 1000) n");
        hostile("create index on h (n)");
        hostile("create function refuse() returns event_trigger language plpgsql as $$ begin raise 'refused'; end $$");
        hostile("create event trigger refuse on ddl_command_start execute function refuse()");
        for setting in [
            "session_preload_libraries = 'not_installed'",
            "default_transaction_read_only = on",
            "statement_timeout = '1ms'",
            "ignore_checksum_failure = on",
        ] {
            server.sql(&format!("alter database hostile set {setting}"));
        }
        for (name, value) in [
            ("recovery_end_command", mark("recovery_end")),
            ("archive_cleanup_command", mark("archive_cleanup")),
            ("synchronous_standby_names", "nobody".to_owned()),
            ("shared_preload_libraries", "not_installed".to_owned()),
            ("primary_conninfo", format!("host={} user=postgres", server.socket_directory().display())),
            ("primary_slot_name", "followed".to_owned()),
            ("recovery_target_name", "never".to_owned()),
            ("listen_addresses", "*".to_owned()),
            ("ssl_ca_file", "/nowhere".to_owned()),
        ] {
            // Such settings take effect in a restored copy only: this server is never started again with them.
            server.sql(&format!("alter system set {name} = '{value}'"));
        }
        for name in ["standby.signal", "recovery.signal"] {
            std::fs::write(server.data().join(name), "").unwrap();
            user::give(&server.data().join(name));
        }
        take(&repository, &server);
        server.sql("insert into t values (1)");
        server.stop(StopMode::Fast);
        Self { repository, marks }
    }
}

/// Questions to the server of a drill, each with its answer.
fn asking(files: &Scratch, questions: &[(&str, &str)]) -> Vec<String> {
    questions
        .iter()
        .flat_map(|(name, question)| ["--sql".to_owned(), sql(files, &format!("{name}.sql"), question)])
        .collect()
}

#[test]
fn a_copy_acts_in_no_way_as_its_original() {
    let hostile = Hostile::shared();
    let repository = copy_of(&hostile.repository);
    let before = snapshot(&repository);
    let (files, place) = (place(), place());
    let questions = asking(
        &files,
        &[
            ("recovered", "select count(*) = 1 and not pg_is_in_recovery() from t"),
            ("archives nothing", "create table w as select 1 as n; select pg_switch_wal() is not null"),
            ("listens nowhere", "select current_setting('listen_addresses') = '' and inet_server_addr() is null"),
            (
                "tablespaces",
                "select pg_tablespace_location(oid) like '%/walkeep-drill-%' from pg_tablespace where spcname = 'space'",
            ),
            ("slots", "select count(*) = 0 from pg_replication_slots"),
            ("receiver", "select count(*) = 0 from pg_stat_wal_receiver"),
            (
                "memory",
                "select current_setting('max_connections')::int < 250 and current_setting('max_worker_processes')::int < 60",
            ),
            (
                "workers",
                "select count(*) = 0 from pg_stat_activity where backend_type ~ '^(logical replication|autovacuum|archiver)'",
            ),
            (
                "environment",
                "create table e (line text); copy e from program 'env'; select count(*) = 0 from e where line ~ 'SECRET|no_such_setting|nowhere'",
            ),
            ("home", "select count(*) = 1 from e where line ~ '^HOME=.*/walkeep-drill-'"),
            (
                "socket",
                "create table s (line text); copy s from program 'cat /proc/net/dev'; select count(*) > 0 from s",
            ),
        ],
    );
    // What the caller's environment says is for the caller.
    let drilled = drilling(&repository, &place, &["--amcheck", "--format", "json"])
        .args(&questions)
        .env("AWS_SECRET_ACCESS_KEY", "SECRET")
        .env("PGOPTIONS", "-c no_such_setting=1")
        .env("PGPASSFILE", "/nowhere/SECRET")
        .env("PGSERVICE", "nowhere")
        .finish();
    let record: Value = serde_json::from_str(&drilled.stdout).unwrap_or_else(|_| panic!("{drilled}"));
    assert_eq!(record["verdict"], "passed", "{record:#}\n{drilled}");
    drilled.expect_code(0);
    let outcome = |name: &str| check(&record, name)["outcome"].clone();
    assert_eq!(outcome("prepared transactions"), "warning", "{record:#}");
    assert!(check(&record, "unlogged tables")["detail"].as_str().unwrap().contains("postgres.public.u"), "{record:#}");
    assert!(check(&record, "databases")["detail"].as_str().unwrap().contains("hostile"), "{record:#}");
    let marks = std::fs::read_dir(hostile.marks.path()).unwrap().count();
    assert_eq!(marks, 0, "a command of the original was run");
    let mut after = snapshot(&repository);
    after.retain(|key, _| !key.contains("/drills/"));
    assert!(after == before, "the archive was written to");
}

#[test]
fn where_namespaces_are_permitted_a_copy_has_no_network_and_the_record_says_so() {
    let hostile = Hostile::shared();
    let repository = copy_of(&hostile.repository);
    let files = place();
    // Every interface but the loopback one has a line with a colon.
    let alone = "create table s (line text); copy s from program 'cat /proc/net/dev';
                 select count(*) = 0 from s where line like '%:%' and line !~ '^ *lo:'";
    let question = sql(&files, "alone.sql", alone);
    let permitted = Run::new("unshare").args(["--user", "--map-current-user", "--net", "true"]).finish().code() == 0;
    let (drilled, record) = drill(&repository, &["--sql", &question]);
    assert_eq!(record["network"].as_str().unwrap().starts_with("none"), permitted, "{record:#}");
    assert_eq!(drilled.code() == 0, permitted || record["verdict"] == "passed", "{record:#}");
}

#[test]
fn a_copy_of_a_subscriber_leaves_its_publisher_alone() {
    let publisher = Cluster::options().configure("wal_level = logical").configure("log_connections = on").start();
    publisher.sql("create table t (n int primary key)");
    publisher.sql("insert into t values (1)");
    publisher.sql("create publication everything for all tables");
    let repository = Repository::directory();
    let mut subscriber = archiving(&repository).start();
    subscriber.sql("create table t (n int primary key)");
    let conninfo = format!("host={} user=postgres dbname=postgres", publisher.socket_directory().display());
    subscriber.sql(&format!("create subscription s connection '{conninfo}' publication everything"));
    subscriber.wait_for("select count(*) from t", "1");
    take(&repository, &subscriber);
    subscriber.stop(StopMode::Fast);
    publisher.wait_for("select count(*) from pg_replication_slots where not active", "1");
    publisher.sql("insert into t values (2)");
    let connections = || publisher.log().matches("replication connection authorized").count();
    let before = connections();

    let files = place();
    let questions = asking(
        &files,
        &[
            // It would come at once, and with it the worker that fetches the second row.
            ("launcher", "select count(*) = 0 from pg_stat_activity where backend_type ~ '^logical replication'"),
            ("subscription", "select subenabled from pg_subscription where subname = 's'"),
            ("rows", "select count(*) = 1 from t"),
        ],
    );
    let words: Vec<&str> = questions.iter().map(String::as_str).collect();
    let (drilled, record) = drill(&repository, &words);
    assert_eq!(record["verdict"], "passed", "{record:#}");
    drilled.expect_code(0);
    assert_eq!(connections(), before, "the copy connected to the publisher");
    // The original finds its slot as it left it.
    subscriber.start();
    subscriber.wait_for("select count(*) from t", "2");
}

/// Replay makes a tablespace in the directory that the record names: that of the server, which may run on this very host.
#[test]
fn tablespaces_made_after_the_backup_stay_the_server_s_own() {
    let repository = Repository::directory();
    let mut server = archiving(&repository).start();
    take(&repository, &server);
    let space = server.scratch().create_private("later");
    server.sql(&format!("create tablespace later location '{}'", space.display()));
    server.sql("create table t tablespace later as select generate_series(1, 1000) n");
    server.sql("create unlogged table u tablespace later as select 1");
    server.wait_until_archived(&server.finish_segment());
    server.sql("update t set n = n + 1000000 where n % 2 = 0; delete from t where n % 10 = 1");
    server.sql("checkpoint");
    let sum = "select count(*), sum(n) from t";
    let before = server.sql(sum);
    let (drilled, record) = drill(&repository, &[]);
    drilled.expect_code(0);
    assert_eq!(check(&record, "tablespaces")["outcome"], "passed", "{record:#}");
    server.stop(StopMode::Fast);
    server.start();
    assert_eq!(server.sql(sum), before);
}

#[test]
fn a_drill_that_is_killed_during_recovery_leaves_no_process() {
    let (repository, proxy) = bucket_behind_proxy();
    let server = archiving(&repository).start();
    take(&repository, &server);
    let [awaited, last] = [(); 2].map(|()| {
        server.sql("create table if not exists t (n int); insert into t values (1)");
        server.finish_segment()
    });
    server.wait_until_archived(&last);
    // Recovery waits for a segment that does not come.
    proxy.add(Rule::all(Fault::Silence).method("GET").path(&awaited));
    let place = place();
    let mine = || -> Vec<String> {
        let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        let scratch = place.path().join("walkeep-drill-").display().to_string();
        processes.filter(|line| line.contains(&scratch)).collect()
    };
    for signal in [Signal::KILL, Signal::TERM] {
        let running = drilling(&repository, &place, &[]).start();
        until("recovery waits", SOON * 3, || {
            mine().iter().any(|line| line.contains(&format!("echo '{awaited} "))).then_some(())
        });
        running.signal(signal);
        let ended = running.finish();
        until("the server and its command are gone", SOON, || mine().is_empty().then_some(()));
        if signal == Signal::TERM {
            ended.expect_code(1).expect_stderr(&["interrupted"]);
            assert!(std::fs::read_dir(place.path()).unwrap().next().is_none(), "something is left\n{ended}");
        }
    }
}
