//! Packs opened by `zstd` and `tar`, without any of our code.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::super::tar::{END_OF_ARCHIVE, member_header};
use super::*;

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A program may close its input early: the exit status tells.
        scope.spawn(move || stdin.write_all(input).ok());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    })
}

/// `zstd -dc | tar x`, as the recipe for a restore without our programs has it.
fn extract(stored: &[u8], directory: &Path) -> String {
    let plain = run(Command::new("zstd").arg("-dc"), stored).stdout;
    let output = run(Command::new("tar").args(["-xp", "--no-same-owner", "-C"]).arg(directory), &plain);
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn odd_names() -> Vec<Vec<u8>> {
    let long = |byte: u8, size| vec![byte; size];
    let mut names: Vec<Vec<u8>> = [
        &b"#1"[..],
        b"-rf",
        b"--checkpoint=1",
        b" ",
        b" a  b ",
        b"a=b",
        b"\\x",
        b"*",
        b"a\nb",
        b"\n",
        b"\x01\x7f",
        "é".as_bytes(),
        b"\xff\xfe",
        b"a\xe9b",
        b"...",
        b"12 path=x\n",
        b"pg_tblspc/1/x",
        b"C:\\x",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    for size in [99, 100, 101, 200, 255] {
        names.push(long(b'n', size));
        // Neither fits into the header nor is UTF-8.
        names.push(long(0xFF, size));
    }
    for size in [90, 100, 155, 156, 200] {
        names.push([&long(b'd', size)[..], b"/", &long(b'n', size)].concat());
        names.push([&long(b'd', size)[..], b"/", &long(0xFE, size)].concat());
    }
    names.push([&"é".repeat(100).into_bytes()[..], b"/x"].concat());
    names.push([&long(b'e', 150)[..], b"/", &long(b'f', 150)].concat());
    names.push(vec![long(b'p', 250); 12].join(&b'/'));
    names
}

#[test]
fn zstd_and_tar_restore_identical_files_under_any_name() {
    let mut random = Random::new(11);
    let mut sources = vec![directory("empty directory", 0o750), directory(vec![b'D'; 255], 0o700)];
    for (number, name) in odd_names().into_iter().enumerate() {
        let mut source = file(name, random.bytes([0, 1, 512, 70_000][number % 4]));
        source.0.mode = [0o600, 0o640, 0o444, 0o700][number % 4];
        sources.push(source);
    }
    sources.push(file("large", random.bytes(9_000_001)));
    let packed = Packed::new(&sources, 3);

    let root = tempfile::tempdir().unwrap();
    let messages = extract(&packed.stored, root.path());
    // GNU tar needs no such record, and says so; others take a name that is not UTF-8 for an error without it.
    let expected = "tar: Ignoring unknown extended header keyword 'hdrcharset'";
    assert!(messages.lines().all(|line| line == expected), "{messages}");
    for (member, content) in &sources {
        let path = root.path().join(OsStr::from_bytes(member.path.as_bytes()));
        let metadata = fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{:?}: {error}", member.path));
        assert_eq!(metadata.permissions().mode() & 0o7777, member.mode, "{:?}", member.path);
        assert_eq!(metadata.mtime(), member.modified.as_second(), "{:?}", member.path);
        match content {
            Some(content) => assert!(fs::read(&path).unwrap() == *content, "{:?}", member.path),
            None => assert!(metadata.is_dir() && fs::read_dir(&path).unwrap().count() == 0, "{:?}", member.path),
        }
    }
}

#[test]
fn zstd_sees_intact_frames_with_checksums_and_sizes() {
    let mut random = Random::new(13);
    let packed = Packed::new(&[file("a", random.bytes(9 << 20))], 9);
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("pack-00001.tar.zst");
    fs::write(&path, &packed.stored).unwrap();
    run(Command::new("zstd").args(["-q", "-t"]).arg(&path), b"");
    let listing = String::from_utf8(run(Command::new("zstd").arg("-lv").arg(&path), b"").stdout).unwrap();
    assert!(listing.contains("# Zstandard Frames: 3"), "{listing}");
    assert!(listing.contains("# Skippable Frames: 1"), "{listing}");
    assert!(listing.contains("Check: XXH64"), "{listing}");
    assert!(listing.contains(&format!("({} B)", packed.summary.plain_bytes)), "{listing}");
}

/// What `tar` says about a member of which only the header exists; the content is a hole in a sparse file.
fn listing(member: &Member) -> String {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.tar");
    let header = member_header(member);
    assert_eq!(header.len() % 512, 0);
    fs::write(&path, &header).unwrap();
    let size = header.len() as u64 + member.kind.size().next_multiple_of(512) + END_OF_ARCHIVE.len() as u64;
    fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    let output = run(Command::new("tar").args(["-tv", "--utc", "--full-time", "-f"]).arg(&path), b"");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn tar_reads_numbers_that_ustar_cannot_hold() {
    let path = b"base/16384/16385";
    for size in [(8 << 30) - 1, 8 << 30, 9 << 30, 1 << 42] {
        let listed = listing(&member(path, MemberKind::File { size }, 0o600));
        assert!(listed.contains(&format!(" {size} ")), "{listed}");
    }
    for id in [0o7_777_777, 0o10_000_000, 1_000_700_000, u32::MAX] {
        let owner = Owner { uid: id, gid: id, user: String::new(), group: String::new() };
        let listed = listing(&Member { owner: Arc::new(owner), ..member(path, MemberKind::Directory, 0o700) });
        assert!(listed.contains(&format!(" {id}/{id} ")), "{listed}");
    }
    for (second, text) in
        [(-1, "1969-12-31 23:59:59"), (0, "1970-01-01 00:00:00"), (0o100_000_000_000, "2242-03-16 12:56:32")]
    {
        let modified = Timestamp::from_second(second).unwrap();
        let listed = listing(&Member { modified, ..member(path, MemberKind::File { size: 0 }, 0o600) });
        assert!(listed.contains(text), "{listed}");
    }
}

#[test]
fn tar_reads_the_names_of_owners() {
    let owner = |user: &str| Arc::new(Owner { uid: 1, gid: 1, user: user.into(), group: user.into() });
    for user in ["postgres".to_owned(), "u".repeat(31), "u".repeat(32), "u".repeat(64)] {
        let listed = listing(&Member { owner: owner(&user), ..member(b"x", MemberKind::Directory, 0o700) });
        assert!(listed.contains(&format!(" {user}/{user} ")), "{listed}");
    }
}
