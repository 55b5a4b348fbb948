//! The lines of a backup manifest that hold an entry, as PostgreSQL writes them.

use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Deserialize;
use walkeep_common::lsn::Lsn;
use walkeep_common::wal::segment::Timeline;

use super::{ManifestFile, WalRange};
use crate::files::checksum::{Checksum, decode_hex_bytes, write_hex};

/// `%Y-%m-%d %H:%M:%S %Z` in a zone called GMT.
const TIME_FORMAT: &str = "%Y-%m-%d %H:%M:%S GMT";

/// One file as a manifest describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct FileObject<'a> {
    #[serde(borrow)]
    path: Option<Cow<'a, str>>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<&'a str>,
    size: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: &'a str,
    #[serde(rename = "Checksum-Algorithm")]
    checksum_algorithm: Option<&'a str>,
    checksum: Option<&'a str>,
}

/// One range of WAL.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WalRangeObject {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: Lsn,
    #[serde(rename = "End-LSN")]
    end: Lsn,
}

/// Prints the entry of a file (`AddFileToBackupManifest`, src/backend/backup/backup_manifest.c).
pub(super) fn print_file(file: &ManifestFile) -> String {
    let path = file.path.as_os_str();
    let name = match path.to_str() {
        // The escapes of serde_json are those of PostgreSQL's escape_json.
        Some(path) => format!("\"Path\": {}", serde_json::Value::from(path)),
        None => format!("\"Encoded-Path\": \"{}\"", hexadecimal(path.as_bytes())),
    };
    let checksum = match file.checksum {
        Checksum::None => String::new(),
        checksum => {
            format!(", \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"{checksum}\"", checksum.algorithm().name())
        }
    };
    let modified = print_time(file.modified);
    format!("{{ {name}, \"Size\": {}, \"Last-Modified\": \"{modified}\"{checksum} }}", file.size)
}

/// Reads the entry of a file.
pub(super) fn parse_file(line: &str) -> Result<ManifestFile, String> {
    let object: FileObject<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let path = match (object.path, object.encoded_path) {
        (Some(path), None) => PathBuf::from(path.as_ref()),
        (None, Some(encoded)) => {
            let bytes = decode_hex_bytes(encoded).ok_or_else(|| format!("\"{encoded}\" is not hexadecimal"))?;
            PathBuf::from(OsString::from_vec(bytes))
        }
        _ => return Err("it must have one of Path and Encoded-Path".to_owned()),
    };
    if !is_plain(&path) {
        return Err(format!("\"{}\" is not a path in a data directory", path.display()));
    }
    let checksum = match (object.checksum_algorithm, object.checksum) {
        (None, None) => Checksum::None,
        (Some(algorithm), Some(checksum)) => Checksum::parse(algorithm, checksum)
            .ok_or_else(|| format!("\"{checksum}\" is not a checksum of algorithm \"{algorithm}\""))?,
        _ => return Err("it must have both of Checksum-Algorithm and Checksum, or none".to_owned()),
    };
    let modified =
        parse_time(object.last_modified).ok_or_else(|| format!("\"{}\" is not a time", object.last_modified))?;
    Ok(ManifestFile { path, size: object.size, modified, checksum })
}

/// Prints a range of WAL in the form of one major.
pub(super) fn print_wal_range(range: &WalRange, pg_major: u32) -> String {
    let (start, end) = (range.start.to_text(pg_major), range.end.to_text(pg_major));
    format!("{{ \"Timeline\": {}, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{end}\" }}", range.timeline.0)
}

/// Reads a range of WAL.
pub(super) fn parse_wal_range(line: &str) -> Result<WalRange, String> {
    let object: WalRangeObject = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if object.timeline == 0 || object.start > object.end {
        return Err("it is not a range of WAL".to_owned());
    }
    Ok(WalRange { timeline: Timeline(object.timeline), start: object.start, end: object.end })
}

/// Bytes in lower-case hexadecimal digits.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    // Writing to a string cannot fail.
    let _ = write_hex(&mut text, bytes);
    text
}

/// Whether a restore may create this path below a data directory: relative, without detours, and with nothing the
/// operating system would take for its end.
fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let plain = |component: &[u8]| !matches!(component, b"" | b"." | b"..");
    !bytes.contains(&0) && bytes.split(|byte| *byte == b'/').all(plain)
}

/// A file system may keep times that no calendar has; they become the nearest that one does.
fn print_time(seconds: i64) -> String {
    let nearest = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_second(seconds).unwrap_or(nearest).strftime(TIME_FORMAT).to_string()
}

fn parse_time(text: &str) -> Option<i64> {
    let time = DateTime::strptime(TIME_FORMAT, text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::checksum::ChecksumAlgorithm;

    fn file(path: &[u8], checksum: Checksum) -> ManifestFile {
        ManifestFile { path: OsString::from_vec(path.to_vec()).into(), size: 8192, modified: 1_795_333_115, checksum }
    }

    #[test]
    fn entries_are_printed_as_postgresql_prints_them_and_read_back() {
        let crc = Checksum::Crc32c(0x9585_7FBA);
        let cases: [(&[u8], Checksum, &str); 4] = [
            (
                b"base/5/1259",
                crc,
                r#"{ "Path": "base/5/1259", "Size": 8192, "Last-Modified": "2026-11-22 07:38:35 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "ba7f8595" }"#,
            ),
            (
                b"a\n\"\\\x01\x7f/\xc3\xa9",
                Checksum::None,
                "{ \"Path\": \"a\\n\\\"\\\\\\u0001\x7f/\u{e9}\", \"Size\": 8192, \"Last-Modified\": \"2026-11-22 07:38:35 GMT\" }",
            ),
            (
                b"a\xffb",
                Checksum::None,
                r#"{ "Encoded-Path": "61ff62", "Size": 8192, "Last-Modified": "2026-11-22 07:38:35 GMT" }"#,
            ),
            (
                b"t",
                ChecksumAlgorithm::Sha224.of(b"abc"),
                r#"{ "Path": "t", "Size": 8192, "Last-Modified": "2026-11-22 07:38:35 GMT", "Checksum-Algorithm": "SHA224", "Checksum": "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7" }"#,
            ),
        ];
        for (path, checksum, line) in cases {
            assert_eq!(print_file(&file(path, checksum)), line);
            assert_eq!(parse_file(line), Ok(file(path, checksum)));
        }
    }

    #[test]
    fn entries_that_postgresql_never_writes_are_refused() {
        let time = r#""Last-Modified": "2026-11-22 07:38:35 GMT""#;
        for fields in [
            format!(r#""Size": 1, {time}"#),
            format!(r#""Path": "a", "Encoded-Path": "61", "Size": 1, {time}"#),
            format!(r#""Path": "a", "Path": "b", "Size": 1, {time}"#),
            format!(r#""Path": "a", {time}"#),
            format!(r#""Path": "a", "Size": "1", {time}"#),
            format!(r#""Path": "a", "Size": -1, {time}"#),
            format!(r#""Path": "a", "Size": 1, {time}, "Comment": 1"#),
            format!(r#""Path": "a", "Size": 1, {time}, "Checksum": "00000000""#),
            format!(r#""Path": "a", "Size": 1, {time}, "Checksum-Algorithm": "CRC32C""#),
            format!(r#""Path": "a", "Size": 1, {time}, "Checksum-Algorithm": "CRC32C", "Checksum": "00""#),
            format!(r#""Encoded-Path": "6", "Size": 1, {time}"#),
            r#""Path": "a", "Size": 1, "Last-Modified": "2026-11-22 07:38:35""#.to_owned(),
            r#""Path": "a", "Size": 1, "Last-Modified": "2026-13-22 07:38:35 GMT""#.to_owned(),
        ] {
            assert!(parse_file(&format!("{{ {fields} }}")).is_err(), "{fields}");
        }
        for path in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a/.", "a\\u0000b"] {
            let line = format!(r#"{{ "Path": "{path}", "Size": 1, {time} }}"#);
            assert!(parse_file(&line).is_err(), "{path:?}");
        }
    }

    #[test]
    fn times_outside_the_calendar_are_moved_into_it() {
        assert_eq!(print_time(-1), "1969-12-31 23:59:59 GMT");
        assert_eq!(parse_time(&print_time(-1)), Some(-1));
        assert_eq!(print_time(i64::MAX), "9999-12-30 22:00:00 GMT");
    }

    #[test]
    fn ranges_take_the_form_of_their_major() {
        let range = WalRange { timeline: Timeline(1), start: Lsn(0xA0_0028), end: Lsn(0xA0_0158) };
        let old = r#"{ "Timeline": 1, "Start-LSN": "0/A00028", "End-LSN": "0/A00158" }"#;
        assert_eq!(print_wal_range(&range, 18), old);
        assert!(print_wal_range(&range, 19).contains(r#""0/00A00028""#));
        assert_eq!(parse_wal_range(&print_wal_range(&range, 19)), Ok(range));
        assert_eq!(parse_wal_range(old), Ok(range));
        for (from, to) in [("1,", "0,"), ("28", "200"), ("0/A00158", "x"), ("End-LSN", "End"), ("1,", "\"1\",")] {
            assert!(parse_wal_range(&old.replacen(from, to, 1)).is_err(), "{from} {to}");
        }
    }
}
