//! The tablespaces of a data directory: the entries of `pg_tblspc`, held against what `pg_tablespace` says.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, Kind, Result};

/// A tablespace besides `pg_default` and `pg_global`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of its entry in `pg_tblspc`.
    pub oid: u32,
    /// Where it lies.
    pub location: TablespaceLocation,
    /// Whether the server's own subdirectory (`PG_<major>_<catalog version>`) is there.
    pub(super) is_present: bool,
}

/// Where a tablespace lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TablespaceLocation {
    /// Behind the symbolic link in `pg_tblspc`, with this text.
    Link(PathBuf),
    /// In `pg_tblspc` itself (`allow_in_place_tablespaces`).
    InPlace,
}

impl fmt::Display for TablespaceLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(target) => write!(f, "\"{}\"", target.display()),
            Self::InPlace => f.write_str("inside the data directory"),
        }
    }
}

/// Refuses a data directory whose tablespaces are not those of the catalog: a lost link or an unmounted disk would
/// otherwise leave them out of the backup without a word.
///
/// `catalog` maps each OID in `pg_tablespace`, but those of `pg_default` and `pg_global`, to what
/// `pg_tablespace_location` says.
pub(super) fn compare(data_directory: &Path, found: &[Tablespace], catalog: &BTreeMap<u32, PathBuf>) -> Result<()> {
    let refuse = |oid: u32, problem: String| {
        let hint = "Make sure that every tablespace is mounted and that this is the server's own data directory. \
                    If a tablespace was created or dropped at this moment, start again.";
        Err(Error::new(Kind::Invalid, format!("tablespace {oid} {problem}")).hint(hint))
    };
    let link = |oid: u32| data_directory.join(format!("pg_tblspc/{oid}"));
    for (oid, location) in catalog {
        let Some(tablespace) = found.iter().find(|tablespace| tablespace.oid == *oid) else {
            return refuse(*oid, format!("is in pg_tablespace, but there is no \"{}\"", link(*oid).display()));
        };
        let same = match &tablespace.location {
            TablespaceLocation::Link(target) => target == location,
            TablespaceLocation::InPlace => *location == Path::new("pg_tblspc").join(oid.to_string()),
        };
        if !same {
            let (location, found) = (location.display(), &tablespace.location);
            return refuse(*oid, format!("is at \"{location}\" says pg_tablespace, but it was found {found}"));
        }
        if !tablespace.is_present {
            let location = &tablespace.location;
            return refuse(*oid, format!("has no files of this server ({location})"));
        }
    }
    // What a crash in the middle of CREATE TABLESPACE leaves is a link without this.
    match found.iter().find(|tablespace| tablespace.is_present && !catalog.contains_key(&tablespace.oid)) {
        Some(unknown) => refuse(unknown.oid, format!("at \"{}\" is not in pg_tablespace", link(unknown.oid).display())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(oid: u32, target: &str) -> Tablespace {
        Tablespace { oid, location: TablespaceLocation::Link(target.into()), is_present: true }
    }

    #[test]
    fn tablespaces_must_be_those_of_the_catalog() {
        let catalog = BTreeMap::from([(16384, PathBuf::from("/srv/a")), (16385, PathBuf::from("pg_tblspc/16385"))]);
        let in_place = Tablespace { oid: 16385, location: TablespaceLocation::InPlace, is_present: true };
        let compare =
            |found: &[Tablespace]| compare(Path::new("/data"), found, &catalog).map_err(|error| error.to_string());

        assert_eq!(compare(&[link(16384, "/srv/a/"), in_place.clone()]), Ok(()));
        let elsewhere = compare(&[link(16384, "/srv/ab"), in_place.clone()]).unwrap_err();
        assert!(elsewhere.contains("\"/srv/a\"") && elsewhere.contains("\"/srv/ab\""), "{elsewhere}");
        let missing = compare(std::slice::from_ref(&in_place)).unwrap_err();
        assert!(missing.contains("no \"/data/pg_tblspc/16384\""), "{missing}");
        let unknown = compare(&[link(16384, "/srv/a"), in_place.clone(), link(16390, "/srv/b")]).unwrap_err();
        assert!(unknown.contains("tablespace 16390") && unknown.contains("not in pg_tablespace"), "{unknown}");
        let unmounted = Tablespace { is_present: false, ..link(16384, "/srv/a") };
        assert!(compare(&[unmounted, in_place]).unwrap_err().contains("no files of this server"));
    }
}
