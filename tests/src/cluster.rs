//! A real PostgreSQL of any major.
//!
//! `$PG_BIN` names the directory of its programs; without it the newest below `/usr/lib/postgresql` is used.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::Signal;

use crate::daemon::{Daemon, Server};
use crate::run::{Finished, Run};
use crate::scratch::Scratch;
use crate::wait::{SOON, until};

/// What a new cluster is like.
#[derive(Debug, Clone)]
#[must_use]
pub struct Options {
    initdb: Vec<String>,
    configuration: Vec<String>,
    environment: Vec<(String, String)>,
    data_name: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { initdb: Vec::new(), configuration: Vec::new(), environment: Vec::new(), data_name: "data".to_owned() }
    }
}

impl Options {
    /// Sets the size of WAL segments in MiB.
    pub fn segment_size(self, mebibytes: u32) -> Self {
        self.initdb_option(&format!("--wal-segsize={mebibytes}"))
    }

    /// Turns data checksums on (they are anyway from 18).
    pub fn checksums(self) -> Self {
        self.initdb_option("--data-checksums")
    }

    /// Lets the group read the data directory (0750, 0640).
    pub fn group_access(self) -> Self {
        self.initdb_option("--allow-group-access")
    }

    /// Adds an option of initdb.
    pub fn initdb_option(mut self, option: &str) -> Self {
        self.initdb.push(option.to_owned());
        self
    }

    /// Adds a line to `postgresql.conf`.
    pub fn configure(mut self, line: impl Into<String>) -> Self {
        self.configuration.push(line.into());
        self
    }

    /// Turns archiving on, with this command.
    pub fn archive_command(self, command: &str) -> Self {
        self.configure("archive_mode = on").configure(setting("archive_command", command))
    }

    /// Adds variables to the server's environment, and so to that of its `archive_command` and `restore_command`.
    pub fn environment(mut self, variables: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    /// Names the data directory, where its name matters.
    pub fn data_directory_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.data_name);
        self
    }

    /// Runs initdb.
    pub fn create(self) -> Cluster {
        let cluster = Cluster::in_new_directory(self);
        let mut initdb = Run::new(program("initdb")).arg("-D").arg(&cluster.data);
        initdb = initdb.args(["-U", "postgres", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8"]);
        initdb.args(&cluster.options.initdb).finish().expect_code(0);
        // Speed: no test pulls the plug on the machine. What must be durable is seen by strace.
        cluster.configure(&["fsync = off", "listen_addresses = ''", "log_min_messages = info", "jit = off"]);
        cluster.configure(&["max_wal_senders = 10", "wal_level = replica", "shared_buffers = 16MB"]);
        cluster.configure(&cluster.options.configuration);
        cluster
    }

    /// Runs initdb and starts the server.
    pub fn start(self) -> Cluster {
        let mut cluster = self.create();
        cluster.start();
        cluster
    }
}

/// How a server is told to stop (`pg_ctl stop -m`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for clients to leave.
    Smart,
    /// Ends connections, writes a checkpoint, archives what is left.
    Fast,
    /// Stops without a checkpoint: recovery at the next start.
    Immediate,
}

/// A database cluster and, while it runs, its server.
///
/// The server is the harness's own child, so its end is seen at once. When the test fails, its log is printed.
#[derive(Debug)]
pub struct Cluster {
    server: Option<Daemon>,
    data: PathBuf,
    /// The directory of `postgresql.conf`.
    configuration: PathBuf,
    options: Options,
    scratch: Scratch,
}

/// Returns the path of one of PostgreSQL's programs, of the tested major where that has it.
///
/// Some sources of a major bring the server alone; then a client of the machine's own major is used.
pub fn program(name: &str) -> PathBuf {
    let tested = bin_directory().join(name);
    if tested.exists() { tested } else { newest_installed().join(name) }
}

/// The major under test.
pub fn major() -> u32 {
    static MAJOR: LazyLock<u32> = LazyLock::new(|| {
        let version = crate::run::tool(bin_directory().join("postgres"), ["--version"]);
        let number = version.split_whitespace().nth(2).expect("postgres (PostgreSQL) VERSION");
        let digits = number.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().expect("a major")
    });
    *MAJOR
}

/// Where the programs of the major under test are.
pub fn bin_directory() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> =
        LazyLock::new(|| std::env::var_os("PG_BIN").map_or_else(newest_installed, PathBuf::from));
    &DIRECTORY
}

fn newest_installed() -> PathBuf {
    let majors = std::fs::read_dir("/usr/lib/postgresql").expect("no PostgreSQL below /usr/lib/postgresql");
    let majors = majors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let newest = majors.filter(|major| installed(*major).join("initdb").exists()).max();
    installed(newest.expect("no PostgreSQL below /usr/lib/postgresql"))
}

fn installed(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))
}

/// A line of `postgresql.conf`, the value quoted as its syntax wants it.
pub fn setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

impl Cluster {
    /// A cluster with everything as initdb leaves it.
    pub fn options() -> Options {
        Options::default()
    }

    /// Takes over a data directory that something else made, a restore for one. The directory stays where it is.
    pub fn adopt(data: &Path, options: Options) -> Self {
        Self::adopt_configured(data, data, options)
    }

    /// As [`Self::adopt`], with `postgresql.conf` in a directory of its own.
    pub fn adopt_configured(data: &Path, configuration: &Path, options: Options) -> Self {
        let mut cluster = Self::in_new_directory(options);
        data.clone_into(&mut cluster.data);
        configuration.clone_into(&mut cluster.configuration);
        cluster.configure(&["fsync = off", "listen_addresses = ''"]);
        cluster.configure(&cluster.options.configuration);
        cluster
    }

    fn in_new_directory(options: Options) -> Self {
        let scratch = Scratch::new("pg");
        let data = scratch.path().join(&options.data_name);
        Self { server: None, configuration: data.clone(), data, options, scratch }
    }

    /// Makes a standby of this server with `pg_basebackup -R`, not started yet.
    #[must_use]
    pub fn standby(&self, options: Options) -> Self {
        let standby = Self::in_new_directory(options);
        let copy = Run::new(program("pg_basebackup")).args(self.connection()).arg("-D").arg(&standby.data);
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync"]).finish().expect_code(0);
        standby.configure(&standby.options.configuration);
        standby
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The directory of its Unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.scratch.path()
    }

    /// A directory of this cluster's own, beside the data directory.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Appends lines to `postgresql.conf`.
    pub fn configure<L: AsRef<str>>(&self, lines: &[L]) {
        use std::io::Write as _;
        let path = self.configuration.join("postgresql.conf");
        let mut file = std::fs::File::options().append(true).open(path).expect("postgresql.conf");
        for line in lines {
            writeln!(file, "{}", line.as_ref()).expect("write postgresql.conf");
        }
    }

    /// Moves the configuration out of the data directory, as Debian has it.
    pub fn move_configuration(&mut self, directory: &Path) {
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            std::fs::rename(self.data.join(name), directory.join(name)).expect("move the configuration");
        }
        directory.clone_into(&mut self.configuration);
        let place = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
        let (hba, ident) = (place("pg_hba.conf"), place("pg_ident.conf"));
        let data = self.data.to_str().expect("UTF-8");
        self.configure(&[setting("data_directory", data), setting("hba_file", &hba), setting("ident_file", &ident)]);
    }

    /// Adds variables to the environment of the next server.
    pub fn set_environment(&mut self, variables: &[(String, String)]) {
        self.options.environment.extend_from_slice(variables);
    }

    /// Starts the server and waits until it takes connections.
    pub fn start(&mut self) {
        self.launch();
        let ready = until("the server takes connections or ends", SOON * 2, || {
            match self.server.as_mut().and_then(Daemon::ended) {
                Some(status) => Some(Err(status)),
                None => self.takes_connections().then_some(Ok(())),
            }
        });
        if let Err(status) = ready {
            panic!("the server ended with {status} instead of starting\n{}", self.log());
        }
    }

    /// Starts the server without waiting for anything.
    pub fn launch(&mut self) {
        assert!(self.server.is_none(), "the server runs already");
        let configuration = format!("config_file={}", self.configuration.join("postgresql.conf").display());
        let (data, socket) = (self.data.to_str().expect("UTF-8"), self.scratch.path().to_str().expect("UTF-8"));
        // Clients look for that port, whatever a restored configuration says; nobody listens on it but on the socket.
        let arguments = ["-D", data, "-k", socket, "-p", "5432", "-c", &configuration];
        self.server = Some(Daemon::start(&Server {
            program: &program("postgres"),
            arguments: arguments.map(str::to_owned).to_vec(),
            environment: &self.options.environment,
            directory: self.scratch.path(),
            log: &self.scratch.path().join("log"),
            on_death: "QUIT",
        }));
    }

    /// Waits until the server has ended by itself.
    pub fn wait_for_end(&mut self, deadline: Duration) -> ExitStatus {
        let mut server = self.server.take().expect("a running server");
        let status = server.wait(deadline);
        status.unwrap_or_else(|| panic!("the server still runs after {deadline:?}\n{}", server.log()))
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, mode: StopMode) -> ExitStatus {
        self.signal(match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        });
        self.wait_for_end(SOON * 2)
    }

    /// Kills the server's first process with SIGKILL, and waits until its others have noticed and ended too.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_for_end(SOON);
        // They hold the data directory's shared memory; as long as one is left, the next server refuses to start.
        let data = std::fs::canonicalize(&self.data).expect("the data directory");
        until("the server's other processes end", SOON, || (!process_works_in(&data)).then_some(()));
    }

    /// Sends a signal to the server's first process.
    pub fn signal(&self, signal: Signal) {
        self.server.as_ref().expect("a running server").signal(signal);
    }

    /// Makes the server read its configuration again.
    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// Promotes a standby and waits until it takes writes.
    pub fn promote(&self) {
        self.sql("select pg_promote(true, 60)");
        self.wait_for("select pg_is_in_recovery()", "f");
    }

    /// Tells whether the server process exists.
    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.ended().is_none())
    }

    /// The process id of the postmaster.
    pub fn id(&self) -> u32 {
        self.server.as_ref().expect("a running server").id()
    }

    /// Everything the server has logged since the cluster was made.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.scratch.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// The options by which PostgreSQL's clients reach the server.
    pub fn connection(&self) -> [String; 4] {
        let socket = self.scratch.path().to_str().expect("UTF-8").to_owned();
        ["-h".to_owned(), socket, "-U".to_owned(), "postgres".to_owned()]
    }

    /// Runs SQL and returns what psql prints: unaligned, no headers. Panics when it fails.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let finished = self.try_sql(sql);
        assert!(finished.status.success(), "{finished}\n--- server log\n{}", self.log());
        finished.stdout.trim_end_matches('\n').to_owned()
    }

    /// Runs SQL that may fail.
    pub fn try_sql(&self, sql: &str) -> Finished {
        let psql = Run::new(program("psql")).args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        psql.args(self.connection()).args(["-c", sql]).finish()
    }

    /// Repeats a query until it answers this.
    #[track_caller]
    pub fn wait_for(&self, query: &str, answer: &str) {
        until(&format!("{query} answers {answer:?}"), SOON, || {
            let finished = self.try_sql(query);
            (finished.status.success() && finished.stdout.trim_end() == answer).then_some(())
        });
    }

    /// Waits until the log, from what has been logged before `since` bytes on, has this text.
    #[track_caller]
    pub fn wait_for_log(&self, since: usize, text: &str) {
        until(&format!("the server logs {text:?}"), SOON, || {
            self.log().get(since..).is_some_and(|log| log.contains(text)).then_some(())
        });
    }

    /// Ends the current WAL segment, so that PostgreSQL archives it, and returns its name.
    pub fn finish_segment(&self) -> String {
        // Something must have been written since the last switch, or none takes place.
        self.sql("select pg_logical_emit_message(false, 'walkeep', 'end of segment')");
        let name = self.sql("select pg_walfile_name(pg_current_wal_insert_lsn())");
        self.sql("select pg_switch_wal()");
        name
    }

    /// Waits until PostgreSQL counts this file as archived.
    #[track_caller]
    pub fn wait_until_archived(&self, name: &str) {
        let done = self.data.join("pg_wal/archive_status").join(format!("{name}.done"));
        let recycled = || !self.data.join("pg_wal").join(name).exists();
        until(&format!("{name} is archived"), SOON, || (done.exists() || recycled()).then_some(()));
    }

    /// One line of `pg_controldata`.
    pub fn control(&self, name: &str) -> String {
        let output = crate::run::tool(program("pg_controldata"), [&self.data]);
        let value = output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("pg_controldata prints no {name:?}\n{output}")).trim().to_owned()
    }

    /// The number initdb gave the cluster.
    pub fn system_identifier(&self) -> u64 {
        self.control("Database system identifier").parse().expect("a system identifier")
    }

    fn takes_connections(&self) -> bool {
        // The last line of postmaster.pid is the server's own word for it (src/include/utils/pidfile.h).
        let pid_file = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        let mut lines = pid_file.lines();
        lines.next() == Some(&self.id().to_string()) && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the server in {}\n{}", self.data.display(), self.log());
        }
        if let Some(mut server) = self.server.take()
            && server.ended().is_none()
        {
            server.signal(Signal::QUIT);
            server.wait(Duration::from_secs(10));
        }
    }
}

fn process_works_in(directory: &Path) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    processes.filter_map(Result::ok).any(|process| {
        let works_there = std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == directory);
        let program = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        works_there && program.trim() == "postgres"
    })
}
