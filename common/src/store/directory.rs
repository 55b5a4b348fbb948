//! A repository in a local or mounted directory.

use std::fs::File;
use std::io;
use std::path::Path;

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

impl Store {
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
