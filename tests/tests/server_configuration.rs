//! Configuration outside the data directory, as Debian has it: kept with a backup, and restored.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use walkeep_tests::cluster::{Cluster, StopMode, major, setting};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;

use crate::site::{archiving, basebackup, take};

/// A server whose configuration lies as in Debian, partly shared with others; its backup.
struct Site {
    repository: Repository,
    cluster: Cluster,
    id: String,
}

impl Site {
    fn make() -> Self {
        let repository = Repository::directory();
        let mut cluster = archiving(&repository).create();
        let etc = cluster.scratch().create_private("etc");
        let write = |name: &str, text: &str| {
            fs::create_dir_all(etc.join(name).parent().unwrap()).unwrap();
            fs::write(etc.join(name), text).unwrap();
            etc.join(name).ancestors().take_while(|path| *path != etc).for_each(user::give);
        };
        write("15/main/conf.d/own.conf", "work_mem = '7MB'\nrecovery_target_name = 'left behind'\n");
        write("shared.conf", "maintenance_work_mem = '13MB'\n");
        write("15/main/environment", "# nothing\n");
        write("15/main/start.conf", "auto\n");
        write("15/main/secret", "not a configuration file\n");
        let main = etc.join("15/main");
        // As Debian has it: a directory to include, with nothing in it.
        fs::create_dir(main.join("empty.d")).unwrap();
        user::give(&main.join("empty.d"));
        cluster.move_configuration(&main);
        let shared = setting("include", etc.join("shared.conf").to_str().unwrap());
        cluster.configure(&[
            "include_dir = 'conf.d'",
            "include_dir = 'empty.d'",
            &shared,
            "max_connections = 37",
            "port = 5499",
            &setting("hba_file", etc.join("15/../15/main/pg_hba.conf").to_str().unwrap()),
        ]);
        cluster.start();
        cluster.sql("create table t (i int); insert into t values (42)");
        let id = take(&repository, &cluster);
        Self { repository, cluster, id }
    }

    fn restore(&self, data: &Path, words: &[&str]) -> Run {
        basebackup(&self.repository, &["restore"]).arg("-D").arg(data).args(words)
    }
}

fn etc_text(etc: &Path) -> String {
    etc.to_str().unwrap().to_owned()
}

#[test]
fn configuration_outside_the_data_directory_is_kept_and_restored() {
    let site = Site::make();
    let show = basebackup(&site.repository, &["show", &site.id, "--format", "json"]).finish();
    let show: Value = serde_json::from_str(&show.expect_code(0).stdout).unwrap();
    let files: Vec<&str> =
        show["configuration"]["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    let etc = site.cluster.scratch().path().join("etc");
    let expected = ["conf.d/own.conf", "environment", "pg_hba.conf", "pg_ident.conf", "postgresql.conf", "start.conf"];
    let expected = expected.map(|name| etc.join("15/main").join(name)).into_iter().chain([etc.join("shared.conf")]);
    assert_eq!(files, expected.map(|path| etc_text(&path)).collect::<Vec<_>>());

    let target = Scratch::new("restored");
    let plain = site.restore(&target.path().join("plain"), &[]).finish();
    plain.expect_code(0).expect_stderr(&["there is no postgresql.conf", "--config-dir"]);

    let (data, directory) = (target.path().join("data"), target.path().join("config"));
    let restored = site.restore(&data, &["--config-dir", directory.to_str().unwrap()]).finish();
    let start = format!("pg_ctl -D \"{}\" start", directory.display());
    assert!(restored.expect_code(0).stdout.contains(&start), "{restored}");
    assert!(!restored.stderr.contains("postgresql.conf"), "{restored}");
    assert!(!directory.join("secret").exists());
    let mut copy = adopt(&site, &data, &directory);
    let show = |name: &str| copy.sql(&format!("show {name}"));
    assert_eq!([show("work_mem"), show("maintenance_work_mem"), show("max_connections")], ["7MB", "13MB", "37"]);
    assert_eq!(show("data_directory"), data.to_str().unwrap());
    for file in ["hba_file", "config_file"] {
        assert!(show(file).starts_with(directory.to_str().unwrap()), "{file} is {}", show(file));
    }
    let moved = directory.join(etc.strip_prefix("/").unwrap()).join("shared.conf");
    let sources = copy.sql("select sourcefile from pg_settings where name = 'maintenance_work_mem'");
    assert_eq!(sources, moved.to_str().unwrap());
    copy.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(copy.sql("select i from t"), "42");
    copy.stop(StopMode::Fast);

    let again = site.restore(&target.path().join("again"), &["--config-dir", directory.to_str().unwrap()]).finish();
    again.expect_code(1).expect_stderr(&["is not empty"]);
    assert!(!target.path().join("again").exists());
}

#[test]
fn configuration_that_is_a_link_in_the_data_directory_is_kept_and_restored() {
    let repository = Repository::directory();
    let mut cluster = archiving(&repository).create();
    let managed = cluster.scratch().create_private("managed");
    let data = cluster.data().to_owned();
    for name in ["pg_hba.conf", "extra.conf"] {
        fs::write(data.join(name), fs::read(data.join(name)).unwrap_or_default()).unwrap();
        fs::rename(data.join(name), managed.join(name)).unwrap();
        std::os::unix::fs::symlink(managed.join(name), data.join(name)).unwrap();
    }
    fs::write(managed.join("extra.conf"), "work_mem = '7MB'\n").unwrap();
    for name in ["pg_hba.conf", "extra.conf"] {
        user::give(&managed.join(name));
    }
    cluster.configure(&["include = 'extra.conf'"]);
    cluster.start();
    let id = take(&repository, &cluster);
    cluster.wait_until_archived(&cluster.finish_segment());
    let site = Site { repository, cluster, id };

    let target = Scratch::new("restored");
    let plain = site.restore(&target.path().join("plain"), &[]).finish();
    plain.expect_code(0).expect_stderr(&["2 configuration file(s)", "plain/extra.conf", "--config-dir"]);
    let (data, directory) = (target.path().join("data"), target.path().join("config"));
    let restored = site.restore(&data, &["--config-dir", directory.to_str().unwrap()]).finish();
    assert!(!restored.expect_code(0).stderr.contains("configuration file(s)"), "{restored}");
    let copy = adopt(&site, &data, &directory);
    assert_eq!(copy.sql("show hba_file"), directory.join("pg_hba.conf").to_str().unwrap());
}

fn adopt(site: &Site, data: &Path, directory: &Path) -> Cluster {
    let options = Cluster::options().environment(site.repository.environment());
    let mut copy = Cluster::adopt_configured(data, directory, options);
    copy.start();
    copy
}

/// Where postgresql-common keeps clusters while this test runs.
struct Debian {
    root: PathBuf,
}

impl Debian {
    fn run(&self, program: &str, words: &[&str]) -> Finished {
        Run::new(program).args(words).env("PG_CLUSTER_CONF_ROOT", self.root.display().to_string()).finish()
    }
}

#[test]
fn a_backup_becomes_a_cluster_of_debians() {
    let site = Site::make();
    let target = Scratch::new("debian");
    let debian = Debian { root: target.create_private("etc") };
    let (data, name) = (target.path().join("data"), format!("{}/restored", major()));
    let words = ["--to-cluster", &name];
    let restore =
        |words: &[&str]| site.restore(&data, words).env("PG_CLUSTER_CONF_ROOT", debian.root.display().to_string());

    let wrong = restore(&["--to-cluster", "9/restored"]).finish();
    wrong.expect_code(2).expect_stderr(&[&format!("Name it {name}")]);
    let restored = restore(&words).finish();
    assert!(
        restored.expect_code(0).stdout.contains(&format!("pg_ctlcluster {} restored start", major())),
        "{restored}"
    );
    let listed = debian.run("pg_lsclusters", &["--no-header"]);
    let columns: Vec<&str> = listed.expect_code(0).stdout.split_whitespace().collect();
    assert_eq!(columns[..2], [&major().to_string(), "restored"], "{listed}");
    assert!(columns[3].starts_with("down,recovery") && Path::new(columns[5]) == data, "{listed}");
    let directory = debian.root.join(&name);
    assert_eq!(fs::read_to_string(directory.join("start.conf")).unwrap(), "manual\n");

    let again = site
        .restore(&target.path().join("other"), &words)
        .env("PG_CLUSTER_CONF_ROOT", debian.root.display().to_string())
        .finish();
    again.expect_code(1).expect_stderr(&["there is a cluster", "already"]);

    let copy = adopt(&site, &data, &directory);
    copy.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!(copy.sql("show cluster_name"), name);
    let main = fs::read_to_string(directory.join("postgresql.conf")).unwrap();
    assert!(main.contains(&format!("port = '{}'\n", columns[2])) && !main.contains("port = 5499"), "{main}");
    assert_eq!(copy.sql("select i from t"), "42");
}

#[test]
fn configuration_in_the_data_directory_becomes_a_cluster_of_debians_too() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).configure("max_connections = 37").start();
    take(&repository, &cluster);
    let target = Scratch::new("debian");
    let root = target.create_private("etc");
    let data = target.path().join("data");
    let name = format!("{}/inside", major());
    let restore = |words: &[&str]| basebackup(&repository, &["restore"]).arg("-D").arg(&data).args(words);
    // Nothing was outside: what is in the data directory is read from there.
    let leading = target.path().join("leading");
    restore(&["--config-dir", leading.to_str().unwrap()]).finish().expect_code(0);
    let options = Cluster::options().environment(repository.environment());
    let mut copy = Cluster::adopt_configured(&data, &leading, options);
    copy.start();
    assert_eq!(copy.sql("show max_connections"), "37");
    drop(copy);
    fs::remove_dir_all(&data).unwrap();
    restore(&["--to-cluster", &name]).env("PG_CLUSTER_CONF_ROOT", root.display().to_string()).finish().expect_code(0);
    let options = Cluster::options().environment(repository.environment());
    let mut copy = Cluster::adopt_configured(&data, &root.join(&name), options);
    copy.start();
    copy.wait_for("select pg_is_in_recovery()", "f");
    assert_eq!([copy.sql("show max_connections"), copy.sql("show cluster_name")], ["37".to_owned(), name]);
    assert_eq!(copy.sql("show hba_file"), data.join("pg_hba.conf").to_str().unwrap());
}
