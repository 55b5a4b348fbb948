//! Backups of a server whose tables and databases come and go, restored and judged by PostgreSQL's own tools: the files
//! against the manifest, the contents against the source, indexes against tables, pages against their checksums.
//!
//! Two backups in the suite; `make soak` makes it 50, or `$WALKEEP_BACKUPS`.

use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;
use walkeep_tests::cluster::{Cluster, StopMode, major, program};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Run, Running};

use crate::site::{Load, Place, archiving, check_indexes, take, verify, wait_until_open};

/// Tables are made, filled, emptied, rewritten and dropped.
const TABLES: &str = "\
\\set n random(1, 5)
create table if not exists churn:n as select g, repeat('x', 500) t from generate_series(1, 500) g;
insert into churn:n select g, 'y' from generate_series(1, 500) g;
vacuum full churn:n;
create index on churn:n (g);
delete from churn:n where g % 2 = 0;
truncate churn:n;
insert into churn:n select g, md5(g::text) from generate_series(1, 100) g;
create unlogged table if not exists loose:n as select g from generate_series(1, 1000) g;
alter table loose:n set logged;
drop table loose:n;
drop table churn:n;
";

/// Databases are copied, file by file and through the WAL, and dropped.
const DATABASES: &str = "\
\\set n random(1, 2)
drop database if exists copied:n;
create database copied:n template pattern STRATEGY;
alter database copied:n rename to renamed:n;
drop database renamed:n;
";

/// Sessions that change everything, until it is stopped.
struct Turmoil {
    scripts: Vec<Running>,
    load: Load,
}

impl Turmoil {
    fn start(server: &Cluster) -> Self {
        // Since 15 the default goes through the WAL.
        let strategy = if major() >= 15 { "strategy file_copy" } else { "" };
        let scripts = [("tables", TABLES.to_owned()), ("databases", DATABASES.replace("STRATEGY", strategy))];
        let scripts = scripts.map(|(name, script)| {
            let script = server.scratch().write(name, script);
            let run = Run::new(program("pgbench")).args(server.connection()).args(["-n", "-T", "86400", "-f"]);
            run.arg(script).arg("postgres").timeout(Duration::from_secs(86400)).start()
        });
        Self { scripts: scripts.into(), load: Load::go_on(server) }
    }

    fn stop(self, server: &Cluster) {
        for script in self.scripts {
            script.signal(Signal::TERM);
            script.finish();
        }
        self.load.stop();
        server.wait_for(
            "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()",
            "0",
        );
    }
}

#[test]
fn what_is_restored_is_what_was_there_whatever_happened_during_the_backup() {
    let backups =
        std::env::var("WALKEEP_BACKUPS").map_or(2, |count| count.parse().expect("WALKEEP_BACKUPS is a number"));
    let repository = Repository::directory();
    let options = archiving(&repository).checksums().configure("max_wal_size = 64MB");
    let server = options.configure("autovacuum_naptime = 1s").start();
    Load::fill(&server);
    server.sql("create database pattern");
    for round in 1..=backups {
        let turmoil = Turmoil::start(&server);
        server.wait_for("select count(*) > 100 from pgbench_history", "t");
        let id = take(&repository, &server);
        turmoil.stop(&server);
        let point = format!("round {round}");
        server.sql(&format!("select pg_create_restore_point('{point}')"));
        server.wait_until_archived(&server.finish_segment());
        let before = dump(&server);

        let place = Place::new();
        place.restore(&repository, &[&id, "--target-name", &point, "--target-action", "promote"]);
        verify(&place.data());
        let mut restored = place.server(&repository);
        restored.start();
        wait_until_open(&restored);
        assert!(dump(&restored) == before, "round {round}: the restored cluster differs");
        check_indexes(&restored, &["--all"]);
        restored.stop(StopMode::Fast);
        check_pages(&place.data());
        server.sql("truncate pgbench_history; update pgbench_accounts set abalance = 0");
    }
}

/// All databases, all rows, in the order they lie in.
fn dump(server: &Cluster) -> String {
    let dumped = Run::new(program("pg_dumpall")).args(server.connection()).arg("--no-unlogged-table-data").finish();
    // Newer clients wrap the dump into a key that is drawn at random.
    dumped.expect_code(0).stdout.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

fn check_pages(data: &Path) {
    Run::new(program("pg_checksums")).args(["--check", "-D"]).arg(data).finish().expect_code(0);
}
