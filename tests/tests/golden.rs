//! A repository written by version 0.1.0 in the first format: every later version must read it, and as long as the
//! format's version is the same, write it.
//!
//! `tests/golden/README.md` says what may happen to these files: nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basebackup::files::checksum::ChecksumAlgorithm;
use basebackup::files::manifest::{ManifestFile, ManifestReader, ManifestWriter, WalRange};
use basebackup::pack::assembler::PackAssembler;
use basebackup::pack::frames::{Compressors, InvalidFrame};
use basebackup::pack::index::{IndexEntry, IndexReader, IndexWriter};
use basebackup::pack::member::{Member, MemberKind, MemberPath, Owner};
use basebackup::pack::reader::PackLayout;
use basebackup::pack::seek_table::SeekTable;
use basebackup::pack::writer::PackWriter;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use walkeep_common::repository::backup::{
    Backup, BackupRecord, BadPage, Begin, Owner as BackupOwner, Pack, StoredObject, Tablespace,
};
use walkeep_common::repository::identity::Identity;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal::segment::{SegmentSize, Timeline};
use walkeep_common::wal_object::decode::Decoder;
use walkeep_common::wal_object::encode::{Description, Encoded, encode, hexadecimal};
use walkeep_common::wal_object::header::Header;
use walkeep_tests::binaries;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;

const SYSTEM_IDENTIFIER: u64 = 7_710_896_607_187_077_353;
const SEGMENT: &str = "000000010000000000000005";
const SEGMENT_BYTES: usize = 1 << 20;
const ID: &str = "20261122T064500Z-3fa9";
const LEVEL: i32 = 3;
/// One whose frames are as large as they may be.
const LEVEL_OF_PACKS: i32 = 9;
/// A file that takes more than one frame.
const LARGE_BYTES: usize = (5 << 20) + 100;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/format-1")
}

fn folder() -> String {
    format!("main/{SYSTEM_IDENTIFIER}")
}

/// One of the files as it was committed.
fn golden(name: &str) -> Vec<u8> {
    std::fs::read(directory().join(folder()).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn wal_key() -> String {
    format!("wal/0000000100000000/{SEGMENT}.zst")
}

fn base(name: &str) -> String {
    format!("base/{ID}/{name}")
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn unpacked(stored: &[u8]) -> Vec<u8> {
    zstd::decode_all(stored).unwrap()
}

/// The segment: a page header as PostgreSQL 15 writes it, a few bytes, and zeros.
fn segment() -> Vec<u8> {
    let mut bytes = vec![0; SEGMENT_BYTES];
    bytes[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
    bytes[2..4].copy_from_slice(&2_u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&1_u32.to_le_bytes());
    bytes[8..16].copy_from_slice(&(5_u64 << 20).to_le_bytes());
    bytes[24..32].copy_from_slice(&SYSTEM_IDENTIFIER.to_le_bytes());
    bytes[32..36].copy_from_slice(&u32::try_from(SEGMENT_BYTES).unwrap().to_le_bytes());
    bytes[36..40].copy_from_slice(&8192_u32.to_le_bytes());
    bytes[40..64].copy_from_slice(b"the first bytes of a log");
    bytes[SEGMENT_BYTES - 7..].copy_from_slice(b"the end");
    bytes
}

fn segment_size() -> SegmentSize {
    SegmentSize::try_from(SEGMENT_BYTES as u64).unwrap()
}

fn encoded_segment() -> Encoded {
    let segment = segment();
    let description = Description {
        name: SEGMENT.to_owned(),
        system_identifier: SYSTEM_IDENTIFIER,
        timeline: Timeline(1),
        start_lsn: Some("0/500000".parse().unwrap()),
        pg_major: Some(15),
        segment_size: Some(segment_size()),
        modified: time("2026-11-22T06:45:10.25Z"),
        archived: time("2026-11-22T06:45:11Z"),
        host: "db1.example".to_owned(),
    };
    encode(&segment[..], segment.len() as u64, LEVEL, description).unwrap()
}

fn identity() -> Identity {
    Identity::new(SYSTEM_IDENTIFIER, Some(segment_size()), Some(15), time("2026-11-22T06:40:00Z"))
}

fn begin() -> Begin {
    Begin {
        walkeep: 1,
        id: ID.parse().unwrap(),
        system_identifier: SYSTEM_IDENTIFIER,
        started: time("2026-11-22T06:45:00Z"),
        start_lsn_at_least: "0/400060".parse().unwrap(),
        timeline: Timeline(1),
        host: "db1.example".to_owned(),
        data_directory: "/var/lib/postgresql/15/main".to_owned(),
        version: "0.1.0".to_owned(),
    }
}

/// What is in the packs: paths, modes, and content, or nothing for a directory.
fn members(pack: u32) -> Vec<(Member, Option<Vec<u8>>)> {
    let owner = Arc::new(Owner { uid: 26, gid: 27, user: "postgres".to_owned(), group: "dba".to_owned() });
    let member = |path: &[u8], mode: u32, content: Option<Vec<u8>>| {
        let kind = match &content {
            Some(content) => MemberKind::File { size: content.len() as u64 },
            None => MemberKind::Directory,
        };
        let path = MemberPath::new(path).unwrap();
        (Member { path, kind, mode, modified: time("2026-11-22T06:44:59Z"), owner: Arc::clone(&owner) }, content)
    };
    let large: Vec<u8> = (0..LARGE_BYTES).map(|at| u8::try_from(at / 8192 % 251).unwrap()).collect();
    let long = format!("pg_tblspc/16384/PG_15_202209061/5/{}/16385", "a".repeat(120));
    match pack {
        1 => vec![
            member(b"base", 0o700, None),
            member(b"base/5", 0o700, None),
            member(b"pg_tblspc/16384", 0o750, None),
            member(b"PG_VERSION", 0o600, Some(b"15\n".to_vec())),
            member(b"base/5/1259", 0o600, Some(large)),
            member(b"base/5/16390_init", 0o640, Some(Vec::new())),
            member(b"odd \xFF\n'name\"", 0o604, Some(b"odd".to_vec())),
            member(long.as_bytes(), 0o600, Some(vec![b'x'; 8192])),
        ],
        _ => vec![
            member(b"global/pg_control", 0o600, Some(vec![0xC0; 8192])),
            member(b"tablespace_map", 0o600, Some(b"16384 /srv/space\n".to_vec())),
            member(
                b"backup_label",
                0o600,
                Some(b"START WAL LOCATION: 0/500028 (file 000000010000000000000005)\n".to_vec()),
            ),
        ],
    }
}

/// A pack as today's code writes it, and its lines of the index.
fn packed(pack: u32) -> (Vec<u8>, Vec<IndexEntry>) {
    let compressors = Compressors::new(LEVEL_OF_PACKS);
    let mut writer = PackWriter::new(pack, compressors.cutter());
    let (mut frames, mut entries) = (Vec::new(), Vec::new());
    for (member, content) in members(pack) {
        frames.extend(writer.begin(member).unwrap());
        frames.extend(writer.data(content.as_deref().unwrap_or_default()).unwrap());
        entries.push(writer.end().unwrap());
    }
    frames.extend(writer.finish().unwrap());
    let mut assembler = PackAssembler::default();
    let mut stored = Vec::new();
    for frame in frames {
        stored.extend_from_slice(&assembler.push(compressors.compress(frame).unwrap()).unwrap());
    }
    let (table, summary) = assembler.finish();
    stored.extend_from_slice(&table);
    assert_eq!(hexadecimal(&summary.sha256), hexadecimal(&Sha256::digest(&stored)));
    (stored, entries)
}

fn index(entries: &[IndexEntry]) -> Vec<u8> {
    let mut writer = IndexWriter::new(Vec::new(), LEVEL).unwrap();
    for entry in entries {
        writer.write(entry).unwrap();
    }
    writer.finish().unwrap().0
}

fn manifest_files() -> Vec<ManifestFile> {
    use std::os::unix::ffi::OsStrExt as _;
    let files = members(1).into_iter().chain(members(2));
    let files = files.filter_map(|(member, content)| Some((member, content?)));
    let path = |member: &Member| PathBuf::from(std::ffi::OsStr::from_bytes(member.path.as_bytes()));
    files
        .map(|(member, content)| ManifestFile {
            path: path(&member),
            size: content.len() as u64,
            modified: member.modified.as_second(),
            checksum: ChecksumAlgorithm::Crc32c.of(&content),
        })
        .collect()
}

fn wal_range() -> WalRange {
    WalRange { timeline: Timeline(1), start: "0/500028".parse().unwrap(), end: "0/5001F8".parse().unwrap() }
}

/// PostgreSQL's manifest, plain.
fn manifest() -> Vec<u8> {
    let mut writer = ManifestWriter::new(Vec::new(), 15, SYSTEM_IDENTIFIER).unwrap();
    for file in manifest_files() {
        writer.file(&file).unwrap();
    }
    writer.finish(&[wal_range()]).unwrap()
}

/// The record of the backup that consists of these stored objects.
fn backup(packs: &[Vec<u8>], index: &[u8], manifest: &[u8]) -> Backup {
    let stored = |bytes: &[u8]| StoredObject { size: bytes.len() as u64, sha256: hexadecimal(&Sha256::digest(bytes)) };
    let packs: Vec<Pack> = packs
        .iter()
        .zip(1..)
        .map(|(bytes, number)| {
            let StoredObject { size, sha256 } = stored(bytes);
            Pack { name: format!("pack-{number:05}.tar.zst"), size, sha256 }
        })
        .collect();
    Backup {
        walkeep: 1,
        id: ID.parse().unwrap(),
        kind: "full".to_owned(),
        parent: None,
        label: "nightly \"full\"".to_owned(),
        system_identifier: SYSTEM_IDENTIFIER,
        pg_version: 150_018,
        segment_size: segment_size(),
        timeline: Timeline(1),
        stop_timeline: None,
        start_lsn: "0/500028".parse().unwrap(),
        stop_lsn: "0/5001F8".parse().unwrap(),
        start_wal: SEGMENT.to_owned(),
        stop_wal: SEGMENT.to_owned(),
        start_time: time("2026-11-22T06:45:01.5Z"),
        stop_time: time("2026-11-22T06:45:09.25Z"),
        next_xid_at_start: 4_294_968_000,
        next_xid_at_stop: 4_294_968_007,
        from_standby: false,
        host: "db1.example".to_owned(),
        data_directory: "/var/lib/postgresql/15/main".to_owned(),
        data_directory_mode: "0700".to_owned(),
        tablespaces: vec![Tablespace { oid: 16384, name: "space".to_owned(), location: "/srv/space".to_owned() }],
        databases: Vec::new(),
        owner: BackupOwner { uid: 26, gid: 27, user: Some("postgres".to_owned()), group: None },
        data_checksums: true,
        bad_pages: vec![BadPage { file: "base/5/1259".to_owned(), block: 3, relation: None }],
        files: manifest_files().len() as u64,
        plain_size: manifest_files().iter().map(|file| file.size).sum(),
        stored_size: packs.iter().map(|pack| pack.size).sum(),
        packs,
        index: stored(index),
        manifest: stored(manifest),
        configuration: None,
        kept_wal: Vec::new(),
        restore_point: None,
        version: "0.1.0".to_owned(),
        annotations: BTreeMap::from([("ticket".to_owned(), "OPS-7".to_owned())]),
    }
}

fn golden_packs() -> [Vec<u8>; 2] {
    [golden(&base("pack-00001.tar.zst")), golden(&base("pack-00002.tar.zst"))]
}

#[test]
fn the_segment_is_read() {
    let object = golden(&wal_key());
    let (header, length) = Header::parse(&object[..object.len().min(4096)]).unwrap();
    assert_eq!((header.walkeep, header.version.as_str(), header.pg_major), (1, "0.1.0", Some(15)));
    assert_eq!(header.object_size(length), object.len() as u64);
    assert_eq!(header.blake3, blake3::hash(&segment()).to_hex().as_str());
    let mut decoder = Decoder::new(header, length, Vec::new()).unwrap();
    decoder.feed(&object[length..]).unwrap();
    assert!(decoder.finish().unwrap().1 == segment());
}

#[test]
fn the_segment_is_still_written_so() {
    let (object, written) = (golden(&wal_key()), encoded_segment());
    let (golden, length) = Header::parse(&object).unwrap();
    // What depends on zstd's and our own version may differ, and nothing else.
    let Header { stored_size, sha256, version, .. } = golden;
    let header = Header { stored_size, sha256, version, ..written.header };
    assert_eq!(header.to_bytes().unwrap(), object[..length], "{header:#?}");
    assert!(unpacked(&written.frames) == unpacked(&object[length..]));
}

#[test]
fn the_identity_is_read_and_still_written_so() {
    let bytes = golden("identity.json");
    assert_eq!(Identity::parse(&bytes, SYSTEM_IDENTIFIER).unwrap(), identity());
    assert_eq!(text(identity().to_bytes().unwrap()), text(bytes));
}

#[test]
fn the_records_of_the_backup_are_read_and_still_written_so() {
    let bytes = golden(&base("begin.json"));
    assert_eq!(serde_json::from_slice::<Begin>(&bytes).unwrap(), begin());
    assert_eq!(text(serde_json::to_vec(&begin()).unwrap()), text(bytes));

    let bytes = golden(&base("backup.json"));
    let [index, manifest] = ["files.ndjson.zst", "backup_manifest.zst"].map(|name| golden(&base(name)));
    let expected = backup(&golden_packs(), &index, &manifest);
    let id: BackupId = ID.parse().unwrap();
    assert_eq!(BackupRecord::parse(&bytes, &id).unwrap(), BackupRecord::Complete(Box::new(expected.clone())));
    assert_eq!(text(expected.to_bytes().unwrap()), text(bytes));
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn golden_entries() -> Vec<IndexEntry> {
    let stored = golden(&base("files.ndjson.zst"));
    let mut reader = IndexReader::new(&stored[..]).unwrap();
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

#[test]
fn the_index_is_read_and_still_written_so() {
    let entries: Vec<IndexEntry> = [1, 2].into_iter().flat_map(|pack| packed(pack).1).collect();
    assert_eq!(golden_entries(), entries);
    assert_eq!(text(unpacked(&index(&entries))), text(unpacked(&golden(&base("files.ndjson.zst")))));
}

#[test]
fn the_packs_are_read_member_by_member() {
    for (number, stored) in [1, 2].into_iter().zip(golden_packs()) {
        let table = SeekTable::parse(&stored, stored.len() as u64).unwrap();
        let mut entries = golden_entries();
        entries.retain(|entry| entry.pack == number);
        let layout = PackLayout::new(table, entries).unwrap();
        let mut files: BTreeMap<MemberPath, Vec<u8>> = BTreeMap::new();
        for group in layout.groups(1) {
            let mut reader = layout.read(&group);
            let range = usize::try_from(group.stored.start).unwrap()..usize::try_from(group.stored.end).unwrap();
            let fed = reader.feed(&stored[range], |piece, bytes| {
                files.entry(piece.member.path.clone()).or_default().extend_from_slice(bytes);
                Ok::<_, InvalidFrame>(())
            });
            fed.and_then(|()| reader.finish()).unwrap();
        }
        let expected = members(number).into_iter().filter_map(|(member, content)| Some((member.path, content?)));
        let expected: BTreeMap<_, _> = expected.filter(|(_, content)| !content.is_empty()).collect();
        assert!(files == expected, "pack {number}: {:?}", files.keys());
    }
}

#[test]
fn the_packs_are_still_written_so() {
    for (number, stored) in [1, 2].into_iter().zip(golden_packs()) {
        let written = packed(number).0;
        assert!(unpacked(&written) == unpacked(&stored), "the plain stream of pack {number} has changed");
        let frames = |stored: &[u8]| {
            let table = SeekTable::parse(stored, stored.len() as u64).unwrap();
            table.frames().iter().map(|frame| (frame.plain(), frame.checksum)).collect::<Vec<_>>()
        };
        assert_eq!(frames(&written), frames(&stored), "the frames of pack {number}");
    }
}

#[test]
fn the_manifest_is_read_and_still_written_so() {
    let plain = unpacked(&golden(&base("backup_manifest.zst")));
    let mut reader = ManifestReader::new(&plain[..]);
    let files: Vec<_> = std::iter::from_fn(|| reader.next_file().unwrap()).collect();
    assert_eq!(files, manifest_files());
    assert_eq!(reader.wal_ranges(), [wal_range()]);
    assert_eq!(text(manifest()), text(plain));
}

#[test]
fn the_programs_read_the_whole_repository() {
    let repository = Repository::directory();
    for key in files_below(&directory()) {
        let bytes = std::fs::read(directory().join(&key)).unwrap();
        repository.write(&key, &bytes);
    }
    let fetched = repository.scratch().path().join("fetched");
    let get = Run::new(binaries::archive_get()).args([SEGMENT, "fetched"]).envs(repository.environment());
    get.current_dir(repository.scratch().path()).finish().expect_silent_success();
    assert!(std::fs::read(fetched).unwrap() == segment());

    let run = |arguments: &[&str]| {
        let run = Run::new(binaries::basebackup()).args(arguments).envs(repository.environment()).finish();
        run.expect_silent_success().stdout.clone()
    };
    let list: serde_json::Value = serde_json::from_str(&run(&["list", "--format", "json"])).unwrap();
    let cluster = &list["clusters"][0];
    assert_eq!(cluster["system_identifier"], SYSTEM_IDENTIFIER.to_string());
    assert_eq!(cluster["backups"][0]["id"], ID);
    assert_eq!(
        (&cluster["windows"][0]["from_lsn"], &cluster["windows"][0]["to_lsn"]),
        (&"0/5001F8".into(), &"0/600000".into())
    );
    let show = run(&["show", ID]);
    for words in ["15.18", "nightly", "0/500028", "2026-11-22 06:45:09 UTC", "ticket=OPS-7", "base/5/1259 block 3"] {
        assert!(show.contains(words), "{words}\n{show}");
    }
}

fn files_below(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files
}
