//! A repository in a local or mounted directory.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use object_store::local::LocalFileSystem;

use super::Store;
use crate::error::{Error, IoContext as _, Kind, Result};

/// Opens the directory. It is never created: on a host where it is a mount point, a missing one means that nothing
/// is mounted, and what is written below it would be lost behind the mount.
pub(super) fn open(directory: &Path) -> Result<LocalFileSystem> {
    let refused = |error: io::Error| {
        Error::io("open repository directory", directory, error)
            .with_kind(Kind::Refused)
            .hint("Is it mounted? Otherwise create it, owned by the user that runs PostgreSQL.")
    };
    let metadata = std::fs::metadata(directory).map_err(refused)?;
    if !metadata.is_dir() {
        return Err(refused(io::ErrorKind::NotADirectory.into()));
    }
    let store = LocalFileSystem::new_with_prefix(directory).map_err(|error| refused(io::Error::other(error)))?;
    Ok(store.with_fsync(true))
}

/// Until then another process may have made a directory and not yet made it durable.
const YOUNG: std::time::Duration = std::time::Duration::from_secs(10 * 60);

/// A file that was being written when something was killed, or is being written now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaleFile {
    /// Its path.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
    /// When something was written into it last.
    pub modified: jiff::Timestamp,
}

impl Store {
    /// The files below `folder` that are no objects yet: the store writes under the name, `#` and digits first, and links
    /// that to the name. Object stores have none.
    ///
    /// # Errors
    /// From the operating system.
    pub fn stale_files(&self, folder: &object_store::path::Path) -> Result<Vec<StaleFile>> {
        let Some(root) = self.directory() else { return Ok(Vec::new()) };
        let (mut found, mut folders) = (Vec::new(), vec![root.join(folder.as_ref())]);
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.context("read directory", &folder)?,
            };
            for entry in entries {
                let entry = entry.context("read directory", &folder)?;
                let path = entry.path();
                let is_staged = entry.file_name().to_str().is_some_and(is_staged);
                match entry.metadata() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::io("look at", &path, error)),
                    Ok(metadata) if metadata.is_dir() => folders.push(path),
                    Ok(metadata) if metadata.is_file() && is_staged => {
                        let modified = metadata.modified().context("look at", &path)?;
                        let modified = jiff::Timestamp::try_from(modified).unwrap_or(jiff::Timestamp::MAX);
                        found.push(StaleFile { path, size: metadata.len(), modified });
                    }
                    Ok(_) => {}
                }
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Makes deletions durable, and removes the folders that have become empty with them.
    pub(super) fn settle_folders(&self, deleted: &[object_store::path::Path]) -> Result<()> {
        let Some(root) = self.directory() else { return Ok(()) };
        let folders: BTreeSet<PathBuf> =
            deleted.iter().filter_map(|key| root.join(key.as_ref()).parent().map(Path::to_owned)).collect();
        for mut folder in folders {
            while folder.starts_with(root) && folder != root {
                // Fails where something is in it, which is what keeps it.
                let is_removed = std::fs::remove_dir(&folder).is_ok();
                let parent = folder.parent().unwrap_or(root).to_owned();
                if !is_removed {
                    match File::open(&folder).and_then(|folder| folder.sync_all()) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        synced => synced.context("synchronize", &folder)?,
                    }
                    break;
                }
                File::open(&parent).and_then(|folder| folder.sync_all()).context("synchronize", &parent)?;
                folder = parent;
            }
        }
        Ok(())
    }

    /// Makes the folders of an object that was just stored durable, where any of them is young: the store's own
    /// synchronisation covers only those that it made itself.
    ///
    /// # Errors
    /// From the operating system.
    pub fn make_young_folders_durable(&self, key: &object_store::path::Path) -> Result<()> {
        let Some(root) = self.directory() else { return Ok(()) };
        let path = root.join(key.as_ref());
        let is_young = |folder: &Path| {
            let created = std::fs::metadata(folder).and_then(|metadata| metadata.created());
            // Where the file system does not tell, the folder may be young.
            created.map_or(true, |created| created.elapsed().map_or(true, |age| age < YOUNG))
        };
        if !path.parent().is_some_and(is_young) {
            return Ok(());
        }
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(root)) {
            File::open(folder).and_then(|folder| folder.sync_all()).context("synchronize", folder)?;
        }
        Ok(())
    }

    /// Makes sure that an object found in a directory survives a power failure: another process may have written it
    /// a moment ago. Object stores need nothing of the kind.
    ///
    /// # Errors
    /// From the operating system.
    pub fn make_durable(&self, key: &object_store::path::Path) -> Result<()> {
        let Some(root) = self.directory() else { return Ok(()) };
        let path = root.join(key.as_ref());
        let sync = |path: &Path| File::open(path).and_then(|file| file.sync_all()).context("synchronize", path);
        sync(&path)?;
        for folder in path.ancestors().skip(1).take_while(|folder| folder.starts_with(root)) {
            sync(folder)?;
        }
        Ok(())
    }
}

/// Whether a file's name is one the store writes under first (`object_store::local`).
fn is_staged(name: &str) -> bool {
    let digits = name.rsplit_once('#').map_or("", |(_, digits)| digits);
    !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit())
}
