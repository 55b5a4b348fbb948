//! What the credentials allow beyond what is needed.

use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::{ANSWER_TIME, Store, classify};
use crate::error::Result;

impl Store {
    /// Whether these credentials may delete: asks for the deletion of `key`, which must be one that nothing was ever stored
    /// under. A bucket that keeps versions keeps a mark of it.
    ///
    /// # Errors
    /// `Unavailable`: it could not be found out.
    pub async fn may_delete(&self, key: &Path) -> Result<bool> {
        self.retry(|| async {
            match classify::limited(ANSWER_TIME, self.objects.delete(key)).await {
                Ok(()) => Ok(true),
                Err(error) if classify::is_missing_object(&error) => Ok(true),
                Err(error) if classify::lacks_rights(&error) => Ok(false),
                Err(error) => Err(self.explain("delete", key, &error)),
            }
        })
        .await
    }
}
