//! WAL files that real servers wrote, and data directories as `archive_command` and `restore_command` see them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use walkeep_tests::binaries;
use walkeep_tests::cluster::Cluster;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

/// What PostgreSQL gave to `archive_command` around a base backup and a promotion, in segments of 1 MiB.
#[derive(Debug)]
pub(crate) struct Samples {
    /// `global/pg_control`.
    pub(crate) control: Vec<u8>,
    /// The contents by name.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// The cluster's number.
    pub(crate) system_identifier: u64,
}

/// The size of the samples' segments.
pub(crate) const SEGMENT_BYTES: usize = 1 << 20;

/// The cluster the tests are about.
pub(crate) fn ours() -> &'static Samples {
    static OURS: LazyLock<Samples> = LazyLock::new(Samples::make);
    &OURS
}

/// Another cluster, with WAL of the same names.
pub(crate) fn theirs() -> &'static Samples {
    static THEIRS: LazyLock<Samples> = LazyLock::new(Samples::make);
    &THEIRS
}

impl Samples {
    fn make() -> Self {
        let archive = Scratch::new("samples");
        let command = format!("cp %p {}/.%f && mv {0}/.%f {0}/%f", archive.path().display());
        let primary = Cluster::options().segment_size(1).archive_command(&command).start();
        let mut standby = primary.standby(Cluster::options());
        for _ in 0..3 {
            primary.finish_segment();
        }
        primary.wait_until_archived(&primary.finish_segment());
        standby.start();
        primary.sql("create table in_the_unfinished_segment ()");
        let written = primary.sql("select pg_current_wal_flush_lsn()");
        standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{written}'"), "t");
        drop(primary);
        standby.promote();
        let last = standby.finish_segment();
        until("the last sample is archived", SOON, || archive.path().join(&last).exists().then_some(()));

        let names = std::fs::read_dir(archive.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|name| !name.starts_with('.'));
        let files = names.map(|name| (name.clone(), std::fs::read(archive.path().join(name)).unwrap())).collect();
        let control = std::fs::read(standby.data().join("global/pg_control")).unwrap();
        Self { control, files, system_identifier: standby.system_identifier() }
    }

    /// The whole segments of a timeline, in order.
    pub(crate) fn segments(&self, timeline: u32) -> Vec<&str> {
        let start = format!("{timeline:08X}");
        self.files.keys().filter(|name| name.len() == 24 && name.starts_with(&start)).map(String::as_str).collect()
    }

    /// The one file whose name ends so (`.partial`, `.backup`, `.history`).
    pub(crate) fn one(&self, suffix: &str) -> &str {
        let mut found = self.files.keys().filter(|name| name.ends_with(suffix));
        let name = found.next().unwrap_or_else(|| panic!("no {suffix} among {:?}", self.files.keys()));
        assert_eq!(found.next(), None);
        name
    }
}

/// As much of a data directory as the two programs look at.
#[derive(Debug)]
pub(crate) struct DataDirectory {
    path: PathBuf,
    _scratch: Scratch,
}

impl DataDirectory {
    /// A data directory of this cluster's, with an empty `pg_wal`.
    pub(crate) fn new(samples: &Samples) -> Self {
        let scratch = Scratch::new("data");
        let path = scratch.create_private("data");
        for name in ["data/global", "data/pg_wal", "data/pg_wal/archive_status"] {
            scratch.create_private(name);
        }
        scratch.write("data/global/pg_control", &samples.control);
        Self { path, _scratch: scratch }
    }

    /// A data directory with all of the cluster's WAL files.
    pub(crate) fn with_wal(samples: &Samples) -> Self {
        let directory = Self::new(samples);
        for (name, content) in &samples.files {
            directory.write(name, content);
        }
        directory
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in `pg_wal`.
    pub(crate) fn wal(&self, name: &str) -> PathBuf {
        self.path.join("pg_wal").join(name)
    }

    /// Writes a file into `pg_wal`.
    pub(crate) fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.wal(name), content).unwrap();
        user::give(&self.wal(name));
    }

    /// Creates or removes a signal file.
    pub(crate) fn signal(&self, name: &str) {
        std::fs::write(self.path.join(name), "").unwrap();
        user::give(&self.path.join(name));
    }

    /// `archive-push` as PostgreSQL calls it.
    pub(crate) fn push(&self, repository: &Repository, name: &str) -> Run {
        Run::new(binaries::archive_push())
            .arg(format!("pg_wal/{name}"))
            .envs(repository.environment())
            .current_dir(&self.path)
    }

    /// `archive-get` as PostgreSQL calls it.
    pub(crate) fn get(&self, repository: &Repository, name: &str) -> Run {
        Run::new(binaries::archive_get())
            .args([name, "pg_wal/RECOVERYXLOG"])
            .envs(repository.environment())
            .current_dir(&self.path)
    }
}

/// Archives files of these samples, which must succeed without a word.
pub(crate) fn archive<'a>(samples: &Samples, repository: &Repository, names: impl IntoIterator<Item = &'a str>) {
    let directory = DataDirectory::with_wal(samples);
    for name in names {
        directory.push(repository, name).finish().expect_silent_success();
    }
}

/// What `zstd -dc` makes of an object.
pub(crate) fn unpacked(repository: &Repository, key: &str) -> Vec<u8> {
    let object = repository.scratch().write("object.zst", repository.read(key));
    let plain = repository.scratch().path().join("object");
    let unpack = Run::new("sh").args(["-c", "zstd -dcq \"$0\" >\"$1\""]).arg(object).arg(&plain);
    let finished: Finished = unpack.finish();
    finished.expect_silent_success();
    std::fs::read(plain).unwrap()
}
