//! What is known of the packs that are stored: written into index and manifest as they come, for the members of a million
//! files would take hundreds of megabytes.

use std::fmt;

use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{BadPage, Pack, StoredObject};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::encode::hexadecimal;
use zstd::stream::write::Encoder;

use super::copy::StoredPack;
use super::finish::put;
use crate::files::manifest::{ManifestWriter, WalRange};
use crate::pack::index::IndexWriter;

/// The index and the manifest compress well at any level; they are small.
const LEVEL: i32 = 3;

/// The packs so far, in order.
pub(super) struct Listing {
    index: IndexWriter<Vec<u8>>,
    manifest: ManifestWriter<Encoder<'static, Vec<u8>>>,
    totals: Totals,
}

/// What `backup.json` has of all packs.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) packs: Vec<Pack>,
    pub(super) files: u64,
    pub(super) plain_size: u64,
    pub(super) bad_pages: Vec<BadPage>,
}

impl fmt::Debug for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("totals", &self.totals).finish_non_exhaustive()
    }
}

impl Listing {
    pub(super) fn new(pg_major: u32, system_identifier: u64) -> Result<Self> {
        let mut frame = Encoder::new(Vec::new(), LEVEL).map_err(internal)?;
        frame.include_checksum(true).map_err(internal)?;
        Ok(Self {
            index: IndexWriter::new(Vec::new(), LEVEL).map_err(internal)?,
            manifest: ManifestWriter::new(frame, pg_major, system_identifier).map_err(internal)?,
            totals: Totals::default(),
        })
    }

    /// Adds the next pack.
    pub(super) fn add(&mut self, StoredPack { pack, contents }: StoredPack) -> Result<()> {
        for entry in &contents.index {
            self.index.write(entry).map_err(internal)?;
        }
        for file in &contents.manifest {
            self.manifest.file(file).map_err(internal)?;
        }
        let totals = &mut self.totals;
        totals.packs.push(pack);
        totals.files += contents.manifest.len() as u64;
        totals.plain_size += contents.plain_size;
        totals.bad_pages.extend(contents.bad_pages);
        Ok(())
    }

    /// The number of the pack that comes next.
    pub(super) fn next_pack(&self) -> Result<u32> {
        u32::try_from(self.totals.packs.len() + 1).map_err(internal)
    }

    /// Pages whose checksums were wrong.
    pub(super) fn bad_pages(&mut self) -> &mut [BadPage] {
        &mut self.totals.bad_pages
    }

    /// Stores the index and the manifest.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub(super) async fn store(
        self,
        archive: &WalArchive,
        id: &BackupId,
        ranges: &[WalRange],
    ) -> Result<(Totals, StoredObject, StoredObject)> {
        use sha2::Digest as _;
        let (bytes, summary) = self.index.finish().map_err(internal)?;
        put(archive, id, "files.ndjson.zst", bytes.into()).await?;
        let index = StoredObject { size: summary.stored_bytes, sha256: hexadecimal(&summary.sha256) };
        let bytes = self.manifest.finish(ranges).and_then(Encoder::finish).map_err(internal)?;
        let manifest = StoredObject { size: bytes.len() as u64, sha256: hexadecimal(&sha2::Sha256::digest(&bytes)) };
        put(archive, id, "backup_manifest.zst", bytes.into()).await?;
        Ok((self.totals, index, manifest))
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::Internal, "could not list the files of the backup").caused_by(error)
}
