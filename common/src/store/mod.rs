//! Objects in an object store or a directory: a few verbs, our words for every failure, a limit of time on each request.
//!
//! Nothing here overwrites. Whether the store itself refuses to is found out by [`create_only`], not believed.

mod answers;
mod classify;
pub mod create_only;
mod credentials;
mod delete;
mod directory;
mod health;
mod open;
mod rights;
mod upload;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};

pub use self::create_only::CreateOnly;
pub use self::delete::Undeleted;
pub use self::directory::StaleFile;
pub use self::health::Health;
pub use self::open::place;
pub use self::upload::Upload;
use crate::config::Location;
use crate::error::{Error, Kind, Result};
use crate::retry::{Patience, retry};

/// How long the store may take to answer a request without a large body.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long a body may pause.
const SILENCE: Duration = Duration::from_secs(30);
/// The slowest link an upload is given time for, in bytes per second.
pub const SLOWEST_LINK: u64 = 64 * 1024;

/// A store at one location; keys are relative to it.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// The same store through a client that gives up silent requests by itself, for multipart uploads.
    parts: Arc<dyn ObjectStore>,
    location: Location,
    place: String,
    directory: Option<PathBuf>,
    create_only: Arc<AtomicU8>,
    health: Arc<Health>,
    patience: Patience,
    /// Uploads that were dropped unfinished.
    given_up: upload::GivenUp,
}

/// What a put that must not overwrite did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object was stored.
    New,
    /// The store says that there is one already. It may be our own from an earlier attempt, and some stores say so
    /// although there is none: look.
    Exists,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: Path,
    /// Its stored bytes.
    pub size: u64,
    /// When the store took it; by the store's clock.
    pub modified: jiff::Timestamp,
}

/// One level of the hierarchy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Folder {
    /// The names of the folders in it, sorted.
    pub folders: Vec<String>,
    /// The objects in it, sorted by key.
    pub objects: Vec<Listed>,
}

/// An object while it is being read.
pub struct Reading {
    /// The whole object's size.
    pub size: u64,
    key: Path,
    body: BoxStream<'static, object_store::Result<Bytes>>,
}

/// The clients hold keys and print them: they stay out of it.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("location", &self.location).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").field("key", &self.key).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Store {
    /// The URL, for messages.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The URL together with what else decides where it leads, the endpoint or the account: what a host remembers facts
    /// about the store under.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The directory of a `file://` store.
    pub fn directory(&self) -> Option<&std::path::Path> {
        self.directory.as_deref()
    }

    /// The same store, with another limit to trying again.
    #[must_use]
    pub fn with_patience(&self, patience: Patience) -> Self {
        Self { patience, ..self.clone() }
    }

    /// How the store has been answering; the clones of one store share it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What is known about the store's conditional puts.
    pub fn create_only(&self) -> CreateOnly {
        CreateOnly::from_u8(self.create_only.load(Ordering::Relaxed))
    }

    /// Sets what is known about the store's conditional puts.
    pub fn set_create_only(&self, known: CreateOnly) {
        self.create_only.store(known as u8, Ordering::Relaxed);
    }

    /// The key with the location before it, for messages.
    pub fn url_of(&self, key: &Path) -> String {
        format!("{}/{key}", self.location)
    }

    /// Stores an object in one put, unless there is one under this key.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`; in the second case the object may have been stored all the same.
    pub async fn create(&self, key: &Path, payload: impl Into<PutPayload>) -> Result<Created> {
        let payload = payload.into();
        let created = self.retry(|| self.create_once(key, payload.clone())).await?;
        self.health.note_success();
        Ok(created)
    }

    async fn create_once(&self, key: &Path, payload: PutPayload) -> Result<Created> {
        let known = self.create_only();
        // A store that does not refuse must be looked at first; two writers at once can still collide there.
        if known != CreateOnly::Enforced && self.look(key).await?.is_some() {
            return Ok(Created::Exists);
        }
        let mode = if known == CreateOnly::Unsupported { PutMode::Overwrite } else { PutMode::Create };
        match self.put(key, payload.clone(), mode).await {
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Created::Exists)
            }
            Err(error) if known == CreateOnly::NotEnforced && classify::is_not_implemented(&error) => {
                self.put(key, payload, PutMode::Overwrite).await.map_err(|error| self.explain("store", key, &error))?;
                Ok(Created::New)
            }
            // Where replacing takes another right than creating, that one is missed before anybody sees that there is no
            // need for it.
            Err(error @ object_store::Error::PermissionDenied { .. }) => match self.look(key).await {
                Ok(Some(_)) => Ok(Created::Exists),
                _ => Err(self.explain("store", key, &error)),
            },
            Err(error) => Err(self.explain("store", key, &error)),
            Ok(()) => Ok(Created::New),
        }
    }

    async fn put(&self, key: &Path, payload: PutPayload, mode: PutMode) -> object_store::Result<()> {
        let limit = ANSWER_TIME + Duration::from_secs(payload.content_length() as u64 / SLOWEST_LINK);
        classify::limited(limit, self.objects.put_opts(key, payload, mode.into())).await.map(drop)
    }

    /// Looks at an object without reading it; nothing if there is none.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn head(&self, key: &Path) -> Result<Option<Listed>> {
        self.retry(|| self.look(key)).await
    }

    async fn look(&self, key: &Path) -> Result<Option<Listed>> {
        let found = match classify::limited(ANSWER_TIME, self.objects.head(key)).await {
            // The reason is in the body, which the answer to a HEAD does not have.
            Err(error) if classify::is_refusal(&error) => {
                classify::limited(ANSWER_TIME, self.objects.get(key)).await.map(|answer| answer.meta)
            }
            found => found,
        };
        self.found(key, found.map(listed))
    }

    /// Reads the bytes of `range` as far as they exist, and the whole object's size; nothing if there is no object.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn read_range(&self, key: &Path, range: Range<u64>) -> Result<Option<(Bytes, u64)>> {
        self.retry(|| async {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let read = async {
                let result = self.objects.get_opts(key, options).await?;
                let size = result.meta.size;
                Ok((result.bytes().await?, size))
            };
            let limit = ANSWER_TIME + Duration::from_secs((range.end - range.start) / SLOWEST_LINK);
            match classify::limited(limit, read).await {
                Err(error) if classify::is_whole_answer(&error) => self.read_start(key, range.clone()).await,
                // A range that begins at or behind the end: in an object that is cut off, or empty.
                Err(error) if classify::is_range_not_satisfiable(&error) => {
                    let size = self.look(key).await?.map_or(0, |found| found.size);
                    Ok(Some((Bytes::new(), size)))
                }
                result => self.found(key, result),
            }
        })
        .await
    }

    /// Reads a range from a store that answers with the whole object, and stops as soon as it has come by.
    async fn read_start(&self, key: &Path, range: Range<u64>) -> Result<Option<(Bytes, u64)>> {
        let Some(mut reading) = self.open_once(key).await? else { return Ok(None) };
        let size = reading.size;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < range.end.min(size) {
            match reading.next().await? {
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => break,
            }
        }
        let index = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
        Ok(Some((Bytes::copy_from_slice(&bytes[index(range.start)..index(range.end)]), size)))
    }

    /// Reads a small object whole; nothing if there is none.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`; `Damaged` if it is larger than `limit` bytes.
    pub async fn read(&self, key: &Path, limit: u64) -> Result<Option<Bytes>> {
        self.retry(|| async {
            let Some(mut reading) = self.open_once(key).await? else { return Ok(None) };
            if reading.size > limit {
                let size = reading.size;
                return Err(Error::new(
                    Kind::Damaged,
                    format!("object \"{}\" is {size} bytes long, {limit} at most are possible", self.url_of(key)),
                ));
            }
            let mut bytes = Vec::with_capacity(usize::try_from(reading.size).unwrap_or(0));
            while let Some(chunk) = reading.next().await? {
                bytes.extend_from_slice(&chunk);
            }
            Ok(Some(bytes.into()))
        })
        .await
    }

    /// Begins to read an object; nothing if there is none. Failures while its body is read are the caller's to retry.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn open_once(&self, key: &Path) -> Result<Option<Reading>> {
        let result = classify::limited(ANSWER_TIME, self.objects.get(key)).await;
        let found = self.found(key, result)?;
        Ok(found.map(|result| Reading { size: result.meta.size, key: key.clone(), body: result.into_stream() }))
    }

    /// How long operations are tried again.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Lists every object below `folder`, sorted by key.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`; never a part of a listing.
    pub async fn list(&self, folder: &Path) -> Result<Vec<Listed>> {
        self.retry(|| async {
            let mut pages = self.objects.list(Some(folder)).map_ok(listed);
            let mut objects = Vec::new();
            while let Some(object) = classify::limited(SILENCE, pages.next().map(Ok)).await.transpose() {
                objects.push(object.and_then(|object| object).map_err(|error| self.explain("list", folder, &error))?);
            }
            objects.sort_unstable_by(|a: &Listed, b| a.key.cmp(&b.key));
            objects.dedup_by(|a, b| a.key == b.key);
            Ok(objects)
        })
        .await
    }

    /// Lists one level.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`; never a part of a listing.
    pub async fn list_folder(&self, folder: &Path) -> Result<Folder> {
        self.retry(|| async {
            let result = classify::limited(ANSWER_TIME * 4, self.objects.list_with_delimiter(Some(folder))).await;
            let result = result.map_err(|error| self.explain("list", folder, &error))?;
            let names = result.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned));
            let mut level =
                Folder { folders: names.collect(), objects: result.objects.into_iter().map(listed).collect() };
            level.folders.sort_unstable();
            level.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
            Ok(level)
        })
        .await
    }

    /// As [`retry`]. What got no answer at all is a failure to be remembered like any other.
    async fn retry<T, F>(&self, attempt: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let result = retry(self.patience, attempt).await;
        if let Err(error) = &result {
            self.health.note_failure(error, false);
        }
        result
    }

    /// A missing object is an answer; a missing bucket, or anything else, is a failure.
    fn found<T>(&self, key: &Path, result: object_store::Result<T>) -> Result<Option<T>> {
        let found = match result {
            Ok(found) => Some(found),
            Err(error) if classify::is_missing_object(&error) => None,
            Err(error) => return Err(self.explain("read", key, &error)),
        };
        self.health.note_answer();
        Ok(found)
    }

    fn explain(&self, doing: &str, key: &Path, error: &object_store::Error) -> Error {
        let explained = classify::explain(&self.location, doing, &self.url_of(key), error);
        let is_too_much = classify::is_throttling(error) || classify::is_time_out(error);
        self.health.note_failure(&explained, is_too_much);
        match self.health.pause() {
            Some(pause) => explained.not_before(pause),
            None => explained,
        }
    }
}

impl Reading {
    /// The next bytes; nothing at the end.
    ///
    /// # Errors
    /// `Unavailable`, also when nothing comes for half a minute.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let chunk = classify::limited(SILENCE, self.body.next().map(Ok)).await;
        chunk.and_then(Option::transpose).map_err(|error| {
            Error::new(Kind::Unavailable, format!("could not read object \"{}\" to its end", self.key)).caused_by(error)
        })
    }
}

fn listed(meta: ObjectMeta) -> Listed {
    let seconds = meta.last_modified.timestamp();
    let modified = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    Listed { key: meta.location, size: meta.size, modified }
}
