//! What is listed, checked and written, held against a real PostgreSQL: pg_basebackup, pg_checksums, pg_verifybackup.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it saw"
)]

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use basebackup::files::checksum::ChecksumAlgorithm;
use basebackup::files::manifest::{ManifestFile, ManifestReader, ManifestWriter, WalRange, replace_file};
use basebackup::files::page::{BlockSize, page_checksum};
use basebackup::files::read::{FileReader, FileSummary};
use basebackup::files::relation::{FileKind, RelationFile};
use basebackup::files::scan::{ScanOptions, scan};
use basebackup::files::settle::PageChecks;
use walkeep_common::error::Kind;
use walkeep_common::lsn::Lsn;

use self::cluster::{Cluster, is_root, printed, run, scratch, unprivileged};

/// Every entry of a manifest, and its WAL.
fn read_manifest(bytes: &[u8]) -> (Vec<ManifestFile>, Vec<WalRange>, Option<u64>) {
    let mut reader = ManifestReader::new(bytes);
    let mut files = Vec::new();
    while let Some(file) = reader.next_file().unwrap() {
        files.push(file);
    }
    (files, reader.wal_ranges().to_vec(), reader.system_identifier())
}

/// Takes a backup with pg_basebackup, without WAL, tablespaces beside it, and returns its directory.
fn pg_basebackup(cluster: &Cluster, checksums: ChecksumAlgorithm) -> PathBuf {
    let target = cluster.path().join(format!("backup-{}", checksums.name()));
    let mut command = cluster.command("pg_basebackup");
    command
        .args(["-X", "none", "-c", "fast", "--no-sync", "--manifest-checksums", checksums.name(), "-D"])
        .arg(&target);
    for (oid, location) in cluster.tablespaces() {
        if location.is_absolute() {
            let copy = cluster.path().join(format!("copy-{}-{oid}", checksums.name()));
            command.arg("-T").arg(format!("{}={}", location.display(), copy.display()));
        }
    }
    run(&mut command);
    target
}

/// Every directory below one, with its mode; links of tablespaces are followed, and nothing is said of the modes of
/// the directories behind them, which pg_basebackup gives as it likes.
fn directories_below(root: &Path) -> BTreeMap<PathBuf, Option<u32>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let metadata = fs::metadata(entry.path()).unwrap();
            if metadata.is_dir() {
                let linked = entry.file_type().unwrap().is_symlink();
                let mode = (!linked).then_some(metadata.permissions().mode() & 0o7777);
                found.insert(entry.path().strip_prefix(root).unwrap().to_owned(), mode);
                waiting.push(entry.path());
            }
        }
    }
    found
}

/// Reads one file to its end.
fn digest(reader: &mut FileReader, path: &Path, kind: FileKind) -> FileSummary {
    let mut file = reader.open(path, kind).unwrap().unwrap();
    while file.next_chunk().unwrap().is_some() {}
    file.finish().unwrap()
}

/// Fills a cluster with everything that is not simply copied, and some that is. Returns a session with temporary
/// relations.
fn furnish(cluster: &Cluster) -> cluster::Session {
    let path = cluster.path();
    let owner = fs::metadata(path).unwrap();
    let (uid, gid) = {
        use std::os::unix::fs::MetadataExt as _;
        (Some(owner.uid()), Some(owner.gid()))
    };
    for directory in ["space", "real", "data/inside"] {
        fs::create_dir(path.join(directory)).unwrap();
        chown(path.join(directory), uid, gid).unwrap();
    }
    symlink(path.join("real"), path.join("link")).unwrap();
    let create = |name: &str, location: &Path| {
        cluster.sql(&[&format!("create tablespace {name} location '{}'", location.display())]);
    };
    create("plain", &path.join("space"));
    create("linked", &path.join("link"));
    create("inside", &cluster.data().join("inside"));
    if cluster.sql(&["select count(*) from pg_settings where name = 'allow_in_place_tablespaces'"]) == "1" {
        cluster.sql(&["set allow_in_place_tablespaces = on", "create tablespace in_place location ''"]);
        cluster.sql(&["create table t_in_place tablespace in_place as select generate_series(1, 1000) n"]);
    }
    cluster.sql(&["create database other tablespace plain"]);
    for space in ["pg_default", "plain", "linked", "inside"] {
        cluster.sql(&[
            &format!("create table t_{space} (n int primary key) tablespace {space}"),
            &format!("insert into t_{space} select generate_series(1, 2000)"),
            &format!("create unlogged table u_{space} (n int primary key, t text) tablespace {space}"),
            &format!("insert into u_{space} select n, repeat('x', 5000) from generate_series(1, 100) n"),
            &format!("create index on u_{space} (t) tablespace {space}"),
            &format!("vacuum u_{space}"),
        ]);
    }
    let data = cluster.data();
    let write = |name: PathBuf| {
        fs::create_dir_all(name.parent().unwrap()).unwrap();
        fs::write(name, "contents").unwrap();
    };
    for name in [
        "extra/#1",
        "extra/back\\slash",
        "extra/quote\"",
        "extra/new\nline",
        "extra/é",
        "extra/a=b [c] # d",
        "extra/.hidden",
        "extra/empty/x",
        "base/pgsql_tmp/pgsql_tmp4711.0",
        "pgsql_tmp_stale/x",
        "base/1/pgsql_tmp4711.1",
        "global/pg_internal.init.4711",
        "base/1/t7_4711_fsm.1",
        "backup_label.old",
        "tablespace_map.old",
        "postgresql.auto.conf.tmp",
        "current_logfiles.tmp",
        "standby.signal.off",
        "pg_replslot/stale/state",
        "extra/pg_notify/0000",
        "base/1/4711_odd",
        "base/1/004711",
    ] {
        write(data.join(name));
    }
    write(data.join("extra").join(OsString::from_vec(b"not\xffutf8".to_vec())));
    symlink("/etc/passwd", data.join("extra/symlink")).unwrap();
    run(std::process::Command::new("chown").arg("-Rh").arg(format!("{}:{}", uid.unwrap(), gid.unwrap())).arg(&data));
    cluster.session(
        "create temp table temporary (n int primary key, t text); \
         insert into temporary select n, repeat('x', 5000) from generate_series(1, 100) n; \
         create temp table elsewhere tablespace linked as select * from temporary",
    )
}

#[test]
fn a_scan_lists_what_pg_basebackup_copies() {
    let cluster = Cluster::start();
    let session = furnish(&cluster);
    cluster.sql(&["checkpoint"]);
    let backup = pg_basebackup(&cluster, ChecksumAlgorithm::Crc32c);
    let tablespaces = cluster.tablespaces();
    assert!(tablespaces.len() >= 3, "{tablespaces:?}");
    let scan = cluster.scan(&tablespaces);
    drop(session);

    let (listed, ..) = read_manifest(&fs::read(backup.join("backup_manifest")).unwrap());
    let ours: BTreeMap<PathBuf, u64> = scan.files().map(|file| (file.path, file.size)).collect();
    let mut theirs: BTreeMap<PathBuf, u64> = listed.into_iter().map(|file| (file.path, file.size)).collect();
    // One is made by the backup, the other copied by itself.
    assert!(
        theirs.remove(Path::new("backup_label")).is_some() && theirs.remove(Path::new("global/pg_control")).is_some()
    );
    let differences: Vec<_> =
        ours.keys().chain(theirs.keys()).filter(|path| ours.get(*path) != theirs.get(*path)).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    println!("{} files equal, major {}", ours.len(), cluster.major());

    let theirs = directories_below(&backup);
    let ours: BTreeMap<PathBuf, u32> =
        scan.directories().iter().map(|directory| (directory.path.clone(), directory.attributes.mode)).collect();
    let names = |found: &mut dyn Iterator<Item = &PathBuf>| found.cloned().collect::<BTreeSet<PathBuf>>();
    assert_eq!(names(&mut ours.keys()), names(&mut theirs.keys()));
    for (path, mode) in &ours {
        assert!(theirs[path].is_none_or(|theirs| theirs == *mode), "{} {mode:o} {:?}", path.display(), theirs[path]);
    }
    let warnings: Vec<String> = scan.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warnings, ["skipping symbolic link \"extra/symlink\" to \"/etc/passwd\""]);
}

/// A relation's main fork with at least this many blocks, relative to the data directory.
fn relation_path(cluster: &Cluster, table: &str) -> PathBuf {
    cluster.sql(&[&format!("select pg_relation_filepath('{table}')")]).into()
}

fn checking_reader(cluster: &Cluster, backup_start: Lsn) -> FileReader {
    let block_size = BlockSize::try_from(8192).unwrap();
    let checks = PageChecks { block_size, segment_blocks: 131_072, backup_start };
    FileReader::new(&cluster.data(), Some(checks), ChecksumAlgorithm::None)
}

/// Path and block, counted from the beginning of the relation, of every bad page.
fn bad_pages(cluster: &Cluster, backup_start: Lsn) -> Vec<(PathBuf, u32)> {
    let mut reader = checking_reader(cluster, backup_start);
    let relations = cluster.scan(&BTreeMap::new());
    let mut relations = relations.files().filter(|file| matches!(file.kind, FileKind::Relation(_))).peekable();
    assert!(relations.peek().is_some());
    let found = relations.flat_map(|file| {
        let bad = digest(&mut reader, &file.path, file.kind).bad_pages;
        bad.into_iter().map(move |page| (file.path.clone(), page.block))
    });
    found.collect()
}

#[test]
fn exactly_the_flipped_byte_is_found_in_a_checksummed_cluster() {
    let cluster = Cluster::start();
    cluster.sql(&[
        "create table t as select n, repeat('x', 100) from generate_series(1, 50000) n",
        "create index on t (n)",
        "vacuum t",
    ]);
    let path = relation_path(&cluster, "t");
    cluster.stop();
    assert_eq!(bad_pages(&cluster, Lsn(u64::MAX)), []);

    // A second segment, with the checksums its pages would have there.
    let data = cluster.data();
    let first = fs::read(data.join(&path)).unwrap();
    assert!(first.len() > 500 * 8192);
    let mut second = first[..300 * 8192].to_vec();
    for (page, block) in second.chunks_exact_mut(8192).zip(131_072..) {
        let checksum = page_checksum(page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
    }
    let second_path = PathBuf::from(format!("{}.1", path.display()));
    fs::write(data.join(&second_path), &second).unwrap();
    let pg_checksums = || cluster.command("pg_checksums").args(["--check", "-D"]).arg(cluster.data()).output().unwrap();
    run(std::process::Command::new("chown").arg("--reference").arg(data.join(&path)).arg(data.join(&second_path)));
    let judged = pg_checksums();
    assert!(judged.status.success(), "{}", printed(&judged));
    assert_eq!(bad_pages(&cluster, Lsn(u64::MAX)), []);

    let flip = |path: &Path, contents: &[u8], block: usize| {
        let mut contents = contents.to_vec();
        contents[block * 8192 + 4321] ^= 0x10;
        fs::write(data.join(path), contents).unwrap();
    };
    flip(&path, &first, 400);
    flip(&second_path, &second, 299);
    let mut expected = vec![(path.clone(), 400), (second_path.clone(), 131_072 + 299)];
    expected.sort();
    assert_eq!(bad_pages(&cluster, Lsn(u64::MAX)), expected);
    let judged = printed(&pg_checksums());
    for (path, block) in [(&path, 400), (&second_path, 299)] {
        let line = judged.lines().find(|line| line.contains(&format!("{}\", block {block}:", path.display())));
        assert!(line.is_some(), "{judged}");
    }
    // What was changed since the start of the backup is not looked at.
    assert_eq!(bad_pages(&cluster, Lsn(1)), []);
}

#[test]
fn no_page_of_a_busy_cluster_is_called_bad() {
    let cluster = Cluster::start();
    cluster.sql(&[
        "create table t (n int primary key, m int) with (fillfactor = 50)",
        "insert into t select n, 0 from generate_series(1, 20000) n",
    ]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                cluster.sql(&["update t set m = m + 1", "vacuum t", "checkpoint"]);
            }
        });
        let rounds: Vec<_> = (0..15)
            .map(|_| {
                let function = if cluster.major() >= 15 { "pg_backup_start" } else { "pg_start_backup" };
                let arguments = if cluster.major() >= 15 { "'x', true" } else { "'x', true, false" };
                // Leaves the backup mode when the session ends; the redo position is what counts here.
                let start = cluster.sql(&[&format!("select {function}({arguments})")]);
                let start: Lsn = start.parse().unwrap();
                let mut reader = checking_reader(&cluster, start);
                let scan = cluster.scan(&BTreeMap::new());
                let mut bad = Vec::new();
                for file in scan.files() {
                    let Some(mut open) = reader.open(&file.path, file.kind).unwrap() else { continue };
                    while open.next_chunk().unwrap().is_some() {}
                    bad.extend(open.finish().unwrap().bad_pages.into_iter().map(|page| (file.path.clone(), page)));
                }
                bad
            })
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for bad in rounds {
            assert_eq!(bad, []);
        }
    });
}

/// The manifest of a directory made by pg_basebackup, written by ourselves from the files as they are read.
fn manifest_of(cluster: &Cluster, backup: &Path, checksums: ChecksumAlgorithm) -> Vec<u8> {
    let (listed, ranges, _) = read_manifest(&fs::read(backup.join("backup_manifest")).unwrap());
    let mut reader = FileReader::new(backup, None, checksums);
    let mut writer = ManifestWriter::new(Vec::new(), cluster.major(), cluster.control().system_identifier).unwrap();
    for ManifestFile { path, modified, .. } in listed {
        let name = path.file_name().unwrap().as_encoded_bytes();
        let kind = RelationFile::parse(name).map_or(FileKind::Other, FileKind::Relation);
        let FileSummary { size, checksum, .. } = digest(&mut reader, &path, kind);
        // CRC-32C is left to the writer of packs.
        let checksum = checksum.unwrap_or_else(|| checksums.of(&fs::read(backup.join(&path)).unwrap()));
        writer.file(&ManifestFile { path, size, modified, checksum }).unwrap();
    }
    writer.finish(&ranges).unwrap()
}

#[test]
fn manifests_are_those_that_postgresql_writes() {
    let cluster = Cluster::start();
    let _session = furnish(&cluster);
    for checksums in ChecksumAlgorithm::ALL {
        let backup = pg_basebackup(&cluster, checksums);
        let path = backup.join("backup_manifest");
        let theirs = fs::read(&path).unwrap();
        let ours = manifest_of(&cluster, &backup, checksums);
        assert!(ours == theirs, "{}: ours\n{}", checksums.name(), String::from_utf8_lossy(&ours));
        fs::write(&path, &ours).unwrap();
        run(cluster.command("pg_verifybackup").arg("-n").arg(&backup));
        let (_, ranges, system_identifier) = read_manifest(&ours);
        assert_eq!(ranges.len(), 1);
        assert_eq!(system_identifier, (cluster.major() >= 17).then_some(cluster.control().system_identifier));
    }
}

#[test]
fn a_manifest_with_a_replaced_entry_is_accepted() {
    let cluster = Cluster::start();
    let backup = pg_basebackup(&cluster, ChecksumAlgorithm::Crc32c);
    let path = backup.join("backup_manifest");
    let manifest = fs::read(&path).unwrap();
    let contents = b"START WAL LOCATION: elsewhere\n";
    fs::write(backup.join("backup_label"), contents).unwrap();
    let verified = |manifest: &[u8]| {
        fs::write(&path, manifest).unwrap();
        cluster.command("pg_verifybackup").arg("-n").arg(&backup).output().unwrap().status.success()
    };
    assert!(!verified(&manifest));
    let replacement = ManifestFile {
        path: "backup_label".into(),
        size: contents.len() as u64,
        modified: 0,
        checksum: ChecksumAlgorithm::Sha512.of(contents),
    };
    let replaced = replace_file(&manifest[..], Vec::new(), &replacement).unwrap();
    assert!(verified(&replaced));
    let (files, ..) = read_manifest(&replaced);
    assert!(files.contains(&replacement));
    assert!(files.iter().filter(|file| file.checksum.algorithm() == ChecksumAlgorithm::Crc32c).count() > 900);
}

#[test]
fn a_damaged_manifest_of_postgresql_is_refused() {
    let cluster = Cluster::start();
    let manifest = fs::read(pg_basebackup(&cluster, ChecksumAlgorithm::Crc32c).join("backup_manifest")).unwrap();
    let refused = |manifest: &[u8]| {
        let mut reader = ManifestReader::new(manifest);
        loop {
            match reader.next_file() {
                Ok(Some(_)) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    };
    assert!(!refused(&manifest));
    // A prime step, so that every kind of byte is met.
    for at in (0..manifest.len()).step_by(1009) {
        let mut damaged = manifest.clone();
        damaged[at] ^= 0x04;
        assert!(refused(&damaged), "byte {at} flipped");
        damaged.remove(at);
        assert!(refused(&damaged), "byte {at} removed");
        assert!(refused(&manifest[..at]), "cut at {at}");
    }
    let without_a_line: Vec<u8> = manifest
        .split_inclusive(|byte| *byte == b'\n')
        .enumerate()
        .filter(|(number, _)| *number != 20)
        .flat_map(|(_, line)| line.to_vec())
        .collect();
    assert!(refused(&without_a_line));
}

#[test]
fn what_may_not_be_read_ends_the_scan_with_its_path() {
    if is_root() {
        // Root may read everything: the same test again, as another user, from where that user may run it.
        let scratch = scratch();
        let copy = scratch.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let mut test = unprivileged(&copy);
        test.args(["--exact", "what_may_not_be_read_ends_the_scan_with_its_path"]).current_dir(scratch.path());
        assert!(run(&mut test).contains("1 passed"));
        return;
    }
    let scratch = scratch();
    let data = scratch.path().join("data");
    for directory in ["base/1", "global", "pg_tblspc", "pg_wal", "lost+found"] {
        fs::create_dir_all(data.join(directory)).unwrap();
    }
    let (relation, left_out) = (data.join("base/1/1259"), data.join("postmaster.opts"));
    fs::write(&relation, "x").unwrap();
    fs::write(&left_out, "x").unwrap();
    let tablespaces = BTreeMap::new();
    let options =
        ScanOptions { pg_major: 15, catalog_version: 1, tablespaces: &tablespaces, stats_temp_directory: None };
    let allow = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for path in [&relation, &data.join("lost+found"), &data.join("base")] {
        allow(path, 0o000);
        let error = scan(&data, &options).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(error.hint_text().is_some());
        allow(path, 0o700);
    }
    // Permission may also be granted to the group, or to others but not to the owner; what is left out needs none.
    allow(&left_out, 0o000);
    assert_eq!(scan(&data, &options).unwrap().file_count(), 1);
    allow(&relation, 0o044);
    assert!(scan(&data, &options).is_err());
}
