//! One line of the index as JSON.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::index::{Contents, IndexEntry, InvalidLine};
use super::member::MemberPath;

/// The fields as written. Fields this version does not know are ignored.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    kind: Kind,
    pack: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    mode: Cow<'a, str>,
    modified: Cow<'a, str>,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    File,
    Directory,
}

/// Returns the entry as a line, with its line feed.
pub(super) fn write_line(entry: &IndexEntry) -> Result<Vec<u8>, serde_json::Error> {
    let path = str::from_utf8(entry.path.as_bytes()).ok();
    let contents = entry.contents.as_ref();
    // Whole seconds print without a fraction; both limits of the type are whole seconds.
    let modified = Timestamp::from_second(entry.modified.as_second()).unwrap_or(entry.modified);
    let line = Line {
        path: path.map(Cow::Borrowed),
        path_hex: path.is_none().then(|| to_hex(entry.path.as_bytes())),
        kind: if contents.is_some() { Kind::File } else { Kind::Directory },
        pack: entry.pack,
        offset: contents.map(|contents| contents.offset),
        size: contents.map(|contents| contents.size),
        mode: format!("{:04o}", entry.mode & 0o7777).into(),
        modified: modified.to_string().into(),
        uid: entry.uid,
        gid: entry.gid,
        blake3: contents.map(|contents| contents.blake3.to_hex().to_string().into()),
        crc32c: contents.map(|contents| format!("{:08x}", contents.crc32c).into()),
    };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a line, without its line feed.
pub(super) fn parse_line(line: &[u8]) -> Result<IndexEntry, InvalidLine> {
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| InvalidLine::Json(error.to_string()))?;
    let path: Box<[u8]> = match (line.path, line.path_hex) {
        (Some(path), None) => path.as_bytes().into(),
        (None, Some(hex)) => from_hex(&hex).ok_or(InvalidLine::Field("path_hex"))?.into(),
        _ => return Err(InvalidLine::Field("path")),
    };
    let contents = match (line.kind, line.offset, line.size, line.blake3, line.crc32c) {
        (Kind::File, Some(offset), Some(size), Some(blake3), Some(crc32c)) => Some(Contents {
            offset,
            size,
            blake3: blake3::Hash::from_hex(blake3.as_bytes()).map_err(|_| InvalidLine::Field("blake3"))?,
            crc32c: fixed(&crc32c, 8, 16).ok_or(InvalidLine::Field("crc32c"))?,
        }),
        (Kind::Directory, None, None, None, None) => None,
        _ => return Err(InvalidLine::Field("kind")),
    };
    Ok(IndexEntry {
        path: MemberPath::new(path)?,
        pack: line.pack,
        mode: fixed(&line.mode, 4, 8).filter(|mode| *mode <= 0o7777).ok_or(InvalidLine::Field("mode"))?,
        modified: line.modified.parse().map_err(|_| InvalidLine::Field("modified"))?,
        uid: line.uid,
        gid: line.gid,
        contents,
    })
}

/// Reads a number of exactly so many digits, and nothing else: no sign, no space.
fn fixed(text: &str, digits: usize, radix: u32) -> Option<u32> {
    let plain = text.len() == digits && text.chars().all(|digit| digit.is_digit(radix));
    plain.then(|| u32::from_str_radix(text, radix).ok())?
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|half| char::from_digit(half.into(), 16)).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| fixed(str::from_utf8(pair).ok()?, 2, 16).and_then(|value| u8::try_from(value).ok());
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}
