//! From plain frames to a stored pack: compressed on all processors, put back in order, uploaded in parts.
//!
//! All packs of a backup share one [`Pipeline`], whose semaphores bound the memory whatever the size of the database.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinError, JoinHandle, JoinSet, spawn_blocking};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Pack;
use walkeep_common::repository::layout::{BackupId, pack_name};
use walkeep_common::store::Upload;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::encode::hexadecimal;

use crate::pack::assembler::{PackAssembler, PackSummary};
use crate::pack::buffers::Buffers;
use crate::pack::frames::{Compressors, PlainFrame, StoredFrame};

const MIB: u64 = 1024 * 1024;
/// The smallest part: large enough that a request's overhead does not matter.
const PART_BYTES: u64 = 16 * MIB;
/// Stores take at most 10 000 parts; some room is left.
const MOST_PARTS: u64 = 9000;
/// What parts on their way may hold together, unless a single one is larger.
const UPLOAD_BUDGET_MIB: usize = 128;
/// What frames and the tables to compress them may hold together. With the uploads, the readers and the lists of files a
/// backup stays below 512 MiB on any host.
const COMPRESSING_BYTES: usize = 128 << 20;
/// What all packs of one backup share.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    archive: WalArchive,
    id: BackupId,
    compressors: Arc<Compressors>,
    capacity: Capacity,
    processors: Arc<Semaphore>,
    frames: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    /// Of parts of the usual size.
    parts: Buffers,
}

/// How much of the memory goes where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Capacity {
    /// Threads that compress.
    threads: usize,
    /// Frames that are being compressed, or wait for those before them.
    frames: usize,
}

impl Capacity {
    /// For `jobs` threads at most, each with so many bytes of tables.
    fn new(jobs: usize, table_bytes: usize, frame_bytes: usize) -> Self {
        // A frame, and what it is compressed into.
        let each = 2 * frame_bytes;
        let left_for_frames = |threads: usize| COMPRESSING_BYTES.saturating_sub(threads * table_bytes) / each;
        // Two more frames than threads, or these wait for each other.
        let fits = |&threads: &usize| left_for_frames(threads) >= threads + 2;
        let threads = (1..=jobs).rev().find(fits).unwrap_or(1);
        Self { threads, frames: left_for_frames(threads).clamp(threads + 2, threads * 2 + 4) }
    }
}

/// A frame on its way through a compressing thread, holding its share of the memory.
type Compressing = JoinHandle<Result<(StoredFrame, OwnedSemaphorePermit)>>;

impl Pipeline {
    /// A pipeline that compresses on `jobs` threads, or on fewer where those would hold too much memory at this level.
    ///
    /// # Errors
    /// `Internal` if zstd fails.
    pub(super) fn new(archive: WalArchive, id: BackupId, level: i32, jobs: usize) -> Result<Self> {
        let compressors = Compressors::new(level);
        let capacity = Capacity::new(jobs, compressors.bytes_each().map_err(internal)?, compressors.frame_bytes());
        Ok(Self {
            archive,
            id,
            compressors: Arc::new(compressors),
            capacity,
            processors: Arc::new(Semaphore::new(capacity.threads)),
            frames: Arc::new(Semaphore::new(capacity.frames)),
            uploads: Arc::new(Semaphore::new(UPLOAD_BUDGET_MIB)),
            parts: Buffers::new(size(PART_BYTES)?),
        })
    }

    /// How many threads compress.
    pub(super) fn threads(&self) -> usize {
        self.capacity.threads
    }

    /// What compresses the frames.
    pub(super) fn compressors(&self) -> Arc<Compressors> {
        Arc::clone(&self.compressors)
    }

    /// Stores pack `number`, about `expected` plain bytes long, from its frames in order. `whole` says afterwards
    /// whether all of them came: a sender that failed goes away in the same way as one that is done.
    ///
    /// # Errors
    /// `Refused`, `Unavailable`, or what `whole` fails with. Nothing is left under the pack's name then.
    pub(super) async fn store(
        &self,
        number: u32,
        expected: u64,
        frames: mpsc::Receiver<PlainFrame>,
        whole: impl Future<Output = Result<()>>,
    ) -> Result<Pack> {
        let part_bytes = PART_BYTES.max(expected.div_ceil(MOST_PARTS).next_multiple_of(MIB));
        let upload = self.archive.store().upload(&self.archive.layout().pack(&self.id, number)).await?;
        let buffers = if part_bytes == PART_BYTES { self.parts.clone() } else { Buffers::new(size(part_bytes)?) };
        let mut parts = Parts::new(upload, Arc::clone(&self.uploads), buffers);
        let sent = async {
            let (sender, compressing) = mpsc::channel(self.capacity.frames);
            let ((), summary) = tokio::try_join!(self.compress(frames, sender), assemble(compressing, &mut parts))?;
            whole.await?;
            parts.flush().await?;
            Ok(summary)
        };
        let sent: Result<PackSummary> = sent.await;
        let summary = match sent {
            Ok(summary) => summary,
            Err(error) => {
                parts.abort().await;
                return Err(error);
            }
        };
        let size = parts.upload.finish().await?;
        Ok(Pack { name: pack_name(number), size, sha256: hexadecimal(&summary.sha256) })
    }

    /// Hands each frame to a processor as one becomes free, and passes on what is being worked at, in order.
    async fn compress(&self, mut frames: mpsc::Receiver<PlainFrame>, sender: mpsc::Sender<Compressing>) -> Result<()> {
        while let Some(frame) = frames.recv().await {
            let memory = Arc::clone(&self.frames).acquire_owned().await.map_err(internal)?;
            let processor = Arc::clone(&self.processors).acquire_owned().await.map_err(internal)?;
            let compressors = Arc::clone(&self.compressors);
            let working = spawn_blocking(move || {
                let stored = compressors.compress(frame).map_err(internal)?;
                drop(processor);
                Ok((stored, memory))
            });
            if sender.send(working).await.is_err() {
                // The other half failed and says why.
                break;
            }
        }
        Ok(())
    }
}

/// Puts compressed frames into parts, in order, and the seek table behind them.
async fn assemble(mut compressing: mpsc::Receiver<Compressing>, parts: &mut Parts) -> Result<PackSummary> {
    let mut assembler = PackAssembler::default();
    while let Some(working) = compressing.recv().await {
        let (frame, memory) = working.await.map_err(thread_failed)??;
        let stored = assembler.push(frame).map_err(internal)?;
        parts.append(&stored).await?;
        drop(memory);
    }
    let (table, summary) = assembler.finish();
    parts.append(&table).await?;
    Ok(summary)
}

/// One upload, cut into parts of equal size.
struct Parts {
    upload: Upload,
    budget: Arc<Semaphore>,
    buffers: Buffers,
    waiting: Vec<u8>,
    travelling: JoinSet<Result<()>>,
}

impl Parts {
    fn new(upload: Upload, budget: Arc<Semaphore>, buffers: Buffers) -> Self {
        Self { upload, budget, buffers, waiting: Vec::new(), travelling: JoinSet::new() }
    }

    async fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.waiting.capacity() == 0 {
                self.waiting = self.buffers.take();
            }
            let room = self.buffers.size() - self.waiting.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.waiting.extend_from_slice(now);
            bytes = later;
            if self.waiting.len() == self.buffers.size() {
                self.send().await?;
            }
        }
        Ok(())
    }

    /// Sends what waits.
    async fn send(&mut self) -> Result<()> {
        let part: Bytes = self.buffers.share(std::mem::take(&mut self.waiting));
        while let Some(arrived) = self.travelling.try_join_next() {
            arrived.map_err(thread_failed)??;
        }
        let share = u32::try_from((part.len() as u64).div_ceil(MIB).clamp(1, UPLOAD_BUDGET_MIB as u64));
        let share = share.map_err(internal)?;
        let share = Arc::clone(&self.budget).acquire_many_owned(share).await.map_err(internal)?;
        let sending = self.upload.part(part);
        let _ = self.travelling.spawn(async move {
            let sent = sending.await;
            drop(share);
            sent
        });
        Ok(())
    }

    /// Sends what is left and waits for every part to arrive.
    async fn flush(&mut self) -> Result<()> {
        if !self.waiting.is_empty() {
            self.send().await?;
        }
        while let Some(arrived) = self.travelling.join_next().await {
            arrived.map_err(thread_failed)??;
        }
        Ok(())
    }

    async fn abort(mut self) {
        self.travelling.shutdown().await;
        self.upload.abort().await;
    }
}

fn size(bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(internal)
}

fn thread_failed(error: JoinError) -> Error {
    Error::new(Kind::Internal, "a thread ended before its work").caused_by(error)
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Internal, "could not put a pack together").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_is_bounded_for_any_number_of_threads_at_any_level() {
        const MIB: usize = 1 << 20;
        for (jobs, table_bytes, frame_bytes, threads, frames) in [
            (1, MIB, MIB, 1, 6),
            (2, MIB, MIB, 2, 8),
            (64, MIB, MIB, 41, 43),
            (8, 2 * MIB, 4 * MIB, 8, 14),
            (64, 2 * MIB, 4 * MIB, 11, 13),
            (64, 30 * MIB, 4 * MIB, 2, 8),
            (64, 100 * MIB, 4 * MIB, 1, 3),
            (2, 300 * MIB, 4 * MIB, 1, 3),
        ] {
            let found = Capacity::new(jobs, table_bytes, frame_bytes);
            assert_eq!(found, Capacity { threads, frames }, "{jobs} jobs, {table_bytes} bytes, {frame_bytes} bytes");
        }
    }
}
