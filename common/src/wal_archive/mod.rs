//! The WAL of one cluster in a repository: stored once, fetched verified, a hole told from the end.

mod conflict;
mod expired;
mod fetch;
mod holes;
pub mod inventory;
mod keep;
pub mod source;

use std::time::{Duration, Instant};

use object_store::path::Path;

pub use self::fetch::Fetched;
pub use self::keep::{Kept, LeftTimelines};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::host::HostMemory;
use crate::repository::identity::Identity;
use crate::repository::layout::{Layout, PROBE_FOLDER, probe};
use crate::repository::seal::seal;
use crate::retry::Patience;
use crate::store::{CreateOnly, Created, Store};
use crate::wal::segment::SegmentSize;

/// An identity is a few hundred bytes.
const IDENTITY_LIMIT: u64 = 64 * 1024;
/// How long a host relies on having seen `identity.json`.
const IDENTITY_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a host relies on what it found out about a store's conditional puts.
const PROBE_MEMORY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long finding that out may keep a file from being stored.
const PROBE_TIME: Duration = Duration::from_secs(5);

const CREATE_ONLY_FACT: &str = "create-only";
const IDENTITY_FACT: &str = "identity";
const REPOSITORY_FACT: &str = "repository";

/// One cluster's folder in a repository, as one run of a program sees it.
#[derive(Debug, Clone)]
pub struct WalArchive {
    store: Store,
    layout: Layout,
    memory: HostMemory,
}

impl WalArchive {
    /// Opens the folder of `system_identifier`. Nothing is sent anywhere yet.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(config: &Config, system_identifier: u64, memory: HostMemory, patience: Patience) -> Result<Self> {
        let store = Store::open(config, patience)?;
        Ok(Self { store, layout: Layout::new(&config.cluster, system_identifier), memory })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The same archive, with another limit to trying again.
    #[must_use]
    pub fn with_patience(&self, patience: Patience) -> Self {
        Self { store: self.store.with_patience(patience), ..self.clone() }
    }

    /// Makes sure, before anything is written, that this is a place to write to: `identity.json` is there and right,
    /// the directory is mounted, and it is known whether the store refuses to overwrite.
    ///
    /// # Errors
    /// `Refused` if the directory of a local repository is not what it was; `Conflict` if the folder belongs to
    /// something else; `Unavailable`.
    pub async fn prepare_to_write(&self, segment_size: Option<SegmentSize>, pg_major: Option<u32>) -> Result<()> {
        self.check_mounted().await?;
        self.learn_create_only().await;
        let known = self.memory.age(IDENTITY_FACT, &self.subject()).is_some_and(|age| age < IDENTITY_MEMORY);
        if known {
            return Ok(());
        }
        let identity = Identity::new(self.layout.system_identifier(), segment_size, pg_major, jiff::Timestamp::now());
        let bytes = identity
            .to_bytes()
            .map_err(|error| Error::new(Kind::Internal, "could not write identity.json").caused_by(error))?;
        let key = self.layout.identity();
        if self.store.create(&key, seal(&bytes)).await? == Created::Exists {
            self.store.make_durable(&key)?;
            let found = self.identity().await?;
            check_segment_size(found.as_ref().and_then(|found| found.segment_size), segment_size)?;
        }
        self.memory.note(IDENTITY_FACT, &self.subject(), "");
        self.memory.note(REPOSITORY_FACT, self.store.place(), "");
        Ok(())
    }

    /// A local repository that this host knows must still be there: behind an unmounted mount point lies an empty
    /// directory, and what is written into it disappears when the mount comes back.
    async fn check_mounted(&self) -> Result<()> {
        let Some(directory) = self.store.directory() else { return Ok(()) };
        let known = if self.memory.recall(IDENTITY_FACT, &self.subject()).is_some() {
            self.store.head(&self.layout.identity()).await?.is_some()
        } else if self.memory.recall(REPOSITORY_FACT, self.store.place()).is_some() {
            // Another cluster was archived here: its folder must be there still.
            let folders = self.store.list_folder(&Path::default()).await?.folders;
            folders.iter().any(|folder| folder != PROBE_FOLDER)
        } else {
            true
        };
        if known {
            return Ok(());
        }
        Err(Error::new(
            Kind::Refused,
            format!("repository directory \"{}\" is not the one that was used before", directory.display()),
        )
        .hint(format!(
            "Is it mounted? \"{}\" is missing. If the repository was emptied on purpose, restore that file or \
             remove the files \"identity-*\" and \"repository-*\" from the spool directory.",
            self.layout.identity()
        )))
    }

    /// Finds out once per host and URL whether the store refuses to overwrite. Where that cannot be found out, it is
    /// taken not to: that costs one more request per object.
    async fn learn_create_only(&self) {
        if self.store.create_only() == CreateOnly::Enforced {
            return;
        }
        // Without a memory each push would probe again and leave an object behind.
        if !self.memory.is_usable() {
            return;
        }
        let url = self.store.place();
        let remembered = self.memory.recall(CREATE_ONLY_FACT, url).as_deref().and_then(CreateOnly::from_word);
        let fresh = self.memory.age(CREATE_ONLY_FACT, url).is_some_and(|age| age < PROBE_MEMORY);
        if let Some(known) = remembered.filter(|_| fresh) {
            return self.store.set_create_only(known);
        }
        // Beyond that the file itself needs the time.
        let limit = self.store.patience().deadline().min(Instant::now() + PROBE_TIME);
        let hasty = self.store.with_patience(Patience::Until(limit));
        match hasty.probe_create_only(&probe(fastrand::u64(..))).await {
            Ok(found) => {
                self.memory.note(CREATE_ONLY_FACT, url, found.as_str());
                self.store.set_create_only(found);
            }
            Err(error) => tracing::debug!(%error, "could not probe the store"),
        }
    }

    /// Reads `identity.json`; nothing if there is none.
    ///
    /// # Errors
    /// `Refused` if it cannot be the identity of this folder; `Unavailable`.
    pub async fn identity(&self) -> Result<Option<Identity>> {
        let key = self.layout.identity();
        let Some(bytes) = self.store.read(&key, IDENTITY_LIMIT).await? else { return Ok(None) };
        Identity::parse(&bytes, self.layout.system_identifier()).map(Some).map_err(|error| {
            Error::new(Kind::Refused, format!("could not use \"{}\"", self.store.url_of(&key))).caused_by(error)
        })
    }

    /// What this host remembers an identity under.
    fn subject(&self) -> String {
        format!("{} {}", self.store.place(), self.layout.folder())
    }
}

/// Takes note of what was found out just now about a store's conditional puts.
pub fn note_create_only(memory: &HostMemory, store: &Store, found: CreateOnly) {
    memory.note(CREATE_ONLY_FACT, store.place(), found.as_str());
    store.set_create_only(found);
}

/// The clusters that have a folder under the configured name, by system identifier.
///
/// # Errors
/// `Refused` or `Unavailable`.
pub async fn system_identifiers(store: &Store, cluster: &str) -> Result<Vec<u64>> {
    let level = store.list_folder(&Path::from_iter([cluster.to_owned()])).await?;
    Ok(level.folders.iter().filter_map(|name| name.parse().ok()).collect())
}

fn check_segment_size(archived: Option<SegmentSize>, ours: Option<SegmentSize>) -> Result<()> {
    match (archived, ours) {
        (Some(archived), Some(ours)) if archived != ours => Err(Error::new(
            Kind::Conflict,
            format!(
                "the archive of this cluster holds segments of {} bytes, this one has {}",
                archived.bytes(),
                ours.bytes()
            ),
        )
        .hint("After pg_resetwal --wal-segsize, archive under a new name: set \"cluster\".")),
        _ => Ok(()),
    }
}
