//! Large objects in parts. Multipart uploads cannot be made create-only, so their names must be the writer's own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};
use object_store::{MultipartUpload, PutMultipartOptions};

use super::{ANSWER_TIME, Store, classify};
use crate::error::{Error, Kind, Result};
use crate::retry::{Patience, retry};

/// How long a part is sent again before the upload fails.
const PART_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Completing lets the store put the object together, which may take a while.
const COMPLETE_TIME: Duration = Duration::from_secs(300);

/// How long the parts of uploads that were given up are being removed.
const ABORT_TIME: Duration = Duration::from_secs(10);

/// Uploads that wait for their parts to be removed: whoever drops an [`Upload`] cannot wait for that.
pub(super) type GivenUp = Arc<Mutex<Vec<Box<dyn MultipartUpload>>>>;

/// One object being uploaded in parts. It appears when [`Upload::finish`] succeeds, and only then. Dropped before, its
/// parts stay in the store until [`Store::remove_given_up`].
pub struct Upload {
    store: Store,
    key: Path,
    /// None once the upload has ended.
    parts: Option<Box<dyn MultipartUpload>>,
    size: u64,
}

/// The client of the store holds keys and prints them: it stays out of it.
impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").field("key", &self.key).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Store {
    /// Begins an upload in parts. All parts but the last must have the same size, at least 5 MiB.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn upload(&self, key: &Path) -> Result<Upload> {
        let parts = retry(self.patience, || async {
            let policy = Arc::new(PartRetry { limit: PART_PATIENCE });
            let options = PutMultipartOptions::default().with_retry_policy(policy);
            let begun = classify::limited(ANSWER_TIME, self.parts.put_multipart_opts(key, options)).await;
            begun.map_err(|error| self.explain("store", key, &error))
        });
        Ok(Upload { store: self.clone(), key: key.clone(), parts: Some(parts.await?), size: 0 })
    }

    /// Removes the parts of uploads that were dropped before their end. What cannot be removed now is left to the
    /// bucket's lifecycle rule.
    pub async fn remove_given_up(&self) {
        let mut uploads = std::mem::take(&mut *self.given_up.lock().unwrap_or_else(PoisonError::into_inner));
        let aborting = uploads.iter_mut().map(|upload| classify::limited(ABORT_TIME, upload.abort()));
        for error in futures::future::join_all(aborting).await.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "could not remove the parts of an upload");
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            self.store.given_up.lock().unwrap_or_else(PoisonError::into_inner).push(parts);
        }
    }
}

impl Upload {
    /// Sends the next part. Parts may travel at the same time; each is sent when its future is polled.
    pub fn part(&mut self, bytes: Bytes) -> impl Future<Output = Result<()>> + Send + use<> {
        self.size += bytes.len() as u64;
        let (store, key) = (self.store.clone(), self.key.clone());
        let sending = self.parts.as_mut().map(|parts| parts.put_part(bytes.into()));
        async move {
            match sending {
                Some(sending) => sending.await.map_err(|error| store.explain("store a part of", &key, &error)),
                None => Err(Error::new(Kind::Internal, "a part came after the end of its upload")),
            }
        }
    }

    /// Completes the upload once all parts were sent, and sees that the object has its size.
    ///
    /// # Errors
    /// `Refused`, `Unavailable`, or `Damaged` if the store holds something else.
    pub async fn finish(mut self) -> Result<u64> {
        // An answer may be lost after the store completed: the object's size decides, not the answer.
        let completed = match self.parts.as_mut() {
            Some(parts) => classify::limited(COMPLETE_TIME, parts.complete()).await.map(drop),
            None => Ok(()),
        };
        let patience = Patience::For(Duration::from_secs(60));
        let found = self.store.with_patience(patience).head(&self.key).await;
        let whole = found.as_ref().is_ok_and(|found| found.as_ref().is_some_and(|found| found.size == self.size));
        if completed.is_ok() || whole {
            self.parts = None;
        }
        match (completed, found) {
            _ if whole => Ok(self.size),
            (Err(error), _) => Err(self.store.explain("complete", &self.key, &error)),
            (Ok(()), Err(error)) => Err(error),
            (Ok(()), Ok(found)) => Err(Error::new(
                Kind::Damaged,
                format!(
                    "object \"{}\" has {} bytes after an upload of {}",
                    self.store.url_of(&self.key),
                    found.map_or(0, |found| found.size),
                    self.size
                ),
            )),
        }
    }

    /// Gives the upload up, and removes its parts.
    pub async fn abort(self) {
        let store = self.store.clone();
        drop(self);
        store.remove_given_up().await;
    }
}

/// Sends a part again after failures that may pass, each time with a fresh signature.
#[derive(Debug)]
struct PartRetry {
    limit: Duration,
}

#[async_trait]
impl RetryPolicy for PartRetry {
    async fn retry(&self, context: RetryContext) -> bool {
        let transient = match context.failure {
            RetryFailure::Status(status) => status.is_server_error() || matches!(status.as_u16(), 408 | 429 | 499),
            RetryFailure::Transport(_) => true,
            _ => false,
        };
        if !transient || context.elapsed > self.limit {
            return false;
        }
        let exponent = u32::try_from(context.attempt.min(7)).unwrap_or(7);
        let longest = Duration::from_millis(100 << exponent);
        tokio::time::sleep(longest.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        true
    }
}
