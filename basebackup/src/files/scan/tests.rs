use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;
use crate::files::relation::{Fork, RelationFile};
use crate::files::tablespace::TablespaceLocation;

const CATALOG_VERSION: u32 = 202_209_061;
const VERSION_DIRECTORY: &str = "PG_15_202209061";

/// A directory that looks like a data directory, in one of its own.
struct DataDirectory {
    scratch: TempDir,
    tablespaces: BTreeMap<u32, PathBuf>,
}

impl DataDirectory {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let data = Self { scratch, tablespaces: BTreeMap::new() };
        for directory in ["base/1", "global", "pg_tblspc", "pg_wal/archive_status"] {
            fs::create_dir_all(data.path().join(directory)).unwrap();
        }
        data.write("PG_VERSION");
        data.write("global/pg_control");
        data
    }

    fn path(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// Makes a file, and the directories it needs.
    fn write(&self, path: impl AsRef<Path>) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    /// Makes a tablespace of which both the link and the catalog say `target`.
    fn link_tablespace(&mut self, oid: u32, target: &Path) {
        symlink(target, self.path().join(format!("pg_tblspc/{oid}"))).unwrap();
        self.tablespaces.insert(oid, target.to_owned());
    }

    fn try_scan(&self, pg_major: u32) -> Result<Scan> {
        let options = ScanOptions {
            pg_major,
            catalog_version: CATALOG_VERSION,
            tablespaces: &self.tablespaces,
            stats_temp_directory: Some(Path::new("stats")),
        };
        scan(&self.path(), &options)
    }

    fn scan(&self) -> Scan {
        self.try_scan(15).unwrap()
    }
}

fn files(scan: &Scan) -> Vec<String> {
    scan.files().map(|file| file.path.to_str().unwrap().to_owned()).collect()
}

fn directories(scan: &Scan) -> Vec<String> {
    scan.directories().iter().map(|directory| directory.path.to_str().unwrap().to_owned()).collect()
}

#[test]
fn the_order_is_that_of_the_paths_and_pg_control_is_not_listed() {
    let data = DataDirectory::new();
    for path in [
        "base/10/1259",
        "base/1/1259.1",
        "base/1/1259",
        "base/1/1259_vm",
        "base.conf",
        "pg_xact/0000",
        "base/1.x/1",
        "zz",
    ] {
        data.write(path);
    }
    let scan = data.scan();
    let found: Vec<PathBuf> = scan.files().map(|file| file.path).collect();
    assert!(found.is_sorted(), "{found:?}");
    assert!(scan.directories().is_sorted_by_key(|directory| &directory.path));
    assert_eq!(found.len(), scan.file_count());
    assert_eq!(found.len(), 9, "{found:?}");
    assert_eq!(scan.total_bytes(), 9);
    assert_eq!(scan.file(2), scan.files().nth(2));
    assert_eq!(scan.file(9), None);
}

#[test]
fn relations_are_told_from_other_files_by_place_and_name() {
    let mut data = DataDirectory::new();
    let target = data.scratch.path().join("space");
    for path in
        ["base/1/1259_fsm.2", "base/1/PG_VERSION", "global/1260", "global/pg_filenode.map", "pg_xact/1259", "1259"]
    {
        data.write(path);
    }
    data.write(target.join(VERSION_DIRECTORY).join("1/16385"));
    data.write(target.join(VERSION_DIRECTORY).join("16385"));
    data.link_tablespace(16384, &target);
    let relations: Vec<_> = data
        .scan()
        .files()
        .filter_map(|file| match file.kind {
            FileKind::Relation(relation) => Some((file.path.to_str().unwrap().to_owned(), relation)),
            FileKind::Other => None,
        })
        .collect();
    assert_eq!(
        relations,
        [
            ("base/1/1259_fsm.2".to_owned(), RelationFile { number: 1259, fork: Fork::FreeSpaceMap, segment: 2 }),
            ("global/1260".to_owned(), RelationFile { number: 1260, fork: Fork::Main, segment: 0 }),
            (
                format!("pg_tblspc/16384/{VERSION_DIRECTORY}/1/16385"),
                RelationFile { number: 16385, fork: Fork::Main, segment: 0 }
            ),
        ]
    );
}

#[test]
fn unlogged_and_temporary_relations_are_left_out_where_relations_live() {
    let data = DataDirectory::new();
    for path in [
        "base/1/100",
        "base/1/100.1",
        "base/1/100_fsm",
        "base/1/100_vm",
        "base/1/100_init",
        "base/1/1000",
        "base/1/t3_100",
        "base/1/t3_100_fsm.1",
        "base/1/t_x",
        "base/2/100",
        "pg_xact/t3_100",
        "pg_xact/5",
        "pg_xact/5_init",
    ] {
        data.write(path);
    }
    assert_eq!(
        files(&data.scan()),
        [
            "PG_VERSION",
            "base/1/1000",
            "base/1/100_init",
            "base/1/t_x",
            "base/2/100",
            "pg_xact/5",
            "pg_xact/5_init",
            "pg_xact/t3_100"
        ]
    );
}

#[test]
fn directories_with_state_of_the_running_server_are_kept_empty() {
    let data = DataDirectory::new();
    for path in [
        "pg_replslot/s/state",
        "pg_stat_tmp/db_0.stat",
        "pg_stat/x",
        "stats/y",
        "base/pgsql_tmp/z",
        "pg_wal/0001",
        "a/pg_notify/0000",
    ] {
        data.write(path);
    }
    fs::write(data.path().join("pg_serial"), "no directory").unwrap();
    symlink("/nowhere", data.path().join("pg_subtrans")).unwrap();
    let scan = data.scan();
    assert_eq!(files(&scan), ["PG_VERSION", "pg_serial", "pg_stat/x", "stats/y"]);
    let empty = ["a", "a/pg_notify", "pg_replslot", "pg_stat_tmp", "pg_subtrans", "pg_wal", "pg_wal/archive_status"];
    let found = directories(&scan);
    assert!(empty.iter().all(|name| found.iter().any(|path| path == name)), "{found:?}");
    assert!(
        !found.iter().any(|path| path.contains("pgsql_tmp") || path == "pg_replslot/s" || path == "pg_wal/summaries")
    );
    assert!(scan.warnings().is_empty());

    assert!(
        directories(&data.try_scan(17).unwrap_or_else(|error| panic!("{error}")))
            .contains(&"pg_wal/summaries".to_owned())
    );
    // Before 15 the statistics had a directory of their own.
    assert_eq!(files(&data.try_scan(14).unwrap()), ["PG_VERSION", "pg_serial", "pg_stat/x"]);
}

#[test]
fn a_linked_pg_wal_becomes_a_directory_with_the_mode_of_the_cluster() {
    let data = DataDirectory::new();
    fs::remove_dir_all(data.path().join("pg_wal")).unwrap();
    symlink("/srv/wal", data.path().join("pg_wal")).unwrap();
    for (mode, expected) in [(0o700, 0o700), (0o750, 0o750), (0o755, 0o750)] {
        fs::set_permissions(data.path(), fs::Permissions::from_mode(mode)).unwrap();
        let scan = data.scan();
        assert_eq!(scan.root().unwrap().mode, mode);
        assert_eq!(scan.wal_link(), Some(Path::new("/srv/wal")));
        let wal: Vec<_> = scan.directories().iter().filter(|directory| directory.path.starts_with("pg_wal")).collect();
        assert_eq!(wal.len(), 2);
        assert!(wal.iter().all(|directory| directory.attributes.mode == expected));
        assert!(scan.warnings().is_empty());
    }
}

#[test]
fn special_files_and_links_are_skipped_with_a_warning() {
    let data = DataDirectory::new();
    let path = data.path();
    mknodat(CWD, path.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = UnixListener::bind(path.join("socket")).unwrap();
    symlink("/etc/postgresql.conf", path.join("postgresql.conf")).unwrap();
    symlink("/nonexistent", path.join("pg_tblspc/99999")).unwrap();
    let scan = data.scan();
    let warnings: Vec<String> = scan.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "skipping symbolic link \"pg_tblspc/99999\" to \"/nonexistent\"",
            "skipping special file \"fifo\"",
            "skipping symbolic link \"postgresql.conf\" to \"/etc/postgresql.conf\"",
            "skipping special file \"socket\"",
        ]
    );
    assert_eq!(files(&scan), ["PG_VERSION"]);
}

#[test]
fn a_link_where_data_must_be_is_refused() {
    for link in ["base/2", "base/1/1259", "global/1262_vm", "pg_xact"] {
        let data = DataDirectory::new();
        let path = data.path().join(link);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::remove_dir(&path).ok();
        symlink("/elsewhere", &path).unwrap();
        let refused = data.try_scan(15).unwrap_err().to_string();
        assert!(refused.contains(link) && refused.contains("\"/elsewhere\", would not be in the backup"), "{refused}");
    }
}

#[test]
fn names_of_any_bytes_are_kept() {
    let data = DataDirectory::new();
    let names: [&[u8]; 7] = [b"a\nb", b"#1", b"\\", b"\xff\xfe", b"a=b [x] # y", "é".as_bytes(), &[b'n'; 255]];
    for name in names {
        data.write(Path::new("odd").join(OsString::from_vec(name.to_vec())));
    }
    let scan = data.scan();
    let mut found: Vec<_> = scan.files().filter(|file| file.path.starts_with("odd")).map(|file| file.path).collect();
    let mut expected: Vec<_> = names.iter().map(|name| Path::new("odd").join(OsStr::from_bytes(name))).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn tablespaces_are_followed_wherever_their_links_lead() {
    let mut data = DataDirectory::new();
    let scratch = data.scratch.path().to_owned();
    let version = Path::new(VERSION_DIRECTORY);
    for space in ["plain", "behind", "beside", "data/inside/data"] {
        data.write(scratch.join(space).join(version).join("1/100"));
        // Another server's files in the same place.
        data.write(scratch.join(space).join("PG_14_202107181/1/666"));
        data.write(scratch.join(space).join("notes"));
    }
    symlink("behind", scratch.join("link to link")).unwrap();
    data.link_tablespace(16384, &scratch.join("plain"));
    data.link_tablespace(16385, &scratch.join("link to link"));
    data.link_tablespace(16386, Path::new("../../beside"));
    data.link_tablespace(16387, &data.path().join("inside/data"));
    data.write(format!("pg_tblspc/16388/{VERSION_DIRECTORY}/1/100"));
    data.tablespaces.insert(16388, PathBuf::from("pg_tblspc/16388"));

    let scan = data.scan();
    let expected: Vec<String> =
        (16384..=16388).map(|oid| format!("pg_tblspc/{oid}/{VERSION_DIRECTORY}/1/100")).collect();
    assert_eq!(files(&scan), [vec!["PG_VERSION".to_owned()], expected].concat());
    let found = directories(&scan);
    for directory in ["inside", "inside/data", "pg_tblspc/16384", "pg_tblspc/16388/PG_15_202209061/1"] {
        assert!(found.iter().any(|path| path == directory), "{directory} in {found:?}");
    }
    assert!(!found.iter().any(|path| path.contains("PG_14") || path.starts_with("inside/data/")));
    let locations: Vec<_> = scan.tablespaces().iter().map(|space| (space.oid, space.location.clone())).collect();
    assert_eq!(locations[2], (16386, TablespaceLocation::Link("../../beside".into())));
    assert_eq!(locations[4], (16388, TablespaceLocation::InPlace));
    assert!(scan.warnings().is_empty(), "{:?}", scan.warnings());
}

#[test]
fn a_tablespace_in_the_data_directory_itself_or_around_it_ends_somewhere() {
    let mut data = DataDirectory::new();
    data.write(format!("{VERSION_DIRECTORY}/1/100"));
    data.write(data.scratch.path().join(VERSION_DIRECTORY).join("1/200"));
    symlink(data.path(), data.scratch.path().join(VERSION_DIRECTORY).join("loop")).unwrap();
    data.link_tablespace(16384, &data.path());
    let around = data.scratch.path().to_owned();
    data.link_tablespace(16385, &around);
    let scan = data.scan();
    assert_eq!(
        files(&scan),
        [
            "PG_VERSION".to_owned(),
            format!("pg_tblspc/16384/{VERSION_DIRECTORY}/1/100"),
            format!("pg_tblspc/16385/{VERSION_DIRECTORY}/1/200"),
        ]
    );
}

#[test]
fn tablespaces_that_are_not_those_of_the_catalog_are_refused() {
    let mut data = DataDirectory::new();
    let target = data.scratch.path().join("space");
    data.write(target.join(VERSION_DIRECTORY).join("1/100"));
    data.link_tablespace(16384, &target);
    assert!(data.try_scan(15).is_ok());

    fs::rename(&target, data.scratch.path().join("away")).unwrap();
    let error = data.try_scan(15).unwrap_err();
    assert!(error.to_string().contains("has no files of this server"), "{error}");
    assert!(error.hint_text().unwrap().contains("mounted"));
    fs::rename(data.scratch.path().join("away"), &target).unwrap();

    data.tablespaces.insert(16390, PathBuf::from("/srv/other"));
    assert!(data.try_scan(15).unwrap_err().to_string().contains("tablespace 16390"));
    data.tablespaces.clear();
    assert!(data.try_scan(15).unwrap_err().to_string().contains("tablespace 16384"));

    // A link in a circle, and one to a file.
    fs::remove_file(data.path().join("pg_tblspc/16384")).unwrap();
    data.link_tablespace(16384, &data.path().join("pg_tblspc/16384"));
    let circle = data.try_scan(15).unwrap_err().to_string();
    assert!(circle.contains("pg_tblspc/16384"), "{circle}");
    fs::remove_file(data.path().join("pg_tblspc/16384")).unwrap();
    data.link_tablespace(16384, &data.path().join("PG_VERSION"));
    assert!(data.try_scan(15).is_err());
}

#[test]
fn owner_mode_and_time_are_recorded() {
    let data = DataDirectory::new();
    data.write("file");
    let path = data.path().join("file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(data.path().join("base"), fs::Permissions::from_mode(0o750)).unwrap();
    let modified = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_795_333_115);
    fs::File::open(&path).unwrap().set_modified(modified).unwrap();
    let scan = data.scan();
    let file = scan.files().find(|file| file.path == Path::new("file")).unwrap();
    assert_eq!((file.size, file.attributes.mode, file.attributes.modified), (1, 0o600, 1_795_333_115));
    assert_eq!(file.attributes.uid, rustix::process::geteuid().as_raw());
    let base = scan.directories().iter().find(|directory| directory.path == Path::new("base")).unwrap();
    assert_eq!(base.attributes.mode, 0o750);
}

#[test]
fn what_is_no_data_directory_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let options =
        ScanOptions { pg_major: 15, catalog_version: 1, tablespaces: &BTreeMap::new(), stats_temp_directory: None };
    assert_eq!(scan(&scratch.path().join("gone"), &options).unwrap_err().kind(), Kind::Missing);
    let error = scan(scratch.path(), &options).unwrap_err().to_string();
    assert!(error.contains("pg_tblspc"), "{error}");
}

#[test]
fn a_deep_directory_exhausts_neither_stack_nor_descriptors() {
    let data = DataDirectory::new();
    let deep = vec!["d"; 1000].join("/");
    data.write(Path::new(&deep).join("file"));
    assert_eq!(data.scan().directories().len(), 1000 + 6);
}

#[test]
fn files_and_directories_that_come_and_go_are_no_error() {
    let data = DataDirectory::new();
    for number in 1000..1200 {
        data.write(format!("base/1/{number}"));
    }
    let (stop, base) = (AtomicBool::new(false), data.path().join("base"));
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let (stop, base) = (&stop, &base);
            scope.spawn(move || {
                let mut number = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    let database = base.join((10 + worker * 10 + number % 10).to_string());
                    let _ = fs::create_dir(&database);
                    for file in 0..20 {
                        let _ = fs::write(database.join((2000 + file).to_string()), "x");
                    }
                    let _ = fs::write(base.join("1").join((5000 + number % 100).to_string()), "x");
                    let _ = fs::remove_dir_all(&database);
                    let _ = fs::remove_file(base.join("1").join((5000 + (number + 50) % 100).to_string()));
                    number += 1;
                }
            });
        }
        let scans: Vec<_> = (0..300).map(|_| data.try_scan(15)).collect();
        stop.store(true, Ordering::Relaxed);
        for scan in scans {
            let scan = scan.unwrap();
            assert!(scan.files().filter(|file| file.path.starts_with("base/1")).count() >= 200);
        }
    });
}
