//! The walker over WAL records, compared with `pg_waldump` over everything a real server wrote.
//!
//! `$PG_BIN` names the directory of PostgreSQL's programs; without it the newest below `/usr/lib/postgresql` is used.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use walkeep_common::lsn::Lsn;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::records::{EndOfWal, Event, EventKind, Progress, Walker};
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_of, segment_start};

/// What makes servers write every kind of record that is of interest, among many others.
const TRANSACTIONS: &str = "
    CREATE TABLE t (id serial PRIMARY KEY, v text, p point);
    INSERT INTO t (v, p) SELECT md5(i::text), point(i, i) FROM generate_series(1, 3000) i;
    CREATE INDEX ON t USING gist (p); CREATE INDEX ON t USING spgist (v); CREATE INDEX ON t USING hash (v);
    CREATE INDEX ON t USING brin (id); CREATE INDEX ON t USING gin (string_to_array(v, 'a'));
    BEGIN; INSERT INTO t (v) VALUES ('rolled back'); ROLLBACK;
    BEGIN; INSERT INTO t (v) VALUES ('a'); SAVEPOINT s; INSERT INTO t (v) VALUES ('b'); ROLLBACK TO s;
    SAVEPOINT s2; INSERT INTO t (v) VALUES ('c'); COMMIT;
    DO $$ BEGIN FOR i IN 1..200 LOOP
        BEGIN INSERT INTO t (v) VALUES (i); EXCEPTION WHEN unique_violation THEN NULL; END;
    END LOOP; END $$;
    SELECT pg_create_restore_point('before prepared transactions');
    CREATE TABLE dropped (id int PRIMARY KEY, v text); CREATE TABLE kept (LIKE t);
    BEGIN; INSERT INTO kept SELECT * FROM t LIMIT 9; SAVEPOINT a; DROP TABLE dropped; CREATE TABLE created (i int);
    PREPARE TRANSACTION 'committed';
    BEGIN; SAVEPOINT a; DELETE FROM kept; SAVEPOINT b; CREATE TABLE never (i int PRIMARY KEY, v text);
    PREPARE TRANSACTION 'rolled back';
    BEGIN; INSERT INTO t (v) VALUES ('plain'); PREPARE TRANSACTION 'plain';
    COMMIT PREPARED 'committed'; ROLLBACK PREPARED 'rolled back'; COMMIT PREPARED 'plain';
    SELECT pg_switch_wal();
    SELECT pg_logical_emit_message(true, 'walkeep', repeat('x', 3500000));
    SELECT pg_create_restore_point(repeat('n', 63));
    SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere');
    BEGIN; SELECT pg_replication_origin_xact_setup('0/12345', '2020-02-02'); INSERT INTO t (v) VALUES ('origin');
    DROP TABLE created; PREPARE TRANSACTION 'origin';
    SELECT pg_replication_origin_xact_setup('0/12346', '2020-02-03'); COMMIT PREPARED 'origin';
    SELECT pg_replication_origin_session_reset();
    CREATE DATABASE other; TRUNCATE kept; VACUUM FULL t; VACUUM (FREEZE) t;
";

struct Server {
    directory: tempfile::TempDir,
    bin: PathBuf,
    pg_major: u32,
}

impl Server {
    fn create() -> Self {
        let bin = binaries();
        let directory = tempfile::Builder::new().prefix("walkeep-records-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut server = Self { directory, bin, pg_major: 0 };
        server.run("initdb", &["--wal-segsize=1", "--no-sync", "--auth=trust", "--username=postgres", "-E", "UTF8"]);
        server.pg_major = fs::read_to_string(server.data().join("PG_VERSION")).unwrap().trim().parse().unwrap();
        let socket = server.directory.path().display();
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{socket}'\nfsync = off\nwal_level = logical\n\
             max_prepared_transactions = 10\nwal_keep_size = '1GB'\nmax_wal_size = '2GB'\nautovacuum = off\n\
             restore_command = 'false'\n"
        );
        let path = server.data().join("postgresql.conf");
        fs::write(&path, fs::read_to_string(&path).unwrap() + &settings).unwrap();
        server
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn wal(&self, name: SegmentName) -> PathBuf {
        self.data().join("pg_wal").join(name.to_string())
    }

    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut setpriv = Command::new("setpriv");
            setpriv.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
            setpriv
        } else {
            Command::new(program)
        };
        command.current_dir("/").env("PGDATA", self.data()).env("PGHOST", self.directory.path());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("TZ", "UTC").env("LC_ALL", "C");
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}\nserver log:\n{log}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The output goes to a file: a pipe would stay open as long as the server.
    fn start(&self) {
        let log = self.directory.path().join("log");
        let status = self.command("pg_ctl").args(["start", "-w", "-s", "-l"]).arg(&log).status().unwrap();
        assert!(status.success(), "{}", fs::read_to_string(log).unwrap());
    }

    fn sql(&self, sql: &str) -> String {
        // Each statement is a transaction of its own, which one string for -c would not give.
        let script = self.directory.path().join("script.sql");
        fs::write(&script, sql).unwrap();
        self.run("psql", &["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", script.to_str().unwrap()])
    }

    fn write_page_images(&self) {
        let mut sql = String::new();
        // What this build offers: two names for PostgreSQL's own method, and LZ4 and Zstandard where they are linked in.
        let offered = "SELECT unnest(enumvals) FROM pg_settings WHERE name = 'wal_compression'";
        let offered = if self.pg_major >= 15 { self.sql(offered) } else { "off\non\n".to_owned() };
        for method in offered.lines() {
            write!(
                sql,
                "CHECKPOINT; SET wal_compression = {method}; UPDATE t SET v = v || '.' WHERE id % 3 = 0;
                 CREATE TABLE \"{method}\" AS SELECT i, repeat('a', 5000) FROM generate_series(1, 300) i;
                 CREATE INDEX ON \"{method}\" (i);"
            )
            .unwrap();
        }
        self.sql(&sql);
    }

    fn take_backup(&self) {
        let (start, stop) = if self.pg_major >= 15 {
            ("pg_backup_start('label', true)", "pg_backup_stop(false)")
        } else {
            ("pg_start_backup('label', true, false)", "pg_stop_backup(false, false)")
        };
        self.sql(&format!("SELECT {start}; SELECT {stop};"));
    }

    /// Stops the server as if it had crashed with the end of a long record unwritten: it writes on behind the gap.
    fn lose_the_end_of_a_record(&self) {
        let before: Lsn = self.sql("SELECT pg_current_wal_insert_lsn()").trim().parse().unwrap();
        let last = segment_of(before, segment_size());
        self.sql(
            "SELECT pg_logical_emit_message(false, 'walkeep', repeat('y', 1200000));
             SELECT pg_logical_emit_message(true, 'walkeep', 'its commit flushes all before');",
        );
        self.run("pg_ctl", &["stop", "-s", "-m", "immediate"]);
        for number in last + 1..last + 400 {
            let _ = fs::remove_file(self.wal(SegmentName::new(Timeline(1), number, segment_size())));
        }
        self.start();
    }

    /// Recovers from the server's own WAL onto a new timeline.
    fn promote(&self) {
        self.run("pg_ctl", &["stop", "-s", "-m", "fast"]);
        fs::write(self.data().join("recovery.signal"), "").unwrap();
        self.start();
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.sql("SELECT pg_is_in_recovery()").trim() == "t" {
            assert!(Instant::now() < deadline, "the server is still in recovery");
        }
    }

    /// What `pg_waldump` says of a timeline from segment `number` on: the records by their place, and why it ended.
    fn dump(&self, timeline: Timeline, number: u64) -> (BTreeMap<Lsn, Dumped>, String) {
        let start = segment_start(number, segment_size()).to_string();
        let mut command = self.command("pg_waldump");
        command.args(["-t", &timeline.to_string(), "-s", &start, "-p"]).arg(self.data().join("pg_wal"));
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (text.lines().map(Dumped::parse).collect(), String::from_utf8(output.stderr).unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.command("pg_ctl").args(["stop", "-s", "-m", "immediate"]).output();
    }
}

fn binaries() -> PathBuf {
    if let Some(directory) = std::env::var_os("PG_BIN") {
        return directory.into();
    }
    let newest = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is not installed below /usr/lib/postgresql, and $PG_BIN is not set")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .expect("there is no PostgreSQL below /usr/lib/postgresql");
    Path::new("/usr/lib/postgresql").join(newest.to_string()).join("bin")
}

fn segment_size() -> SegmentSize {
    SegmentSize::try_from(1 << 20).unwrap()
}

/// One line of `pg_waldump`.
#[derive(Debug, Clone)]
struct Dumped {
    resource_manager: String,
    xid: u32,
    description: String,
}

impl Dumped {
    /// `rmgr: NAME len (rec/tot): N/ N, tx: XID, lsn: LSN, prev LSN, desc: TEXT`
    fn parse(line: &str) -> (Lsn, Self) {
        let field = |name: &str| {
            let (_, rest) = line.split_once(name).unwrap_or_else(|| panic!("no {name} in {line:?}"));
            rest.trim_start().split([' ', ',']).next().unwrap().to_owned()
        };
        let description = line.split_once("desc: ").unwrap().1.to_owned();
        let record = Self { resource_manager: field("rmgr:"), xid: field("tx:").parse().unwrap(), description };
        (field("lsn:").parse().unwrap(), record)
    }

    /// What the walker should make of it, in one line.
    fn expected(&self) -> Option<String> {
        let (operation, rest) = self.description.split_once(' ').unwrap_or((&self.description, ""));
        match (self.resource_manager.as_str(), operation) {
            ("Transaction", "COMMIT" | "ABORT") => {
                Some(format!("{operation} {} {}", self.xid, rest.split(" UTC").next().unwrap()))
            }
            ("Transaction", "COMMIT_PREPARED" | "ABORT_PREPARED") => {
                let (operation, _) = operation.split_once('_').unwrap();
                // "gid NAME " may come before the transaction.
                let (before, time) = rest.split_once(": ").unwrap();
                let xid = before.rsplit(' ').next().unwrap();
                Some(format!("{operation} {xid} {}", time.split(" UTC").next().unwrap()))
            }
            ("XLOG", "RESTORE_POINT") => Some(format!("RESTORE_POINT {rest}")),
            ("XLOG", "BACKUP_END") => Some(format!("BACKUP_END {}", rest.parse::<Lsn>().unwrap())),
            _ => None,
        }
    }
}

fn shown(event: &Event) -> String {
    let time = |time: &dyn std::fmt::Display| format!("{time:.6}").replace('T', " ").replace('Z', "");
    match &event.kind {
        EventKind::Commit { xid, time: at } => format!("COMMIT {xid} {}", time(at)),
        EventKind::Abort { xid, time: at } => format!("ABORT {xid} {}", time(at)),
        EventKind::RestorePoint { name, .. } => format!("RESTORE_POINT {}", str::from_utf8(name).unwrap()),
        EventKind::BackupEnd { start } => format!("BACKUP_END {start}"),
    }
}

/// Where a record begins that follows one that ends here: a page begins with its header.
fn after_header(end: Lsn) -> Lsn {
    let header = if end.0.is_multiple_of(1 << 20) { 40 } else { 24 };
    if end.0.is_multiple_of(8192) { end.saturating_add(header) } else { end }
}

/// Walks along a history from segment `number` on, as far as there are segments and valid records in them.
fn walk(server: &Server, history: &TimelineHistory, first: u64) -> (Vec<Event>, Lsn, Option<EndOfWal>) {
    let mut walker = Walker::new(segment_start(first, segment_size()));
    let mut events = Vec::new();
    for number in first.. {
        let Ok(segment) = fs::read(server.wal(history.segment_name(number, segment_size()))) else { break };
        if let Progress::Ended(end) = walker.feed(&segment, |event| events.push(event)).unwrap() {
            return (events, walker.position(), Some(end));
        }
    }
    (events, walker.position(), None)
}

#[test]
fn the_walker_sees_what_pg_waldump_sees() {
    let server = Server::create();
    server.start();
    server.sql(TRANSACTIONS);
    server.run("pgbench", &["-i", "-q", "-s", "1"]);
    server.run("pgbench", &["-n", "-c", "4", "-t", "150"]);
    server.write_page_images();
    server.take_backup();
    server.lose_the_end_of_a_record();
    server.run("pgbench", &["-n", "-c", "4", "-t", "50"]);
    server.promote();
    server.run("pgbench", &["-n", "-c", "4", "-t", "50"]);
    server.sql("SELECT pg_create_restore_point('on the new timeline')");
    server.run("pg_ctl", &["stop", "-s", "-m", "fast"]);

    let history = fs::read_to_string(server.data().join("pg_wal/00000002.history")).unwrap();
    let history = TimelineHistory::parse(Timeline(2), &history).unwrap();
    let fork = segment_of(history.switch_point(Timeline(1)).unwrap(), segment_size());
    let first = fs::read_dir(server.data().join("pg_wal"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<SegmentName>().ok()?.number(segment_size()))
        .min()
        .unwrap();

    let (mut dumped, _) = server.dump(Timeline(1), first);
    let (forked, end) = server.dump(Timeline(2), fork);
    dumped.extend(forked);
    for kind in ["COMMIT_PREPARED", "ABORT_PREPARED", "OVERWRITE_CONTRECORD", "SWITCH", "BACKUP_END", "FPI"] {
        assert!(dumped.values().any(|record| record.description.starts_with(kind)), "the server wrote no {kind}");
    }

    let (events, position, ended) = walk(&server, &history, first);
    let expected: Vec<(Lsn, String)> =
        dumped.iter().filter_map(|(lsn, record)| Some((*lsn, record.expected()?))).collect();
    let found: Vec<(Lsn, String)> = events.iter().map(|event| (event.start, shown(event))).collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len(), "{ended:?}");
    for event in &events {
        let following = dumped.range(Lsn(event.start.0 + 1)..).next().map(|(lsn, _)| *lsn);
        assert_eq!(Some(after_header(event.end)), following, "end of {event:?}");
    }
    // "... at LSN: invalid record length at LSN: expected at least 24, got 0"
    let end_of_wal = end.rsplit(" at ").find_map(|text| text.split(':').next()?.trim().parse::<Lsn>().ok());
    assert_eq!(Some(after_header(position)), end_of_wal, "{end}");

    // From every segment on, all that begins in it or later is seen.
    for number in first..=segment_of(position, segment_size()) {
        let start = segment_start(number, segment_size());
        let later: Vec<&Event> = events.iter().filter(|event| event.start >= start).collect();
        let (from_here, same_position, _) = walk(&server, &history, number);
        assert_eq!((from_here.iter().collect(), same_position), (later, position), "from segment {number}");
    }
}
