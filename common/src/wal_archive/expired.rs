//! What was removed from a cluster's folder on purpose, and how that is noted.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;

use super::WalArchive;
use crate::error::{Error, Kind, Result};
use crate::repository::expire::{ExpireRecord, Expired};
use crate::store::Created;
use crate::wal::segment::SegmentSize;

/// Above this a record is none of ours.
const LIMIT: u64 = 64 << 20;
/// Each record carries on what earlier ones say, so the newest are enough; several, for two hosts may have written theirs
/// at the same time.
const READ: usize = 8;

impl WalArchive {
    /// Reads the newest records of what was removed.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn expired(&self, size: SegmentSize) -> Result<Expired> {
        let mut listed = self.store.list(&self.layout.expire_folder()).await?;
        listed.sort_by_key(|object| object.modified);
        let newest = listed.split_off(listed.len().saturating_sub(READ));
        let read = stream::iter(newest).map(|object| async move {
            let url = self.store.url_of(&object.key);
            match self.store.read(&object.key, LIMIT).await {
                Ok(bytes) => Ok(bytes.map(|bytes| ExpireRecord::parse(&bytes).map_err(|problem| (url, problem)))),
                Err(error) if error.kind() == Kind::Damaged => Ok(Some(Err((url, error.to_string())))),
                Err(error) => Err(error),
            }
        });
        let read: Vec<_> = read.buffered(READ).try_collect().await?;
        let (mut expired, mut records) = (Expired::default(), Vec::new());
        for outcome in read.into_iter().flatten() {
            match outcome {
                Ok(record) => records.push(record),
                Err(unreadable) => expired.unreadable.push(unreadable),
            }
        }
        records.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        for record in records {
            expired.add(&record, size);
        }
        Ok(expired)
    }

    /// Stores a record, create-only, and tells when the store took it, by the store's clock.
    ///
    /// # Errors
    /// `Conflict` if one of this name is there, `Refused`, `Unavailable`.
    pub async fn note_expired(&self, record: &ExpireRecord) -> Result<Timestamp> {
        let internal = |error| Error::new(Kind::Internal, "could not write the record").caused_by(error);
        let bytes = record.to_bytes().map_err(internal)?;
        let key = self.layout.expire(&record.id);
        if self.store.create(&key, bytes.clone()).await? == Created::Exists
            && self.store.read(&key, LIMIT).await?.as_deref() != Some(&bytes[..])
        {
            let message = format!("\"{}\" is there already", self.store.url_of(&key));
            return Err(Error::new(Kind::Conflict, message).hint("Try again."));
        }
        self.store.make_durable(&key)?;
        let stored = self.store.head(&key).await?.map(|stored| stored.modified);
        stored.ok_or_else(|| {
            Error::new(Kind::Unavailable, format!("\"{}\" was stored and is not there", self.store.url_of(&key)))
        })
    }
}
