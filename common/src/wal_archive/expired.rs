//! What was removed from a cluster's folder on purpose, and how that is noted.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;

use super::WalArchive;
use crate::error::{Error, Kind, Result};
use crate::repository::expire::{ExpireDone, ExpireRecord, Expired};
use crate::repository::layout::BackupId;
use crate::store::{Created, Listed};
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
        let listed = self.store.list(&self.layout.expire_folder()).await?;
        let (records, done) = names(&listed);
        // Ids begin with the time: a copy of the repository may have lost that of the objects.
        let newest = records.iter().rev().take(READ);
        let read = stream::iter(newest.cloned().collect::<Vec<_>>()).map(|id| async move {
            let key = self.layout.expire(&id);
            let url = self.store.url_of(&key);
            match self.store.read(&key, LIMIT).await {
                Ok(bytes) => Ok(bytes.map(|bytes| ExpireRecord::parse(&bytes).map_err(|problem| (url, problem)))),
                Err(error) if error.kind() == Kind::Damaged => Ok(Some(Err((url, error.to_string())))),
                Err(error) => Err(error),
            }
        });
        let read: Vec<_> = read.buffered(READ).try_collect().await?;
        let (mut expired, mut usable) = (Expired { records, ..Expired::default() }, Vec::new());
        for outcome in read.into_iter().flatten() {
            match outcome {
                Ok(record) => usable.push(record),
                Err(unreadable) => expired.unreadable.push(unreadable),
            }
        }
        usable.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        for record in usable {
            expired.add(&record, done.contains(&record.id), size);
        }
        Ok(expired)
    }

    /// The ids of all records there are.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn expire_records(&self) -> Result<BTreeSet<BackupId>> {
        Ok(names(&self.store.list(&self.layout.expire_folder()).await?).0)
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

    /// Takes back a record of a run that removed nothing.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn withdraw_expired(&self, id: &BackupId) -> Result<()> {
        let refused = self.store.delete(&[self.layout.expire(id)]).await?;
        refused.into_iter().next().map_or(Ok(()), |undeleted| Err(undeleted.error))
    }

    /// Notes that a run has ended.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn note_done(&self, done: &ExpireDone) -> Result<()> {
        let internal = |error| Error::new(Kind::Internal, "could not write the record").caused_by(error);
        let key = self.layout.expire_done(&done.id);
        match self.store.create(&key, done.to_bytes().map_err(internal)?).await? {
            Created::New | Created::Exists => self.store.make_durable(&key),
        }
    }
}

/// The records there are, and those whose runs ended.
fn names(listed: &[Listed]) -> (BTreeSet<BackupId>, BTreeSet<BackupId>) {
    let ids = |suffix: &str| {
        let names = listed.iter().filter_map(|object| object.key.filename()?.strip_suffix(suffix)?.parse().ok());
        names.collect()
    };
    (ids(".json"), ids(".done"))
}
