//! `--only-database`: the files of the other databases become holes of the same size, which recovery can write into.

use std::collections::BTreeSet;
use std::path::Path;

use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{Backup, Database};

use crate::pack::index::IndexEntry;
use crate::pack::member::MemberPath;

/// Databases with lower numbers come with every cluster (`FirstNormalObjectId`, src/include/access/transam.h): nothing
/// can be restored usefully without them.
const FIRST_NORMAL_OID: u32 = 16384;

/// The databases that are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    left_out: Vec<Database>,
    numbers: BTreeSet<u32>,
}

impl Selection {
    /// Keeps the databases named; nothing is left out where none is.
    ///
    /// # Errors
    /// `Usage` for a name the backup does not have, or a backup that does not say.
    pub fn new(backup: &Backup, only: &[String]) -> Result<Option<Self>> {
        if only.is_empty() {
            return Ok(None);
        }
        if backup.databases.is_empty() {
            let message = format!("backup {} does not say which databases it holds", backup.id);
            return Err(Error::new(Kind::Usage, message).hint("Restore all of it, or a newer backup."));
        }
        if let Some(unknown) = only.iter().find(|name| !backup.databases.iter().any(|known| known.name == **name)) {
            let known: Vec<&str> = backup.databases.iter().map(|database| database.name.as_str()).collect();
            return Err(Error::new(Kind::Usage, format!("backup {} holds no database \"{unknown}\"", backup.id))
                .hint(format!("It holds {}.", known.join(", "))));
        }
        let is_left_out = |database: &&Database| database.oid >= FIRST_NORMAL_OID && !only.contains(&database.name);
        let left_out: Vec<Database> = backup.databases.iter().filter(is_left_out).cloned().collect();
        let numbers = left_out.iter().map(|database| database.oid).collect();
        Ok(Some(Self { left_out, numbers }))
    }

    /// Whether a member's contents are left out. `PG_VERSION` stays: without it a database cannot even be dropped.
    pub fn leaves_out(&self, entry: &IndexEntry) -> bool {
        let is_version = entry.path.as_path().file_name().is_some_and(|name| name == "PG_VERSION");
        !is_version && database_of(&entry.path).is_some_and(|database| self.numbers.contains(&database))
    }

    /// The names of what is left out, for people.
    pub fn to_text(&self) -> String {
        let names: Vec<String> = self.left_out.iter().map(|database| format!("\"{}\"", database.name)).collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
    }
}

/// The database a member belongs to.
fn database_of(path: &MemberPath) -> Option<u32> {
    let path: &Path = path.as_path();
    let components: Vec<&str> = path.iter().map(|component| component.to_str()).collect::<Option<_>>()?;
    match components.as_slice() {
        ["base", database, _] | ["pg_tblspc", _, _, database, _] => database.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn entry(path: &str) -> IndexEntry {
        IndexEntry {
            path: MemberPath::new(path.as_bytes()).unwrap(),
            pack: 1,
            mode: 0o600,
            modified: Timestamp::UNIX_EPOCH,
            uid: 1,
            gid: 1,
            contents: None,
        }
    }

    #[test]
    fn only_the_files_of_the_other_databases_are_left_out() {
        let database = |oid, name: &str| Database { oid, name: name.to_owned() };
        let left_out = vec![database(16400, "other")];
        let selection = Selection { numbers: left_out.iter().map(|database| database.oid).collect(), left_out };
        for path in ["base/16400/1259", "base/16400/pg_filenode.map", "pg_tblspc/16500/PG_15_202209061/16400/2600"] {
            assert!(selection.leaves_out(&entry(path)), "{path}");
        }
        for path in [
            "base/16400/PG_VERSION",
            "base/16401/1259",
            "base/16400",
            "global/1262",
            "pg_tblspc/16400/PG_15_202209061/5/2600",
            "pg_xact/0000",
        ] {
            assert!(!selection.leaves_out(&entry(path)), "{path}");
        }
    }
}
