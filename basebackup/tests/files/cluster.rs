//! A throwaway cluster of a real PostgreSQL, run by an unprivileged user.
//!
//! `$PG_BIN` names the directory of its programs; without it the newest below `/usr/lib/postgresql` is used.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use basebackup::files::scan::{Scan, ScanOptions, scan};
use tempfile::TempDir;
use walkeep_common::postgres::control::ControlFile;

/// A running or stopped cluster below a directory of its own.
pub(crate) struct Cluster {
    scratch: TempDir,
}

/// A session that stays until it is dropped.
pub(crate) struct Session(Child);

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory that PostgreSQL's user may use as well.
pub(crate) fn scratch() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    if is_root() {
        let owner = |flag: &str| {
            let output = Command::new("id").args([flag, "postgres"]).output().unwrap();
            Some(String::from_utf8(output.stdout).unwrap().trim().parse().unwrap())
        };
        chown(scratch.path(), owner("-u"), owner("-g")).unwrap();
    }
    scratch
}

/// A command that runs as an unprivileged user.
pub(crate) fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
    command
}

/// The path of one of PostgreSQL's programs.
pub(crate) fn program(name: &str) -> PathBuf {
    let directory = std::env::var_os("PG_BIN").map_or_else(newest_installed, PathBuf::from);
    directory.join(name)
}

fn newest_installed() -> PathBuf {
    let majors = std::fs::read_dir("/usr/lib/postgresql").expect("no PostgreSQL below /usr/lib/postgresql");
    let majors = majors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    PathBuf::from(format!("/usr/lib/postgresql/{}/bin", majors.max().expect("a major")))
}

/// Runs a command and returns what it prints; panics when it fails.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, printed(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Both outputs, for messages.
pub(crate) fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

impl Cluster {
    /// Makes a cluster with data checksums and starts it. Nothing changes in it but by the test.
    pub(crate) fn start() -> Self {
        let cluster = Self { scratch: scratch() };
        let mut initdb = cluster.command("initdb");
        initdb.args(["-k", "-A", "trust", "-U", "postgres", "--no-sync", "--locale=C", "-E", "UTF8", "-D"]);
        run(initdb.arg(cluster.data()));
        let socket = cluster.path().display();
        let settings = format!(
            "unix_socket_directories = '{socket}'\nlisten_addresses = ''\nautovacuum = off\nfsync = off\njit = off\n"
        );
        std::fs::OpenOptions::new()
            .append(true)
            .open(cluster.data().join("postgresql.conf"))
            .unwrap()
            .write_all(settings.as_bytes())
            .unwrap();
        cluster.pg_ctl("start");
        cluster
    }

    /// Stops it with a checkpoint.
    pub(crate) fn stop(&self) {
        self.pg_ctl("stop");
    }

    fn pg_ctl(&self, action: &str) {
        let log = self.path().join("log");
        // The server must not inherit a pipe that somebody waits to be closed.
        let mut pg_ctl = self.command("pg_ctl");
        pg_ctl.arg(action).args(["-w", "-m", "fast", "-D"]).arg(self.data());
        let pg_ctl = pg_ctl.arg("-l").arg(&log).stdout(Stdio::null()).stderr(Stdio::null());
        let status = pg_ctl.status().unwrap();
        assert!(status.success(), "pg_ctl {action}\n{}", std::fs::read_to_string(log).unwrap_or_default());
    }

    /// The directory that holds the data directory, the socket, and whatever else a test puts there.
    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// One of PostgreSQL's programs, run by its user.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = unprivileged(program(name));
        command.current_dir(self.path()).env("PGHOST", self.path()).env("PGUSER", "postgres").env("LC_ALL", "C");
        command
    }

    /// Runs SQL, each statement for itself, and returns what the last one answers.
    #[track_caller]
    pub(crate) fn sql(&self, statements: &[&str]) -> String {
        let mut psql = self.command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        for statement in statements {
            psql.args(["-c", statement]);
        }
        run(&mut psql).trim_end().to_owned()
    }

    /// Begins a session with some SQL and leaves it open.
    pub(crate) fn session(&self, sql: &str) -> Session {
        let mut psql = self.command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        writeln!(child.stdin.as_mut().unwrap(), "{sql};\nselect 'done';").unwrap();
        let mut answer = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
        assert_eq!(answer, "done\n");
        Session(child)
    }

    pub(crate) fn major(&self) -> u32 {
        std::fs::read_to_string(self.data().join("PG_VERSION")).unwrap().trim().parse().unwrap()
    }

    pub(crate) fn control(&self) -> ControlFile {
        ControlFile::read(&self.data()).unwrap()
    }

    /// OID and location of every tablespace, as the catalog has them.
    pub(crate) fn tablespaces(&self) -> BTreeMap<u32, PathBuf> {
        let rows =
            self.sql(&["select oid, pg_tablespace_location(oid) from pg_tablespace where oid not in (1663, 1664)"]);
        let rows = rows.lines().map(|row| row.split_once('|').unwrap());
        rows.map(|(oid, location)| (oid.parse().unwrap(), location.into())).collect()
    }

    /// Lists what a base backup copies.
    pub(crate) fn scan(&self, tablespaces: &BTreeMap<u32, PathBuf>) -> Scan {
        let catalog_version = self.control().catalog_version;
        let options = ScanOptions { pg_major: self.major(), catalog_version, tablespaces, stats_temp_directory: None };
        scan(&self.data(), &options).unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.data().join("postmaster.pid").exists() {
            let mut pg_ctl = self.command("pg_ctl");
            let _ = pg_ctl.args(["stop", "-m", "immediate", "-D"]).arg(self.data()).stdout(Stdio::null()).status();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // End of input ends psql.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
