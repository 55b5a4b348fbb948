use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::fs::mknodat;
use tempfile::TempDir;
use walkeep_common::lsn::Lsn;

use super::*;
use crate::files::page::{BlockSize, page_checksum};
use crate::files::relation::{Fork, RelationFile};

const RELATION: FileKind = FileKind::Relation(RelationFile { number: 16384, fork: Fork::Main, segment: 0 });

fn directory_with(name: &str, contents: &[u8]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join(name), contents).unwrap();
    directory
}

fn reader(directory: &TempDir) -> FileReader {
    FileReader::new(directory.path(), None, ChecksumAlgorithm::Crc32c)
}

fn checking_reader(directory: &TempDir) -> FileReader {
    let block_size = BlockSize::try_from(8192).unwrap();
    let checks = PageChecks { block_size, segment_blocks: 131_072, backup_start: Lsn(u64::MAX) };
    FileReader::new(directory.path(), Some(checks), ChecksumAlgorithm::None)
}

fn rest(file: &mut OpenFile<'_>) -> Vec<u8> {
    let mut contents = Vec::new();
    while let Some(chunk) = file.next_chunk().unwrap() {
        assert!((1..=CHUNK_BYTES).contains(&chunk.len()));
        contents.extend_from_slice(chunk);
    }
    contents
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at * 31 % 253).unwrap()).collect()
}

fn truncate(directory: &TempDir, name: &str, length: u64) {
    File::options().write(true).open(directory.path().join(name)).unwrap().set_len(length).unwrap();
}

#[test]
fn every_file_is_delivered_as_it_is_with_its_digests() {
    for kind in [FileKind::Other, RELATION] {
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17] {
            let contents = bytes(length);
            let directory = directory_with("file", &contents);
            for algorithm in ChecksumAlgorithm::ALL {
                let mut reader = FileReader::new(directory.path(), None, algorithm);
                let mut file = reader.open(Path::new("file"), kind).unwrap().unwrap();
                assert_eq!(file.size(), length as u64);
                assert!(rest(&mut file) == contents, "{kind:?} {length}");
                let summary = file.finish().unwrap();
                assert_eq!(summary.size, length as u64);
                let expected = (algorithm != ChecksumAlgorithm::Crc32c).then(|| algorithm.of(&contents));
                assert_eq!(summary.checksum, expected, "{algorithm:?}");
            }
        }
    }
}

#[test]
fn a_relation_is_what_it_was_when_opened_and_zeros_where_it_was_cut() {
    let contents = bytes(3 * CHUNK_BYTES);
    let directory = directory_with("16384", &contents);
    let mut reader = reader(&directory);

    let mut file = reader.open(Path::new("16384"), RELATION).unwrap().unwrap();
    truncate(&directory, "16384", 5 * CHUNK_BYTES as u64);
    assert!(rest(&mut file) == contents, "what was added later is left to the WAL");

    truncate(&directory, "16384", 3 * CHUNK_BYTES as u64);
    let mut file = reader.open(Path::new("16384"), RELATION).unwrap().unwrap();
    assert!(file.next_chunk().unwrap().unwrap() == &contents[..CHUNK_BYTES]);
    let cut = CHUNK_BYTES + 8192;
    truncate(&directory, "16384", cut as u64);
    let second = file.next_chunk().unwrap().unwrap().to_vec();
    assert!(second[..8192] == contents[CHUNK_BYTES..cut] && second[8192..].iter().all(|byte| *byte == 0));
    // Growing again does not bring back what is behind the cut.
    truncate(&directory, "16384", 3 * CHUNK_BYTES as u64);
    assert!(rest(&mut file).iter().all(|byte| *byte == 0));
    assert_eq!(file.finish().unwrap().size, 3 * CHUNK_BYTES as u64);
}

#[test]
fn a_small_file_is_whole_whatever_happens_after_its_size_was_said() {
    let contents = bytes(CHUNK_BYTES + 100);
    let directory = directory_with("postgresql.auto.conf", &contents);
    let mut reader = reader(&directory);
    let mut file = reader.open(Path::new("postgresql.auto.conf"), FileKind::Other).unwrap().unwrap();
    truncate(&directory, "postgresql.auto.conf", 0);
    assert!(rest(&mut file) == contents);
}

#[test]
fn a_large_file_that_is_no_relation_is_capped_and_padded_too() {
    let directory = directory_with("log", b"");
    let size = WHOLE_FILE_BYTES + 1;
    truncate(&directory, "log", size);
    let mut reader = reader(&directory);
    let mut file = reader.open(Path::new("log"), FileKind::Other).unwrap().unwrap();
    truncate(&directory, "log", 10);
    assert_eq!(rest(&mut file).len() as u64, size);
}

#[test]
fn one_buffer_serves_files_of_all_sizes() {
    let directory = directory_with("small", b"abc");
    let (middle, large) = (bytes(2 * CHUNK_BYTES), bytes(CHUNK_BYTES + 5));
    std::fs::write(directory.path().join("middle"), &middle).unwrap();
    std::fs::write(directory.path().join("16384"), &large).unwrap();
    let mut reader = reader(&directory);
    for _ in 0..2 {
        for (name, kind, contents) in [
            ("middle", FileKind::Other, &middle),
            ("16384", RELATION, &large),
            ("small", FileKind::Other, &b"abc".to_vec()),
        ] {
            assert!(&rest(&mut reader.open(Path::new(name), kind).unwrap().unwrap()) == contents, "{name}");
        }
    }
}

#[test]
fn what_is_gone_is_no_error_and_what_is_no_file_is() {
    let directory = directory_with("file", b"");
    let path = directory.path();
    symlink("file", path.join("link")).unwrap();
    mknodat(CWD, path.join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut reader = reader(&directory);
    assert!(reader.open(Path::new("gone"), RELATION).unwrap().is_none());
    assert!(reader.open(Path::new("gone/too"), FileKind::Other).unwrap().is_none());
    for name in ["link", "fifo", "."] {
        let error = reader.open(Path::new(name), FileKind::Other).unwrap_err().to_string();
        assert!(error.contains(path.join(name).to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_file_left_half_way_has_no_digest() {
    let directory = directory_with("16384", &bytes(2 * CHUNK_BYTES));
    let mut reader = reader(&directory);
    let mut file = reader.open(Path::new("16384"), RELATION).unwrap().unwrap();
    file.next_chunk().unwrap();
    assert_eq!(file.finish().unwrap_err().kind(), Kind::Internal);
}

#[test]
fn attributes_are_those_of_the_file_opened() {
    let directory = directory_with("file", b"");
    let path = directory.path().join("file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    File::open(&path).unwrap().set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_795_333_115)).unwrap();
    let mut reader = reader(&directory);
    let attributes = reader.open(Path::new("file"), FileKind::Other).unwrap().unwrap().attributes();
    assert_eq!((attributes.mode, attributes.modified), (0o640, 1_795_333_115));
    assert_eq!(attributes.uid, rustix::process::geteuid().as_raw());
}

/// A relation of sound pages, numbered from `first_block`.
fn relation(first_block: u32, blocks: u32) -> Vec<u8> {
    let page = |block: u32| {
        let mut page = bytes(8192);
        page[5000] = u8::try_from(block % 256).unwrap();
        let checksum = page_checksum(&page, block);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    };
    (first_block..first_block + blocks).flat_map(page).collect()
}

#[test]
fn bad_pages_are_found_in_every_chunk_and_segment() {
    for segment in [0, 1, 3] {
        let first_block = segment * 131_072;
        let mut contents = relation(first_block, 300);
        let directory = directory_with("file", &contents);
        let kind = FileKind::Relation(RelationFile { number: 16384, fork: Fork::Main, segment });
        let mut reader = checking_reader(&directory);
        let mut file = reader.open(Path::new("file"), kind).unwrap().unwrap();
        rest(&mut file);
        assert_eq!(file.finish().unwrap().bad_pages, []);

        for block in [0, 127, 128, 299] {
            contents[block * 8192 + 8191] ^= 0x80;
        }
        std::fs::write(directory.path().join("file"), &contents).unwrap();
        let mut file = reader.open(Path::new("file"), kind).unwrap().unwrap();
        assert!(rest(&mut file) == contents, "a damaged page is kept as it is");
        let bad: Vec<u32> = file.finish().unwrap().bad_pages.iter().map(|bad| bad.block - first_block).collect();
        assert_eq!(bad, [0, 127, 128, 299]);
    }
}

#[test]
fn bytes_behind_the_last_page_are_copied_and_counted() {
    let mut contents = relation(0, 3);
    contents.extend_from_slice(&[1; 100]);
    let directory = directory_with("16384", &contents);
    let mut reader = checking_reader(&directory);
    let mut file = reader.open(Path::new("16384"), RELATION).unwrap().unwrap();
    assert!(rest(&mut file) == contents);
    let summary = file.finish().unwrap();
    assert_eq!((summary.bad_pages, summary.partial_page_bytes), (vec![], 100));
}
