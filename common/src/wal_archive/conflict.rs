//! Saying what differs when the archive holds other contents under a file's name.

use std::io::{self, Read, Write};

use object_store::path::Path;

use super::WalArchive;
use crate::error::{Error, Kind, Result};
use crate::wal::name::WalFileName;
use crate::wal_object::encode::Encoded;
use crate::wal_object::header::Header;

/// WAL pages are this long unless PostgreSQL was built otherwise (`XLOG_BLCKSZ`).
const PAGE_BYTES: u64 = 8192;

impl WalArchive {
    /// The error that ends a push: both contents, where they first differ, and what to do.
    pub(super) async fn conflict(&self, key: &Path, name: WalFileName, file: &Encoded, other: &Header) -> Error {
        let difference = match self.first_difference(key, name, file).await {
            Ok(Some(offset)) => describe(offset, file),
            Ok(None) => String::new(),
            Err(error) => format!("; the archived copy cannot be read: {error}"),
        };
        Error::new(
            Kind::Conflict,
            format!(
                "could not store \"{name}\" of the cluster {}: the archive has it with other contents (archived: \
                 BLAKE3 {}, by host \"{}\" at {}; here: BLAKE3 {}, modified at {}){difference}",
                file.header.system_identifier,
                other.blake3,
                other.host,
                other.archived.strftime("%F %T UTC"),
                file.header.blake3,
                file.header.modified.strftime("%F %T UTC"),
            ),
        )
        .hint(format!(
            "Another instance of this cluster may archive to the same place: let one of them archive under another \
             \"cluster\" name. If the file here is the right one, move the object \"{}\" away.",
            self.store.url_of(key)
        ))
    }

    async fn first_difference(&self, key: &Path, name: WalFileName, file: &Encoded) -> Result<Option<u64>> {
        let compare = || {
            let ours = zstd::stream::read::Decoder::with_buffer(&file.frames[..])
                .map_err(|error| Error::new(Kind::Unavailable, "could not compare the two files").caused_by(error))?;
            Ok(Compare { ours, position: 0, first: None })
        };
        Ok(self.fetch_object(key, name, compare).await?.and_then(|fetched| fetched.file.first))
    }
}

fn describe(offset: u64, file: &Encoded) -> String {
    let Some(start) = file.header.start_lsn else { return format!("; they first differ at byte {offset}") };
    let page = offset / PAGE_BYTES;
    let tail = if offset >= file.header.size / 2 { ", in the second half only" } else { "" };
    format!("; they first differ at {} (page {page}){tail}", start.saturating_add(offset))
}

/// Takes the archived file and compares it with ours on the way.
struct Compare<R> {
    ours: R,
    position: u64,
    first: Option<u64>,
}

impl<R: Read> Write for Compare<R> {
    fn write(&mut self, archived: &[u8]) -> io::Result<usize> {
        if self.first.is_none() {
            let mut ours = Vec::with_capacity(archived.len());
            let _ = self.ours.by_ref().take(archived.len() as u64).read_to_end(&mut ours)?;
            let differ = archived.iter().zip(&ours).position(|(archived, ours)| archived != ours);
            let differ = differ.or((ours.len() < archived.len()).then_some(ours.len()));
            self.first = differ.map(|at| self.position + at as u64);
        }
        self.position += archived.len() as u64;
        Ok(archived.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
