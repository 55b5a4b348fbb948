use sha2::{Digest as _, Sha256};

use super::line::{hexadecimal, print_wal_range};
use super::*;
use crate::files::checksum::ChecksumAlgorithm;

const RANGE: WalRange = WalRange { timeline: Timeline(1), start: Lsn(0x200_0028), end: Lsn(0x200_0100) };

fn file(path: &str) -> ManifestFile {
    let checksum = ChecksumAlgorithm::Crc32c.of(path.as_bytes());
    ManifestFile { path: path.into(), size: 3, modified: 1_795_333_115, checksum }
}

fn manifest(pg_major: u32, files: &[ManifestFile]) -> String {
    let mut writer = ManifestWriter::new(Vec::new(), pg_major, 7_710_896_607_187_077_353).unwrap();
    for file in files {
        writer.file(file).unwrap();
    }
    String::from_utf8(writer.finish(&[RANGE]).unwrap()).unwrap()
}

/// A manifest with other contents and the checksum that fits them.
fn resealed(manifest: &str) -> String {
    let (contents, _) = manifest.rsplit_once("\"Manifest-Checksum\"").unwrap();
    format!("{contents}\"Manifest-Checksum\": \"{}\"}}\n", hexadecimal(&Sha256::digest(contents)))
}

type Contents = (Vec<ManifestFile>, Vec<WalRange>, Option<u64>);

fn read(manifest: &str) -> Result<Contents, ManifestError> {
    let mut reader = ManifestReader::new(manifest.as_bytes());
    let mut files = Vec::new();
    while let Some(file) = reader.next_file()? {
        files.push(file);
    }
    Ok((files, reader.wal_ranges().to_vec(), reader.system_identifier()))
}

#[test]
fn what_is_written_is_what_is_read() {
    for files in [vec![], vec![file("PG_VERSION")], vec![file("PG_VERSION"), file("base/5/1259"), file("a,")]] {
        let old = manifest(16, &files);
        assert!(old.starts_with("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n"), "{old}");
        assert_eq!(read(&old).unwrap(), (files.clone(), vec![RANGE], None));
        assert_eq!(read(&manifest(19, &files)).unwrap(), (files, vec![RANGE], Some(7_710_896_607_187_077_353)));
    }
}

#[test]
fn every_flipped_and_every_missing_byte_is_noticed() {
    let intact = manifest(17, &[file("PG_VERSION"), file("global/1260")]);
    for at in 0..intact.len() {
        let mut bytes = intact.clone().into_bytes();
        bytes[at] ^= 0x01;
        if let Ok(changed) = String::from_utf8(bytes) {
            assert!(read(&changed).is_err(), "byte {at} flipped");
        }
        assert!(read(&intact[..at]).is_err(), "cut at {at}");
    }
    assert!(read(&format!("{intact}\n")).is_err());
    assert!(read(&format!("{intact}{intact}")).is_err());
}

#[test]
fn contents_that_postgresql_never_writes_are_refused_though_their_checksum_is_right() {
    let intact = manifest(17, &[file("PG_VERSION"), file("global/1260")]);
    assert!(read(&resealed(&intact)).is_ok());
    for (from, to, problem) in [
        ("Version\": 2", "Version\": 3", "version 1 or 2"),
        ("\"System-Identifier\": 7710896607187077353,\n", "", "system identifier"),
        ("\"Files\": [", "\"Files\":[", "expected \"Files\""),
        ("global/1260", "PG_VERSION", "listed twice"),
        ("global/1260", "../1260", "not a path"),
        ("},\n{", "}\n{", "comma"),
        (" }\n],\n\"WAL", " },\n],\n\"WAL", "after the comma"),
        ("\"Timeline\": 1", "\"Timeline\": 0", "not a range"),
        ("\"WAL-Ranges\"", "\"Comment\"", "WAL-Ranges"),
        (
            "0/2000028\", \"End-LSN\": \"0/2000100\" }",
            "0/2000028\", \"End-LSN\": \"0/2000100\" },\n{ \"Timeline\": 2, \"Start-LSN\": \"0/1\", \"End-LSN\": \"0/2000028\" }",
            "newer timeline",
        ),
    ] {
        assert!(intact.contains(from), "{from}");
        let error = read(&resealed(&intact.replacen(from, to, 1))).unwrap_err().to_string();
        assert!(error.contains(problem), "{from} -> {to}: {error}");
    }
    let without_wal = resealed(&intact.replacen(&print_wal_range(&RANGE, 17), "", 1).replacen("[\n\n]", "[\n]", 1));
    assert!(read(&without_wal).unwrap_err().to_string().contains("no WAL"));
}

#[test]
fn one_entry_is_replaced_and_the_rest_stays_as_it_is() {
    let files = [file("PG_VERSION"), file("tablespace_map"), file("global/1260")];
    for at in 0..files.len() {
        let replacement =
            ManifestFile { size: 99, modified: 0, checksum: ChecksumAlgorithm::Sha256.of(b"x"), ..files[at].clone() };
        let mut expected = files.to_vec();
        expected[at] = replacement.clone();
        let copy = replace_file(manifest(18, &files).as_bytes(), Vec::new(), &replacement).unwrap();
        assert_eq!(String::from_utf8(copy).unwrap(), manifest(18, &expected));
    }
    let absent = replace_file(manifest(18, &files).as_bytes(), Vec::new(), &file("backup_label"));
    assert!(matches!(absent, Err(ManifestError::NotListed(_))));
    let damaged = manifest(18, &files).replacen("global", "glabol", 1);
    let refused = replace_file(damaged.as_bytes(), Vec::new(), &files[1]);
    assert!(matches!(refused, Err(ManifestError::Checksum)));
}

#[test]
fn the_wal_of_each_timeline_is_listed_newest_first() {
    let history = TimelineHistory::parse(Timeline(5), "1\t0/1000\tx\n2\t0/3000\tx\n3\t0/5000\tx\n").unwrap();
    let range = |timeline, start, end| WalRange { timeline: Timeline(timeline), start: Lsn(start), end: Lsn(end) };
    let ranges = |timeline, start, end| wal_ranges(&history, Timeline(timeline), Lsn(start), Lsn(end));
    assert_eq!(ranges(5, 0x6000, 0x7000).unwrap(), [range(5, 0x6000, 0x7000)]);
    assert_eq!(
        ranges(2, 0x2000, 0x7000).unwrap(),
        [range(5, 0x5000, 0x7000), range(3, 0x3000, 0x5000), range(2, 0x2000, 0x3000)]
    );
    for (timeline, start, end) in
        [(4, 0x6000, 0x7000), (6, 0x6000, 0x7000), (2, 0x3001, 0x7000), (5, 0x7001, 0x7000), (2, 0x2000, 0x4000)]
    {
        assert!(ranges(timeline, start, end).is_err(), "{timeline} {start:X} {end:X}");
    }
    let first = TimelineHistory::without_ancestors(Timeline(1));
    assert_eq!(wal_ranges(&first, Timeline(1), Lsn(1), Lsn(1)).unwrap(), [range(1, 1, 1)]);
}
