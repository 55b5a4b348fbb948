//! Copying the data directory into packs: which files go into which pack, and what is known of each afterwards.

use std::collections::HashMap;
use std::future::ready;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{BadPage, Pack};

use super::listing::Listing;
use super::packs::Pipeline;
use super::throttle::Throttle;
use crate::accounts::Accounts;
use crate::files::attributes::Attributes;
use crate::files::checksum::{Checksum, ChecksumAlgorithm};
use crate::files::manifest::ManifestFile;
use crate::files::read::FileReader;
use crate::files::relation::FileKind;
use crate::files::scan::Scan;
use crate::files::settle::PageChecks;
use crate::meter::Meter;
use crate::pack::frames::{Compressors, PlainFrame};
use crate::pack::index::IndexEntry;
use crate::pack::member::{Member, MemberKind, MemberPath, Owner};
use crate::pack::writer::PackWriter;
use std::os::unix::ffi::OsStrExt as _;

const MIB: u64 = 1024 * 1024;
const SMALLEST_PACK: u64 = 64 * MIB;
const LARGEST_PACK: u64 = 1024 * MIB;
/// A pack of tiny files is full long before its bytes are many.
const MOST_FILES: usize = 50_000;
const MOST_PACKS_AT_ONCE: usize = 4;
/// Frames that wait between a reading thread and the compressing ones: little, for each may be 4 MiB.
const WAITING_FRAMES: usize = 1;

/// How the files are read.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    pub(super) data_directory: Arc<Path>,
    pub(super) page_checks: Option<PageChecks>,
    pub(super) checksums: ChecksumAlgorithm,
    pub(super) throttle: Option<Arc<Throttle>>,
}

/// One pack as stored, and what is in it.
#[derive(Debug)]
pub(super) struct StoredPack {
    pub(super) pack: Pack,
    pub(super) contents: PackContents,
}

/// The members of one pack.
#[derive(Debug, Default)]
pub(super) struct PackContents {
    pub(super) index: Vec<IndexEntry>,
    pub(super) manifest: Vec<ManifestFile>,
    pub(super) bad_pages: Vec<BadPage>,
    pub(super) plain_size: u64,
}

/// Copies everything that was scanned, several packs at a time, and lists the packs in order.
///
/// # Errors
/// The first failure of any file or upload; uploads that were under way are given up.
pub(super) async fn copy(
    pipeline: &Pipeline,
    reading: &Reading,
    scan: Arc<Scan>,
    jobs: usize,
    meter: &Arc<Meter>,
    listing: &mut Listing,
) -> Result<()> {
    let plans = plan(&scan, jobs);
    // A reading thread checks and hashes some four times as fast as a processor compresses. Each pack holds a part that is
    // being filled, besides those on their way.
    let at_once = (jobs / 4).clamp(2, MOST_PACKS_AT_ONCE);
    let stored = stream::iter(plans).map(|plan| {
        let (scan, reading, meter) = (Arc::clone(&scan), reading.clone(), Arc::clone(meter));
        async move {
            let counted = Arc::clone(&meter);
            let (number, bytes) = (plan.number, plan.bytes);
            let write = move |out: &mut Output| plan.write(&scan, &reading, &meter, out);
            let stored = store_pack(pipeline, number, bytes, write).await?;
            counted.add_stored(stored.pack.size);
            Ok(stored)
        }
    });
    stored.buffered(at_once).try_for_each(|pack| ready(listing.add(pack))).await
}

/// Stores one pack that `write` writes on a thread of its own.
///
/// # Errors
/// What `write` fails with, or [`Pipeline::store`].
pub(super) async fn store_pack(
    pipeline: &Pipeline,
    number: u32,
    expected: u64,
    write: impl FnOnce(&mut Output) -> Result<PackContents> + Send + 'static,
) -> Result<StoredPack> {
    let (frames, receiver) = mpsc::channel(WAITING_FRAMES);
    let compressors = pipeline.compressors();
    let (result, outcome) = oneshot::channel();
    let writing = spawn_blocking(move || {
        let mut output = Output { frames, compressors };
        // If nobody waits for the outcome any more, the upload has failed and says why.
        let _ = result.send(write(&mut output));
    });
    let mut contents = None;
    let whole = async {
        let written =
            outcome.await.map_err(|_| Error::new(Kind::Internal, "a reading thread ended before its work"))?;
        contents = Some(written?);
        Ok(())
    };
    let pack = pipeline.store(number, expected, receiver, whole).await;
    let ended = writing.await;
    let pack = pack?;
    ended.map_err(|error| Error::new(Kind::Internal, "a reading thread failed").caused_by(error))?;
    Ok(StoredPack { pack, contents: contents.unwrap_or_default() })
}

/// Where a pack's frames go.
#[derive(Debug)]
pub(super) struct Output {
    frames: mpsc::Sender<PlainFrame>,
    compressors: Arc<Compressors>,
}

impl Output {
    /// Passes frames on, waiting for room.
    pub(super) fn send(&self, frames: Vec<PlainFrame>) -> Result<()> {
        for frame in frames {
            self.frames
                .blocking_send(frame)
                .map_err(|_| Error::new(Kind::Unavailable, "the upload of a pack was given up"))?;
        }
        Ok(())
    }
}

/// Which files a pack holds: consecutive ones of the scan. The first pack holds the directories as well.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PackPlan {
    number: u32,
    files: Range<usize>,
    bytes: u64,
}

/// Fills packs in the order of the paths. Small databases get small packs, so that all processors have some.
fn plan(scan: &Scan, jobs: usize) -> Vec<PackPlan> {
    let share = scan.total_bytes() / (2 * jobs.max(1) as u64);
    let target = share.clamp(SMALLEST_PACK, LARGEST_PACK);
    let mut plans = Vec::new();
    let mut current = PackPlan { number: 1, files: 0..0, bytes: 0 };
    for (index, file) in scan.files().enumerate() {
        let is_full = current.files.len() >= MOST_FILES || current.bytes > 0 && current.bytes + file.size > target;
        if is_full {
            let next = PackPlan { number: current.number + 1, files: index..index, bytes: 0 };
            plans.push(std::mem::replace(&mut current, next));
        }
        current.files.end = index + 1;
        current.bytes += file.size;
    }
    plans.push(current);
    plans
}

impl PackPlan {
    fn write(&self, scan: &Scan, reading: &Reading, meter: &Meter, out: &mut Output) -> Result<PackContents> {
        let mut reader = FileReader::new(&reading.data_directory, reading.page_checks, reading.checksums);
        let mut pack = PackBuilder::new(self.number, out);
        if self.number == 1 {
            for directory in scan.directories() {
                pack.directory(&directory.path, directory.attributes)?;
            }
        }
        for index in self.files.clone() {
            let Some(file) = scan.file(index) else { continue };
            pack.file(&mut reader, &file.path, file.kind, reading.throttle.as_deref(), meter)?;
        }
        pack.finish()
    }
}

/// Writes the members of one pack and collects what is known of them.
pub(super) struct PackBuilder<'o> {
    writer: PackWriter,
    out: &'o mut Output,
    contents: PackContents,
    accounts: Accounts,
    owners: HashMap<(u32, u32), Arc<Owner>>,
}

impl<'o> PackBuilder<'o> {
    pub(super) fn new(number: u32, out: &'o mut Output) -> Self {
        Self {
            writer: PackWriter::new(number, out.compressors.cutter()),
            out,
            contents: PackContents::default(),
            accounts: Accounts::read(),
            owners: HashMap::new(),
        }
    }

    fn directory(&mut self, path: &Path, attributes: Attributes) -> Result<()> {
        let member = self.member(path, MemberKind::Directory, attributes)?;
        self.out.send(self.writer.begin(member).map_err(internal)?)?;
        self.contents.index.push(self.writer.end().map_err(internal)?);
        Ok(())
    }

    /// Copies a file of the data directory. One that is gone was dropped: replay drops it again.
    fn file(
        &mut self,
        reader: &mut FileReader,
        path: &Path,
        kind: FileKind,
        throttle: Option<&Throttle>,
        meter: &Meter,
    ) -> Result<()> {
        let Some(mut file) = reader.open(path, kind)? else { return Ok(()) };
        let attributes = file.attributes();
        let member = self.member(path, MemberKind::File { size: file.size() }, attributes)?;
        self.out.send(self.writer.begin(member).map_err(internal)?)?;
        while let Some(chunk) = file.next_chunk()? {
            self.out.send(self.writer.data(chunk).map_err(internal)?)?;
            let size = chunk.len() as u64;
            meter.add(size);
            if let Some(throttle) = throttle {
                throttle.wait(size);
            }
        }
        let summary = file.finish()?;
        let entry = self.writer.end().map_err(internal)?;
        // What the index has is not computed twice.
        let crc32c = || Checksum::Crc32c(entry.contents.as_ref().map_or(0, |contents| contents.crc32c));
        let checksum = summary.checksum.unwrap_or_else(crc32c);
        self.contents.index.push(entry);
        self.contents.plain_size += summary.size;
        let bad = summary.bad_pages.iter().map(|page| BadPage {
            file: path.display().to_string(),
            block: page.block,
            relation: None,
        });
        self.contents.bad_pages.extend(bad);
        self.contents.manifest.push(ManifestFile {
            path: path.to_owned(),
            size: summary.size,
            modified: attributes.modified,
            checksum,
        });
        Ok(())
    }

    /// Adds a file that is in memory.
    pub(super) fn bytes(
        &mut self,
        path: &Path,
        attributes: Attributes,
        checksums: ChecksumAlgorithm,
        bytes: &[u8],
    ) -> Result<()> {
        let size = bytes.len() as u64;
        let member = self.member(path, MemberKind::File { size }, attributes)?;
        self.out.send(self.writer.begin(member).map_err(internal)?)?;
        self.out.send(self.writer.data(bytes).map_err(internal)?)?;
        self.contents.index.push(self.writer.end().map_err(internal)?);
        self.contents.plain_size += size;
        let checksum = checksums.of(bytes);
        let modified = attributes.modified;
        self.contents.manifest.push(ManifestFile { path: path.to_owned(), size, modified, checksum });
        Ok(())
    }

    pub(super) fn finish(self) -> Result<PackContents> {
        self.out.send(self.writer.finish().map_err(internal)?)?;
        Ok(self.contents)
    }

    fn member(&mut self, path: &Path, kind: MemberKind, attributes: Attributes) -> Result<Member> {
        let member_path = MemberPath::new(path.as_os_str().as_bytes()).map_err(|error| {
            Error::new(Kind::Invalid, format!("cannot back up \"{}\"", path.display())).caused_by(error)
        })?;
        let Attributes { uid, gid, mode, modified } = attributes;
        let owner =
            self.owners.entry((uid, gid)).or_insert_with(|| Arc::new(super::owner::named(&self.accounts, uid, gid)));
        Ok(Member {
            path: member_path,
            kind,
            mode,
            modified: Timestamp::from_second(modified).unwrap_or(Timestamp::UNIX_EPOCH),
            owner: Arc::clone(owner),
        })
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Internal, "could not write a pack").caused_by(error)
}
