//! From packs to files: parts of packs are fetched, decompressed, checked and written in parallel.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::repository::backup::{Backup, Pack};
use walkeep_common::repository::layout::pack_name;
use walkeep_common::wal_archive::WalArchive;

use super::contents::damaged;
use super::destination::Destination;
use crate::meter::Meter;
use crate::pack::frames::InvalidFrame;
use crate::pack::index::IndexEntry;
use crate::pack::member::MemberPath;
use crate::pack::reader::{FrameGroup, PackLayout, Piece};
use crate::pack::seek_table::{FOOTER_BYTES, SeekTable, table_bytes};

/// Plain bytes fetched and held by one job at a time; stored ones are hardly ever more.
const GROUP_BYTES: u64 = 16 << 20;
/// The end of a pack that most likely holds its whole seek table.
const LIKELY_TABLE_BYTES: u64 = 64 * 1024;
/// File systems keep holes of this size.
const HOLE_BYTES: usize = 4096;
/// How often bytes that do not decompress are fetched: the network may have damaged them.
const FETCHES: usize = 2;

/// Writes the contents of members whose files were created.
#[derive(Debug)]
pub(super) struct FileWriter {
    archive: WalArchive,
    backup: Backup,
    destination: Arc<Destination>,
    checks: Checks,
    meter: Arc<Meter>,
}

/// What was written of each file so far. A file that is whole is compared and forgotten, so that millions of small ones
/// take no memory.
#[derive(Debug, Default)]
struct Checks {
    progress: Mutex<CheckProgress>,
}

#[derive(Debug, Default)]
struct CheckProgress {
    /// Files that were written from their first byte to their last, and are what the index says.
    whole: usize,
    /// The parts of the others.
    parts: HashMap<MemberPath, Vec<Part>>,
}

/// A part of a file that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    offset: u64,
    length: usize,
    crc32c: u32,
}

/// Why a group could not be written.
enum Failure {
    Frame(InvalidFrame),
    Other(Error),
}

impl From<InvalidFrame> for Failure {
    fn from(frame: InvalidFrame) -> Self {
        Self::Frame(frame)
    }
}

impl FileWriter {
    /// Begins with nothing written.
    pub(super) fn new(archive: WalArchive, backup: Backup, destination: Arc<Destination>, meter: Arc<Meter>) -> Self {
        Self { archive, backup, destination, checks: Checks::default(), meter }
    }

    /// Writes the members that are wanted, in the order of the index, with so many jobs at the same time.
    ///
    /// # Errors
    /// `Damaged` if a pack is not what was stored; `Refused`; `Unavailable`; from the operating system.
    pub(super) async fn write(
        self: Arc<Self>,
        entries: &[IndexEntry],
        is_wanted: impl Fn(&IndexEntry) -> bool,
        jobs: usize,
    ) -> Result<()> {
        let is_wanted = |entry: &&IndexEntry| size(entry) > 0 && is_wanted(entry);
        let runs = entries.chunk_by(|a, b| a.pack == b.pack).filter(|run| run.iter().any(|entry| is_wanted(&entry)));
        // Of two packs at a time there is a copy of the members.
        let layouts = stream::iter(runs).map(|run| {
            let pack = run.first().map_or(0, |first| first.pack);
            self.layout(pack, run.iter().filter(is_wanted).cloned().collect())
        });
        let groups = layouts.buffered(2).map_ok(|(pack, layout)| {
            let layout = Arc::new(layout);
            let groups = layout.groups(GROUP_BYTES);
            stream::iter(groups.into_iter().map(move |group| Ok((pack, Arc::clone(&layout), group))))
        });
        // Two packs in turns: jobs that write into one file wait for each other.
        let work = groups.try_flatten_unordered(2).map_ok(|(pack, layout, group)| {
            let writer = Arc::clone(&self);
            async move { writer.write_group(pack, layout, group).await }
        });
        work.try_buffer_unordered(jobs).try_collect::<()>().await?;
        self.checks.finish(entries.iter().filter(is_wanted).count())
    }

    /// Reads a pack's seek table and lays the members over it.
    async fn layout(&self, number: u32, members: Vec<IndexEntry>) -> Result<(u32, PackLayout)> {
        let index = (number as usize).checked_sub(1).and_then(|index| self.backup.packs.get(index));
        let Pack { size, .. } =
            *index.ok_or_else(|| Error::new(Kind::Internal, format!("there is no pack {number}")))?;
        let mut tail = self.range(number, size.saturating_sub(LIKELY_TABLE_BYTES)..size).await?;
        let footer = tail.last_chunk::<FOOTER_BYTES>().copied().unwrap_or_default();
        let invalid = |error: crate::pack::seek_table::InvalidSeekTable| self.damaged(number, &error.to_string());
        let needed = table_bytes(&footer).map_err(invalid)?;
        if needed > tail.len() as u64 {
            tail = self.range(number, size.saturating_sub(needed)..size).await?;
        }
        let table = SeekTable::parse(&tail, size).map_err(invalid)?;
        let layout = PackLayout::new(table, members).map_err(|error| self.damaged(number, &error.to_string()))?;
        Ok((number, layout))
    }

    async fn range(&self, number: u32, range: std::ops::Range<u64>) -> Result<Bytes> {
        let key = self.archive.layout().pack(&self.backup.id, number);
        let expected = self.backup.packs.get(number as usize - 1).map_or(0, |pack| pack.size);
        let length = range.end - range.start;
        match self.archive.store().read_range(&key, range).await? {
            None => Err(self.damaged(number, "it is missing")),
            Some((bytes, size)) if size == expected && bytes.len() as u64 == length => Ok(bytes),
            Some((_, size)) => {
                Err(self.damaged(number, &format!("it is {size} bytes long, backup.json says {expected}")))
            }
        }
    }

    async fn write_group(self: Arc<Self>, pack: u32, layout: Arc<PackLayout>, group: FrameGroup) -> Result<()> {
        let group = Arc::new(group);
        let mut fetches = 1;
        loop {
            let stored = self.range(pack, group.stored.clone()).await?;
            let (writer, layout, part) = (Arc::clone(&self), Arc::clone(&layout), Arc::clone(&group));
            let task = tokio::task::spawn_blocking(move || writer.unpack(&layout, &part, &stored));
            match task.await.map_err(|error| Error::new(Kind::Internal, "a thread failed").caused_by(error))? {
                Ok(()) => return Ok(()),
                Err(Failure::Frame(_)) if fetches < FETCHES => fetches += 1,
                Err(Failure::Frame(frame)) => return Err(self.damaged(pack, &frame.to_string())),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
    }

    fn unpack(&self, layout: &PackLayout, group: &FrameGroup, stored: &[u8]) -> Result<(), Failure> {
        let mut reader = layout.read(group);
        let mut written: Vec<(&IndexEntry, Part)> = Vec::new();
        reader.feed(stored, |piece, bytes| {
            self.write_piece(piece, bytes).map_err(Failure::Other)?;
            let part = Part { offset: piece.offset, length: bytes.len(), crc32c: crc32c::crc32c(bytes) };
            written.push((piece.member, part));
            Ok::<(), Failure>(())
        })?;
        reader.finish()?;
        // Only now: a group that fails is fetched and written once more.
        for (entry, part) in written {
            self.checks.note(entry, part).map_err(|problem| Failure::Other(self.damaged(entry.pack, &problem)))?;
            self.meter.add(part.length as u64);
        }
        Ok(())
    }

    fn write_piece(&self, piece: &Piece<'_>, bytes: &[u8]) -> Result<()> {
        let (root, below) = self.destination.locate(&piece.member.path)?;
        let file = root.open_to_write(below)?;
        write_around_holes(&file, piece.offset, bytes).context("write file", &root.path().join(below))
    }

    fn damaged(&self, pack: u32, problem: &str) -> Error {
        damaged(&self.archive, &self.backup, &pack_name(pack), problem)
    }
}

impl Checks {
    /// Notes a part, and compares the file with the index once all of it is there.
    fn note(&self, entry: &IndexEntry, part: Part) -> Result<(), String> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size(entry);
        let parts = if part.length as u64 == size {
            vec![part]
        } else {
            let parts = progress.parts.entry(entry.path.clone()).or_default();
            parts.push(part);
            if parts.iter().map(|part| part.length as u64).sum::<u64>() < size {
                return Ok(());
            }
            progress.parts.remove(&entry.path).unwrap_or_default()
        };
        let expected = entry.contents.as_ref().map(|contents| (contents.size, contents.crc32c));
        if whole(parts) != expected {
            return Err(format!("\"{}\" in it does not have the size and the checksum of the index", entry.path));
        }
        progress.whole += 1;
        Ok(())
    }

    /// Sees that so many files were written in full.
    fn finish(&self, expected: usize) -> Result<()> {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.whole == expected && progress.parts.is_empty() {
            return Ok(());
        }
        let found = progress.whole;
        Err(Error::new(Kind::Internal, format!("{found} of {expected} files were written in full")))
    }
}

/// The size and the CRC-32C of a file whose parts follow each other without a gap.
fn whole(mut parts: Vec<Part>) -> Option<(u64, u32)> {
    parts.sort_unstable();
    let mut whole = (0, 0);
    for part in parts {
        if part.offset != whole.0 {
            return None;
        }
        whole = (whole.0 + part.length as u64, crc32c::crc32c_combine(whole.1, part.crc32c, part.length));
    }
    Some(whole)
}

/// Bytes of a member.
pub(super) fn size(entry: &IndexEntry) -> u64 {
    entry.contents.as_ref().map_or(0, |contents| contents.size)
}

/// About what has to be written for a file to be durable: itself, and that it is there.
pub(super) fn footprint(entry: &IndexEntry) -> u64 {
    entry.contents.as_ref().map_or(0, |contents| contents.size + HOLE_BYTES as u64)
}

/// Files that are made, or made durable, at the same time. They wait for the disk and not for a processor, and what waits
/// together is written together.
const AT_ONCE: usize = 16;

/// What the owner must be allowed to do with a file or a directory until everything is in place.
const WHILE_WRITING: (u32, u32) = (0o600, 0o700);

/// Makes the files that the members are written into, but for those that are kept.
///
/// # Errors
/// From the operating system.
pub(super) async fn create_files(
    destination: &Arc<Destination>,
    entries: &Arc<Vec<IndexEntry>>,
    kept: &Arc<HashSet<MemberPath>>,
    meter: &Arc<Meter>,
) -> Result<()> {
    let (destination, kept, meter) = (Arc::clone(destination), Arc::clone(kept), Arc::clone(meter));
    for_each_file(entries, move |entry| {
        if !kept.contains(&entry.path) {
            create_file(&destination, entry)?;
            meter.add(1);
        }
        Ok(())
    })
    .await
}

/// Makes a file with its size and owner, and the mode it gets in the end but for the right to write, which the backup's own
/// mode may lack.
///
/// # Errors
/// From the operating system.
pub(super) fn create_file(destination: &Destination, entry: &IndexEntry) -> Result<()> {
    let (root, below) = destination.locate(&entry.path)?;
    root.create_file(below, size(entry), entry.mode | WHILE_WRITING.0, destination.owner).map(drop)
}

/// Makes the directories, those above others first.
///
/// # Errors
/// From the operating system.
pub(super) fn create_directories(destination: &Destination, entries: &[IndexEntry]) -> Result<()> {
    let mut directories: Vec<&IndexEntry> = entries.iter().filter(|entry| entry.contents.is_none()).collect();
    directories.sort_unstable_by_key(|entry| entry.path.as_bytes());
    for entry in directories {
        let (root, below) = destination.locate(&entry.path)?;
        if !below.as_os_str().is_empty() {
            root.make_directory(below, entry.mode | WHILE_WRITING.1, destination.owner)?;
        }
    }
    Ok(())
}

/// Gives all files and directories their final modes, and makes them survive a power failure. Directories come after
/// what is in them, for their own modes may forbid to look there.
///
/// # Errors
/// From the operating system.
pub(super) async fn settle(
    destination: &Arc<Destination>,
    entries: &Arc<Vec<IndexEntry>>,
    meter: &Arc<Meter>,
) -> Result<()> {
    let (files, counted) = (Arc::clone(destination), Arc::clone(meter));
    let settled = move |entry: &IndexEntry| settle_entry(&files, entry).map(|()| counted.add(footprint(entry)));
    for_each_file(entries, settled).await?;
    let mut directories: Vec<&IndexEntry> = entries.iter().filter(|entry| entry.contents.is_none()).collect();
    directories.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.path.as_bytes()));
    directories.into_iter().try_for_each(|entry| settle_entry(destination, entry))?;
    destination.roots().try_for_each(|(_, root)| root.synchronize(Path::new("")))
}

/// Does something with every file, with some of them at the same time.
async fn for_each_file(
    entries: &Arc<Vec<IndexEntry>>,
    work: impl Fn(&IndexEntry) -> Result<()> + Send + Sync + 'static,
) -> Result<()> {
    let work = Arc::new(work);
    let share = entries.len().div_ceil(AT_ONCE).max(1);
    let shares = (0..entries.len()).step_by(share).map(|from| {
        let (entries, work) = (Arc::clone(entries), Arc::clone(&work));
        async move {
            let task = tokio::task::spawn_blocking(move || {
                let mut files = entries.iter().skip(from).take(share).filter(|entry| entry.contents.is_some());
                files.try_for_each(|entry| work(entry))
            });
            task.await.map_err(|error| Error::new(Kind::Internal, "a thread failed").caused_by(error))?
        }
    });
    stream::iter(shares).buffer_unordered(AT_ONCE).try_collect().await
}

fn settle_entry(destination: &Destination, entry: &IndexEntry) -> Result<()> {
    let (root, below) = destination.locate(&entry.path)?;
    // The declared directories have modes of their own.
    if below.as_os_str().is_empty() { Ok(()) } else { root.settle(below, entry.mode, destination.owner) }
}

/// Writes everything but zeros: the file has its size already, and reads as zeros where nothing was written.
fn write_around_holes(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut begun: Option<usize> = None;
    let mut at = 0;
    for block in bytes.chunks(HOLE_BYTES) {
        let hole = block.len() == HOLE_BYTES && block.iter().all(|&byte| byte == 0);
        match (begun, hole) {
            (None, false) => begun = Some(at),
            (Some(from), true) => {
                file.write_all_at(bytes.get(from..at).unwrap_or_default(), offset + from as u64)?;
                begun = None;
            }
            _ => {}
        }
        at += block.len();
    }
    match begun {
        Some(from) => file.write_all_at(bytes.get(from..).unwrap_or_default(), offset + from as u64),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::pack::index::Contents;

    #[test]
    fn zeros_are_left_out_and_everything_else_is_written_where_it_belongs() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = vec![7; 3 * HOLE_BYTES];
        bytes.extend(vec![0; 300 * HOLE_BYTES]);
        bytes.extend([0, 0, 9]);
        let size = 5 + bytes.len() as u64;
        file.as_file().set_len(size).unwrap();
        write_around_holes(file.as_file(), 5, &bytes).unwrap();
        let mut found = Vec::new();
        let _ = io::Read::read_to_end(&mut file, &mut found).unwrap();
        assert_eq!(found, [vec![0; 5], bytes].concat());
        assert!(file.as_file().metadata().unwrap().blocks() * 512 < size, "it has no hole");
    }

    #[test]
    fn parts_in_any_order_make_a_whole_and_gaps_do_not() {
        let bytes: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
        let part = |range: std::ops::Range<usize>| Part {
            offset: range.start as u64,
            length: range.len(),
            crc32c: crc32c::crc32c(&bytes[range]),
        };
        let entry = |name: &str| IndexEntry {
            path: MemberPath::new(name.as_bytes()).unwrap(),
            pack: 1,
            mode: 0o600,
            modified: jiff::Timestamp::UNIX_EPOCH,
            uid: 1,
            gid: 1,
            contents: Some(Contents {
                offset: 0,
                size: 100_000,
                blake3: blake3::hash(&bytes),
                crc32c: crc32c::crc32c(&bytes),
            }),
        };
        let note = |checks: &Checks, name: &str, bounds: &[usize]| {
            let mut parts = bounds.windows(2).map(|bounds| part(bounds[0]..bounds[1]));
            parts.try_for_each(|part| checks.note(&entry(name), part))
        };
        let checks = Checks::default();
        checks.note(&entry("parts"), part(70_000..100_000)).unwrap();
        note(&checks, "parts", &[0, 512, 70_000]).unwrap();
        note(&checks, "at once", &[0, 100_000]).unwrap();
        checks.finish(2).unwrap();
        assert!(checks.finish(3).is_err());
        checks.note(&entry("gap"), part(0..512)).unwrap();
        assert!(checks.note(&entry("gap"), part(511..99_999)).is_err());
        note(&checks, "unfinished", &[0, 512]).unwrap();
        assert!(checks.finish(2).is_err());
        let other = Part { crc32c: 7, ..part(0..100_000) };
        assert!(checks.note(&entry("other"), other).unwrap_err().contains("\"other\""));
    }
}
