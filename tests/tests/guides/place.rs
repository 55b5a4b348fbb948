//! A host as the guides describe it: a cluster `15/main`, a repository, the directory `/srv/walkeep`, `sudo` and `systemctl`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, Options, bin_directory, program, setting};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

/// The host. Servers that the commands of a guide have started end with it.
#[derive(Debug)]
pub(super) struct Place {
    /// The repository that the configuration names.
    pub(super) repository: Repository,
    /// The cluster `15/main`.
    pub(super) server: Cluster,
    scratch: Scratch,
    environment: Vec<(String, String)>,
    replacements: Vec<(String, String)>,
}

impl Place {
    /// A host whose server archives into a repository in a directory.
    pub(super) fn new() -> Self {
        Self::with(Repository::directory(), |options| options.archive_command("archive-push %p"))
    }

    /// A host with this repository, and a server with these options, which runs.
    pub(super) fn with(repository: Repository, options: impl FnOnce(Options) -> Options) -> Self {
        let place = Self::stopped(repository, options);
        place.sh("systemctl start postgresql@15-main").expect_code(0);
        place
    }

    /// A host whose server was never started.
    pub(super) fn stopped(repository: Repository, options: impl FnOnce(Options) -> Options) -> Self {
        let scratch = Scratch::new("guide");
        let [home, srv, shims] = ["home", "srv", "shims"].map(|name| scratch.create_private(name));
        // What keeps a server waiting for the next try is of no interest here.
        let options = options(Cluster::options().segment_size(1)).configure("wal_retrieve_retry_interval = '200ms'");
        let mut server = options.create();
        // As Debian has it.
        let etc = server.scratch().create_private("etc");
        server.move_configuration(&etc);
        server.configure(&[setting("external_pid_file", &etc.join("main.pid").display().to_string())]);
        let socket = server.socket_directory().display().to_string();
        server.configure(&[format!("unix_socket_directories = '{socket}'")]);
        let data = server.data().display().to_string();
        executable(&shims, "sudo", "while :; do case $1 in -u) shift 2;; -*) shift;; *) exec \"$@\";; esac; done");
        let log = server.scratch().path().join("log");
        executable(&shims, "systemctl", &format!("exec pg_ctl -s -w -D {} -l {} \"$1\"", etc.display(), log.display()));

        // A server beside it that was made by hand has the configuration in its data directory.
        let copy =
            "cp ETC/pg_*.conf \"$1\"; grep -v -e _file -e data_directory ETC/postgresql.conf >\"$1\"/postgresql.conf";
        executable(&shims, "configure", &copy.replace("ETC", &etc.display().to_string()));

        let programs = binaries::archive_push().parent().unwrap().display().to_string();
        let path = [shims.display().to_string(), programs, bin_directory().display().to_string()].join(":");
        let mut environment = repository.environment().to_vec();
        for (name, value) in [
            ("PATH", format!("{path}:/usr/bin:/bin")),
            ("HOME", home.display().to_string()),
            ("PGHOST", socket),
            ("PGUSER", "postgres".to_owned()),
        ] {
            environment.push((name.to_owned(), value));
        }
        let mut replacements = vec![
            ("/var/lib/postgresql/15/main".to_owned(), data),
            ("/etc/postgresql/15/main".to_owned(), etc.display().to_string()),
            ("/srv/walkeep/".to_owned(), format!("{}/", srv.display())),
            ("/etc/walkeep/walkeep.toml".to_owned(), repository.configuration().display().to_string()),
        ];
        if let Some(directory) = repository.url().strip_prefix("file://") {
            replacements.push(("/var/backups/walkeep".to_owned(), directory.to_owned()));
        }
        Self { repository, server, scratch, environment, replacements }
    }

    /// Has something that guides mention replaced by what it is here.
    pub(super) fn replace(&mut self, from: &str, to: &str) {
        self.replacements.insert(0, (from.to_owned(), to.to_owned()));
    }

    /// Sets a variable of the commands and of servers that are started from now on.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Takes away the variables whose names begin so.
    pub(super) fn unset_prefix(&mut self, prefix: &str) {
        self.environment.retain(|(name, _)| !name.starts_with(prefix));
    }

    /// A guide's text with this host's names.
    pub(super) fn adapted(&self, text: &str) -> String {
        self.replacements.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    /// Where a path that a guide mentions is here.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.adapted(path).into()
    }

    /// Runs commands as they stand in a guide. The first that fails ends them.
    pub(super) fn sh(&self, commands: &str) -> Finished {
        let shell = Run::new("bash").args(["-eo", "pipefail", "-c", &self.adapted(commands)]);
        shell.current_dir(self.scratch.path()).envs(&self.environment).finish()
    }

    /// Asks the server on this port.
    #[track_caller]
    pub(super) fn sql(&self, port: u16, query: &str) -> String {
        let answer = self.ask(port, query);
        answer.expect_code(0).stdout.trim_end().to_owned()
    }

    /// Asks the server on this port until it answers so.
    #[track_caller]
    pub(super) fn wait_for(&self, port: u16, query: &str, answer: &str) {
        until(&format!("{query} answers {answer:?} on port {port}"), SOON, || {
            let answered = self.ask(port, query);
            (answered.code() == 0 && answered.stdout.trim_end() == answer).then_some(())
        });
    }

    fn ask(&self, port: u16, query: &str) -> Finished {
        let psql = Run::new(program("psql")).args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-c", query]);
        psql.args(["-p", &port.to_string()]).envs(&self.environment).finish()
    }
}

impl Drop for Place {
    #[expect(clippy::print_stderr, reason = "the log of a server belongs to the report of a failed test")]
    fn drop(&mut self) {
        let around = [self.scratch.path().join("srv"), self.server.scratch().path().to_owned()];
        for entry in around.iter().filter_map(|directory| fs::read_dir(directory).ok()).flatten().flatten() {
            if entry.path().join("postmaster.pid").exists() {
                let stop = Run::new(program("pg_ctl")).args(["stop", "-s", "-m", "immediate", "-D"]);
                stop.arg(entry.path()).start().finish();
            }
            if std::thread::panicking() && entry.path().extension().is_some_and(|extension| extension == "log") {
                eprintln!("--- {}\n{}", entry.path().display(), fs::read_to_string(entry.path()).unwrap_or_default());
            }
        }
    }
}

fn executable(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    user::give(&path);
}
