//! The form in which configuration files are kept: a tar stream in one zstd frame, under their absolute paths without
//! the slash in front.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::ConfigurationFile;
use crate::files::attributes::Attributes;
use crate::pack::member::{Member, MemberKind, MemberPath, Owner};
use crate::pack::tar::{END_OF_ARCHIVE, member_header, padding_bytes};

/// The object's name.
pub const OBJECT: &str = "configuration.tar.zst";
const LEVEL: i32 = 3;
/// No set of configuration files is larger than this.
const LARGEST: u64 = 256 << 20;

/// Packs files. `owner` names the owner of a user's and a group's number.
///
/// # Errors
/// `InvalidInput` for a path that is not absolute; whatever zstd fails with.
pub fn pack(files: &[ConfigurationFile], owner: impl Fn(u32, u32) -> Owner) -> io::Result<Vec<u8>> {
    let mut frame = zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?;
    frame.include_checksum(true)?;
    for ConfigurationFile { path, contents, attributes } in files {
        let path = path.as_os_str().as_bytes();
        let below = path.strip_prefix(b"/").unwrap_or_default();
        let path = MemberPath::new(below).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let size = contents.len() as u64;
        frame.write_all(&member_header(&Member {
            path,
            kind: MemberKind::File { size },
            mode: attributes.mode,
            modified: Timestamp::from_second(attributes.modified).unwrap_or(Timestamp::UNIX_EPOCH),
            owner: Arc::new(owner(attributes.uid, attributes.gid)),
        }))?;
        frame.write_all(contents)?;
        frame.write_all(&vec![0; padding_bytes(size)])?;
    }
    frame.write_all(&END_OF_ARCHIVE)?;
    frame.finish()
}

/// Unpacks what [`pack`] packed.
///
/// # Errors
/// `InvalidData`, or whatever zstd and tar find wrong.
pub fn unpack(stored: &[u8]) -> io::Result<Vec<ConfigurationFile>> {
    let invalid = |problem: &str| io::Error::new(io::ErrorKind::InvalidData, problem.to_owned());
    let plain = zstd::stream::read::Decoder::new(stored)?.take(LARGEST);
    let mut archive = tar::Archive::new(plain);
    let mut files = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let header = entry.header();
        let attributes = Attributes {
            mode: header.mode()? & 0o7777,
            uid: u32::try_from(header.uid()?).map_err(|_| invalid("a user's number out of range"))?,
            gid: u32::try_from(header.gid()?).map_err(|_| invalid("a group's number out of range"))?,
            modified: i64::try_from(header.mtime()?).map_err(|_| invalid("a time out of range"))?,
        };
        let below = MemberPath::new(&*entry.path_bytes()).map_err(|error| invalid(&error.to_string()))?;
        let path = Path::new("/").join(OsStr::from_bytes(below.as_bytes()));
        let mut contents = Vec::new();
        let _ = entry.read_to_end(&mut contents)?;
        files.push(ConfigurationFile { path, contents, attributes });
    }
    // To the end of the frame, where its checksum is.
    let _ = io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_back_as_they_went_in_and_tar_reads_them() {
        let file = |path: &str, contents: &[u8]| ConfigurationFile {
            path: path.into(),
            contents: contents.to_vec(),
            attributes: Attributes { mode: 0o640, uid: 104, gid: 110, modified: 1_700_000_000 },
        };
        let files = [
            file("/etc/postgresql/15/main/postgresql.conf", b"port = 5432\n"),
            file("/etc/postgresql/15/main/start.conf", b""),
            file(&format!("/etc/{}/x.conf", "long".repeat(60)), &[b'#'; 1000]),
        ];
        let owner = |uid, gid| Owner { uid, gid, user: "postgres".into(), group: "postgres".into() };
        let stored = pack(&files, owner).unwrap();
        assert_eq!(unpack(&stored).unwrap(), files);
        assert!(unpack(&stored[..stored.len() - 1]).is_err());
        assert!(pack(&[file("relative", b"")], owner).is_err());

        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join(OBJECT), &stored).unwrap();
        let command = format!("zstd -dc {OBJECT} | tar x && cat etc/postgresql/15/main/postgresql.conf");
        let run = std::process::Command::new("sh").args(["-c", &command]).current_dir(scratch.path()).output().unwrap();
        assert_eq!(String::from_utf8(run.stdout).unwrap(), "port = 5432\n");
    }
}
