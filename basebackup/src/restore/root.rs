//! One of the directories a restore writes into. Everything is opened below it, and no link on the way is followed:
//! what a hostile or damaged index or a planted link names outside is not reached.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory everything goes below.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    path: PathBuf,
}

/// Who the files are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileOwner {
    /// The user.
    pub uid: Uid,
    /// The group.
    pub gid: Gid,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: PathBuf,
    /// What it is; a link is a link.
    pub kind: EntryKind,
    /// The bytes a file has.
    pub size: u64,
    /// The bytes it takes up on the disk.
    pub allocated: u64,
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A link, a pipe, a socket, a device.
    Other,
}

impl Root {
    /// Opens a directory. Links in its own path are followed: the operator named it.
    ///
    /// # Errors
    /// From the operating system.
    pub fn open(path: &Path) -> Result<Self> {
        let directory = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty());
        let directory = directory.map_err(io::Error::from).context("open directory", path)?;
        Ok(Self { directory, path: path.to_owned() })
    }

    /// Makes this process the only one of those that ask which writes here, for as long as this lives.
    ///
    /// # Errors
    /// `Conflict` while another one does; from the operating system.
    pub fn lock(&self) -> Result<()> {
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => {
                let message = format!("another restore writes into \"{}\"", self.path.display());
                Err(Error::new(Kind::Conflict, message).hint("Wait for its end, or end it, and start again."))
            }
            // Some network file systems have no locks.
            Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(()),
            Err(errno) => Err(Error::io("lock directory", &self.path, errno.into())),
        }
    }

    /// Its path, as given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which directory it is, by whatever path.
    ///
    /// # Errors
    /// From the operating system.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.directory).map_err(io::Error::from).context("look at", &self.path)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Makes a directory, unless there is one.
    ///
    /// # Errors
    /// From the operating system.
    pub fn make_directory(&self, path: &Path, mode: u32, owner: Option<FileOwner>) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.error("create directory", path, error)),
        }
        let directory = self.open_at(path, DIRECTORY, "open directory")?;
        self.set_attributes(&directory, path, mode, owner)
    }

    /// Gives the directory itself its mode and owner.
    ///
    /// # Errors
    /// From the operating system.
    pub fn set_own_attributes(&self, mode: u32, owner: Option<FileOwner>) -> Result<()> {
        self.set_attributes(&self.directory, Path::new(""), mode, owner)
    }

    /// Makes a file of `size` zeros; there must be nothing of this name.
    ///
    /// # Errors
    /// From the operating system.
    pub fn create_file(&self, path: &Path, size: u64, mode: u32, owner: Option<FileOwner>) -> Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(self.open_at(path, flags, "create file")?);
        self.set_attributes(&file, path, mode, owner)?;
        if size > 0 {
            file.set_len(size).context("extend file", &self.path.join(path))?;
        }
        Ok(file)
    }

    /// Gives a file or a directory its final mode and owner, and makes it survive a power failure.
    ///
    /// # Errors
    /// From the operating system.
    pub fn settle(&self, path: &Path, mode: u32, owner: Option<FileOwner>) -> Result<()> {
        let file = self.open_to_read(path)?;
        self.set_attributes(&file, path, mode, owner)?;
        file.sync_all().context("synchronize", &self.path.join(path))
    }

    /// Lets the owner change what is in a directory, whatever its mode was; `""` is the directory itself.
    ///
    /// # Errors
    /// From the operating system.
    pub fn make_writable(&self, path: &Path) -> Result<()> {
        let directory = self.open_at(path, DIRECTORY, "open directory")?;
        let stat = rustix::fs::fstat(&directory).map_err(|error| self.error("look at", path, error))?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        if mode.contains(Mode::RWXU) {
            return Ok(());
        }
        rustix::fs::fchmod(&directory, mode | Mode::RWXU).map_err(|error| self.error("set mode of", path, error))
    }

    /// Opens a file to write into.
    ///
    /// # Errors
    /// From the operating system.
    pub fn open_to_write(&self, path: &Path) -> Result<File> {
        self.open_at(path, OFlags::WRONLY | OFlags::CLOEXEC, "open file").map(File::from)
    }

    /// Opens a file to read, or to make it durable. Only for what was seen to be a regular file: a pipe would wait.
    ///
    /// # Errors
    /// From the operating system.
    pub fn open_to_read(&self, path: &Path) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        self.open_at(path, flags, "open file").map(File::from)
    }

    /// Removes a file or a link, if there is one.
    ///
    /// # Errors
    /// From the operating system.
    pub fn remove_file(&self, path: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.error("remove", path, error)),
        }
    }

    /// Removes an empty directory; one that something is mounted on stays.
    ///
    /// # Errors
    /// From the operating system.
    pub fn remove_directory(&self, path: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::BUSY) => Ok(()),
            Err(error) => Err(self.error("remove directory", path, error)),
        }
    }

    /// Renames within the directory.
    ///
    /// # Errors
    /// From the operating system.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let ((from_parent, from_name), (to_parent, to_name)) = (self.parent(from)?, self.parent(to)?);
        rustix::fs::renameat(&from_parent, from_name, &to_parent, to_name)
            .map_err(|error| self.error("rename", from, error))
    }

    /// Makes a link to a directory elsewhere.
    ///
    /// # Errors
    /// From the operating system.
    pub fn link(&self, path: &Path, to: &Path, owner: Option<FileOwner>) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::symlinkat(to, &parent, name).map_err(|error| self.error("create link", path, error))?;
        let Some(FileOwner { uid, gid }) = owner else { return Ok(()) };
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| self.error("set owner of", path, error))
    }

    /// What a link leads to; nothing if there is no link of this name.
    ///
    /// # Errors
    /// From the operating system.
    pub fn read_link(&self, path: &Path) -> Result<Option<PathBuf>> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::readlinkat(&parent, name, Vec::new()) {
            Ok(target) => Ok(Some(PathBuf::from(OsStr::from_bytes(target.to_bytes())))),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(error) => Err(self.error("read link", path, error)),
        }
    }

    /// What is in a directory, sorted; `""` is the directory itself.
    ///
    /// # Errors
    /// From the operating system.
    pub fn entries(&self, path: &Path) -> Result<Vec<DirectoryEntry>> {
        let directory = self.open_at(path, DIRECTORY, "open directory")?;
        let failed = |error| self.error("read directory", path, error);
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                // Gone since: a plan may be made for the directory of a server that runs.
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(failed)?,
            };
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => EntryKind::File,
                FileType::Directory => EntryKind::Directory,
                _ => EntryKind::Other,
            };
            entries.push(DirectoryEntry {
                name: OsStr::from_bytes(name.to_bytes()).into(),
                kind,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                allocated: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// Whether there is anything of this name, a link that leads nowhere included.
    ///
    /// # Errors
    /// From the operating system.
    pub fn exists(&self, path: &Path) -> Result<bool> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.error("look at", path, error)),
        }
    }

    /// Makes a file's contents, or a directory's entries, survive a power failure; `""` is the directory itself.
    ///
    /// # Errors
    /// From the operating system.
    pub fn synchronize(&self, path: &Path) -> Result<()> {
        let file = if path.as_os_str().is_empty() {
            File::from(self.directory.try_clone().context("open directory", &self.path)?)
        } else {
            self.open_to_read(path)?
        };
        file.sync_all().context("synchronize", &self.path.join(path))
    }

    fn set_attributes(&self, file: impl AsFd, path: &Path, mode: u32, owner: Option<FileOwner>) -> Result<()> {
        if let Some(FileOwner { uid, gid }) = owner {
            // Before the mode: a change of owner takes some bits of it away.
            rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(|error| self.error("set owner of", path, error))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))
            .map_err(|error| self.error("set mode of", path, error))
    }

    /// The directory that holds `path`, and the name in it.
    fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p Path)> {
        let name = path.file_name().map(Path::new);
        let name = name.ok_or_else(|| Error::new(Kind::Internal, format!("\"{}\" has no name", path.display())))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        Ok((self.open_at(parent, DIRECTORY, "open directory")?, name))
    }

    fn open_at(&self, path: &Path, flags: OFlags, action: &str) -> Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o600) } else { Mode::empty() };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = match rustix::fs::openat2(&self.directory, path, flags, mode, resolve) {
            // Before Linux 5.6, or where a container's filter does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => open_step_by_step(&self.directory, path, flags, mode),
            opened => opened,
        };
        opened.map_err(|error| match error {
            Errno::LOOP => Error::new(
                Kind::Refused,
                format!("a link is in the way of \"{}\", which is not followed", self.path.join(path).display()),
            ),
            error => self.error(action, path, error),
        })
    }

    fn error(&self, action: &str, path: &Path, error: Errno) -> Error {
        Error::io(action, &self.path.join(path), error.into())
    }
}

/// Opens component by component, none of which may be a link.
fn open_step_by_step(root: &OwnedFd, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let mut components = path.components().peekable();
    let mut directory: Option<OwnedFd> = None;
    while let Some(component) = components.next() {
        if !matches!(component, Component::Normal(_) | Component::CurDir) {
            return Err(Errno::XDEV);
        }
        let at = directory.as_ref().unwrap_or(root);
        let step = if components.peek().is_some() { DIRECTORY } else { flags };
        let opened = rustix::fs::openat(at, component.as_os_str(), step | OFlags::NOFOLLOW, mode);
        // With O_DIRECTORY, a link is reported as something that is no directory.
        directory = Some(opened.map_err(|error| if error == Errno::NOTDIR { Errno::LOOP } else { error })?);
    }
    directory.ok_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[test]
    fn nothing_is_opened_outside_or_through_a_link() {
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(outside.path().join("file"), "theirs").unwrap();
        symlink(outside.path(), inside.path().join("link")).unwrap();
        symlink(outside.path().join("file"), inside.path().join("file")).unwrap();
        let root = Root::open(inside.path()).unwrap();
        for path in ["link/file", "file", "../x", "/etc/hostname", "link/../x"] {
            let path = Path::new(path);
            assert!(root.open_to_write(path).is_err(), "{path:?}");
            assert!(root.create_file(path, 0, 0o600, None).is_err(), "{path:?}");
        }
        assert!(root.make_directory(Path::new("link"), 0o700, None).is_err());
        assert!(root.make_directory(Path::new("link/x"), 0o700, None).is_err());
        assert!(root.remove_file(Path::new("link/file")).is_err());
        let step =
            |path: &str| open_step_by_step(&root.directory, Path::new(path), OFlags::RDONLY, Mode::empty()).map(drop);
        assert_eq!(step("link/file"), Err(Errno::LOOP));
        assert_eq!(step("file"), Err(Errno::LOOP));
        assert_eq!(step("../x"), Err(Errno::XDEV));
        assert_eq!(step("."), Ok(()));
        root.remove_file(Path::new("link")).unwrap();
        assert_eq!(fs::read_to_string(outside.path().join("file")).unwrap(), "theirs");
    }

    #[test]
    fn files_and_directories_get_their_modes_whatever_the_umask() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        root.make_directory(Path::new("a"), 0o750, None).unwrap();
        drop(root.create_file(Path::new("a/b"), 10, 0o640, None).unwrap());
        let metadata = fs::metadata(directory.path().join("a/b")).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o640, 10));
        assert_eq!(fs::metadata(directory.path().join("a")).unwrap().mode() & 0o777, 0o750);
        assert!(root.create_file(Path::new("a/b"), 0, 0o600, None).is_err());
        assert_eq!(root.entries(Path::new("a")).unwrap()[0].name, Path::new("b"));
        root.synchronize(Path::new("")).unwrap();
        root.synchronize(Path::new("a/b")).unwrap();
    }
}
