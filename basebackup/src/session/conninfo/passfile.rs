//! The password file, `~/.pgpass`.
//!
//! Mirrors `passwordFromFile` (src/interfaces/libpq/fe-connect.c).

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Who asks for a password: the first four fields of a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// `localhost` for the default socket directory, else the host or directory as given.
    pub(super) host: &'a str,
    pub(super) port: &'a str,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// Finds the password in the file at `path`.
///
/// A file that others may read is not used, as libpq does not: the warning says so. A file that is not there is no
/// error either.
pub(super) fn password(path: &Path, wanted: Wanted<'_>) -> Option<String> {
    let text = match read(path) {
        Ok(text) => text?,
        Err(error) => {
            tracing::warn!("could not read password file \"{}\": {error}", path.display());
            return None;
        }
    };
    text.lines().find_map(|line| password_in(line, wanted))
}

fn read(path: &Path) -> std::io::Result<Option<String>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        tracing::warn!("password file \"{}\" is not a plain file and is not used", path.display());
        return Ok(None);
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!(
            "password file \"{}\" has group or world access and is not used; permissions should be u=rw (0600) or less",
            path.display()
        );
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let _ = file.read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn password_in(line: &str, wanted: Wanted<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for field in [wanted.host, wanted.port, wanted.database, wanted.user] {
        let (found, after) = field_of(rest)?;
        if found != Field::Any && found != Field::Text(field.to_owned()) {
            return None;
        }
        rest = after;
    }
    let password = unescape_until_colon(rest).0;
    (!password.is_empty()).then_some(password)
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Any,
    Text(String),
}

/// Reads a field and what follows its colon; a field without a colon ends the line too early.
fn field_of(text: &str) -> Option<(Field, &str)> {
    if let Some(after) = text.strip_prefix("*:") {
        return Some((Field::Any, after));
    }
    let (field, after) = unescape_until_colon(text);
    Some((Field::Text(field), after?))
}

fn unescape_until_colon(text: &str) -> (String, Option<&str>) {
    let mut field = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' => return (field, Some(characters.as_str())),
            '\\' => field.push(characters.next().unwrap_or('\\')),
            c => field.push(c),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted { host: "db:1", port: "5432", database: "postgres", user: "bac\\kup" };

    #[test]
    fn the_first_line_that_matches_wins() {
        let line = |line: &str| password_in(line, WANTED);
        assert_eq!(line(r"db\:1:5432:postgres:bac\\kup:secret"), Some("secret".to_owned()));
        assert_eq!(line(r"*:*:*:*:a\:b\\c"), Some(r"a:b\c".to_owned()));
        assert_eq!(line("*:*:*:*:until:here"), Some("until".to_owned()));
        assert_eq!(line(r"*:*:*:*:end\"), Some(r"end\".to_owned()));
        assert_eq!(line(r"db\:1:5433:postgres:bac\\kup:secret"), None);
        assert_eq!(line("#*:*:*:*:comment"), None);
        assert_eq!(line("*:*:*:*"), None);
        assert_eq!(line("*:*:*:*:"), None);
        assert_eq!(line("*x:*:*:*:secret"), None);
        assert_eq!(line(""), None);
    }

    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        let find = || password(&path, WANTED);
        assert_eq!(find(), None);
        std::fs::write(&path, "other:*:*:*:no\r\n\n*:*:*:*:yes\r\n").unwrap();
        for (mode, expected) in [(0o600, Some("yes")), (0o640, None), (0o604, None), (0o400, Some("yes"))] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(find().as_deref(), expected, "{mode:o}");
        }
        assert_eq!(password(directory.path(), WANTED), None);
    }
}
