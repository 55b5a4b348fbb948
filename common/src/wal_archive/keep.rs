//! Storing a WAL file once: equal is fine, different is never overwritten.

use std::time::Duration;

use object_store::PutPayload;
use object_store::path::Path;

use super::WalArchive;
use crate::error::{Error, Kind, Result};
use crate::lsn::Lsn;
use crate::store::{CreateOnly, Created};
use crate::wal::history::TimelineHistory;
use crate::wal::name::WalFileName;
use crate::wal::segment::{SegmentSize, segment_start};
use crate::wal_object::encode::Encoded;
use crate::wal_object::header::{Header, MAX_BYTES};

/// How often a put is repeated when the store says "exists" and shows nothing.
const PHANTOMS: u32 = 4;
/// How long to wait in between: a conflict with another request passes.
const PHANTOM_PAUSE: Duration = Duration::from_millis(200);

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It was stored.
    New,
    /// The same contents were stored already.
    AlreadyThere,
    /// Other contents have its name, so it was stored beside them; it will not answer a request.
    Aside,
}

/// The timelines that histories in this server's `pg_wal` have left, and where.
#[derive(Debug, Clone, Default)]
pub struct LeftTimelines(Vec<TimelineHistory>);

impl LeftTimelines {
    /// From the histories found in `pg_wal`.
    pub fn new(histories: Vec<TimelineHistory>) -> Self {
        Self(histories)
    }

    /// Whether the segment contains or follows the point at which its timeline was left.
    fn have_left(&self, name: WalFileName, size: Option<SegmentSize>) -> Option<Lsn> {
        let WalFileName::Segment(segment) = name else { return None };
        let size = size?;
        let end = segment_start(segment.number(size)? + 1, size);
        self.0.iter().filter_map(|history| history.switch_point(segment.timeline)).find(|&left| end > left)
    }
}

/// What lies under a key.
enum Found {
    Nothing,
    Same,
    Other(Box<Header>),
}

impl WalArchive {
    /// Stores a WAL file, durably, unless the same contents are stored already.
    ///
    /// [`WalArchive::prepare_to_write`] comes first.
    ///
    /// # Errors
    /// `Conflict` if other contents have the name; `Damaged` if what has the name cannot be read; `Refused`;
    /// `Unavailable`.
    pub async fn keep(&self, name: WalFileName, file: &Encoded, left: &LeftTimelines) -> Result<Kept> {
        let key = self.layout.wal(name);
        let other = match self.keep_under(&key, file).await? {
            Ok(kept) => return Ok(kept),
            Err(other) => other,
        };
        let aside = match name {
            WalFileName::Partial(_) => Some(self.layout.wal_second_partial(name, &file.header.blake3)),
            _ => left.have_left(name, file.header.segment_size).map(|left| {
                tracing::warn!(
                    "WAL segment \"{name}\" belongs to a branch that was left at {left} and differs from the one in \
                     the archive; it is kept aside and not used for recovery"
                );
                self.layout.wal_fork(name, &file.header.blake3)
            }),
        };
        let Some(aside) = aside else { return Err(self.conflict(&key, name, file, &other).await) };
        match self.keep_under(&aside, file).await? {
            Ok(_) => Ok(Kept::Aside),
            Err(other) => Err(self.conflict(&aside, name, file, &other).await),
        }
    }

    async fn keep_under(&self, key: &Path, file: &Encoded) -> Result<Result<Kept, Box<Header>>> {
        for _ in 0..PHANTOMS {
            let payload = PutPayload::from_iter([file.header_bytes.clone(), file.frames.clone()]);
            if self.store.create(key, payload).await? == Created::New {
                self.store.make_young_folders_durable(key)?;
                if self.store.create_only() == CreateOnly::Enforced {
                    return Ok(Ok(Kept::New));
                }
                // Where the store does not refuse, someone else may have stored the same name in the same moment.
                match self.look_at(key, &file.header.name, file.header.size, &file.header.blake3).await? {
                    Found::Same => return Ok(Ok(Kept::New)),
                    Found::Other(header) => return Ok(Err(header)),
                    Found::Nothing => continue,
                }
            }
            // "Exists" proves nothing yet: it may be our own first try, or a conflict that stored nothing.
            match self.look_at(key, &file.header.name, file.header.size, &file.header.blake3).await? {
                Found::Same => {
                    self.store.make_durable(key)?;
                    return Ok(Ok(Kept::AlreadyThere));
                }
                Found::Other(header) => return Ok(Err(header)),
                Found::Nothing => tokio::time::sleep(PHANTOM_PAUSE).await,
            }
        }
        Err(Error::new(
            Kind::Unavailable,
            format!("the store says that object \"{}\" exists, but shows none", self.store.url_of(key)),
        ))
    }

    /// Whether exactly this file is stored under its own name, durably. Costs one request, and no upload.
    ///
    /// # Errors
    /// `Refused`, `Unavailable`, or `Damaged`.
    pub async fn holds(&self, name: WalFileName, size: u64, blake3: &str) -> Result<bool> {
        let key = self.layout.wal(name);
        let same = matches!(self.look_at(&key, &name.to_string(), size, blake3).await?, Found::Same);
        if same {
            self.store.make_durable(&key)?;
        }
        Ok(same)
    }

    async fn look_at(&self, key: &Path, name: &str, size: u64, blake3: &str) -> Result<Found> {
        self.look_at_copy(key, name, size, blake3).await.map_err(|error| match error.kind() {
            Kind::Damaged => error.context(format!("the archive holds a damaged copy of \"{name}\"")).hint(format!(
                "Move the object \"{}\" away; the next attempt stores the file anew.",
                self.store.url_of(key)
            )),
            _ => error,
        })
    }

    async fn look_at_copy(&self, key: &Path, name: &str, size: u64, blake3: &str) -> Result<Found> {
        let Some((start, object_size)) = self.store.read_range(key, 0..MAX_BYTES).await? else {
            return Ok(Found::Nothing);
        };
        let (header, length) = self.parse_header(key, &start)?;
        if header.object_size(length) != object_size {
            let problem = format!("it has {object_size} bytes instead of {}", header.object_size(length));
            return Err(self.damaged(key, &problem));
        }
        let same = header.blake3 == blake3
            && header.name == name
            && header.size == size
            && header.system_identifier == self.layout.system_identifier();
        Ok(if same { Found::Same } else { Found::Other(Box::new(header)) })
    }
}
