//! `basebackup restore` beside, over and into what belongs to a server: nothing of it is damaged, and nothing is lost that is
//! in no archive.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Run, tool};
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};
use walkeep_tests::worker;

use crate::site::{Place, archiving, basebackup, take, verify, wait_until_open};

const ROWS: &str = "select count(*) from t";

/// A server whose only table lies in a tablespace that its backup does not know.
struct Later {
    repository: Repository,
    server: Cluster,
    space: std::path::PathBuf,
    /// Before the tablespace was there.
    before: String,
    /// Before it too, but nothing was committed in between.
    between: String,
    /// With 1000 rows.
    lsn: String,
}

impl Later {
    fn start() -> Self {
        let repository = Repository::directory();
        let server = archiving(&repository).start();
        take(&repository, &server);
        server.sql("create table early as select 1; select pg_sleep(1.1)");
        let before = server.sql("select clock_timestamp()::text");
        server.sql("create table late as select 1");
        server.sql("select pg_sleep(1.1)");
        let between = server.sql("select clock_timestamp()::text");
        server.sql("select pg_sleep(1.1)");
        let space = server.scratch().create_private("later");
        server.sql(&format!("create tablespace later location '{}'", space.display()));
        server.sql("create table t tablespace later as select generate_series(1, 1000) n");
        let lsn = server.sql("select pg_current_wal_insert_lsn()");
        server.sql("insert into t select generate_series(1001, 5000); checkpoint");
        server.wait_until_archived(&server.finish_segment());
        Self { repository, server, space, before, between, lsn }
    }
}

#[test]
fn a_copy_beside_its_original_does_not_recover_into_the_original_s_new_tablespaces() {
    let Later { repository, mut server, before, between, lsn, .. } = Later::start();
    let to_lsn = ["--target-lsn", &lsn, "--target-action=promote"];
    // Up to the first commit behind the target everything is replayed.
    for words in [&[][..], &to_lsn, &["--target-time", &between], &["--dry-run"]] {
        let place = Place::new();
        let refused = place.restoring(&repository, words).finish();
        refused.expect_code(1).expect_stderr(&["was created after the backup", "recover to a time well before"]);
        assert!(place.is_untouched());
    }
    let place = Place::new();
    place.restore(&repository, &["--target-time", &before, "--target-action=promote"]);
    let mut copy = place.server(&repository);
    copy.start();
    wait_until_open(&copy);
    assert_eq!(copy.sql("select count(*) from early"), "1");
    server.stop(StopMode::Fast);
    server.start();
    assert_eq!(server.sql(ROWS), "5000");
}

#[test]
fn recovery_in_place_makes_a_later_tablespace_anew() {
    let Later { repository, mut server, space, lsn, .. } = Later::start();
    server.stop(StopMode::Fast);
    let data = server.data().display().to_string();
    let words = ["restore", "-D", &data, "--delta", "--target-lsn", &lsn, "--target-action=promote"];
    let refused = basebackup(&repository, &words).finish();
    refused.expect_code(1).expect_stderr(&["created after the backup", "Move that directory away"]);
    let version = fs::read_dir(&space).unwrap().next().unwrap().unwrap().path();
    fs::rename(&version, version.with_extension("away")).unwrap();
    basebackup(&repository, &words).finish().expect_code(0);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql(ROWS), "1000");
}

#[test]
fn recovery_in_the_old_place_does_not_use_what_the_directory_that_was_moved_away_has_left() {
    let Later { repository, mut server, space, lsn, .. } = Later::start();
    server.stop(StopMode::Fast);
    let data = server.data().to_owned();
    fs::rename(&data, data.with_extension("damaged")).unwrap();
    let words = ["--target-lsn", &lsn, "--target-action=promote", "-D"];
    let restoring = || basebackup(&repository, &["restore"]).args(words).arg(&data).finish();
    restoring().expect_code(1).expect_stderr(&["data.damaged", "If no server needs it, move that directory away"]);
    let version = fs::read_dir(&space).unwrap().next().unwrap().unwrap().path();
    fs::rename(&version, version.with_extension("away")).unwrap();
    restoring().expect_code(0);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql(ROWS), "1000");
}

#[test]
fn the_tablespace_of_a_copy_made_by_hand_is_still_the_original_s() {
    let repository = Repository::directory();
    let mut server = archiving(&repository).start();
    let space = server.scratch().create_private("space");
    server.sql(&format!("create tablespace space location '{}'", space.display()));
    server.sql("create table t tablespace space as select generate_series(1, 1000) n");
    take(&repository, &server);
    server.stop(StopMode::Fast);
    let place = Place::new();
    tool("cp", ["-a", server.data().to_str().unwrap(), place.data().to_str().unwrap()]);
    server.start();
    server.sql("insert into t select 1; checkpoint");
    let refused = place.restoring(&repository, &["--delta"]).finish();
    refused.expect_code(1).expect_stderr(&["is in use by the cluster in", "--tablespace-mapping"]);
    let own = place.around().create_private("own");
    let mapping = format!("{}={}", space.display(), own.display());
    place.restore(&repository, &["--delta", "-T", &mapping]);
    server.stop(StopMode::Fast);
    server.start();
    assert_eq!(server.sql(ROWS), "1001");
}

#[test]
fn wal_that_is_in_no_archive_is_not_lost_with_its_directory() {
    let repository = Repository::directory();
    let mut server = archiving(&repository).start();
    server.sql("create table t as select generate_series(1, 1000) n");
    take(&repository, &server);
    // Nor must a worker that is still there from the backup push ahead.
    for process in worker::of(server.data()) {
        kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).ok();
    }
    server.configure(&["archive_command = 'false'"]);
    server.reload();
    server.wait_for("show archive_command", "false");
    // The archiver reads it before it takes the next file; it may be at one now.
    server.finish_segment();
    server.wait_for("select failed_count > 0 from pg_stat_archiver", "t");
    server.sql("insert into t select 1");
    let name = server.finish_segment();
    server.kill();
    let data = server.data().to_owned();
    let restoring =
        |words: &[&str]| basebackup(&repository, &["restore", "--delta", "-D"]).arg(&data).args(words).finish();
    for words in [&[][..], &["--dry-run"]] {
        restoring(words).expect_code(1).expect_stderr(&[&name, "is in no archive", "archive-push pg_wal/"]);
    }
    let standby = restoring(&["--standby", "--dry-run"]);
    standby.expect_code(0).expect_stderr(&["WARNING", &name, "is lost with this restore", "was not shut down"]);
    // As the hint says.
    for waiting in waiting(&data) {
        push(&repository, &data, &waiting);
    }
    restoring(&[]).expect_code(0);
    server.start();
    wait_until_open(&server);
    assert_eq!(server.sql(ROWS), "1001");
}

/// The files that wait to be archived.
fn waiting(data: &Path) -> Vec<String> {
    let entries = fs::read_dir(data.join("pg_wal/archive_status")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut waiting: Vec<String> = names.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned)).collect();
    waiting.sort();
    waiting
}

fn push(repository: &Repository, data: &Path, name: &str) {
    let push = Run::new(binaries::archive_push()).arg(format!("pg_wal/{name}")).current_dir(data);
    push.envs(repository.environment()).finish().expect_code(0);
    user::give(data);
}

#[test]
fn a_copy_starts_itself_and_not_its_original_and_keeps_off_its_files() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).create();
    let pid_file = cluster.scratch().path().join("server.pid");
    let configured = [
        format!("data_directory = '{}'", cluster.data().display()),
        format!("hba_file = '{}/pg_hba.conf'", cluster.data().display()),
        format!("external_pid_file = '{}'", pid_file.display()),
    ];
    let mut server = cluster;
    server.configure(&configured.iter().map(String::as_str).collect::<Vec<_>>());
    server.start();
    server.sql("create table t as select generate_series(1, 1000) n");
    take(&repository, &server);
    server.wait_until_archived(&server.finish_segment());
    let pid = fs::read_to_string(&pid_file).unwrap();

    let place = Place::new();
    let said = place.restore(&repository, &[]).stdout;
    assert!(said.contains("Subscriptions are off") && said.contains("RESET recovery_target_timeline;"), "{said}");
    verify(&place.data());
    let mut copy = place.server(&repository);
    copy.start();
    wait_until_open(&copy);
    assert_eq!(copy.sql("show data_directory"), place.data().display().to_string());
    assert_eq!(copy.sql("show hba_file"), place.data().join("pg_hba.conf").display().to_string());
    assert_eq!(copy.sql("show max_logical_replication_workers"), "0");
    assert_eq!(copy.sql(ROWS), "1000");
    copy.stop(StopMode::Fast);
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid);
}

#[test]
fn two_restores_do_not_write_into_one_directory() {
    let repository = Repository::directory();
    let server = archiving(&repository).start();
    take(&repository, &server);
    let place = Place::new();
    let data = place.around().create_private("data");
    let holding = Run::new("flock").arg("--no-fork").arg(&data).args(["sleep", "60"]).start();
    let refused = || place.restoring(&repository, &[]).finish();
    until("the lock is held", SOON, || (refused().code() == 1).then_some(()));
    refused().expect_code(1).expect_stderr(&["another restore writes into", "HINT: Wait for its end"]);
    assert!(fs::read_dir(&data).unwrap().next().is_none());
    holding.signal(Signal::TERM);
    drop(holding.finish());
}
