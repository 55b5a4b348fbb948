use sha2::{Digest as _, Sha256};

use super::super::index::{Contents, IndexError, IndexReader, IndexSummary, IndexWriter, InvalidLine};
use super::*;

fn entry(path: &[u8], pack: u32, offset: u64, size: u64) -> IndexEntry {
    IndexEntry {
        path: MemberPath::new(path).unwrap(),
        pack,
        mode: 0o640,
        modified: Timestamp::from_second(1_795_329_900).unwrap(),
        uid: 26,
        gid: 1_000_700_000,
        contents: Some(Contents { offset, size, blake3: blake3::hash(path), crc32c: 0x00AB_CDEF }),
    }
}

fn write(entries: &[IndexEntry]) -> (Vec<u8>, IndexSummary) {
    let mut writer = IndexWriter::new(Vec::new(), 3).unwrap();
    for entry in entries {
        writer.write(entry).unwrap();
    }
    writer.finish().unwrap()
}

fn read(stored: &[u8]) -> Result<(Vec<IndexEntry>, IndexSummary), IndexError> {
    let mut reader = IndexReader::new(stored)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    Ok((entries, reader.finish()?))
}

/// Reads lines that no writer wrote.
fn read_lines(lines: &str) -> Result<Vec<IndexEntry>, IndexError> {
    read(&zstd::encode_all(lines.as_bytes(), 1).unwrap()).map(|(entries, _)| entries)
}

const LINE: &str = "{\"path\":\"base/1\",\"kind\":\"file\",\"pack\":1,\"offset\":512,\"size\":0,\"mode\":\"0600\",\
    \"modified\":\"2026-11-22T06:45:00Z\",\"uid\":26,\"gid\":26,\
    \"blake3\":\"af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262\",\"crc32c\":\"00000000\"}\n";

#[test]
fn entries_come_back_as_they_were_written() {
    let directory = IndexEntry { contents: None, mode: 0o1777, ..entry(b"pg_tblspc/16400", 2, 0, 0) };
    let entries = [
        entry(b"base/1/1259", 1, 512, 0),
        entry("größe\n\"#1\"\u{1}\\".as_bytes(), 1, 1024, 1),
        entry(b"\xff\x00\x80".map(|byte| byte | 1).as_slice(), 1, 2048, u64::from(u32::MAX) * 1000),
        directory,
        entry(&[1; 4095], 2, 512, 8192),
    ];
    let (stored, summary) = write(&entries);
    assert_eq!(summary.lines, 5);
    assert_eq!(summary.stored_bytes, stored.len() as u64);
    assert_eq!(summary.sha256, <[u8; 32]>::from(Sha256::digest(&stored)));
    assert_eq!(read(&stored).unwrap(), (entries.to_vec(), summary));
}

#[test]
fn a_line_is_what_the_format_says() {
    let with = |contents| IndexEntry { contents, gid: 26, mode: 0o600, ..entry(b"base/1", 1, 0, 0) };
    let file = with(Some(Contents { offset: 512, size: 0, blake3: blake3::hash(b""), crc32c: 0 }));
    let lines = zstd::decode_all(&write(std::slice::from_ref(&file)).0[..]).unwrap();
    assert_eq!(String::from_utf8(lines).unwrap(), LINE);
    assert_eq!(read_lines(LINE).unwrap(), [file]);

    let lines =
        zstd::decode_all(&write(&[IndexEntry { path: MemberPath::new(&b"\xfe"[..]).unwrap(), ..with(None) }]).0[..]);
    assert_eq!(
        String::from_utf8(lines.unwrap()).unwrap(),
        "{\"path_hex\":\"fe\",\"kind\":\"directory\",\"pack\":1,\"mode\":\"0600\",\
         \"modified\":\"2026-11-22T06:45:00Z\",\"uid\":26,\"gid\":26}\n"
    );
}

#[test]
fn fields_of_a_later_version_are_ignored() {
    let line = LINE.replacen('{', "{\"base_lsn\":{\"a\":[1]},", 1);
    assert_eq!(read_lines(&line).unwrap(), read_lines(LINE).unwrap());
}

#[test]
fn an_invalid_line_is_refused_with_its_number() {
    let cases = [
        ("\"base/1\"", "\"../x\""),
        ("\"base/1\"", "\"/etc/passwd\""),
        ("\"base/1\"", "\"a//b\""),
        ("\"base/1\"", "\"a\\u0000b\""),
        ("\"base/1\"", "\"\""),
        ("\"path\":\"base/1\"", "\"path_hex\":\"2e2e\""),
        ("\"path\":\"base/1\"", "\"path_hex\":\"6\""),
        ("\"path\":\"base/1\"", "\"path_hex\":\"+6\""),
        ("\"path\":\"base/1\"", "\"path\":\"base/1\",\"path_hex\":\"61\""),
        ("\"path\":\"base/1\",", ""),
        ("\"file\"", "\"symlink\""),
        ("\"file\"", "\"directory\""),
        ("\"pack\":1", "\"pack\":0"),
        ("\"pack\":1", "\"pack\":-1"),
        ("\"offset\":512", "\"offset\":0"),
        ("\"offset\":512", "\"offset\":513"),
        ("\"size\":0,", ""),
        ("\"size\":0", "\"size\":18446744073709551615"),
        ("\"0600\"", "\"600\""),
        ("\"0600\"", "\"0800\""),
        ("\"0600\"", "\"+600\""),
        ("\"2026-11-22T06:45:00Z\"", "\"yesterday\""),
        ("\"af13", "\"af1"),
        ("\"00000000\"", "\"0000000g\""),
        ("}\n", "}"),
        ("{", ""),
    ];
    for (from, to) in cases {
        let wrong = LINE.replacen(from, to, 1);
        assert_ne!(wrong, LINE, "{from}");
        let second = format!("{}{wrong}", LINE.replace("\"pack\":1", "\"pack\":9"));
        let error = read_lines(&second).unwrap_err();
        assert!(matches!(error, IndexError::Line { line: 2, .. }), "{from} -> {to}: {error}");
    }
}

#[test]
fn a_line_without_end_is_refused_before_it_fills_the_memory() {
    let error = read_lines(&"x".repeat(1 << 26)).unwrap_err();
    assert!(matches!(error, IndexError::Line { line: 1, reason: InvalidLine::Length }), "{error}");
}

#[test]
fn lines_that_overlap_or_scatter_a_pack_are_refused() {
    let wrong: [&[IndexEntry]; 4] = [
        &[entry(b"a", 1, 512, 100), entry(b"b", 1, 1024, 1)],
        &[entry(b"a", 1, 2048, 0), entry(b"b", 1, 512, 0)],
        &[entry(b"a", 1, 512, 0), entry(b"b", 2, 512, 0), entry(b"c", 1, 1024, 0)],
        &[entry(b"a", 1, 0, 0)],
    ];
    for entries in wrong {
        let mut writer = IndexWriter::new(Vec::new(), 3).unwrap();
        let written: Result<Vec<()>, _> = entries.iter().map(|entry| writer.write(entry)).collect();
        assert!(matches!(written, Err(IndexError::Line { reason: InvalidLine::Order(_), .. })), "{entries:?}");
    }
    write(&[entry(b"a", 2, 512, 1), entry(b"b", 2, 1536, 0), entry(b"c", 1, 512, 0)]);
}

#[test]
fn a_damaged_index_is_refused_or_has_another_checksum() {
    let entries: Vec<_> =
        (0..20).map(|number| entry(format!("base/{number}").as_bytes(), 1, 512 + number * 512, 0)).collect();
    let (stored, summary) = write(&entries);
    for at in 0..stored.len() {
        let mut damaged = stored.clone();
        damaged[at] ^= 0x10;
        assert!(read(&damaged).ok().is_none_or(|(_, found)| found != summary), "byte {at}");
        assert!(read(&stored[..at]).ok().is_none_or(|(_, found)| found != summary), "cut to {at} bytes");
    }
    let extended = read(&[&stored[..], &[0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0]].concat());
    assert!(extended.ok().is_none_or(|(_, found)| found != summary));
}

#[test]
fn an_index_that_was_not_finished_is_refused() {
    let mut stored = Vec::new();
    let mut writer = IndexWriter::new(&mut stored, 3).unwrap();
    for number in 0..100_000 {
        writer.write(&entry(b"a", 1, 512 + number * 512, 0)).unwrap();
    }
    drop(writer);
    assert!(!stored.is_empty());
    assert!(matches!(read(&stored), Err(IndexError::Stream(_))));
}
