//! `basebackup take`, `list` and `show`: a backup is everything pg_basebackup copies, or it does not exist.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, major, program};
use walkeep_tests::emulator::free_port;
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, Running};
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::format_recipe::{Extracted, archiving, take, take_backup};
use crate::store_contract::unfinished_uploads;

/// What `basebackup list` or `show` prints as JSON.
pub(crate) fn json(repository: &Repository, arguments: &[&str]) -> Value {
    let run = Run::new(binaries::basebackup()).args(arguments).args(["--format", "json"]);
    let finished = run.envs(repository.environment()).finish();
    serde_json::from_str(&finished.expect_silent_success().stdout).unwrap()
}

/// The ids of the complete backups of the repository's only cluster.
pub(crate) fn backups(repository: &Repository) -> Vec<String> {
    let list = json(repository, &["list"]);
    let backups = list["clusters"][0]["backups"].as_array().unwrap();
    backups.iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until nobody but the asking session is connected: a backup mode ends with its session.
fn wait_until_nobody_is_connected(cluster: &Cluster) {
    cluster.wait_for(
        "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()",
        "0",
    );
}

/// A backup that failed: nothing is listed, the server is as before.
pub(crate) fn expect_no_backup(cluster: &Cluster, repository: &Repository, failed: &Finished) {
    failed.expect_code(1).expect_stderr(&["basebackup: ERROR:"]);
    assert_eq!(failed.stdout, "", "{failed}");
    assert_eq!(backups(repository), Vec::<String>::new());
    assert!(repository.objects().iter().all(|key| !key.ends_with("backup.json")));
    wait_until_nobody_is_connected(cluster);
}

/// What a path in a data directory holds.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: blake3::Hash, size: u64 },
}

/// Everything below a directory, by path; links are followed, as the one to a tablespace.
fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(root.join(&directory)).unwrap() {
            let path = directory.join(entry.unwrap().file_name());
            let metadata = std::fs::metadata(root.join(&path)).unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let entry = if metadata.is_dir() {
                directories.push(path.clone());
                Entry::Directory { mode }
            } else {
                let content = std::fs::read(root.join(&path)).unwrap();
                Entry::File { mode, content: blake3::hash(&content), size: metadata.len() }
            };
            entries.insert(path, entry);
        }
    }
    entries
}

/// What pg_basebackup copies, laid out as the packs are: the tablespaces below `pg_tblspc`.
fn pg_basebackup(cluster: &Cluster) -> BTreeMap<PathBuf, Entry> {
    let directory = cluster.scratch().path().join("reference");
    let copy = Run::new(program("pg_basebackup")).args(cluster.connection()).arg("-D").arg(&directory);
    copy.args(["-Ft", "-X", "none", "-c", "fast", "--no-sync"]).finish().expect_code(0);
    let unpacked = cluster.scratch().create_private("unpacked");
    let script = "tar -xpf \"$0/base.tar\" -C \"$1\"; rm -f \"$0/base.tar\" \"$0\"/backup_manifest
                  for space in \"$0\"/*.tar; do
                      oid=$(basename \"$space\" .tar); rm -f \"$1/pg_tblspc/$oid\"; mkdir -m 700 \"$1/pg_tblspc/$oid\"
                      tar -xpf \"$space\" -C \"$1/pg_tblspc/$oid\"
                  done";
    Run::new("sh").args(["-euc", script]).arg(&directory).arg(&unpacked).finish().expect_silent_success();
    tree(&unpacked)
}

/// Fills a data directory with whatever may lie in one.
fn litter(cluster: &Cluster) {
    let data = cluster.data();
    let write = |path: PathBuf| {
        std::fs::write(&path, format!("content of {}", path.display())).unwrap();
        user::give(&path);
    };
    let database = cluster.sql("select 'base/' || oid from pg_database where datname = 'postgres'");
    for name in [
        "with blanks and 'quotes\"",
        "backup_label.old",
        "current_logfiles",
        "current_logfiles.tmp",
        "postgresql.auto.conf.tmp",
        "pg_internal.init.4711",
        "pgsql_tmp_is_a_prefix",
        "pg_notify/left-out",
        "pg_replslot/left-out",
        "pg_stat_tmp/left-out",
        "pg_wal/left-out",
        "global/pg_internal.init",
    ] {
        write(data.join(name));
    }
    for name in ["t3_99999", "t3_99999.1", "99998_init", "99998", "99998_vm", "odd", "1259x", "pgsql_tmp42.0"] {
        write(data.join(&database).join(name));
    }
    write(data.join(std::ffi::OsStr::from_bytes(b"not \xFF UTF-8\n")));
    let large = data.join("larger-than-memory-copies");
    std::fs::write(&large, (0..20 << 20).map(|at| u8::try_from(at / 4096 % 251).unwrap()).collect::<Vec<u8>>())
        .unwrap();
    user::give(&large);
    std::fs::create_dir(data.join("own directory")).unwrap();
    user::give(&data.join("own directory"));
    write(data.join("own directory/file"));
    symlink("/etc", data.join("link")).unwrap();
}

#[test]
fn the_files_are_those_that_pg_basebackup_copies() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).checksums().configure("autovacuum = off").start();
    // A tablespace whose location is a link to a link.
    let space = cluster.scratch().create_private("real");
    symlink(&space, cluster.scratch().path().join("first")).unwrap();
    symlink("first", cluster.scratch().path().join("second")).unwrap();
    cluster.sql(&format!("create tablespace space location '{}/second'", cluster.scratch().path().display()));
    cluster.sql("create table t as select n from generate_series(1, 10000) n");
    cluster.sql("create table elsewhere tablespace space as select * from t");
    cluster.sql("create unlogged table u as select * from t; create unlogged table v tablespace space as table t");
    cluster.sql("create index on u (n)");
    cluster.sql("create database other tablespace space");
    litter(&cluster);
    let psql = Run::new(program("psql")).args(cluster.connection()).args(["-d", "postgres", "-c"]);
    let session = psql.arg("create temp table mine as table t; select pg_sleep(300)").start();
    cluster.wait_for("select count(*) from pg_stat_activity where wait_event = 'PgSleep'", "1");
    cluster.sql("checkpoint");

    // First, because a backup of ours ends with a transaction: that of its restore point.
    let expected = pg_basebackup(&cluster);
    let taken = take(&cluster, &repository).finish();
    taken.expect_code(0).expect_stderr(&["skipping symbolic link \"link\" to \"/etc\""]);
    let extracted = Extracted::new(&repository, taken.stdout.trim_end());
    session.signal(Signal::TERM);
    session.finish();

    let mut found = tree(&extracted.data());
    assert!(found.remove(Path::new("backup_manifest")).is_some());
    let paths = |tree: &BTreeMap<PathBuf, Entry>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&found), paths(&expected));
    assert!(found.keys().any(|path| path.starts_with("pg_tblspc") && path.components().count() > 4));
    for (path, entry) in &found {
        let name = path.to_str().unwrap_or_default();
        // Each backup has its own of these.
        if let (Entry::File { mode, size, .. }, Entry::File { mode: expected_mode, size: expected_size, .. }) =
            (entry, &expected[path])
            && ["backup_label", "global/pg_control"].contains(&name)
        {
            assert_eq!((mode, size.abs_diff(*expected_size) < 20), (expected_mode, true), "{name}");
        } else {
            assert_eq!(entry, &expected[path], "{path:?}");
        }
    }
    extracted.verify();
}

#[test]
fn every_manifest_checksum_is_what_pg_verifybackup_computes() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    for algorithm in ["none", "crc32c", "sha224", "sha256", "sha384", "sha512"] {
        let taken = take(&cluster, &repository).args(["--manifest-checksums", algorithm]).finish();
        let extracted = Extracted::new(&repository, taken.expect_code(0).stdout.trim_end());
        extracted.verify();
        let manifest = std::fs::read_to_string(extracted.data().join("backup_manifest")).unwrap();
        let named = manifest.matches(&format!("\"{}\"", algorithm.to_uppercase())).count();
        assert_eq!(named > 900, algorithm != "none", "{algorithm}: {named}");
    }
    assert_eq!(backups(&repository).len(), 6);
}

/// A script of pgbench's.
const CHURN: &str = "\
\\set n random(1, 5)
create table if not exists churn:n as select g, repeat('x', 500) from generate_series(1, 500) g;
insert into churn:n select g, 'y' from generate_series(1, 500) g;
truncate churn:n;
create index on churn:n (g);
drop table churn:n;
";

/// pgbench and a session that creates, fills, truncates and drops tables, for as long as this lives.
pub(crate) struct Load {
    processes: Vec<Running>,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let bench = Run::new(program("pgbench")).args(cluster.connection()).args(["-c", "2", "-T", "600", "-n"]);
        let bench = bench.arg("postgres").timeout(Duration::from_secs(700)).start();
        let script = cluster.scratch().write("churn.sql", CHURN);
        let churn = Run::new(program("pgbench")).args(cluster.connection()).args(["-T", "600", "-n", "-f"]);
        let churn = churn.arg(script).arg("postgres").timeout(Duration::from_secs(700)).start();
        Self { processes: vec![bench, churn] }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for process in self.processes.drain(..) {
            process.signal(Signal::TERM);
            drop(process.finish());
        }
    }
}

#[test]
fn a_backup_under_load_recovers_to_a_sound_and_consistent_database() {
    let repository = Repository::directory();
    let options = archiving(&repository).checksums().configure("max_wal_size = 32MB");
    let cluster = options.configure("checkpoint_timeout = 30s").start();
    Run::new(program("pgbench"))
        .args(cluster.connection())
        .args(["-i", "-q", "-s", "3", "postgres"])
        .finish()
        .expect_code(0);
    let load = Load::start(&cluster);
    cluster.wait_for("select count(*) > 100 from pgbench_history", "t");
    let mut taken = Vec::new();
    for _ in 0..3 {
        let before: u64 = cluster.sql("select count(*) from pgbench_history").parse().unwrap();
        taken.push((take_backup(&cluster, &repository), before));
    }
    let last = cluster.sql("select count(*) from pgbench_history").parse::<u64>().unwrap();
    // Everything up to here is archived, and that is where recovery ends.
    cluster.wait_until_archived(&cluster.finish_segment());
    drop(load);
    drop(cluster);

    for (id, before) in taken {
        let extracted = Extracted::new(&repository, &id);
        extracted.verify();
        let recovered = extracted.recover(Cluster::options());
        let sum = |column: &str, table: &str| {
            recovered.cluster.sql(&format!("select coalesce(sum({column}), 0) from {table}"))
        };
        let delta = sum("delta", "pgbench_history");
        for (column, table) in
            [("abalance", "pgbench_accounts"), ("tbalance", "pgbench_tellers"), ("bbalance", "pgbench_branches")]
        {
            assert_eq!(sum(column, table), delta, "{id}: {table}");
        }
        let rows: u64 = recovered.cluster.sql("select count(*) from pgbench_history").parse().unwrap();
        assert!(rows >= last && last >= before, "{id}: {rows} rows, {last} before the last segment ended");
        check_relations(&recovered.cluster);
    }
}

/// Has amcheck look at everything where this build of PostgreSQL brings it, and reads all rows, which checks the pages'
/// checksums.
pub(crate) fn check_relations(cluster: &Cluster) {
    let connected = |name: &str| Run::new(program(name)).args(cluster.connection());
    if cluster.sql("select count(*) from pg_available_extensions where name = 'amcheck'") == "1" {
        cluster.sql("create extension if not exists amcheck");
        // pg_amcheck came with 14, as did the checks of tables.
        if major() >= 14 {
            let amcheck = connected("pg_amcheck").args(["--heapallindexed", "--parent-check", "-d", "postgres"]);
            let checked = amcheck.finish();
            assert!(checked.code() == 0 && checked.stdout.is_empty(), "{checked}");
        } else {
            cluster.sql(
                "select bt_index_parent_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam \
                 where a.amname = 'btree' and c.relkind = 'i' and c.relpersistence = 'p'",
            );
        }
    }
    connected("pg_dump").args(["-f", "/dev/null", "postgres"]).finish().expect_code(0);
}

/// A server with a table, archiving into a bucket of Ceph's that `take` reaches through a proxy.
pub(crate) struct Proxied {
    pub(crate) cluster: Cluster,
    pub(crate) repository: Repository,
    pub(crate) proxy: Proxy,
}

impl Proxied {
    pub(crate) fn start() -> Self {
        let mut repository = Repository::ceph();
        let proxy = Proxy::start(&ceph::shared().endpoint);
        repository.set_proxy(&proxy);
        let cluster = archiving(&repository).start();
        cluster.sql("create table t as select n, repeat('x', 100) from generate_series(1, 5000) n");
        Self { cluster, repository, proxy }
    }

    /// Starts `take` and returns when it has asked for this object, which it does not get before the proxy's rules are
    /// cleared.
    pub(crate) fn take_up_to(&self, method: &'static str, object: &str) -> Running {
        let seen = self.proxy.count(method, object);
        self.proxy.add(Rule::all(Fault::slow_down()).method(method).path(object));
        let mut running = take(&self.cluster, &self.repository).start();
        until(&format!("take asks for {object}"), SOON, || {
            assert!(!running.has_ended());
            (self.proxy.count(method, object) > seen).then_some(())
        });
        running
    }

    /// The key of the one object of the backup in the making that has this name.
    fn key(&self, name: &str) -> String {
        self.repository.find(&format!("/{name}"))
    }
}

#[test]
fn relations_that_change_between_the_listing_and_the_copy_do_no_harm() {
    let proxied = Proxied::start();
    let cluster = &proxied.cluster;
    for name in ["dropped", "truncated", "shrunk", "grown"] {
        cluster.sql(&format!("create table {name} as select n, repeat('y', 500) from generate_series(1, 5000) n"));
    }
    cluster.sql("create index on grown (n); checkpoint");
    let file = cluster.sql("select pg_relation_filepath('dropped')");
    let running = proxied.take_up_to("POST", "pack-00001");
    cluster.sql("drop table dropped");
    cluster.sql("truncate truncated");
    cluster.sql("delete from shrunk where n > 100");
    cluster.sql("vacuum shrunk");
    cluster.sql("insert into grown select n, 'z' from generate_series(5001, 50000) n");
    cluster.sql("create table made as table grown");
    cluster.sql("checkpoint");
    assert!(!cluster.data().join(&file).exists(), "the checkpoint removes the file");
    proxied.proxy.clear();
    let taken = running.finish();
    let id = taken.expect_code(0).stdout.trim_end().to_owned();

    let extracted = Extracted::new(&proxied.repository, &id);
    assert!(!extracted.data().join(&file).exists(), "{file} was gone before it was copied");
    extracted.verify();
    let recovered = extracted.recover(Cluster::options());
    let count = |table: &str| recovered.cluster.sql(&format!("select count(*) from {table}"));
    let tables = ["t", "truncated", "shrunk", "grown", "made"];
    assert_eq!(tables.map(count), ["5000", "0", "100", "50000", "50000"]);
    assert_eq!(recovered.cluster.sql("select to_regclass('dropped') is null"), "t");
    check_relations(&recovered.cluster);
}

#[test]
fn a_backup_whose_session_is_lost_fails_at_once() {
    let proxied = Proxied::start();
    let running = proxied.take_up_to("POST", "pack-00001");
    let terminated = proxied.cluster.sql(
        "select count(*) from (select pg_terminate_backend(pid) from pg_stat_activity \
         where backend_type = 'client backend' and pid <> pg_backend_pid()) x",
    );
    assert_eq!(terminated, "1");
    // The store still does not take the pack.
    let failed = running.finish();
    proxied.proxy.clear();
    expect_no_backup(&proxied.cluster, &proxied.repository, &failed);
    take_backup(&proxied.cluster, &proxied.repository);
}

#[test]
fn an_interrupted_upload_leaves_no_parts_behind() {
    for signal in [Signal::TERM, Signal::INT] {
        let proxied = Proxied::start();
        let running = proxied.take_up_to("PUT", "partNumber");
        assert_eq!(unfinished_uploads(&proxied.repository), 1);
        running.signal(signal);
        expect_no_backup(&proxied.cluster, &proxied.repository, &running.finish());
        assert_eq!(unfinished_uploads(&proxied.repository), 0);
    }
}

#[test]
fn a_store_that_is_out_of_reach_is_reported_before_anything_begins() {
    let mut repository = Repository::ceph();
    let cluster = archiving(&repository).start();
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    repository.set_endpoint(&endpoint);
    let failed = take(&cluster, &repository).finish();
    failed.expect_code(1).expect_stderr(&["basebackup: ERROR:", &endpoint]);
    assert!(failed.elapsed < Duration::from_secs(50), "{failed}");
    wait_until_nobody_is_connected(&cluster);
}

#[test]
fn a_pack_that_is_lost_before_the_end_is_missed() {
    let proxied = Proxied::start();
    let running = proxied.take_up_to("PUT", "backup_manifest.zst");
    proxied.repository.delete(&proxied.key("pack-00001.tar.zst"));
    proxied.proxy.clear();
    let failed = running.finish();
    failed.expect_stderr(&["pack-00001.tar.zst"]);
    expect_no_backup(&proxied.cluster, &proxied.repository, &failed);
}

#[test]
fn a_pack_that_is_cut_short_before_the_end_is_noticed() {
    let proxied = Proxied::start();
    let running = proxied.take_up_to("PUT", "backup_manifest.zst");
    proxied.repository.truncate(&proxied.key("pack-00002.tar.zst"), 100);
    proxied.proxy.clear();
    let failed = running.finish();
    failed.expect_stderr(&["pack-00002.tar.zst"]);
    expect_no_backup(&proxied.cluster, &proxied.repository, &failed);
}

#[test]
fn a_backup_that_was_declared_dead_meanwhile_does_not_come_to_life() {
    let proxied = Proxied::start();
    let running = proxied.take_up_to("PUT", "backup_manifest.zst");
    let record = proxied.key("begin.json").replace("begin.json", "backup.json");
    proxied.repository.write(&record, b"{\"state\":\"abandoned\"}");
    proxied.proxy.clear();
    let failed = running.finish();
    failed.expect_code(1).expect_stderr(&["backup.json"]);
    assert_eq!(backups(&proxied.repository), Vec::<String>::new());
    assert_eq!(proxied.repository.read(&record), b"{\"state\":\"abandoned\"}");
}

#[test]
fn passing_faults_of_the_store_cost_a_backup_nothing_but_time() {
    let proxied = Proxied::start();
    for (method, path, fault) in [
        ("PUT", "begin.json", Fault::LoseAnswer),
        ("POST", "pack-00001", Fault::s3_error(500, "InternalError", "We encountered an internal error.")),
        ("PUT", "partNumber", Fault::ResetDuringBody),
        ("PUT", "partNumber", Fault::slow_down()),
        ("PUT", "partNumber", Fault::LoseAnswer),
        ("POST", "uploadId", Fault::LoseAnswer),
        ("PUT", "files.ndjson.zst", Fault::ResetAfterBody),
        ("PUT", "backup_manifest.zst", Fault::LoseAnswer),
        ("PUT", "backup.json", Fault::LoseAnswer),
    ] {
        proxied.proxy.add(Rule::all(fault).method(method).path(path).times(1));
    }
    let id = take_backup(&proxied.cluster, &proxied.repository);
    proxied.proxy.clear();
    assert_eq!(backups(&proxied.repository), [id.as_str()]);
    let extracted = Extracted::new(&proxied.repository, &id);
    extracted.verify();
    assert_eq!(extracted.recover(Cluster::options()).cluster.sql("select count(*) from t"), "5000");
}

#[test]
fn without_its_wal_in_the_archive_there_is_no_backup() {
    let repository = Repository::directory();
    let cluster = Cluster::options().segment_size(1).archive_command("false").start();
    let failed = take(&cluster, &repository).args(["--wal-timeout", "3s"]).finish();
    failed.expect_stderr(&["0000000100000000", "HINT:", "archive_command"]);
    expect_no_backup(&cluster, &repository, &failed);
    assert!(failed.elapsed < Duration::from_secs(30), "{failed}");
}

/// Where a relation's file is, after everything of it has been written out.
pub(crate) fn relation_file(cluster: &Cluster, relation: &str) -> (String, std::fs::File) {
    cluster.sql("checkpoint");
    let path = cluster.sql(&format!("select pg_relation_filepath('{relation}')"));
    let file = std::fs::File::options().read(true).write(true).open(cluster.data().join(&path)).unwrap();
    (path, file)
}

#[test]
fn damaged_pages_are_named_and_fail_a_backup_only_on_request() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).checksums().start();
    cluster.sql("create table t as select n, repeat('x', 100) from generate_series(1, 5000) n");
    let (path, file) = relation_file(&cluster, "t");
    for block in [3, 7] {
        file.write_all_at(b"rot", block * 8192 + 5000).unwrap();
    }
    // New pages are all zeros, which is no damage.
    file.write_all_at(&[0; 8192], 9 * 8192).unwrap();

    let failed = take(&cluster, &repository).arg("--checksum-failures=error").finish();
    failed.expect_stderr(&[&path]);
    expect_no_backup(&cluster, &repository, &failed);

    let taken = take(&cluster, &repository).finish();
    taken.expect_code(0).expect_stderr(&["WARNING", &path, "page 3", "page 7", "postgres.public.t"]);
    assert_eq!(taken.stderr.matches("WARNING").count(), 3, "two pages and how many there are\n{taken}");
    let id = taken.stdout.trim_end();
    let shown = json(&repository, &["show", id]);
    let page = |block: u32| serde_json::json!({"file": path, "block": block, "relation": "postgres.public.t"});
    assert_eq!(shown["bad_pages"], serde_json::json!([page(3), page(7)]));
    let text = Run::new(binaries::basebackup()).args(["show", id]).envs(repository.environment()).finish();
    assert!(
        text.stdout.contains("2 bad pages") && text.stdout.contains(&format!("{path} block 7 (postgres.public.t)")),
        "{text}"
    );
}

#[test]
fn nothing_is_left_of_a_backup_that_is_killed_at_any_moment() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    cluster.sql("create table t as select n, repeat('x', 100) from generate_series(1, 100000) n");
    let begun = Instant::now();
    let mut complete = vec![take_backup(&cluster, &repository)];
    let usual = begun.elapsed();
    let seed = u64::from(std::process::id());
    for (round, signal) in [Signal::KILL, Signal::TERM, Signal::INT].into_iter().cycle().take(15).enumerate() {
        let delay = usual.mul_f64(fraction(seed, round));
        let mut running = take(&cluster, &repository).start();
        std::thread::sleep(delay);
        let was_over = running.has_ended();
        if !was_over {
            running.signal(signal);
        }
        let ended = running.finish();
        let what = format!("seed {seed}, round {round}, {signal:?} after {delay:?}\n{ended}");
        let listed = backups(&repository);
        let new = listed.iter().filter(|id| !complete.contains(id)).cloned().collect::<Vec<_>>();
        // The last object may have been stored in the very moment before the kill.
        if signal != Signal::KILL || !ended.stdout.is_empty() {
            assert_eq!(new.is_empty(), ended.stdout.is_empty(), "{what}");
        }
        match signal {
            _ if was_over || ended.code() == 0 => assert_eq!(ended.code(), 0, "{what}"),
            Signal::KILL => assert_eq!(ended.code(), 137, "{what}"),
            // So early that nothing handled it yet, and nothing had begun.
            _ if ended.code() > 128 => assert!(new.is_empty() && ended.stderr.is_empty(), "{what}"),
            _ => {
                assert_eq!((ended.code(), new.len()), (1, 0), "{what}");
                ended.expect_stderr(&["ERROR: interrupted"]);
            }
        }
        complete = listed;
        wait_until_nobody_is_connected(&cluster);
    }
    let id = take_backup(&cluster, &repository);
    let extracted = Extracted::new(&repository, &id);
    extracted.verify();
    assert_eq!(extracted.recover(Cluster::options()).cluster.sql("select count(*) from t"), "100000");
}

/// A number from 0 to 1.1 that depends on both.
fn fraction(seed: u64, round: usize) -> f64 {
    let hash = blake3::hash(format!("{seed} {round}").as_bytes());
    f64::from(u16::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1]])) / 65536.0 * 1.1
}

#[test]
fn list_and_show_say_what_was_taken() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let basebackup =
        |arguments: &[&str]| Run::new(binaries::basebackup()).args(arguments).envs(repository.environment()).finish();
    basebackup(&["list"]).expect_code(1).expect_stderr(&["there is nothing", "HINT:"]);
    cluster.wait_until_archived(&cluster.finish_segment());
    assert!(basebackup(&["list"]).expect_silent_success().stdout.contains("No base backups"));
    basebackup(&["show", "latest"]).expect_code(1).expect_stderr(&["no base backups", "basebackup take"]);

    let taken = take(&cluster, &repository);
    let taken = taken.args(["-l", "before the 'upgrade'", "--note", "ticket=OPS-7", "--format", "json"]).finish();
    let taken: Value = serde_json::from_str(&taken.expect_code(0).stdout).unwrap();
    let id = taken["id"].as_str().unwrap();
    cluster.sql("create table t (n int)");
    let last = cluster.finish_segment();
    cluster.wait_until_archived(&last);

    assert_eq!(json(&repository, &["show", id]), taken);
    assert_eq!(json(&repository, &["show", "latest"]), taken);
    assert_eq!(taken["label"], "before the 'upgrade'");
    assert_eq!(taken["annotations"]["ticket"], "OPS-7");
    assert_eq!(taken["system_identifier"], cluster.system_identifier().to_string());
    assert_eq!(taken["pg_version"].as_u64().unwrap() / 10_000, u64::from(major()));
    assert_eq!(taken["data_directory"], cluster.data().display().to_string());
    assert_eq!(
        (&taken["type"], &taken["parent"], &taken["from_standby"]),
        (&"full".into(), &Value::Null, &false.into())
    );

    let list = json(&repository, &["list"]);
    let listed = &list["clusters"][0];
    assert_eq!(listed["backups"][0], taken);
    let window = &listed["windows"][0];
    assert_eq!((&window["first_backup"], &window["from_lsn"]), (&taken["id"], &taken["stop_lsn"]));
    assert_eq!((&window["last_segment"], &window["hole"]), (&last.as_str().into(), &Value::Null));

    let text = basebackup(&["list"]).expect_silent_success().stdout.clone();
    for words in [id, "before the 'upgrade'", taken["stop_lsn"].as_str().unwrap(), "Recovery is possible"] {
        assert!(text.contains(words), "{words:?}\n{text}");
    }
    let text = basebackup(&["show", id]).expect_silent_success().stdout.clone();
    for words in [id, "before the 'upgrade'", "ticket=OPS-7", taken["start_wal"].as_str().unwrap(), "primary on host"] {
        assert!(text.contains(words), "{words:?}\n{text}");
    }
    basebackup(&["show", "20000101T000000Z-0000"]).expect_code(1).expect_stderr(&["there is no base backup"]);
    basebackup(&["show", "yesterday"]).expect_code(2).expect_stderr(&["\"yesterday\""]);
}

#[test]
fn a_backup_in_a_bucket_recovers() {
    let repository = Repository::ceph();
    let cluster = archiving(&repository).start();
    cluster.sql("create table t as select n from generate_series(1, 1000) n");
    let id = take_backup(&cluster, &repository);
    drop(cluster);
    let extracted = Extracted::new(&repository, &id);
    extracted.verify();
    assert_eq!(extracted.recover(Cluster::options()).cluster.sql("select count(*) from t"), "1000");
}

#[test]
fn root_is_refused() {
    if !user::is_root() {
        return;
    }
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let refused = take(&cluster, &repository).as_caller().finish();
    refused.expect_code(2).expect_stderr(&["root", "--allow-root"]);
    assert_eq!(repository.objects(), Vec::<String>::new());
}

#[test]
#[ignore = "slow: backs up a gigabyte"]
fn a_large_database_needs_no_more_memory_than_a_small_one() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).checksums().configure("max_wal_size = 1GB").start();
    // Bytes that do not compress, so that all of them travel.
    cluster.sql(
        "create table t as select n, (select string_agg(md5(n::text || g), '') from generate_series(1, 50) g) \
                 from generate_series(1, 600000) n",
    );
    let running = take(&cluster, &repository).args(["--wal-timeout", "10min"]).timeout(SOON * 10).start();
    let (peak, taken) = peak_memory(running);
    let shown = json(&repository, &["show", taken.expect_code(0).stdout.trim_end()]);
    assert!(shown["plain_size"].as_u64().unwrap() > 1_000_000_000, "{shown}");
    assert!(peak > 10_000 && peak < 512 * 1024, "{peak} KiB");
}

/// Waits for the end of a program, and returns the most memory it was seen to use, in KiB.
pub(crate) fn peak_memory(mut running: Running) -> (u64, Finished) {
    let status = PathBuf::from(format!("/proc/{}/status", running.id()));
    let mut peak = 0;
    while !running.has_ended() {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(20));
    }
    (peak, running.finish())
}
