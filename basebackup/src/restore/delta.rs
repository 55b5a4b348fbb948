//! What of an earlier state can stay: files with the size and the hash that the index says. Times are not looked at.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::destination::{Destination, empty};
use super::directories::{LOST_AND_FOUND, Place, STAGED_CONTROL};
use super::root::{EntryKind, Root};
use crate::meter::Meter;
use crate::pack::index::{Contents, IndexEntry};
use crate::pack::member::MemberPath;

const BUFFER_BYTES: usize = 1 << 20;

/// What belongs into one directory.
#[derive(Debug, Default)]
struct Wanted<'e> {
    files: HashMap<&'e Path, &'e IndexEntry>,
    directories: HashSet<&'e Path>,
}

/// Removes everything that is not in the backup, or not as it is there, or left out. Returns the members whose files stay.
///
/// # Errors
/// From the operating system.
pub(super) async fn clear(
    destination: &Arc<Destination>,
    entries: &[IndexEntry],
    is_left_out: impl Fn(&IndexEntry) -> bool,
    meter: &Arc<Meter>,
    jobs: usize,
) -> Result<HashSet<MemberPath>> {
    let mut candidates: Vec<IndexEntry> = Vec::new();
    for (place, root) in destination.roots() {
        let wanted = wanted(destination, entries.iter().filter(|entry| !is_left_out(entry)), place);
        match place {
            Place::Wal => empty(root, Path::new(""))?,
            Place::Data => {
                let is_link = |path: &Path| destination.is_link(path);
                clear_directory(root, Path::new(""), &wanted, &is_link, &mut candidates)?;
            }
            // Other majors and other clusters have directories of their own beside ours.
            Place::Tablespace(_) => {
                for own in wanted.directories.iter().filter(|path| path.components().count() == 1) {
                    if root.exists(own)? {
                        clear_directory(root, own, &wanted, &|_| false, &mut candidates)?;
                    }
                }
            }
        }
    }
    let compared = stream::iter(candidates).map(|entry| {
        let (destination, meter) = (Arc::clone(destination), Arc::clone(meter));
        async move {
            let task = tokio::task::spawn_blocking(move || compare(&destination, &entry, &meter));
            task.await.map_err(|error| Error::new(Kind::Internal, "a thread failed").caused_by(error))?
        }
    });
    let same: Vec<Option<MemberPath>> = compared.buffer_unordered(jobs).try_collect().await?;
    Ok(same.into_iter().flatten().collect())
}

fn wanted<'e>(destination: &Destination, entries: impl Iterator<Item = &'e IndexEntry>, place: Place) -> Wanted<'e> {
    let mut wanted = Wanted::default();
    for entry in entries {
        let (found, below) = destination.directories().locate(&entry.path);
        if found != place {
            continue;
        }
        if entry.contents.is_some() {
            let _ = wanted.files.insert(below, entry);
        } else {
            let _ = wanted.directories.insert(below);
        }
    }
    wanted
}

/// Removes what does not belong below `path`, and notes the files that may stay.
fn clear_directory(
    root: &Root,
    path: &Path,
    wanted: &Wanted<'_>,
    is_link: &impl Fn(&Path) -> bool,
    candidates: &mut Vec<IndexEntry>,
) -> Result<()> {
    root.make_writable(path)?;
    for entry in root.entries(path)? {
        let below: PathBuf = path.join(&entry.name);
        match entry.kind {
            EntryKind::Directory if path.as_os_str().is_empty() && entry.name == Path::new(LOST_AND_FOUND) => {}
            EntryKind::Directory if below == Path::new("pg_wal") => {
                empty(root, &below)?;
                root.remove_directory(&below)?;
            }
            EntryKind::Directory if wanted.directories.contains(below.as_path()) => {
                clear_directory(root, &below, wanted, is_link, candidates)?;
            }
            EntryKind::Directory => {
                empty(root, &below)?;
                root.remove_directory(&below)?;
            }
            EntryKind::File if [STAGED_CONTROL, "PG_VERSION"].iter().any(|early| below == Path::new(early)) => {}
            EntryKind::File => match wanted.files.get(below.as_path()) {
                Some(file) if file.contents.as_ref().is_some_and(|contents| contents.size == entry.size) => {
                    candidates.push((*file).clone());
                }
                _ => root.remove_file(&below)?,
            },
            EntryKind::Other if is_link(&below) => {}
            EntryKind::Other => root.remove_file(&below)?,
        }
    }
    Ok(())
}

/// The member, if the file has its contents; otherwise the file is removed.
fn compare(destination: &Destination, entry: &IndexEntry, meter: &Meter) -> Result<Option<MemberPath>> {
    let (root, below) = destination.locate(&entry.path)?;
    let Some(Contents { size, blake3, .. }) = &entry.contents else { return Ok(None) };
    let mut file = root.open_to_read(below)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = file.read(&mut buffer).context("read file", &root.path().join(below))?;
        if read == 0 {
            break;
        }
        let _ = hasher.update(buffer.get(..read).unwrap_or_default());
    }
    if hasher.finalize() != *blake3 {
        root.remove_file(below)?;
        return Ok(None);
    }
    meter.add(*size);
    Ok(Some(entry.path.clone()))
}
