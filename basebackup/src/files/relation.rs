//! Names of relation files, and the directories that hold them.
//!
//! Mirrors `parse_filename_for_nontemp_relation` (src/backend/storage/file/reinit.c) and `looks_like_temp_rel_name`
//! (src/backend/storage/file/fd.c) of PostgreSQL 17, which are stricter than before on leading zeros: no server ever
//! made a relation file whose name has them.

/// The forks of a relation (`ForkNumber`, src/include/common/relpath.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The relation itself.
    Main,
    /// `_fsm`: written without WAL, and so more often torn than the others.
    FreeSpaceMap,
    /// `_vm`.
    VisibilityMap,
    /// `_init`: what an unlogged relation is reset to after a crash.
    Init,
}

/// The parsed name of a permanent or unlogged relation's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// The relation's number in its database and tablespace (`relfilenode`).
    pub number: u32,
    /// Which fork of it.
    pub fork: Fork,
    /// Which segment of the fork, 0 for the first.
    pub segment: u32,
}

/// What a file is to a base backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Pages of a relation: WAL replay repairs what changed while they were copied.
    Relation(RelationFile),
    /// Anything else.
    Other,
}

/// What a directory is, so far as it decides what its entries are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The data directory.
    Root,
    /// `base`.
    Base,
    /// `global`.
    Global,
    /// `base/<database>`, or `<database>` in a tablespace.
    Database,
    /// `pg_tblspc`.
    Tablespaces,
    /// `pg_tblspc/<tablespace>/PG_<major>_<catalog version>`.
    TablespaceVersion,
    /// Any other.
    Other,
}

impl Place {
    /// What the directory `name` in this one is.
    pub(super) fn enter(self, name: &[u8]) -> Self {
        match (self, name) {
            (Self::Root, b"base") => Self::Base,
            (Self::Root, b"global") => Self::Global,
            (Self::Root, b"pg_tblspc") => Self::Tablespaces,
            (Self::Base | Self::TablespaceVersion, name) if parse_number(name).is_some() => Self::Database,
            _ => Self::Other,
        }
    }

    /// Whether the entry `name` of this directory is one that PostgreSQL cannot do without.
    pub fn holds_data(self, name: &[u8]) -> bool {
        const DIRECTORIES: [&[u8]; 8] = [
            b"base",
            b"global",
            b"pg_commit_ts",
            b"pg_logical",
            b"pg_multixact",
            b"pg_tblspc",
            b"pg_twophase",
            b"pg_xact",
        ];
        match self {
            Self::Root => DIRECTORIES.contains(&name),
            Self::Base | Self::TablespaceVersion => parse_number(name).is_some(),
            Self::Global | Self::Database => self.file_kind(name) != FileKind::Other || name == b"pg_filenode.map",
            Self::Tablespaces | Self::Other => false,
        }
    }

    /// What the file `name` in this directory is.
    pub(super) fn file_kind(self, name: &[u8]) -> FileKind {
        match self {
            Self::Global | Self::Database => RelationFile::parse(name).map_or(FileKind::Other, FileKind::Relation),
            _ => FileKind::Other,
        }
    }
}

/// Where a relation's file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLocation {
    /// The tablespace's object identifier.
    pub tablespace: u32,
    /// The database's object identifier; none for relations that all share.
    pub database: Option<u32>,
    /// The file.
    pub relation: RelationFile,
}

/// `DEFAULTTABLESPACE_OID` and `GLOBALTABLESPACE_OID` (src/include/catalog/pg_tablespace.dat).
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

impl FileLocation {
    /// Reads a path relative to the data directory.
    pub fn parse(path: &str) -> Option<Self> {
        let components: Vec<&str> = path.split('/').collect();
        let (tablespace, database, file) = match components.as_slice() {
            ["global", file] => (GLOBAL_TABLESPACE, None, file),
            ["base", database, file] => (DEFAULT_TABLESPACE, Some(database), file),
            ["pg_tblspc", tablespace, _, database, file] => {
                (parse_number(tablespace.as_bytes())?, Some(database), file)
            }
            _ => return None,
        };
        let database = match database {
            Some(database) => Some(parse_number(database.as_bytes())?),
            None => None,
        };
        Some(Self { tablespace, database, relation: RelationFile::parse(file.as_bytes())? })
    }
}

impl RelationFile {
    /// Reads a file name: `<number>[_fsm|_vm|_init][.<segment>]`.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let (stem, segment) = match split_once(name, b'.') {
            Some((stem, segment)) => (stem, parse_number(segment)?),
            None => (name, 0),
        };
        let (number, fork) = match split_once(stem, b'_') {
            Some((number, fork)) => (number, parse_fork(fork)?),
            None => (stem, Fork::Main),
        };
        Some(Self { number: parse_number(number)?, fork, segment })
    }

    /// The number within its fork of the file's first block, which is part of each page's checksum.
    ///
    /// `segment_blocks` is `segment_size` in blocks, 131072 unless configured otherwise at build time. Overflow wraps,
    /// as in the server's arithmetic: no real relation has that many segments.
    pub fn first_block(self, segment_blocks: u32) -> u32 {
        self.segment.wrapping_mul(segment_blocks)
    }
}

/// Tells whether a file in a database's directory belongs to a temporary relation:
/// `t<backend>_<number>[_fsm|_vm|_init][.<segment>]`.
pub(super) fn is_temporary_relation(name: &[u8]) -> bool {
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let (stem, segment) = split_once(name, b'.').map_or((name, None), |(stem, segment)| (stem, Some(segment)));
    let Some((backend, relation)) = stem.strip_prefix(b"t").and_then(|stem| split_once(stem, b'_')) else {
        return false;
    };
    let (number, fork) = split_once(relation, b'_').map_or((relation, None), |(number, fork)| (number, Some(fork)));
    digits(backend)
        && digits(number)
        && fork.is_none_or(|fork| parse_fork(fork).is_some())
        && segment.is_none_or(digits)
}

/// Reads an OID or segment number as PostgreSQL prints it: no sign, no leading zero, never 0.
pub(super) fn parse_number(text: &[u8]) -> Option<u32> {
    let canonical =
        text.first().is_some_and(|first| (b'1'..=b'9').contains(first)) && text.iter().all(u8::is_ascii_digit);
    if canonical { str::from_utf8(text).ok()?.parse().ok() } else { None }
}

fn parse_fork(text: &[u8]) -> Option<Fork> {
    match text {
        b"fsm" => Some(Fork::FreeSpaceMap),
        b"vm" => Some(Fork::VisibilityMap),
        b"init" => Some(Fork::Init),
        _ => None,
    }
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_tablespace_and_database() {
        for (path, expected) in [
            ("global/1262", Some((1664, None, 1262))),
            ("base/5/16384.1", Some((1663, Some(5), 16384))),
            ("pg_tblspc/16400/PG_15_202209061/5/16384_fsm", Some((16400, Some(5), 16384))),
            ("base/5/PG_VERSION", None),
            ("base/x/16384", None),
            ("pg_xact/0000", None),
            ("16384", None),
        ] {
            let found =
                FileLocation::parse(path).map(|found| (found.tablespace, found.database, found.relation.number));
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn relation_names_are_read_and_nothing_else_is() {
        let file = |number, fork, segment| Some(RelationFile { number, fork, segment });
        for (name, expected) in [
            ("1", file(1, Fork::Main, 0)),
            ("16384.1", file(16384, Fork::Main, 1)),
            ("16384_fsm", file(16384, Fork::FreeSpaceMap, 0)),
            ("16384_vm.12", file(16384, Fork::VisibilityMap, 12)),
            ("4294967295_init", file(u32::MAX, Fork::Init, 0)),
        ] {
            assert_eq!(RelationFile::parse(name.as_bytes()), expected, "{name}");
        }
        for name in [
            "",
            "0",
            "01",
            "4294967296",
            "1.",
            "1.0",
            "1.01",
            "1.1.1",
            "1_",
            "1_main",
            "1_fsm_vm",
            "1_FSM",
            "_fsm",
            "1a",
            "t3_1",
            "+1",
            "1 ",
            "pg_filenode.map",
            "PG_VERSION",
            "1.1_fsm",
            "1_fsm.",
            "1\n",
        ] {
            assert_eq!(RelationFile::parse(name.as_bytes()), None, "{name:?}");
        }
    }

    #[test]
    fn temporary_relations_are_told_from_permanent_ones() {
        for name in ["t3_16384", "t3_16384_fsm", "t128_1_vm", "t3_1_init", "t3_1.1", "t3_1_fsm.2", "t0_0"] {
            assert!(is_temporary_relation(name.as_bytes()), "{name}");
        }
        for name in
            ["", "t", "t_1", "t3", "t3_", "t3_1_", "t3_1_main", "t3_1.", "t3_1.x", "T3_1", "3_1", "t3_x", "t3_1_fsm_"]
        {
            assert!(!is_temporary_relation(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn only_certain_directories_hold_relations() {
        let database = Place::Root.enter(b"base").enter(b"5");
        assert_eq!(database, Place::Database);
        assert!(matches!(database.file_kind(b"1259"), FileKind::Relation(_)));
        assert_eq!(database.file_kind(b"PG_VERSION"), FileKind::Other);
        assert!(matches!(Place::Root.enter(b"global").file_kind(b"1260"), FileKind::Relation(_)));
        assert_eq!(Place::TablespaceVersion.enter(b"16385"), Place::Database);
        for place in [
            Place::Root,
            Place::Base,
            Place::Root.enter(b"pg_xact"),
            Place::Base.enter(b"pgsql_tmp"),
            database.enter(b"1"),
        ] {
            assert_eq!(place.file_kind(b"1259"), FileKind::Other, "{place:?}");
        }
        // The same names mean nothing elsewhere.
        assert_eq!(Place::Root.enter(b"log").enter(b"base"), Place::Other);
    }

    #[test]
    fn blocks_are_counted_through_all_segments() {
        let first_block = |name: &[u8]| RelationFile::parse(name).unwrap().first_block(131_072);
        assert_eq!(
            (first_block(b"16384"), first_block(b"16384.1"), first_block(b"16384_fsm.3")),
            (0, 131_072, 393_216)
        );
    }
}
