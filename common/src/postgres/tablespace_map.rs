//! `tablespace_map`: which links in `pg_tblspc` PostgreSQL makes when it starts recovery of a base backup.
//!
//! Mirrors `do_pg_backup_start` (src/backend/access/transam/xlog.c) and `read_tablespace_map` (xlogrecovery.c; xlog.c
//! before 15). A line is `OID PATH`, with a backslash before what would end it. 13 does not put one before a backslash,
//! 14 and later do: the same bytes can name different paths.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

/// One tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablespaceLink {
    /// The name of the link in `pg_tblspc`.
    pub oid: u32,
    /// What it points to.
    pub path: PathBuf,
}

/// The bytes are not a tablespace map, or a path cannot be written into one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTablespaceMap {
    /// The last line has no end.
    #[error("tablespace map is cut short")]
    Unterminated,
    /// The line is not an OID and a path.
    #[error("invalid line in tablespace map: \"{0}\"")]
    Line(String),
    /// Two lines for one tablespace.
    #[error("tablespace {0} is twice in the tablespace map")]
    Repeated(u32),
    /// PostgreSQL would read another path than was written.
    #[error("path \"{1}\" of tablespace {0} cannot be written into a tablespace map of PostgreSQL {2}")]
    Path(u32, PathBuf, u32),
}

/// Reads a map that a server of this major wrote.
pub fn parse(bytes: &[u8], pg_major: u32) -> Result<Vec<TablespaceLink>, InvalidTablespaceMap> {
    let mut links: Vec<TablespaceLink> = Vec::new();
    for line in lines(bytes, pg_major)? {
        let link = link(&line)?;
        if links.iter().any(|before| before.oid == link.oid) {
            return Err(InvalidTablespaceMap::Repeated(link.oid));
        }
        links.push(link);
    }
    Ok(links)
}

/// Writes a map as a server of this major does: what [`parse`] read is written back byte for byte.
///
/// # Errors
/// A path that PostgreSQL could not read back.
pub fn write(links: &[TablespaceLink], pg_major: u32) -> Result<Vec<u8>, InvalidTablespaceMap> {
    let mut bytes = Vec::new();
    for TablespaceLink { oid, path } in links {
        let raw = path.as_os_str().as_bytes();
        if raw.is_empty() || raw.contains(&0) || (!escapes_backslashes(pg_major) && raw.ends_with(b"\\")) {
            return Err(InvalidTablespaceMap::Path(*oid, path.clone(), pg_major));
        }
        bytes.extend(format!("{oid} ").into_bytes());
        for &byte in raw {
            if matches!(byte, b'\n' | b'\r') || (byte == b'\\' && escapes_backslashes(pg_major)) {
                bytes.push(b'\\');
            }
            bytes.push(byte);
        }
        bytes.push(b'\n');
    }
    Ok(bytes)
}

fn escapes_backslashes(pg_major: u32) -> bool {
    pg_major >= 14
}

/// Cuts into lines and takes the escaping away.
fn lines(bytes: &[u8], pg_major: u32) -> Result<Vec<Vec<u8>>, InvalidTablespaceMap> {
    let mut lines = Vec::new();
    let mut line = Vec::new();
    let mut after_backslash = false;
    for &byte in bytes {
        let ends_a_line = matches!(byte, b'\n' | b'\r');
        if after_backslash && (ends_a_line || escapes_backslashes(pg_major)) {
            // The backslash was no part of the path.
            line.pop();
            line.push(byte);
            after_backslash = false;
        } else if ends_a_line {
            lines.push(std::mem::take(&mut line));
        } else {
            line.push(byte);
            after_backslash = byte == b'\\';
        }
    }
    if line.is_empty() { Ok(lines) } else { Err(InvalidTablespaceMap::Unterminated) }
}

/// The path may begin with spaces: exactly one belongs to the format.
fn link(line: &[u8]) -> Result<TablespaceLink, InvalidTablespaceMap> {
    let invalid = || InvalidTablespaceMap::Line(String::from_utf8_lossy(line).into_owned());
    let space = line.iter().position(|&byte| byte == b' ').ok_or_else(invalid)?;
    let (digits, path) = line.split_at(space);
    let path = path.get(1..).filter(|path| !path.is_empty() && !path.contains(&0)).ok_or_else(invalid)?;
    let oid: u32 = str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or_else(invalid)?;
    // Digits with a sign or leading zeros would not be written back as they were.
    if oid == 0 || oid.to_string().as_bytes() != digits {
        return Err(invalid());
    }
    Ok(TablespaceLink { oid, path: OsString::from_vec(path.to_vec()).into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(oid: u32, path: &[u8]) -> TablespaceLink {
        TablespaceLink { oid, path: OsString::from_vec(path.to_vec()).into() }
    }

    /// What servers returned for `/d/plain dir` and `/d/  odd\n`, a newline, a carriage return, `\ end `.
    #[test]
    fn maps_are_read_and_written_as_each_major_does() {
        let links = [link(16384, b"/d/plain dir"), link(16385, b"/d/  odd\\n\n\r\\ end ")];
        let of_13: &[u8] = b"16384 /d/plain dir\n16385 /d/  odd\\n\\\n\\\r\\ end \n";
        let of_14: &[u8] = b"16384 /d/plain dir\n16385 /d/  odd\\\\n\\\n\\\r\\\\ end \n";
        for (pg_major, bytes) in [(13, of_13), (14, of_14), (15, of_14), (19, of_14)] {
            assert_eq!(parse(bytes, pg_major).unwrap(), links, "PostgreSQL {pg_major}");
            assert_eq!(write(&links, pg_major).unwrap(), bytes, "PostgreSQL {pg_major}");
        }
        assert_eq!(parse(b"", 15).unwrap(), []);
    }

    #[test]
    fn every_path_comes_back_as_it_was() {
        let bytes = [b'\\', b'\n', b'\r', b' ', b'a', 0xFF];
        for pg_major in [13, 14, 19] {
            for number in 0..bytes.len().pow(4) {
                let tail: Vec<u8> = (0..4).map(|place| bytes[number / bytes.len().pow(place) % bytes.len()]).collect();
                let links = [link(1, &tail), link(u32::MAX, b"/b")];
                match write(&links, pg_major) {
                    Ok(written) => assert_eq!(parse(&written, pg_major).unwrap(), links, "{tail:?} {pg_major}"),
                    Err(_) => assert!(pg_major == 13 && tail.ends_with(b"\\"), "{tail:?} {pg_major}"),
                }
            }
        }
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        let refused: [&[u8]; 13] = [
            b"1 /a",
            b"1 /a\n2",
            b"1 /a\\\n",
            b"1 /a\\",
            b"1\n",
            b"1 \n",
            b" /a\n",
            b"x /a\n",
            b"0 /a\n",
            b"+1 /a\n",
            b"01 /a\n",
            b"4294967296 /a\n",
            b"1 /a\0\n",
        ];
        for bytes in refused {
            assert!(parse(bytes, 15).is_err(), "{:?}", bytes.escape_ascii().to_string());
        }
        assert_eq!(parse(b"7 /a\n7 /b\n", 15), Err(InvalidTablespaceMap::Repeated(7)));
        assert!(parse(b"1 /a\n\n", 15).is_err());
        for path in [b"".as_slice(), b"a\0b"] {
            assert!(write(&[link(1, path)], 15).is_err());
        }
    }
}
