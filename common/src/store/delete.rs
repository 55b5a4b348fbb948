//! Deleting, which only `basebackup expire` and `delete` do.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;

use super::{ANSWER_TIME, Store, classify};
use crate::error::{Error, Kind, Result};

/// As many as S3 takes in one request.
const BATCH: usize = 1000;
/// How many batches are under way at the same time.
const BATCHES: usize = 4;
/// A batch may take this many times as long as a small request.
const PATIENT: u32 = 4;

/// An object that the store did not delete.
#[derive(Debug)]
pub struct Undeleted {
    /// Its key.
    pub key: Path,
    /// Whether the store keeps it because it was told to, for some time or for good; not for want of rights.
    pub is_protected: bool,
    /// The store's reason.
    pub error: Error,
}

impl Store {
    /// Deletes objects, in batches and in no particular order; one that is not there is as good as deleted. Returns those
    /// that the store did not delete, each with its reason. In a directory, what is deleted stays deleted when the power
    /// fails, and folders that became empty are removed.
    ///
    /// # Errors
    /// `Unavailable`: any of them may have been deleted, or not.
    pub async fn delete(&self, keys: &[Path]) -> Result<Vec<Undeleted>> {
        let batches: Vec<Vec<Path>> = keys.chunks(BATCH).map(<[Path]>::to_vec).collect();
        let batches = batches.into_iter().map(|batch| self.delete_batch(batch));
        let kept: Vec<Vec<Undeleted>> = stream::iter(batches).buffer_unordered(BATCHES).try_collect().await?;
        Ok(kept.into_iter().flatten().collect())
    }

    async fn delete_batch(&self, keys: Vec<Path>) -> Result<Vec<Undeleted>> {
        let kept = self.retry(|| self.delete_once(&keys)).await?;
        self.settle_folders(&keys)?;
        Ok(kept)
    }

    /// One attempt at a batch. What may work later is tried again as a whole: deleting twice does no harm.
    async fn delete_once(&self, keys: &[Path]) -> Result<Vec<Undeleted>> {
        let input = stream::iter(keys.to_vec()).map(Ok).boxed();
        let answers = self.objects.delete_stream(input).collect::<Vec<_>>();
        let answers = classify::limited(ANSWER_TIME * PATIENT, async { Ok(answers.await) }).await;
        let first = keys.first().cloned().unwrap_or_default();
        let answers = answers.map_err(|error| self.explain("delete", &first, &error))?;
        let mut kept = Vec::new();
        if answers.len() != keys.len() {
            // The request as a whole failed.
            let error = answers.into_iter().find_map(Result::err);
            let explained = error.map(|error| self.explain("delete", &first, &error));
            let error = explained.unwrap_or_else(|| Error::new(Kind::Unavailable, "the store did not answer for all"));
            if error.kind() != Kind::Refused {
                return Err(error);
            }
            let refused = |key: &Path| Error::new(Kind::Refused, format!("could not delete \"{}\"", self.url_of(key)));
            let hint = error.hint_text().unwrap_or_default().to_owned();
            kept.push(Undeleted { key: first, is_protected: false, error });
            kept.extend(keys.iter().skip(1).map(|key| Undeleted {
                key: key.clone(),
                is_protected: false,
                error: refused(key).hint(hint.clone()),
            }));
            return Ok(kept);
        }
        for (key, answer) in keys.iter().zip(answers) {
            match answer {
                Ok(_) => {}
                Err(error) if classify::is_missing_object(&error) => {}
                Err(error) => {
                    let is_protected = classify::is_protected(&error);
                    match self.explain("delete", key, &error) {
                        error if error.kind() == Kind::Unavailable && !is_protected => return Err(error),
                        error => kept.push(Undeleted { key: key.clone(), is_protected, error }),
                    }
                }
            }
        }
        self.health.note_success();
        Ok(kept)
    }
}
