//! A file that others read while it is replaced: they see the old one or the new one, never a part.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use walkeep_common::error::{Error, IoContext as _, Kind, Result};

/// Monitoring runs as another user.
const MODE: u32 = 0o644;

/// Writes under a temporary name beside it and renames. The temporary name does not end in `.prom`, so that the textfile
/// collector does not take it for another file.
///
/// # Errors
/// `Refused`, `Missing`, `Unavailable`: then the old file is still there.
pub(super) fn replace(path: &Path, contents: &str) -> Result<()> {
    let name = path.file_name().filter(|_| !path.is_dir());
    let name =
        name.ok_or_else(|| Error::new(Kind::Usage, format!("\"{}\" is not the name of a file", path.display())))?;
    let staged = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = write(&staged, contents).and_then(|()| fs::rename(&staged, path));
    written.context("write file", path).inspect_err(|_| {
        let _ = fs::remove_file(&staged);
    })
}

fn write(staged: &Path, contents: &str) -> std::io::Result<()> {
    // What a killed run with this process id has left is nobody's.
    let _ = fs::remove_file(staged);
    let mut file = OpenOptions::new().write(true).create_new(true).open(staged)?;
    file.write_all(contents.as_bytes())?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("walkeep.prom");
        for contents in ["first, and longer\n", "second\n"] {
            replace(&path, contents).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), contents);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
        assert_eq!(replace(directory.path(), "").unwrap_err().kind(), Kind::Usage);
        assert_eq!(replace(&directory.path().join("absent/x"), "").unwrap_err().kind(), Kind::Missing);
    }
}
