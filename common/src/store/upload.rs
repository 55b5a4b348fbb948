//! Large objects in parts. Multipart uploads cannot be made create-only, so their names must be the writer's own.

use std::sync::Arc;
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

/// One object being uploaded in parts. It appears when [`Upload::finish`] succeeds, and only then.
pub struct Upload {
    store: Store,
    key: Path,
    parts: Box<dyn MultipartUpload>,
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
        Ok(Upload { store: self.clone(), key: key.clone(), parts: parts.await?, size: 0 })
    }
}

impl Upload {
    /// Sends the next part. Parts may travel at the same time; each is sent when its future is polled.
    pub fn part(&mut self, bytes: Bytes) -> impl Future<Output = Result<()>> + Send + use<> {
        self.size += bytes.len() as u64;
        let (store, key) = (self.store.clone(), self.key.clone());
        let sending = self.parts.put_part(bytes.into());
        async move { sending.await.map_err(|error| store.explain("store a part of", &key, &error)) }
    }

    /// Completes the upload once all parts were sent, and sees that the object has its size.
    ///
    /// # Errors
    /// `Refused`, `Unavailable`, or `Damaged` if the store holds something else.
    pub async fn finish(mut self) -> Result<u64> {
        // An answer may be lost after the store completed: the object's size decides, not the answer.
        let completed = classify::limited(COMPLETE_TIME, self.parts.complete()).await;
        let patience = Patience::For(Duration::from_secs(60));
        let found = self.store.with_patience(patience).head(&self.key).await;
        match (completed, found) {
            (_, Ok(Some(found))) if found.size == self.size => Ok(self.size),
            (Err(error), _) => Err(self.store.explain("complete", &self.key, &error)),
            (Ok(_), Err(error)) => Err(error),
            (Ok(_), Ok(found)) => Err(Error::new(
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

    /// Gives the upload up. What cannot be removed now is left to the bucket's lifecycle rule.
    pub async fn abort(mut self) {
        if let Err(error) = classify::limited(ANSWER_TIME, self.parts.abort()).await {
            tracing::debug!(key = %self.key, %error, "could not abort an upload");
        }
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
