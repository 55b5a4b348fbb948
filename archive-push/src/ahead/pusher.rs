//! Pushing files in parallel within bounds: of processors, of uploads, of memory.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use tokio::runtime::{Builder, Runtime};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::HostMemory;
use walkeep_common::retry::Patience;
use walkeep_common::store::{ANSWER_TIME, Health, SLOWEST_LINK, Store};
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::source::Source;

use super::budget::Budget;
use super::pace::Pace;
use crate::store;

/// What all files on their way may take. The rest of 256 MiB is for everything else.
const MEMORY_BYTES: usize = 192 << 20;
/// Threads that carry bytes to the store.
const MOST_CARRIERS: usize = 4;
/// Descriptors for everything but uploads, and those that one upload may need at a time.
const OWN_DESCRIPTORS: usize = 24;
const DESCRIPTORS_PER_UPLOAD: usize = 4;

/// How often a store is looked at again that wants to be left alone.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Uploads that end within this time show by themselves that the store answers.
const QUIET: Duration = Duration::from_millis(1500);
/// How often it is asked for another sign of life while uploads take long, and how long it may take to answer.
const SIGN_OF_LIFE: Duration = Duration::from_secs(4);

/// Pushes files, from as many threads as [`Pusher::threads`] says.
#[derive(Debug)]
pub(crate) struct Pusher {
    archive: WalArchive,
    memory: HostMemory,
    runtime: Runtime,
    jobs: usize,
    preparing: Mutex<()>,
    compressions: Budget,
    uploads: Budget,
    bytes: Budget,
    pace: Mutex<Pace>,
    /// Since when there have been uploads without a break.
    busy_since: Mutex<Option<Instant>>,
    is_asking: Arc<AtomicBool>,
}

impl Pusher {
    /// Prepares to push files of this cluster. Nothing is sent anywhere yet.
    ///
    /// # Errors
    /// As [`WalArchive::open`]; `Unavailable` if the process may not have what it needs.
    pub(crate) fn new(config: &Config, system_identifier: u64, memory: HostMemory) -> Result<Self> {
        let archive = WalArchive::open(config, system_identifier, memory.clone(), Patience::For(ANSWER_TIME))?;
        let jobs = config.jobs().min(uploads_within_descriptors()).max(1);
        let runtime = Builder::new_multi_thread().worker_threads(jobs.min(MOST_CARRIERS)).enable_all().build();
        let runtime =
            runtime.map_err(|error| Error::new(Kind::Unavailable, "could not start the runtime").caused_by(error))?;
        let pace = Pace::new(jobs);
        Ok(Self {
            archive,
            memory,
            runtime,
            jobs,
            preparing: Mutex::new(()),
            compressions: Budget::new(jobs),
            uploads: Budget::new(pace.uploads()),
            bytes: Budget::new(MEMORY_BYTES),
            pace: Mutex::new(pace),
            busy_since: Mutex::new(None),
            is_asking: Arc::default(),
        })
    }

    /// How many threads keep it busy: while so many upload, as many others compress.
    pub(crate) fn threads(&self) -> usize {
        2 * self.jobs
    }

    /// The store.
    pub(crate) fn store(&self) -> &Store {
        self.archive.store()
    }

    /// How the store has been answering.
    pub(crate) fn health(&self) -> &Health {
        self.store().health()
    }

    /// Adapts the number of uploads to what the store says, and sees whether it still answers. To be called every now
    /// and then.
    pub(crate) fn keep_pace(&self) {
        self.adapt(|_, _| {});
        self.ask_for_a_sign_of_life();
    }

    fn adapt(&self, change: impl FnOnce(&mut Pace, Instant)) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        pace.refused(self.health().throttled(), now);
        change(&mut pace, now);
        self.uploads.set_limit(pace.uploads());
    }

    /// An upload that takes long says nothing about whether the store answers. What calls should wait for must not be
    /// taken for an outage, nor an outage for a slow upload.
    fn ask_for_a_sign_of_life(&self) {
        let busy = {
            let mut since = self.busy_since.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.uploads.is_used() {
                *since = None;
                return;
            }
            since.get_or_insert_with(Instant::now).elapsed()
        };
        let is_due = match self.health().last_answer() {
            Some(age) if age < busy => age >= SIGN_OF_LIFE,
            _ => busy >= QUIET,
        };
        if !is_due || self.is_asking.swap(true, Ordering::Relaxed) {
            return;
        }
        let archive = self.archive.with_patience(Patience::For(SIGN_OF_LIFE));
        let is_asking = Arc::clone(&self.is_asking);
        drop(self.runtime.spawn(async move {
            if let Err(error) = archive.identity().await {
                tracing::debug!(%error, "the store shows no sign of life");
            }
            is_asking.store(false, Ordering::Relaxed);
        }));
    }

    /// Stores a file as an own call would, with time for a slow link.
    ///
    /// # Errors
    /// As those of an own call.
    pub(crate) fn push(&self, path: &Path, source: &Source, level: i32) -> Result<()> {
        let patience = ANSWER_TIME + Duration::from_secs(source.size() / SLOWEST_LINK);
        self.push_within(Patience::For(patience), path, source, level)
    }

    /// As [`Pusher::push`], with other limits to how often it is tried.
    ///
    /// # Errors
    /// As those of an own call.
    pub(crate) fn push_within(&self, patience: Patience, path: &Path, source: &Source, level: i32) -> Result<()> {
        let size = usize::try_from(source.size()).unwrap_or(usize::MAX);
        // Histories first, then by name: PostgreSQL waits for one file at a time, in this order.
        let turn = (!matches!(source.name, WalFileName::History(_)), source.name.to_string());
        let mut bytes = self.bytes.take(size.saturating_add(compression_bytes(level)).min(MEMORY_BYTES), &turn);
        let encoded = {
            let _compression = self.compressions.take(1, &turn);
            source.encode(level)?
        };
        bytes.shrink(encoded.frames.len());
        let _upload = self.uploads.take(1, &turn);
        while let Some(pause) = self.health().pause() {
            thread::sleep(pause.min(LOOK_AGAIN));
        }
        let archive = self.archive.with_patience(patience);
        {
            // Those that begin together would all find out the same.
            let _first = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            self.runtime.block_on(archive.prepare_to_write(source.segment_size, source.pg_major))?;
        }
        let begun = Instant::now();
        let stored = self.runtime.block_on(store::store(source, path, &encoded, &archive, &self.memory, level));
        self.adapt(|pace, now| {
            if stored.is_ok() {
                pace.stored(now - begun, now);
            }
        });
        stored.map(drop)
    }

    /// Whether exactly this file is stored already: a request and no upload.
    ///
    /// # Errors
    /// `Refused`, `Unavailable` or `Damaged`.
    pub(crate) fn holds(&self, source: &Source) -> Result<bool> {
        let blake3 = source.blake3()?;
        self.runtime.block_on(self.archive.holds(source.name, source.size(), &blake3))
    }
}

/// What compressing one file takes besides its result: zstd's window and tables, as they were measured.
fn compression_bytes(level: i32) -> usize {
    let mebibytes = match level {
        ..=5 => 8,
        6..=9 => 24,
        10..=15 => 64,
        _ => 96,
    };
    mebibytes << 20
}

/// How many uploads this process may have descriptors for.
fn uploads_within_descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
    limit.unwrap_or(usize::MAX).saturating_sub(OWN_DESCRIPTORS) / DESCRIPTORS_PER_UPLOAD
}
