//! What a backup holds of a cluster that is not as it usually is, and what becomes of one whose server changes meanwhile.

use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::time::Duration;

use rustix::process::Signal;
use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, major, program};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::user;
use walkeep_tests::wait::SOON;

use crate::format_recipe::{Extracted, archiving, take};
use crate::take::{check_relations, json, peak_memory, relation_file};

#[test]
fn damaged_relations_are_named_in_every_database_and_tablespace() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).checksums().start();
    let space = cluster.scratch().create_private("space");
    cluster.sql(&format!("create tablespace space location '{}'", space.display()));
    cluster.sql("create database \"Other one\" tablespace space");
    cluster.sql("create table \"Odd.t\" tablespace space as select n from generate_series(1, 1000) n");
    cluster.sql("create table gone as select n from generate_series(1, 1000) n");
    let psql = Run::new(program("psql")).args(cluster.connection()).args(["-XAtq", "-d", "Other one", "-c"]);
    let made = "create schema s; create table s.here as select n from generate_series(1, 1000) n; checkpoint; \
                select pg_relation_filepath('s.here')";
    let here = psql.arg(made).finish().expect_code(0).stdout.trim_end().to_owned();
    let damage = |path: &str| {
        let file = std::fs::File::options().write(true).open(cluster.data().join(path)).unwrap();
        file.write_all_at(b"rot", 5000).unwrap();
    };
    let (odd, _) = relation_file(&cluster, "\"Odd.t\"");
    let (shared, _) = relation_file(&cluster, "pg_catalog.pg_shdescription");
    // A file that no relation has any more.
    let stray = format!("base/{}/99999", cluster.sql("select oid from pg_database where datname = 'postgres'"));
    std::fs::copy(cluster.data().join(&odd), cluster.data().join(&stray)).unwrap();
    user::give(&cluster.data().join(&stray));
    for path in [&odd, &here, &shared, &stray] {
        damage(path);
    }
    let taken = take(&cluster, &repository).finish();
    taken.expect_code(0).expect_stderr(&["which is postgres.public.\"Odd.t\",", "which is \"Other one\".s.here,"]);
    let id = taken.stdout.trim_end();
    let pages = json(&repository, &["show", id])["bad_pages"].as_array().unwrap().clone();
    let name = |file: &str| {
        let page = pages.iter().find(|page| page["file"] == file).unwrap_or_else(|| panic!("{file}: {pages:?}"));
        page.get("relation").map(|name| name.as_str().unwrap().to_owned())
    };
    assert_eq!(name(&odd).as_deref(), Some("postgres.public.\"Odd.t\""));
    assert_eq!(name(&here).as_deref(), Some("\"Other one\".s.here"));
    assert_eq!(name(&shared).as_deref(), Some("pg_catalog.pg_shdescription"));
    assert_eq!(name(&stray), None);
    let text = Run::new(binaries::basebackup()).args(["show", id]).envs(repository.environment()).finish();
    assert!(text.stdout.contains(&format!("{here} block 0 (\"Other one\".s.here)\n")), "{text}");
}

#[test]
fn databases_that_are_created_by_copying_files_during_the_backup_are_sound() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).checksums().start();
    // 15 gave the choice; before, this was the only way.
    let strategy = if major() >= 15 { "strategy file_copy" } else { "" };
    cluster.sql("create table t as select n, repeat('x', 100) from generate_series(1, 5000) n");
    cluster.sql("create index on t (n)");
    let churn = format!("create database last {strategy};\ndrop database last;\n");
    let script = cluster.scratch().write("create.sql", &churn);
    let bench = Run::new(program("pgbench")).args(cluster.connection()).args(["-T", "600", "-n", "-f"]).arg(script);
    let creating = bench.arg("postgres").timeout(Duration::from_secs(700)).start();
    let mut kept = 0;
    cluster.wait_for("select count(*) > 0 from pg_stat_activity where query like 'create database last%'", "t");
    let mut running = take(&cluster, &repository).start();
    while !running.has_ended() && kept < 20 {
        // What is copied meanwhile: the template is one database with a table of its own.
        let created = cluster.try_sql(&format!("create database kept{kept} {strategy}"));
        kept += u32::from(created.status.success());
    }
    let id = running.finish().expect_code(0).stdout.trim_end().to_owned();
    creating.signal(Signal::TERM);
    drop(creating.finish());
    cluster.wait_until_archived(&cluster.finish_segment());
    drop(cluster);
    assert!(kept > 0);

    let extracted = Extracted::new(&repository, &id);
    extracted.verify();
    let recovered = extracted.recover(Cluster::options());
    assert_eq!(recovered.cluster.sql("select count(*) from t"), "5000");
    check_relations(&recovered.cluster);
    let databases = recovered.cluster.sql("select datname from pg_database where datname like 'kept%'");
    assert_eq!(databases.lines().count(), usize::try_from(kept).unwrap());
    for database in databases.lines() {
        let dump = Run::new(program("pg_dump")).args(recovered.cluster.connection());
        dump.args(["-f", "/dev/null", database]).finish().expect_code(0);
    }
}

#[test]
fn wal_on_another_disk_and_access_of_the_group_make_no_difference() {
    let repository = Repository::directory();
    let mut cluster = archiving(&repository).group_access().create();
    let elsewhere = cluster.scratch().path().join("wal disk");
    std::fs::rename(cluster.data().join("pg_wal"), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, cluster.data().join("pg_wal")).unwrap();
    cluster.start();
    cluster.sql("create table t as select n from generate_series(1, 1000) n");
    let taken = take(&cluster, &repository).finish();
    taken.expect_code(0);
    assert!(!taken.stderr.contains("WARNING"), "{taken}");
    drop(cluster);
    let extracted = Extracted::new(&repository, taken.stdout.trim_end());
    extracted.verify();
    let mode =
        |path: &str| std::fs::symlink_metadata(extracted.data().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["base", "pg_wal", "PG_VERSION", "backup_label"].map(mode), [0o750, 0o750, 0o640, 0o640]);
    assert!(extracted.data().join("pg_wal").symlink_metadata().unwrap().is_dir());
    assert_eq!(extracted.recover(Cluster::options()).cluster.sql("select count(*) from t"), "1000");
}

/// Backs up a cluster with this many small files, and returns the most memory that took, in KiB.
fn memory_for_files(count: usize) -> u64 {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    for directory in 0..count.div_ceil(1000) {
        let directory = cluster.data().join(format!("many{directory}"));
        std::fs::create_dir(&directory).unwrap();
        for file in 0..count.min(1000) {
            std::fs::write(directory.join(format!("file{file}")), b"small").unwrap();
        }
        Run::new("chown").args(["-R", "--reference"]).arg(cluster.data()).arg(&directory).as_caller().finish();
    }
    let (peak, taken) = peak_memory(take(&cluster, &repository).timeout(SOON * 10).start());
    let shown = json(&repository, &["show", taken.expect_code(0).stdout.trim_end()]);
    assert!(shown["files"].as_u64().unwrap() > u64::try_from(count).unwrap(), "{shown}");
    peak
}

#[test]
fn ten_thousand_files_more_need_little_memory() {
    let peak = memory_for_files(10_000);
    assert!(peak < 128 * 1024, "{peak} KiB");
}

#[test]
#[ignore = "slow: makes two hundred thousand files"]
fn many_small_files_fit_into_the_memory_that_a_backup_may_use() {
    let peak = memory_for_files(200_000);
    assert!(peak < 512 * 1024, "{peak} KiB");
}
