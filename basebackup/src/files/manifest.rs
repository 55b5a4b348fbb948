//! PostgreSQL's own list of a backup's files, `backup_manifest`.
//!
//! Written as the server of the same major writes it (src/backend/backup/backup_manifest.c), so that pg_verifybackup
//! and pg_combinebackup take it, and read as strictly: every file in it is something a restore creates or checks. Only
//! one entry is held at a time, whatever the size of the database.

use std::collections::HashSet;
use std::io::{self, BufRead, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};
use walkeep_common::lsn::Lsn;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::segment::Timeline;

use super::checksum::{Checksum, decode_hex};
use super::manifest_line::{hexadecimal, parse_file, parse_wal_range, print_file, print_wal_range};

/// Longer than the longest path with every byte escaped.
const MAX_LINE_BYTES: u64 = 64 << 10;

const FILES: &str = "\"Files\": [";
const WAL_RANGES: &str = "\"WAL-Ranges\": [";
const END_OF_LIST: &str = "],";

/// The entry of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Path relative to the data directory; a tablespace's files are below `pg_tblspc/<oid>`.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last modification, in seconds since 1970 (UTC).
    pub modified: i64,
    /// Checksum of the contents.
    pub checksum: Checksum,
}

/// WAL of one timeline that recovery from the backup must replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: Timeline,
    /// Its first position.
    pub start: Lsn,
    /// The position after its last.
    pub end: Lsn,
}

/// The bytes are not a backup manifest, or not an intact one.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The source or the destination failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not what must stand there.
    #[error("invalid backup manifest: line {number}: {problem}")]
    Line {
        /// Counted from 1.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// It ends before its end.
    #[error("invalid backup manifest: it ends after line {0}")]
    Truncated(u64),
    /// Its bytes are not those its checksum was computed of.
    #[error("invalid backup manifest: its checksum does not match")]
    Checksum,
    /// The file whose entry was to be replaced is not listed.
    #[error("the backup manifest does not list \"{0}\"")]
    NotListed(PathBuf),
}

/// The start and end of a backup do not lie on one history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a backup from {start} on timeline {start_timeline} to {end} does not lie on the history of timeline {timeline}"
)]
pub struct InvalidRanges {
    start: Lsn,
    start_timeline: Timeline,
    end: Lsn,
    timeline: Timeline,
}

/// The WAL a backup needs, newest timeline first (`AddWALInfoToBackupManifest`). `history` is that of the timeline the
/// backup ended on.
pub fn wal_ranges(
    history: &TimelineHistory,
    start_timeline: Timeline,
    start: Lsn,
    end: Lsn,
) -> Result<Vec<WalRange>, InvalidRanges> {
    let invalid = || InvalidRanges { start, start_timeline, end, timeline: history.timeline() };
    let mut ranges = Vec::new();
    let mut range_end = end;
    // Each timeline begins where the one before it was left.
    let newest_first = history.ancestors().iter().rev().map(|ancestor| (ancestor.timeline, ancestor.switch_point));
    let mut timeline = history.timeline();
    for (parent, begin) in newest_first.take_while(|(parent, _)| *parent >= start_timeline) {
        if begin > range_end {
            return Err(invalid());
        }
        ranges.push(WalRange { timeline, start: begin, end: range_end });
        (timeline, range_end) = (parent, begin);
    }
    if timeline != start_timeline || start > range_end {
        return Err(invalid());
    }
    ranges.push(WalRange { timeline, start, end: range_end });
    Ok(ranges)
}

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
        let mut output = Hashing { inner: output, digest: Sha256::new() };
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

/// Reads a manifest, entry by entry.
#[derive(Debug)]
pub struct ManifestReader<R> {
    lines: Lines<R>,
    parser: Parser,
}

impl<R: BufRead> ManifestReader<R> {
    /// Begins to read.
    pub fn new(input: R) -> Self {
        Self { lines: Lines { input, number: 0, buffer: Vec::new() }, parser: Parser::new() }
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

/// Copies a manifest with another entry for one file, `tablespace_map` for one after its tablespaces were moved.
///
/// # Errors
/// What is wrong with the manifest, or `NotListed` if it has no such file; the output is worthless then.
pub fn replace_file<W: Write>(input: impl BufRead, output: W, replacement: &ManifestFile) -> Result<W, ManifestError> {
    let mut output = Hashing { inner: output, digest: Sha256::new() };
    let mut lines = Lines { input, number: 0, buffer: Vec::new() };
    let mut parser = Parser::new();
    let mut replaced = false;
    while let Some(line) = lines.next()? {
        match parser.accept(line)? {
            Line::File(file) if file.path == replacement.path => {
                replaced = true;
                let separator = if line.text.ends_with(',') { "," } else { "" };
                writeln!(output, "{}{separator}", print_file(replacement))?;
            }
            // Another one is computed for the copy.
            Line::Checksum => {}
            Line::File(_) | Line::Other => writeln!(output, "{}", line.text)?,
        }
    }
    parser.end()?;
    if replaced { Ok(output.finish()?) } else { Err(ManifestError::NotListed(replacement.path.clone())) }
}

/// An output whose SHA-256 becomes its last line.
#[derive(Debug)]
struct Hashing<W> {
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
    fn finish(mut self) -> io::Result<W> {
        writeln!(self.inner, "\"Manifest-Checksum\": \"{}\"}}", hexadecimal(&self.digest.finalize()))?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}

/// The lines of a manifest.
#[derive(Debug)]
struct Lines<R> {
    input: R,
    number: u64,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct NumberedLine<'a> {
    number: u64,
    /// Without the newline.
    text: &'a str,
}

impl NumberedLine<'_> {
    fn invalid(&self, problem: impl Into<String>) -> ManifestError {
        ManifestError::Line { number: self.number, problem: problem.into() }
    }
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<NumberedLine<'_>>, ManifestError> {
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
enum Line {
    File(ManifestFile),
    Checksum,
    Other,
}

/// Knows the order of the lines, and what they must agree on.
#[derive(Debug)]
struct Parser {
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
    fn new() -> Self {
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

    fn accept(&mut self, line: NumberedLine<'_>) -> Result<Line, ManifestError> {
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
    fn end(&self) -> Result<(), ManifestError> {
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
        match line.text.strip_suffix(',') {
            Some(entry) => {
                self.list = List::GoesOn;
                Ok(Some(entry))
            }
            None => {
                self.list = List::MayEnd;
                Ok(Some(line.text))
            }
        }
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

#[cfg(test)]
mod tests;
