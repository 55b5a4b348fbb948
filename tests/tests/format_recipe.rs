//! The repository opens without Walkeep: the recipe in `common/FORMAT.md` is run line by line, as it stands there.

use std::path::{Path, PathBuf};

use walkeep_tests::binaries;
use walkeep_tests::cluster::{Cluster, Options, program};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Run, tool};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;

/// The blocks of the recipe, in the order they stand there.
struct Recipe {
    segment: String,
    packs: String,
    tablespaces: String,
    recovery: String,
}

impl Recipe {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../common/FORMAT.md");
        let text = std::fs::read_to_string(path).unwrap();
        let recipe = text.split("## Restoring without Walkeep\n").nth(1).expect("the recipe");
        let blocks = recipe.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
        let [segment, packs, tablespaces, recovery] =
            blocks.collect::<Vec<_>>().try_into().expect("four blocks of shell");
        Self { segment, packs, tablespaces, recovery }
    }
}

/// What an operator has fetched from the store, and the directories the recipe works in.
#[derive(Debug)]
pub(crate) struct Extracted {
    scratch: Scratch,
    folder: String,
    id: String,
}

impl Extracted {
    /// Fetches everything of the repository's only cluster and unpacks this backup by the recipe.
    pub(crate) fn new(repository: &Repository, id: &str) -> Self {
        let scratch = Scratch::new("recipe");
        for directory in ["data", "tablespaces", "store"] {
            scratch.create_private(directory);
        }
        let objects = repository.objects();
        let folder = objects.iter().find_map(|key| key.strip_suffix("/identity.json")).expect("identity.json");
        let extracted = Self { folder: folder.to_owned(), id: id.to_owned(), scratch };
        let wanted = [format!("{folder}/wal/"), format!("{folder}/base/{id}/")];
        // What a running server's archive-push is writing at this moment has a name with "#" in it.
        let objects = objects.iter().filter(|key| !key.contains('#'));
        for key in objects.filter(|key| wanted.iter().any(|folder| key.starts_with(folder))) {
            let path = extracted.store().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, repository.read(key)).unwrap();
            for path in path.ancestors().take_while(|path| *path != extracted.store()) {
                user::give(path);
            }
        }
        extracted.run(&Recipe::read().packs);
        extracted
    }

    fn store(&self) -> PathBuf {
        self.scratch.path().join("store")
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Where the recipe moves tablespaces to.
    pub(crate) fn tablespaces(&self) -> PathBuf {
        self.scratch.path().join("tablespaces")
    }

    /// Runs lines of the recipe, which must not say a word.
    fn run(&self, lines: &str) {
        let backup = self.store().join(&self.folder).join("base").join(&self.id);
        let wal = self.store().join(&self.folder).join("wal");
        let shell = Run::new("sh").args(["-euc", lines]).current_dir(self.scratch.path());
        let shell = shell.env("BACKUP", backup.display().to_string()).env("WAL", wal.display().to_string());
        let shell = shell.env("PGDATA", self.data().display().to_string());
        shell.env("TABLESPACES", self.tablespaces().display().to_string()).finish().expect_silent_success();
    }

    /// Runs PostgreSQL's own check of the files against its manifest.
    pub(crate) fn verify(&self) {
        let verify = Run::new(program("pg_verifybackup")).args(["-n", "-q"]).arg(self.data());
        verify.finish().expect_silent_success();
    }

    /// Goes through the rest of the recipe, and returns the server at the end of recovery.
    pub(crate) fn recover(self, options: Options) -> Recovered {
        let recipe = Recipe::read();
        if self.data().join("tablespace_map").exists() {
            self.run(&recipe.tablespaces);
        }
        // The server is ours to start, so that it ends with the test.
        let lines = recipe.recovery.strip_suffix("pg_ctl -D \"$PGDATA\" start\n").expect("the last line starts it");
        self.run(lines);
        let mut cluster = Cluster::adopt(&self.data(), options);
        cluster.start();
        // It answers queries as soon as it is consistent.
        cluster.wait_for("select pg_is_in_recovery()", "f");
        Recovered { cluster, files: self }
    }
}

/// A server that was recovered with the recipe. It goes before its files do.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The server.
    pub(crate) cluster: Cluster,
    /// Its files.
    pub(crate) files: Extracted,
}

/// Options of a server that archives into this repository, in small segments.
pub(crate) fn archiving(repository: &Repository) -> Options {
    let command = format!("{} %p", binaries::archive_push().display());
    Cluster::options().segment_size(1).environment(repository.environment()).archive_command(&command)
}

/// `basebackup take` of this server.
pub(crate) fn take(cluster: &Cluster, repository: &Repository) -> Run {
    Run::new(binaries::basebackup()).arg("take").args(cluster.connection()).envs(repository.environment())
}

/// Takes a backup, which must succeed, and returns its id.
#[track_caller]
pub(crate) fn take_backup(cluster: &Cluster, repository: &Repository) -> String {
    let taken = take(cluster, repository).finish();
    taken.expect_code(0).stdout.trim_end().to_owned()
}

#[test]
fn the_recipe_restores_a_backup_with_its_tablespaces() {
    let repository = Repository::directory();
    let cluster = archiving(&repository).start();
    let space = cluster.scratch().create_private("space");
    cluster.sql(&format!("create tablespace space location '{}'", space.display()));
    cluster.sql("create table here as select n, md5(n::text) t from generate_series(1, 5000) n");
    cluster.sql("create table there tablespace space as select * from here");
    let id = take_backup(&cluster, &repository);
    cluster.sql("insert into here select n, 'later' from generate_series(5001, 6000) n");
    cluster.sql("insert into there select n, 'later' from generate_series(5001, 6000) n");
    let rows = |cluster: &Cluster| {
        ["here", "there"]
            .map(|table| cluster.sql(&format!("select count(*), md5(string_agg(n || t, ',' order by n)) from {table}")))
    };
    let expected = rows(&cluster);
    cluster.wait_until_archived(&cluster.finish_segment());
    drop(cluster);

    let extracted = Extracted::new(&repository, &id);
    extracted.verify();
    let recovered = extracted.recover(Cluster::options());
    assert_eq!(rows(&recovered.cluster), expected);
    let location =
        recovered.cluster.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'space'");
    assert!(Path::new(&location).starts_with(recovered.files.tablespaces()), "{location}");
    assert_eq!(recovered.cluster.sql("show archive_mode"), "off");
}

#[test]
fn a_segment_opens_with_zstd_and_its_stored_bytes_are_checked_with_sha256sum() {
    let repository = Repository::directory();
    // initdb fills more than five segments of 1 MiB.
    let cluster = archiving(&repository).segment_size(16).start();
    let name = "000000010000000000000005";
    let mut last = cluster.finish_segment();
    while last.as_str() < name {
        last = cluster.finish_segment();
    }
    cluster.wait_until_archived(&last);
    let original = std::fs::read(cluster.data().join("pg_wal").join(name)).unwrap();

    let folder = repository.path().join("main").join(cluster.system_identifier().to_string());
    let shell = Run::new("sh").args(["-euc", &Recipe::read().segment]).current_dir(&folder);
    shell.finish().expect_silent_success();
    assert!(std::fs::read(folder.join(name)).unwrap() == original);

    let key = repository.find(&format!("{name}.zst"));
    let object = repository.read(&key);
    let length = u32::from_le_bytes(object[4..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&object[8..8 + length - 4]).unwrap();
    let command = "tail -c \"$1\" \"$0\" | sha256sum";
    let path = repository.path().join(&key);
    let printed = tool("sh", ["-c", command, path.to_str().unwrap(), &header["stored_size"].to_string()]);
    assert_eq!(printed.split_whitespace().next(), header["sha256"].as_str());
}
