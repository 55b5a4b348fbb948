//! Options of `basebackup restore` that say how much of a cluster comes back, and who asks.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;
use walkeep_tests::cluster::{Cluster, StopMode, program};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;

use crate::site::{Place, archiving, basebackup, check_indexes, take, verify, wait_until_open};

/// Runs SQL in a database that may refuse.
fn in_database(server: &Cluster, database: &str, sql: &str) -> walkeep_tests::run::Finished {
    let psql = Run::new(program("psql")).args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database]);
    psql.args(server.connection()).args(["-c", sql]).finish()
}

#[test]
fn of_several_databases_only_the_one_named_is_restored() {
    let repository = Repository::directory();
    let server = archiving(&repository).checksums().start();
    let space = server.scratch().create_private("space");
    server.sql(&format!("create tablespace other location '{}'", space.display()));
    for (database, tablespace) in [("wanted", "pg_default"), ("heavy", "pg_default"), ("elsewhere", "other")] {
        server.sql(&format!("create database {database} tablespace {tablespace}"));
        let fill = "create table t (i int primary key, x text); insert into t select g, repeat('x', 500) from generate_series(1, 3000) g";
        in_database(&server, database, fill).expect_code(0);
        // Vacuumed after the backup: its record of that has no image of the pages (without checksums).
        in_database(&server, database, "create table quiet as select generate_series(1, 1000)").expect_code(0);
    }
    server.sql("checkpoint");
    take(&repository, &server);
    // Recovery changes every one of them: rows, new files, files cut and dropped, relations that move.
    for database in ["wanted", "heavy", "elsewhere"] {
        for sql in [
            "insert into t select g, 'later' from generate_series(3001, 4000) g",
            "delete from t where i % 3 = 0",
            "vacuum quiet",
            "vacuum full t",
            "create table later as select * from t; create index on later (i)",
            "create table gone as select * from t",
            "drop table gone",
            "create table cut as select * from t",
            "truncate cut",
            "vacuum full pg_class",
        ] {
            in_database(&server, database, sql).expect_code(0);
        }
    }
    server.wait_until_archived(&server.finish_segment());
    let expected = in_database(&server, "wanted", "select count(*), sum(i) from later").stdout;

    let place = Place::new();
    let mapping = format!("{}={}", space.display(), place.around().path().join("space").display());
    let unknown = place.restoring(&repository, &["--only-database", "missing", "-T", &mapping]).finish();
    unknown.expect_code(2).expect_stderr(&["holds no database \"missing\"", "wanted"]);
    assert!(place.is_untouched());
    // Over a whole copy, as over one that was interrupted: what is left out goes.
    place.restore(&repository, &["-T", &mapping]);
    let words = ["--only-database", "wanted", "-T", &mapping, "--delta"];
    let said = place.restore(&repository, &words).stdout;
    assert!(said.contains("without \"heavy\", \"elsewhere\"") && said.contains("DROP DATABASE"), "{said}");
    assert!(said.contains("ALTER SYSTEM RESET ignore_invalid_pages;"), "{said}");
    assert!(!place.data().join("backup_manifest").exists());
    let heavy = in_database(&server, "postgres", "select oid from pg_database where datname = 'heavy'").stdout;
    let files = fs::read_dir(place.data().join("base").join(heavy.trim())).unwrap().map(Result::unwrap);
    let blocks: u64 =
        files.filter(|file| file.file_name() != "PG_VERSION").map(|file| file.metadata().unwrap().blocks()).sum();
    assert_eq!(blocks, 0, "files that were left out take up space");

    let mut restored = place.server(&repository);
    restored.start();
    wait_until_open(&restored);
    assert_eq!(in_database(&restored, "wanted", "select count(*), sum(i) from later").stdout, expected);
    check_indexes(&restored, &["-d", "wanted", "-d", "postgres"]);
    for database in ["heavy", "elsewhere"] {
        let refused = in_database(&restored, database, "select 1");
        assert_eq!(refused.code(), 2, "{refused}");
        restored.sql(&format!("drop database {database}"));
    }
    restored.sql("create database heavy");
}

#[test]
fn more_wal_than_asked_for_is_refused_before_anything_is_written() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    take(&repository, &server);
    for _ in 0..4 {
        server.wait_until_archived(&server.finish_segment());
    }
    let place = Place::new();
    let refused = place.restoring(&repository, &["--max-wal", "3MB"]).finish();
    refused.expect_code(1).expect_stderr(&[
        "of WAL would have to be replayed",
        "3.00 MiB of --max-wal",
        "basebackup take",
    ]);
    assert!(place.is_untouched());
    let plan = place.restore(&repository, &["--max-wal", "6MB", "--format", "json"]);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let segments = plan["wal"]["segments"].as_u64().unwrap();
    assert!((4..=6).contains(&segments) && plan["wal"]["bytes"] == segments << 20, "{plan}");
}

#[test]
fn patroni_makes_a_replica_that_streams_from_its_leader() {
    let repository = Repository::directory();
    let leader = archiving(&repository).start();
    leader.sql("create table t as select 1 as i");
    take(&repository, &leader);
    let [_, socket, _, user] = leader.connection();
    let connection = format!("--connstring=host={socket} user={user}");
    let place = Scratch::new("patroni");
    let data = place.path().join("data");
    fs::create_dir(&data).unwrap();
    walkeep_tests::user::give(&data);
    let call = |words: &[&str]| {
        let common = ["restore", "--scope=batman"];
        basebackup(&repository, &common).arg(format!("--datadir={}", data.display())).args(words).finish()
    };
    // Patroni passes on what its configuration says of the method, whatever it is.
    call(&["--role=replica", "--no_leader=True", &connection]).expect_code(0);
    verify(&data);
    assert!(data.join("standby.signal").exists() && !data.join("recovery.signal").exists());
    let mut replica = Cluster::adopt(&data, Cluster::options().environment(repository.environment()));
    replica.start();
    leader.sql("insert into t values (2)");
    replica.wait_for("select count(*) from t", "2");
    assert_eq!(replica.sql("select status from pg_stat_wal_receiver"), "streaming");
    // It may lead one day.
    assert_eq!(replica.sql("show archive_mode"), "on");

    let again = call(&["--role=replica", &connection]);
    again.expect_code(1).expect_stderr(&["a server may be running"]);
    replica.stop(StopMode::Fast);
    let again = call(&["--role=replica", "--keep_data=True", &connection]).expect_code(0).stdout.clone();
    assert!(again.contains("files were the same and stayed"), "{again}");
}

#[test]
fn names_that_postgresql_does_not_take_are_refused() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    take(&repository, &server);
    let place = Place::new();
    for (words, text) in [
        (["--standby", "--primary-conninfo", "host=a", "--slot", "Node-1"], "replication slot"),
        (["--standby", "--primary-conninfo", "host=a\nport=1", "--slot", "node"], "control character"),
    ] {
        place.restoring(&repository, &words).finish().expect_code(2).expect_stderr(&[text]);
    }
    assert!(place.is_untouched());
}
