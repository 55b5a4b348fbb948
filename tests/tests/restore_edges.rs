//! `basebackup restore` where a cluster is not as it usually is: modes, leftover settings, tablespaces made in place,
//! backups of standbys, targets at the very end.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, Options, StopMode, major, setting};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;

const ROWS: &str = "select coalesce(string_agg(i::text, ',' order by i), '') from t";

/// Options of a server that archives into this repository.
fn archiving(repository: &Repository) -> Options {
    let archive = format!("{} %p", binaries::archive_push().display());
    Cluster::options().segment_size(1).environment(repository.environment()).archive_command(&archive)
}

fn basebackup(repository: &Repository, command: &str) -> Run {
    Run::new(binaries::basebackup()).envs(repository.environment()).arg(command)
}

fn take(repository: &Repository, cluster: &Cluster) -> String {
    let run = basebackup(repository, "take").args(cluster.connection()).finish();
    run.expect_code(0).stdout.trim().to_owned()
}

fn restore(repository: &Repository, target: &Scratch, arguments: &[&str]) -> Run {
    basebackup(repository, "restore").arg("-D").arg(target.path().join("data")).args(arguments)
}

fn start(repository: &Repository, target: &Scratch) -> Cluster {
    let options = Cluster::options().environment(repository.environment());
    let mut restored = Cluster::adopt(&target.path().join("data"), options);
    restored.start();
    restored
}

/// A row in a segment of its own, which is archived.
fn archived_row(cluster: &Cluster, number: u32) -> String {
    cluster.sql(&format!("insert into t values ({number})"));
    let segment = cluster.finish_segment();
    cluster.wait_until_archived(&segment);
    segment
}

#[test]
fn files_without_the_right_to_write_are_restored_as_they_were() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let certificates = cluster.data().join("certificates");
    fs::create_dir(&certificates).unwrap();
    let files = ["server.key", "certificates/root.crt"];
    for file in files {
        fs::write(cluster.data().join(file), file.repeat(1000)).unwrap();
        chmod(&cluster.data().join(file), 0o400);
    }
    chmod(&certificates, 0o500);
    take(&repository, &cluster);

    let target = Scratch::new("to");
    let data = target.path().join("data");
    let check = || {
        for file in files {
            assert_eq!(fs::read_to_string(data.join(file)).unwrap(), file.repeat(1000));
            assert_eq!(mode(&data.join(file)), 0o400, "{file}");
        }
        assert_eq!(mode(&data.join("certificates")), 0o500);
    };
    restore(&repository, &target, &["--target=immediate"]).finish().expect_code(0);
    check();

    // What was kept, and what has to be replaced, in a directory that forbids it.
    chmod(&data.join("certificates/root.crt"), 0o600);
    fs::write(data.join("certificates/root.crt"), "damaged").unwrap();
    chmod(&data.join("certificates/root.crt"), 0o400);
    fs::create_dir(data.join("extra")).unwrap();
    fs::write(data.join("extra/file"), "").unwrap();
    user::give(&data.join("extra/file"));
    chmod(&data.join("extra"), 0o500);
    restore(&repository, &target, &["--target=immediate", "--delta"]).finish().expect_code(0);
    check();
    assert!(!data.join("extra").exists());
    drop(start(&repository, &target));
    // Whoever is not root could not remove them otherwise.
    for directory in [&certificates, &data.join("certificates")] {
        chmod(directory, 0o700);
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    user::give(path);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn settings_left_from_an_earlier_recovery_do_not_change_this_one() {
    let repository = Repository::directory();
    let marker = repository.scratch().path().join("marker");
    let touch = format!("touch {}", marker.display());
    let options = archiving(&repository).configure("recovery_target_inclusive = off");
    let options = options.configure(setting("archive_cleanup_command", &touch));
    let options = options.configure(setting("recovery_end_command", &touch));
    let options = options.configure("primary_conninfo = 'host=/nonexistent'");
    let cluster = options.configure("recovery_min_apply_delay = '1h'").start();
    cluster.sql("create table t (i int)");
    take(&repository, &cluster);
    let xid = cluster.sql("insert into t values (1) returning txid_current()");
    archived_row(&cluster, 2);

    let target = Scratch::new("to");
    let promoted = restore(&repository, &target, &["--target-xid", &xid, "--target-action=promote"]).finish();
    assert!(!promoted.expect_code(0).stderr.contains("recovery target"), "{promoted}");
    let restored = start(&repository, &target);
    restored.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(restored.sql(ROWS), "1");
    assert_eq!(restored.sql("show recovery_min_apply_delay"), "0");
    assert_eq!(restored.sql("show primary_conninfo"), "");
    assert!(!marker.exists(), "a command of an earlier recovery was run");
}

#[test]
fn targets_left_in_configuration_files_are_not_where_recovery_ends() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    cluster.sql("create table t (i int)");
    let included = "include_if_exists = 'more.conf'";
    for (lines, more) in [(&["recovery_target_name = 'x'"][..], ""), (&[included], "recovery_target_xid = 3\n")] {
        let plain = fs::read(cluster.data().join("postgresql.conf")).unwrap();
        fs::write(cluster.data().join("more.conf"), more).unwrap();
        user::give(&cluster.data().join("more.conf"));
        cluster.configure(lines);
        cluster.sql("truncate t");
        let id = take(&repository, &cluster);
        cluster.sql("insert into t values (1)");
        let lsn = cluster.sql("select pg_current_wal_insert_lsn()");
        archived_row(&cluster, 2);
        for (arguments, rows) in [
            (&[id.as_str()][..], "1,2"),
            (&[&id, "--target=immediate", "--target-action=promote"], ""),
            (&[&id, "--target-lsn", &lsn, "--target-inclusive=false", "--target-action=promote"], "1"),
        ] {
            let target = Scratch::new("to");
            restore(&repository, &target, arguments).finish().expect_code(0);
            let restored = start(&repository, &target);
            restored.wait_for("select pg_is_in_recovery()", "f");
            assert_eq!(restored.sql(ROWS), rows, "{lines:?} {arguments:?}");
        }
        fs::write(cluster.data().join("postgresql.conf"), plain).unwrap();
    }
}

#[test]
fn a_tablespace_made_in_place_stays_in_the_data_directory() {
    if major() < 15 {
        return;
    }
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    // The restored server needs the setting, and has it although the original's configuration does not.
    cluster.sql("alter role current_user set allow_in_place_tablespaces = on");
    cluster.sql("create tablespace here location ''");
    cluster.sql("create table t tablespace here as select i from generate_series(1, 3) i");
    take(&repository, &cluster);
    let elsewhere = Scratch::new("cwd");
    let target = Scratch::new("to");
    restore(&repository, &target, &["--target=immediate", "--target-action=promote"])
        .current_dir(elsewhere.path())
        .finish()
        .expect_code(0);
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0, "written outside the data directory");
    let restored = start(&repository, &target);
    assert_eq!(restored.sql(ROWS), "1,2,3");
}

/// A server that was promoted, its lost primary, and a standby of it that has its last restartpoint before that.
struct Promotion {
    promoted: Cluster,
    standby: Cluster,
    _lost: Cluster,
}

impl Promotion {
    /// `command` is what the promoted server archives with.
    fn new(repository: &Repository, command: &str) -> Self {
        let mut lost = archiving(repository).start();
        lost.sql("create table t (i int)");
        let options = Cluster::options().environment(repository.environment()).archive_command(command);
        // The checkpoint after the promotion takes its time, so that the standby stays at its old restartpoint.
        let mut promoted = lost.standby(options.configure("checkpoint_timeout = '1h'"));
        promoted.start();
        let mut standby = promoted.standby(Cluster::options().configure("checkpoint_timeout = '1h'"));
        standby.start();
        archived_row(&lost, 1);
        lost.sql("create table filler as select repeat('x', 500) from generate_series(1, 20000)");
        standby.wait_for(ROWS, "1");
        lost.stop(StopMode::Fast);
        let end = lost.control("Latest checkpoint location");
        for cluster in [&promoted, &standby] {
            cluster.wait_for(&format!("select pg_last_wal_replay_lsn() > '{end}'"), "t");
        }
        promoted.promote();
        promoted.sql("insert into t values (2)");
        standby.wait_for(ROWS, "1,2");
        Self { promoted, standby, _lost: lost }
    }
}

#[test]
fn a_standbys_backup_across_a_promotion_is_restored_along_the_new_timeline() {
    let repository = Repository::directory();
    let push = format!("{} %p", binaries::archive_push().display());
    let Promotion { promoted, standby, .. } = Promotion::new(&repository, "false");
    // Nobody has archived the new timeline's history.
    let taken = basebackup(&repository, "take").args(standby.connection()).args(["--format", "json"]).finish();
    let backup: serde_json::Value = serde_json::from_str(&taken.expect_code(0).stdout).unwrap();
    assert_eq!((&backup["timeline"], &backup["stop_timeline"]), (&1.into(), &2.into()), "{backup}");
    let _ = repository.find("00000002.history.zst");
    let list = basebackup(&repository, "list").finish();
    assert!(!list.expect_code(0).stdout.contains("nothing yet"), "{list}");

    promoted.configure(&[setting("archive_command", &push)]);
    promoted.reload();
    archived_row(&promoted, 3);
    for arguments in [&["--target-action=promote", "--target=immediate"][..], &["--target-timeline=current"], &[]] {
        let target = Scratch::new("to");
        restore(&repository, &target, arguments).finish().expect_code(0);
        let restored = start(&repository, &target);
        restored.wait_for("select pg_is_in_recovery()", "f");
        let rows = restored.sql(ROWS);
        assert!(if arguments.len() == 2 { rows.starts_with("1,2") } else { rows == "1,2,3" }, "{arguments:?}: {rows}");
    }
    let parent = restore(&repository, &Scratch::new("to"), &["--target-timeline=1"]).finish();
    assert_eq!(parent.code(), 1, "{parent}");
}
