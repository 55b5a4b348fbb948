//! PostgreSQL's configuration files, as far as their lines and the names of other files in them need to be told apart.
//!
//! Mirrors src/backend/utils/misc/guc-file.l for settings, and `next_token` and `tokenize_auth_file`
//! (src/backend/libpq/hba.c) for access rules. In both, nothing spans lines.

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// How a file is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// `postgresql.conf` and what it includes.
    Settings,
    /// `pg_hba.conf`, `pg_ident.conf`, what they include, and lists of names.
    Access,
}

/// The name of a file or directory that is to be read as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Where the name stands in the file, quotes included.
    pub span: Range<usize>,
    /// The name as meant; relative to the directory of the file it stands in.
    pub path: PathBuf,
    /// Whether it is a directory whose `.conf` files are read.
    pub is_directory: bool,
}

/// The name of the setting in a line, in lower case; nothing if the line is blank, a comment or no setting.
pub fn setting_name(line: &[u8]) -> Option<String> {
    setting_parts(line).map(|(name, _)| name)
}

/// The name of the setting in a line, and where what follows the name begins.
fn setting_parts(line: &[u8]) -> Option<(String, usize)> {
    let blank = line.iter().position(|b| !b.is_ascii_whitespace())?;
    let rest = line.get(blank..)?;
    let end = rest.iter().position(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'$')));
    let name = rest.get(..end.unwrap_or(rest.len())).filter(|name| !name.is_empty())?;
    let end = blank + name.len();
    let name = str::from_utf8(name).ok()?.to_ascii_lowercase();
    (name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')).then_some((name, end))
}

/// Every other file that a file has read.
pub fn references(grammar: Grammar, contents: &[u8]) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in contents.split_inclusive(|&b| b == b'\n') {
        match grammar {
            Grammar::Settings => found.extend(setting_reference(line, start)),
            Grammar::Access => access_references(line, start, &mut found),
        }
        start += line.len();
    }
    found
}

/// Whether the name of a line is one that has other files read, and whether it names a directory.
fn include(name: &str) -> Option<bool> {
    match name {
        "include" | "include_if_exists" => Some(false),
        "include_dir" => Some(true),
        _ => None,
    }
}

fn setting_reference(line: &[u8], start: usize) -> Option<Reference> {
    let (name, end) = setting_parts(line)?;
    let is_directory = include(&name)?;
    let (value, Range { start: from, end: to }) = value_after(line, end)?;
    let path = PathBuf::from(OsString::from_vec(value));
    Some(Reference { span: start + from..start + to, path, is_directory })
}

/// What a file sets something to: the last line counts.
pub fn value_of(contents: &[u8], wanted: &str) -> Option<Vec<u8>> {
    let mut lines = contents.rsplit(|&b| b == b'\n').filter_map(|line| {
        let (name, end) = setting_parts(line)?;
        value_after(line, end).filter(|_| name == wanted).map(|(value, _)| value)
    });
    lines.next()
}

/// The value behind a name that ends at `at`, and where it stands.
fn value_after(line: &[u8], mut at: usize) -> Option<(Vec<u8>, Range<usize>)> {
    at += line.get(at..)?.iter().position(|b| !b.is_ascii_whitespace())?;
    if line.get(at) == Some(&b'=') {
        at += 1;
        at += line.get(at..)?.iter().position(|b| !b.is_ascii_whitespace())?;
    }
    let (value, length) = setting_value(line.get(at..)?)?;
    Some((value, at..at + length))
}

/// A value and its length as written. Quotes within quotes are doubled or follow a backslash
/// (`DeescapeQuotedString`; other escapes do not occur in names of files).
fn setting_value(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    if text.first() != Some(&b'\'') {
        let end = text.iter().position(|b| b.is_ascii_whitespace() || *b == b'#').unwrap_or(text.len());
        return text.get(..end).filter(|value| !value.is_empty()).map(|value| (value.to_vec(), end));
    }
    let mut value = Vec::new();
    let mut bytes = text.iter().copied().enumerate().skip(1).peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => value.push(bytes.next()?.1),
            b'\'' if bytes.next_if(|(_, next)| *next == b'\'').is_some() => value.push(b'\''),
            b'\'' => return Some((value, at + 1)),
            byte => value.push(byte),
        }
    }
    None
}

/// A word of a line of access rules.
struct Token {
    span: Range<usize>,
    text: Vec<u8>,
    is_quoted: bool,
}

fn access_references(line: &[u8], start: usize, found: &mut Vec<Reference>) {
    let tokens = tokens(line);
    let reference = |span: Range<usize>, path: &[u8], is_directory| Reference {
        span: start + span.start..start + span.end,
        path: PathBuf::from(OsString::from_vec(path.to_vec())),
        is_directory,
    };
    if let [first, second, ..] = tokens.as_slice()
        && !first.is_quoted
        && let Some(is_directory) = str::from_utf8(&first.text).ok().and_then(include)
    {
        found.push(reference(second.span.clone(), &second.text, is_directory));
        return;
    }
    for token in tokens.iter().filter(|token| !token.is_quoted) {
        if let Some(path) = token.text.strip_prefix(b"@").filter(|path| !path.is_empty()) {
            // Without the sign before it.
            found.push(reference(token.span.start + 1..token.span.end, path, false));
        }
    }
}

/// Words end at white space and commas outside of quotes, a line at a `#`.
fn tokens(line: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut open: Option<Token> = None;
    let mut in_quotes = false;
    for (at, &byte) in line.iter().enumerate() {
        let ends = !in_quotes && (byte.is_ascii_whitespace() || matches!(byte, b',' | b'#'));
        if ends {
            tokens.extend(open.take());
            if byte == b'#' {
                return tokens;
            }
            continue;
        }
        let token = open.get_or_insert_with(|| Token { span: at..at, text: Vec::new(), is_quoted: byte == b'"' });
        token.span.end = at + 1;
        if byte == b'"' {
            in_quotes = !in_quotes;
        } else {
            token.text.push(byte);
        }
    }
    tokens.extend(open);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(grammar: Grammar, text: &str) -> Vec<(String, String, bool)> {
        let references = references(grammar, text.as_bytes()).into_iter();
        references
            .map(|found| (text[found.span].to_owned(), found.path.display().to_string(), found.is_directory))
            .collect()
    }

    #[test]
    fn included_settings_are_found_however_they_are_written() {
        for (line, expected) in [
            ("include 'a b.conf' # why\n", Some(("'a b.conf'", "a b.conf", false))),
            ("  Include_If_Exists = '/etc/x''y.conf'", Some(("'/etc/x''y.conf'", "/etc/x'y.conf", false))),
            ("include_dir conf.d#\r\n", Some(("conf.d", "conf.d", true))),
            ("include='x'\r\n", Some(("'x'", "x", false))),
            (r"include = 'it\'s'", Some((r"'it\'s'", "it's", false))),
            ("#include = 'x'\n", None),
            ("include = \n", None),
            ("include = 'x\n", None),
            ("includes = 'x'\n", None),
        ] {
            let expected = expected.map(|(span, path, directory)| (span.to_owned(), path.to_owned(), directory));
            assert_eq!(found(Grammar::Settings, line).pop(), expected, "{line}");
        }
        let text = "port = 1\ninclude 'a'\nwork_mem = 4MB\ninclude_dir 'b'\n";
        let paths: Vec<String> = found(Grammar::Settings, text).into_iter().map(|(span, ..)| span).collect();
        assert_eq!(paths, ["'a'", "'b'"]);
    }

    #[test]
    fn the_last_line_that_sets_something_counts() {
        let contents = b"port = 1\nPort '2' # two\n#port = 3\nsupport = 4\n";
        assert_eq!(value_of(contents, "port").as_deref(), Some(&b"2"[..]));
        assert_eq!(value_of(contents, "work_mem"), None);
    }

    #[test]
    fn files_named_in_access_rules_are_found() {
        for (line, expected) in [
            ("host @dbs,extra @/etc/users 10.0.0.0/8 md5\n", &[("dbs", "dbs"), ("/etc/users", "/etc/users")][..]),
            ("include \"a b.conf\"\n", &[("\"a b.conf\"", "a b.conf")]),
            ("include_if_exists other # @x\n", &[("other", "other")]),
            ("host \"@db\" all all trust\n", &[]),
            ("host @\"my list\" all all trust", &[("\"my list\"", "my list")]),
            ("# host @dbs all all trust\n", &[]),
            ("\"include\" x\n", &[]),
        ] {
            let found = found(Grammar::Access, line);
            let found: Vec<(&str, &str)> = found.iter().map(|(span, path, _)| (span.as_str(), path.as_str())).collect();
            assert_eq!(found, expected, "{line}");
        }
        assert!(references(Grammar::Access, b"include_dir rules.d").first().unwrap().is_directory);
    }
}
