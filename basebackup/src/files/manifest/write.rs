//! The writing of a manifest.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use super::line::{hexadecimal, print_file, print_wal_range};
use super::{END_OF_LIST, FILES, ManifestFile, WAL_RANGES, WalRange};

/// Writes a manifest, entry by entry.
#[derive(Debug)]
pub struct ManifestWriter<W> {
    output: Hashing<W>,
    pg_major: u32,
    has_files: bool,
}

impl<W: Write> ManifestWriter<W> {
    /// Begins the manifest of a backup of a server of this major.
    pub fn new(output: W, pg_major: u32, system_identifier: u64) -> io::Result<Self> {
        let mut output = Hashing::new(output);
        let version = if pg_major >= 17 { 2 } else { 1 };
        writeln!(output, "{{ \"PostgreSQL-Backup-Manifest-Version\": {version},")?;
        if version == 2 {
            writeln!(output, "\"System-Identifier\": {system_identifier},")?;
        }
        write!(output, "{FILES}")?;
        Ok(Self { output, pg_major, has_files: false })
    }

    /// Adds a file.
    pub fn file(&mut self, file: &ManifestFile) -> io::Result<()> {
        let separator = if self.has_files { "," } else { "" };
        self.has_files = true;
        write!(self.output, "{separator}\n{}", print_file(file))
    }

    /// Adds the WAL, newest timeline first, and the manifest's own checksum.
    pub fn finish(mut self, ranges: &[WalRange]) -> io::Result<W> {
        let ranges: Vec<String> = ranges.iter().map(|range| print_wal_range(range, self.pg_major)).collect();
        write!(self.output, "\n{END_OF_LIST}\n{WAL_RANGES}\n{}\n{END_OF_LIST}\n", ranges.join(",\n"))?;
        self.output.finish()
    }
}

/// An output whose SHA-256 becomes its last line.
#[derive(Debug)]
pub(super) struct Hashing<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> Hashing<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new() }
    }

    /// Writes that line.
    pub(super) fn finish(mut self) -> io::Result<W> {
        writeln!(self.inner, "\"Manifest-Checksum\": \"{}\"}}", hexadecimal(&self.digest.finalize()))?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}
