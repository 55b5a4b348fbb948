//! The reading of a manifest, as strict as PostgreSQL's own (src/common/parse_manifest.c), and stricter on its layout:
//! every server writes an entry a line.

use std::collections::HashSet;
use std::io::{BufRead, Read as _};
use std::os::unix::ffi::OsStrExt as _;

use sha2::{Digest as _, Sha256};

use super::line::{parse_file, parse_wal_range};
use super::{END_OF_LIST, FILES, ManifestError, ManifestFile, WAL_RANGES, WalRange};
use crate::files::checksum::decode_hex;

/// Longer than the longest path with every byte escaped.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Reads a manifest, entry by entry.
#[derive(Debug)]
pub struct ManifestReader<R> {
    lines: Lines<R>,
    parser: Parser,
}

impl<R: BufRead> ManifestReader<R> {
    /// Begins to read.
    pub fn new(input: R) -> Self {
        Self { lines: Lines::new(input), parser: Parser::new() }
    }

    /// Reads the next file. Only when this returns nothing has the whole manifest been seen to be intact.
    pub fn next_file(&mut self) -> Result<Option<ManifestFile>, ManifestError> {
        while let Some(line) = self.lines.next()? {
            if let Line::File(file) = self.parser.accept(line)? {
                return Ok(Some(file));
            }
        }
        self.parser.end()?;
        Ok(None)
    }

    /// The cluster it says to be of, from 17 on; known after the first call of [`next_file`](Self::next_file).
    pub fn system_identifier(&self) -> Option<u64> {
        self.parser.system_identifier
    }

    /// The WAL the backup needs, newest timeline first; known after the last file.
    pub fn wal_ranges(&self) -> &[WalRange] {
        &self.parser.wal_ranges
    }
}

/// The lines of a manifest.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    number: u64,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct NumberedLine<'a> {
    number: u64,
    /// Without the newline.
    pub(super) text: &'a str,
}

impl NumberedLine<'_> {
    fn invalid(&self, problem: impl Into<String>) -> ManifestError {
        ManifestError::Line { number: self.number, problem: problem.into() }
    }
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, number: 0, buffer: Vec::new() }
    }

    pub(super) fn next(&mut self) -> Result<Option<NumberedLine<'_>>, ManifestError> {
        self.buffer.clear();
        let read = (&mut self.input).take(MAX_LINE_BYTES).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        let finished = self.number;
        self.number += 1;
        let Some(line) = self.buffer.strip_suffix(b"\n") else {
            return Err(ManifestError::Truncated(finished));
        };
        let number = self.number;
        let text = str::from_utf8(line).map_err(|error| ManifestError::Line { number, problem: error.to_string() })?;
        Ok(Some(NumberedLine { number, text }))
    }
}

/// What the next line must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Version,
    SystemIdentifier,
    Files,
    File,
    WalRanges,
    WalRange,
    Checksum,
    Nothing,
}

/// What a line was.
#[derive(Debug)]
pub(super) enum Line {
    File(ManifestFile),
    Checksum,
    Other,
}

/// Knows the order of the lines, and what they must agree on.
#[derive(Debug)]
pub(super) struct Parser {
    expected: Expected,
    /// Whether the list being read goes on: it has just begun, or its last entry ended with a comma.
    list: List,
    system_identifier: Option<u64>,
    wal_ranges: Vec<WalRange>,
    /// The paths so far, as digests that no two of them share.
    paths: HashSet<[u8; 16]>,
    digest: Sha256,
    lines: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    Empty,
    GoesOn,
    MayEnd,
}

impl Parser {
    pub(super) fn new() -> Self {
        Self {
            expected: Expected::Version,
            list: List::Empty,
            system_identifier: None,
            wal_ranges: Vec::new(),
            paths: HashSet::new(),
            digest: Sha256::new(),
            lines: 0,
        }
    }

    pub(super) fn accept(&mut self, line: NumberedLine<'_>) -> Result<Line, ManifestError> {
        self.lines = line.number;
        if self.expected != Expected::Checksum {
            self.digest.update(line.text);
            self.digest.update("\n");
        }
        match self.expected {
            Expected::Version => {
                let version = between(line.text, "{ \"PostgreSQL-Backup-Manifest-Version\": ", ",");
                self.expected = match version {
                    Some("1") => Expected::Files,
                    Some("2") => Expected::SystemIdentifier,
                    _ => return Err(line.invalid("expected version 1 or 2 of a backup manifest")),
                };
                Ok(Line::Other)
            }
            Expected::SystemIdentifier => {
                let number = between(line.text, "\"System-Identifier\": ", ",").and_then(|text| text.parse().ok());
                self.system_identifier = Some(number.ok_or_else(|| line.invalid("expected the system identifier"))?);
                self.expected = Expected::Files;
                Ok(Line::Other)
            }
            Expected::Files => self.begin_list(line, FILES, Expected::File),
            Expected::WalRanges => self.begin_list(line, WAL_RANGES, Expected::WalRange),
            Expected::File => match self.next_entry(line, Expected::WalRanges)? {
                Some(entry) => self.accept_file(line, entry).map(Line::File),
                None => Ok(Line::Other),
            },
            Expected::WalRange => match self.next_entry(line, Expected::Checksum)? {
                Some(entry) => self.accept_wal_range(line, entry),
                None if self.wal_ranges.is_empty() => Err(line.invalid("it lists no WAL")),
                None => Ok(Line::Other),
            },
            Expected::Checksum => {
                let checksum = between(line.text, "\"Manifest-Checksum\": \"", "\"}").and_then(decode_hex::<32>);
                let checksum = checksum.ok_or_else(|| line.invalid("expected the manifest's checksum"))?;
                if self.digest.clone().finalize()[..] != checksum {
                    return Err(ManifestError::Checksum);
                }
                self.expected = Expected::Nothing;
                Ok(Line::Checksum)
            }
            Expected::Nothing => Err(line.invalid("expected nothing after the manifest's checksum")),
        }
    }

    /// Makes sure that nothing is missing.
    pub(super) fn end(&self) -> Result<(), ManifestError> {
        if self.expected == Expected::Nothing { Ok(()) } else { Err(ManifestError::Truncated(self.lines)) }
    }

    fn begin_list(&mut self, line: NumberedLine<'_>, key: &str, entries: Expected) -> Result<Line, ManifestError> {
        if line.text != key {
            return Err(line.invalid(format!("expected {key}")));
        }
        (self.expected, self.list) = (entries, List::Empty);
        Ok(Line::Other)
    }

    /// Takes an entry out of its line, or the end of the list.
    fn next_entry<'l>(&mut self, line: NumberedLine<'l>, after: Expected) -> Result<Option<&'l str>, ManifestError> {
        if line.text == END_OF_LIST {
            if self.list == List::GoesOn {
                return Err(line.invalid("expected another entry after the comma"));
            }
            self.expected = after;
            return Ok(None);
        }
        if self.list == List::MayEnd {
            return Err(line.invalid("expected a comma between the entries"));
        }
        if let Some(entry) = line.text.strip_suffix(',') {
            self.list = List::GoesOn;
            return Ok(Some(entry));
        }
        self.list = List::MayEnd;
        Ok(Some(line.text))
    }

    fn accept_file(&mut self, line: NumberedLine<'_>, entry: &str) -> Result<ManifestFile, ManifestError> {
        let file = parse_file(entry).map_err(|problem| line.invalid(problem))?;
        let digest = blake3::hash(file.path.as_os_str().as_bytes());
        let digest = digest.as_bytes().first_chunk::<16>().copied().unwrap_or_default();
        if !self.paths.insert(digest) {
            return Err(line.invalid(format!("\"{}\" is listed twice", file.path.display())));
        }
        Ok(file)
    }

    fn accept_wal_range(&mut self, line: NumberedLine<'_>, entry: &str) -> Result<Line, ManifestError> {
        let range = parse_wal_range(entry).map_err(|problem| line.invalid(problem))?;
        let follows =
            self.wal_ranges.last().is_none_or(|newer| range.timeline < newer.timeline && range.end == newer.start);
        if !follows {
            return Err(line.invalid("its WAL does not end where the newer timeline begins"));
        }
        self.wal_ranges.push(range);
        Ok(Line::Other)
    }
}

fn between<'a>(text: &'a str, prefix: &str, suffix: &str) -> Option<&'a str> {
    text.strip_prefix(prefix)?.strip_suffix(suffix)
}
