//! Where tablespaces go.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Tablespace;

use super::real_path;

/// One `OLDDIR=NEWDIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Where the tablespace was.
    pub old: PathBuf,
    /// Where it goes.
    pub new: PathBuf,
}

/// The text is not `OLDDIR=NEWDIR` with two absolute paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMapping {
    /// Not two directories.
    #[error("expected OLDDIR=NEWDIR (a \"=\" that is part of a name is written \"\\=\")")]
    Form,
    /// A relative path, or one with `..`.
    #[error("\"{0}\" is not a plain absolute path")]
    Relative(String),
}

impl FromStr for Mapping {
    type Err = InvalidMapping;

    fn from_str(text: &str) -> Result<Self, InvalidMapping> {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == '=' {
                parts.push(String::new());
                continue;
            }
            let taken = if character == '\\' { characters.next_if_eq(&'=') } else { None };
            if let Some(part) = parts.last_mut() {
                part.push(taken.unwrap_or(character));
            }
        }
        let [old, new] = <[String; 2]>::try_from(parts).map_err(|_| InvalidMapping::Form)?;
        if old.is_empty() || new.is_empty() {
            return Err(InvalidMapping::Form);
        }
        Ok(Self { old: absolute(old)?, new: absolute(new)? })
    }
}

/// Without slashes at its end or in excess: paths are compared by their components.
fn absolute(text: String) -> Result<PathBuf, InvalidMapping> {
    let path = Path::new(&text);
    let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    if plain { Ok(path.components().collect()) } else { Err(InvalidMapping::Relative(text)) }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.old.display(), self.new.display())
    }
}

/// A directory for each tablespace below one directory.
pub fn below(tablespaces: &[Tablespace], directory: &Path) -> BTreeMap<u32, PathBuf> {
    tablespaces.iter().map(|space| (space.oid, directory.join(format!("tablespace-{}", space.oid)))).collect()
}

/// The directory of each tablespace after the restore, by its object identifier. What was in the data directory stays
/// there.
///
/// # Errors
/// `Usage` if a mapping names no tablespace of the backup, or two directories are one or lie in each other.
pub fn place(
    tablespaces: &[Tablespace],
    mappings: &[Mapping],
    data_directory: &Path,
    wal_directory: Option<&Path>,
) -> Result<BTreeMap<u32, PathBuf>> {
    let old = |tablespace: &Tablespace| Path::new(&tablespace.location).components().collect::<PathBuf>();
    for (number, mapping) in mappings.iter().enumerate() {
        if mappings.iter().take(number).any(|before| before.old == mapping.old) {
            return Err(Error::new(Kind::Usage, format!("\"{}\" is mapped twice", mapping.old.display())));
        }
        if !tablespaces.iter().any(|tablespace| old(tablespace) == mapping.old) {
            let there: Vec<String> = tablespaces.iter().map(|there| format!("\"{}\"", there.location)).collect();
            let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
            return Err(Error::new(
                Kind::Usage,
                format!("no tablespace of the backup was in \"{}\"", mapping.old.display()),
            )
            .hint(format!("Tablespaces of the backup: {there}.")));
        }
    }
    let mut placed: BTreeMap<u32, PathBuf> = BTreeMap::new();
    // Relative to whatever this program's directory is, a path means nothing.
    for tablespace in tablespaces.iter().filter(|tablespace| old(tablespace).is_absolute()) {
        let mapped = mappings.iter().find(|mapping| mapping.old == old(tablespace));
        let directory = mapped.map_or_else(|| old(tablespace), |mapping| mapping.new.clone());
        let others = placed.values().map(PathBuf::as_path).chain([data_directory]).chain(wal_directory);
        for other in others {
            refuse_overlap(&directory, other)?;
        }
        let _ = placed.insert(tablespace.oid, directory);
    }
    if let Some(wal_directory) = wal_directory {
        refuse_overlap(wal_directory, data_directory)?;
    }
    Ok(placed)
}

fn refuse_overlap(directory: &Path, other: &Path) -> Result<()> {
    // Links may lead from one into the other.
    let (real, real_other) = (real_path(directory)?, real_path(other)?);
    if !real.starts_with(&real_other) && !real_other.starts_with(&real) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!("directories \"{}\" and \"{}\" lie in each other", directory.display(), other.display()),
    )
    .hint("Give each tablespace a directory of its own: --tablespace-mapping OLDDIR=NEWDIR."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(text: &str) -> Mapping {
        text.parse().unwrap()
    }

    #[test]
    fn an_equals_sign_in_a_name_is_escaped() {
        let found = mapping(r"/a\=b/=/c\d/");
        assert_eq!((found.old.to_str(), found.new.to_str()), (Some("/a=b"), Some(r"/c\d")));
        for text in ["", "/a", "/a=", "=/b", "/a=/b=/c", "a=/b", "/a=b", "/a=/../b"] {
            assert!(text.parse::<Mapping>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_tablespace_gets_a_directory_of_its_own() {
        let tablespace = |oid, location: &str| Tablespace { oid, name: String::new(), location: location.to_owned() };
        let backup = [tablespace(1, "/fast"), tablespace(2, "/fast2/")];
        let data = Path::new("/data");
        let placed = place(&backup, &[mapping("/fast2=/slow")], data, None).unwrap();
        assert_eq!(placed.into_values().collect::<Vec<_>>(), [PathBuf::from("/fast"), PathBuf::from("/slow")]);
        for bad in [&["/other=/x"][..], &["/fast=/data"], &["/fast=/data/x"], &["/fast=/"], &["/fast=/fast2"]] {
            let mappings: Vec<Mapping> = bad.iter().map(|text| mapping(text)).collect();
            assert_eq!(place(&backup, &mappings, data, None).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
        let in_place = [tablespace(1, "/fast"), tablespace(3, "pg_tblspc/3")];
        assert_eq!(place(&in_place, &[], data, None).unwrap().into_keys().collect::<Vec<_>>(), [1]);
        assert!(place(&backup, &[mapping("/fast=/x"), mapping("/fast=/y")], data, None).is_err());
        assert!(place(&[], &[], data, Some(Path::new("/data/wal"))).is_err());
    }
}
