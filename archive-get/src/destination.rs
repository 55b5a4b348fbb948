//! The file PostgreSQL waits for: written under another name beside it, renamed once it is verified.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

const OWNER_ONLY: u32 = 0o600;
const GROUP_TOO: u32 = 0o640;

/// A file that appears at its place when it is published. Otherwise it leaves nothing behind, unless the process is
/// killed: then its temporary file, which the next call uses again.
#[derive(Debug)]
pub(crate) struct Destination {
    staged: PathBuf,
    path: PathBuf,
    file: File,
    published: bool,
}

impl Destination {
    /// Begins the file anew. Its name while it is written is always the same, so that what a killed call left is
    /// used again instead of piling up in pg_wal.
    ///
    /// # Errors
    /// `Usage` if it cannot be written there; `Unavailable` on I/O errors, or if another call is writing it.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let mut staged = path.as_os_str().to_owned();
        staged.push(".walkeep");
        let staged = PathBuf::from(staged);
        let mode = if has_group_access(path) { GROUP_TOO } else { OWNER_ONLY };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(&staged);
        let file = file.context("create file", &staged).map_err(|error| match error.kind() {
            Kind::Missing | Kind::Refused => error.with_kind(Kind::Usage),
            _ => error,
        })?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            Error::new(Kind::Unavailable, format!("another call is writing \"{}\"", staged.display())).caused_by(error)
        })?;
        // Between opening and locking, the call that had the lock may have published this very file.
        let same = fs::metadata(&staged).is_ok_and(|found| file.metadata().is_ok_and(|own| own.ino() == found.ino()));
        if !same {
            return Err(Error::new(Kind::Unavailable, format!("another call has just written \"{}\"", path.display())));
        }
        file.set_len(0).context("truncate file", &staged)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
            .map_err(io::Error::from)
            .context("set mode of", &staged)?;
        Ok(Self { staged, path: path.to_owned(), file, published: false })
    }

    /// Puts the file at its place. PostgreSQL makes it durable when it takes it over (`durable_rename`).
    ///
    /// # Errors
    /// `Unavailable` on I/O errors.
    pub(crate) fn publish(mut self) -> Result<()> {
        fs::rename(&self.staged, &self.path).context("rename file", &self.staged)?;
        self.published = true;
        Ok(())
    }
}

/// Moves a whole file that lies elsewhere to `path`; it is copied where the file systems differ.
///
/// # Errors
/// From the operating system. The file is still where it was then.
pub(crate) fn take_over(file: &Path, path: &Path) -> io::Result<()> {
    if has_group_access(path) {
        fs::set_permissions(file, Permissions::from_mode(GROUP_TOO))?;
    }
    match fs::rename(file, path) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let mut destination = Destination::create(path).map_err(io::Error::other)?;
            let _ = io::copy(&mut File::open(file)?, &mut destination.file)?;
            destination.publish().map_err(io::Error::other)?;
            fs::remove_file(file)
        }
        renamed => renamed,
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.staged);
        }
    }
}

/// A cluster whose group may read it has pg_wal with mode 0750.
fn has_group_access(path: &Path) -> bool {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::metadata(directory).is_ok_and(|metadata| metadata.mode() & 0o040 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_unless_it_is_published() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        let mut file = Destination::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let mut file = Destination::create(&path).unwrap();
        file.write_all(b"whole").unwrap();
        file.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_calls_do_not_write_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        let _first = Destination::create(&path).unwrap();
        assert_eq!(Destination::create(&path).unwrap_err().kind(), Kind::Unavailable);
    }

    #[test]
    fn what_a_killed_call_left_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("RECOVERYXLOG");
        fs::write(directory.path().join("RECOVERYXLOG.walkeep"), "much longer than what follows").unwrap();
        let mut file = Destination::create(&path).unwrap();
        file.write_all(b"short").unwrap();
        file.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
    }
}
