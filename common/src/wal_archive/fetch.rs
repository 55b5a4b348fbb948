//! Fetching a WAL file: nothing is handed out before its header, hashes, size and page header have been checked.

use std::io::{self, Write};

use super::WalArchive;
use crate::error::{Error, Kind, Result};
use crate::retry::retry;
use crate::store::Reading;
use crate::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use crate::wal::name::WalFileName;
use crate::wal_object::decode::{DecodeError, Decoder};
use crate::wal_object::header::{Header, InvalidHeader, MAX_BYTES};

/// A verified WAL file.
#[derive(Debug)]
pub struct Fetched<W> {
    /// What the object's header says.
    pub header: Header,
    /// Where the file was written.
    pub file: W,
}

impl WalArchive {
    /// Fetches a file into what `destination` makes, once per attempt; nothing if there is no such object.
    ///
    /// # Errors
    /// `Damaged` if the object is not that file, whole; `Refused`; `Unavailable`; whatever `destination` fails with.
    pub async fn fetch<W: Write>(
        &self,
        name: WalFileName,
        destination: impl Fn() -> Result<W>,
    ) -> Result<Option<Fetched<W>>> {
        self.fetch_object(&self.layout.wal(name), name, destination).await
    }

    /// Fetches a file that is stored under another key than its own.
    ///
    /// # Errors
    /// As [`WalArchive::fetch`].
    pub async fn fetch_object<W: Write>(
        &self,
        key: &object_store::path::Path,
        name: WalFileName,
        destination: impl Fn() -> Result<W>,
    ) -> Result<Option<Fetched<W>>> {
        retry(self.store.patience(), || async {
            let Some(reading) = self.store.open_once(key).await? else { return Ok(None) };
            let file = FirstBytes { first: Vec::with_capacity(LONG_HEADER_BYTES), file: destination()? };
            let (header, file) = self.decode(key, name, reading, file).await?;
            if let WalFileName::Segment(segment) | WalFileName::Partial(segment) = name {
                let page = SegmentHeader::parse(&file.first);
                let page = page.and_then(|page| page.check_name(segment).map(|()| page));
                let page = page.map_err(|error| self.damaged(key, &error.to_string()))?;
                if page.system_identifier != self.layout.system_identifier() {
                    let problem = format!("its pages belong to the cluster {}", page.system_identifier);
                    return Err(self.damaged(key, &problem));
                }
            }
            Ok(Some(Fetched { header, file: file.file }))
        })
        .await
    }

    /// Reads a file's header without the file; nothing if there is no such object.
    ///
    /// # Errors
    /// `Damaged`, `Refused`, `Unavailable`.
    pub async fn header(&self, name: WalFileName) -> Result<Option<Header>> {
        let key = self.layout.wal(name);
        let Some((start, size)) = self.store.read_range(&key, 0..MAX_BYTES).await? else { return Ok(None) };
        let (header, length) = self.parse_header(&key, &start)?;
        if header.object_size(length) != size || header.name != name.to_string() {
            return Err(self.damaged(&key, "its header does not fit it"));
        }
        Ok(Some(header))
    }

    async fn decode<W: Write>(
        &self,
        key: &object_store::path::Path,
        name: WalFileName,
        mut reading: Reading,
        file: W,
    ) -> Result<(Header, W)> {
        let explain = |error: DecodeError| match error {
            DecodeError::Write(error) => {
                Error::new(Kind::Unavailable, format!("could not write \"{name}\"")).caused_by(error)
            }
            error => self.damaged(key, &chain(&error)),
        };
        let size = reading.size;
        let mut start = Vec::new();
        while (start.len() as u64) < MAX_BYTES.min(size) {
            match reading.next().await? {
                Some(chunk) => start.extend_from_slice(&chunk),
                None => break,
            }
        }
        let (header, length) = self.parse_header(key, &start)?;
        if header.name != name.to_string() || header.system_identifier != self.layout.system_identifier() {
            let problem = format!("it holds \"{}\" of the cluster {}", header.name, header.system_identifier);
            return Err(self.damaged(key, &problem));
        }
        if header.object_size(length) != size {
            return Err(explain(DecodeError::Length { expected: header.object_size(length), found: size }));
        }
        let mut decoder = Decoder::new(header, length, file).map_err(explain)?;
        decoder.feed(start.get(length..).unwrap_or_default()).map_err(explain)?;
        while let Some(chunk) = reading.next().await? {
            decoder.feed(&chunk).map_err(explain)?;
        }
        decoder.finish().map_err(explain)
    }

    /// Reads the header that an object begins with.
    pub(super) fn parse_header(&self, key: &object_store::path::Path, start: &[u8]) -> Result<(Header, usize)> {
        Header::parse(start).map_err(|error| match error {
            InvalidHeader::Newer(_) => {
                Error::new(Kind::Usage, format!("could not read \"{}\"", self.store.url_of(key))).caused_by(error)
            }
            error => self.damaged(key, &error.to_string()),
        })
    }

    pub(super) fn damaged(&self, key: &object_store::path::Path, problem: &str) -> Error {
        Error::new(Kind::Damaged, format!("object \"{}\" is damaged: {problem}", self.store.url_of(key)))
            .hint(
                "Look for a good copy (an earlier version in the bucket, pg_wal of another server). To recover up to \
                 here without it, move it away: basebackup restore --until-hole then stops before it.",
            )
            // It may have been damaged on its way here.
            .worth_one_more()
    }
}

fn chain(error: &DecodeError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Keeps the first bytes that pass, for the page header.
struct FirstBytes<W> {
    first: Vec<u8>,
    file: W,
}

impl<W: Write> Write for FirstBytes<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let missing = LONG_HEADER_BYTES.saturating_sub(self.first.len());
        self.first.extend(bytes.iter().take(written.min(missing)));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
