//! Whether a store really refuses to overwrite: found out by trying, remembered by the caller.

use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode};

use super::{Store, classify};
use crate::error::Result;

/// What is known about a store's conditional puts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CreateOnly {
    /// Not known, or known to be ignored: every put is preceded by a look.
    NotEnforced = 0,
    /// The store answers 501: puts are unconditional, after a look.
    Unsupported = 1,
    /// The store refuses to overwrite.
    Enforced = 2,
}

impl CreateOnly {
    pub(super) fn from_u8(value: u8) -> Self {
        match value {
            2 => Self::Enforced,
            1 => Self::Unsupported,
            _ => Self::NotEnforced,
        }
    }

    /// The word under which it is remembered.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotEnforced => "not-enforced",
            Self::Unsupported => "unsupported",
            Self::Enforced => "enforced",
        }
    }

    /// Reads the word under which it is remembered.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::NotEnforced, Self::Unsupported, Self::Enforced].into_iter().find(|known| known.as_str() == word)
    }
}

impl Store {
    /// Puts two different bodies under the fresh `key` and reads which one is there. One small object stays behind.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`: it could not be found out.
    pub async fn probe_create_only(&self, key: &Path) -> Result<CreateOnly> {
        const BODIES: [&[u8]; 2] = [b"walkeep probe: first\n", b"walkeep probe: second\n"];
        let first = self.retry(|| async {
            match self.put(key, BODIES[0].into(), PutMode::Create).await {
                Err(error) if classify::is_not_implemented(&error) => Ok(false),
                // An answer that was lost and asked for again.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) | Ok(()) => {
                    Ok(true)
                }
                Err(error) => Err(self.explain("store", key, &error)),
            }
        });
        if !first.await? {
            return Ok(CreateOnly::Unsupported);
        }
        let refused = self.retry(|| async {
            match self.put(key, BODIES[1].into(), PutMode::Create).await {
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => Ok(true),
                Ok(()) => Ok(false),
                Err(error) => Err(self.explain("store", key, &error)),
            }
        });
        let refused = refused.await?;
        let kept = self.retry(|| async {
            let read = async { self.objects.get(key).await?.bytes().await };
            let bytes = classify::limited(super::ANSWER_TIME, read).await;
            Ok(bytes.map_err(|error| self.explain("read", key, &error))? == BODIES[0])
        });
        Ok(if refused && kept.await? { CreateOnly::Enforced } else { CreateOnly::NotEnforced })
    }
}
