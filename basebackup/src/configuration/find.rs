//! The server's configuration files, those it names and those they include, where any of them lies outside the data
//! directory or is a link that leads there.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::ConfigurationFile;
use super::syntax::{Grammar, references};
use crate::files::attributes::Attributes;

/// How deep files include each other (`CONF_FILE_MAX_DEPTH`).
const DEPTH: usize = 10;
/// No configuration file is larger than this.
const LARGEST: u64 = 16 << 20;
/// What Debian's postgresql-common keeps beside `postgresql.conf`.
const OF_DEBIAN: [&str; 3] = ["environment", "pg_ctl.conf", "start.conf"];

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// All configuration files, by their paths; none where all are in the data directory, and so in the backup already.
    pub files: Vec<ConfigurationFile>,
    /// Files that are not kept, and why.
    pub problems: Vec<String>,
}

/// The paths that the server reports.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'s> {
    /// `config_file`
    pub config_file: Option<&'s Path>,
    /// `hba_file`
    pub hba_file: Option<&'s Path>,
    /// `ident_file`
    pub ident_file: Option<&'s Path>,
}

/// Reads every configuration file of a server, unless all are in its data directory. One that cannot be read is a problem to
/// be told, not an error: the data is safe without it.
pub fn find(roots: Roots<'_>, data_directory: &Path) -> Found {
    let mut search = Search { data_directory, seen: BTreeSet::new(), is_any_outside: false, found: Found::default() };
    if let Some(main) = roots.config_file {
        search.read(main, Grammar::Settings, 0);
        if let Some(directory) = main.parent().filter(|_| !main.starts_with(data_directory)) {
            for name in OF_DEBIAN {
                let path = directory.join(name);
                if path.is_file() {
                    search.keep(&path);
                }
            }
        }
    }
    for rules in [roots.hba_file, roots.ident_file].into_iter().flatten() {
        search.read(rules, Grammar::Access, 0);
    }
    let mut found = search.found;
    if !search.is_any_outside {
        found.files.clear();
    }
    found.files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    found
}

struct Search<'s> {
    data_directory: &'s Path,
    seen: BTreeSet<PathBuf>,
    is_any_outside: bool,
    found: Found,
}

impl Search<'_> {
    /// Whether the backup's packs lack a file: links in the data directory are not followed there.
    fn is_outside(&self, path: &Path) -> bool {
        let Ok(below) = path.strip_prefix(self.data_directory) else { return true };
        let mut ways = below.ancestors().filter(|way| !way.as_os_str().is_empty());
        ways.any(|way| self.data_directory.join(way).is_symlink())
    }

    /// Reads a file and those it includes.
    fn read(&mut self, path: &Path, grammar: Grammar, depth: usize) {
        if depth > DEPTH || !self.seen.insert(path.to_owned()) {
            return;
        }
        let contents = self.keep(path);
        for reference in contents.iter().flat_map(|contents| references(grammar, contents)) {
            let named = resolve(path, &reference.path);
            if reference.is_directory {
                for file in files_of(&named) {
                    self.read(&file, grammar, depth + 1);
                }
            } else {
                self.read(&named, grammar, depth + 1);
            }
        }
    }

    /// Keeps one file; returns its contents. One that does not exist need not (`include_if_exists`).
    fn keep(&mut self, path: &Path) -> Option<Vec<u8>> {
        match read(path) {
            Ok(file) => {
                let contents = file.contents.clone();
                self.is_any_outside |= self.is_outside(path);
                self.found.files.push(file);
                Some(contents)
            }
            Err(error) if error.kind() == Kind::Missing => None,
            Err(error) => {
                self.found.problems.push(format!("a configuration file is not kept with the backup: {error}"));
                None
            }
        }
    }
}

/// The path that a name in `file` means.
pub fn resolve(file: &Path, name: &Path) -> PathBuf {
    let whole = file.parent().unwrap_or(Path::new("/")).join(name);
    whole.components().fold(PathBuf::new(), |mut path, component| {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            component => path.push(component),
        }
        path
    })
}

/// The files of a directory that are read (`GetConfFilesInDir`, src/backend/utils/misc/conffiles.c), in order.
fn files_of(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        name.len() > 5 && !name.starts_with(b".") && name.ends_with(b".conf") && !path.is_dir()
    });
    let names: BTreeSet<PathBuf> = names.collect();
    names.into_iter().collect()
}

/// Reads a file with its attributes.
fn read(path: &Path) -> Result<ConfigurationFile> {
    // Looked at before it is opened: a FIFO would wait for a writer.
    let metadata = fs::metadata(path).context("examine", path)?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(Error::new(Kind::Invalid, format!("\"{}\" is no plain file of a sane size", path.display())));
    }
    let file = File::open(path).context("open file", path)?;
    let mut contents = Vec::new();
    let _ = file.take(LARGEST).read_to_end(&mut contents).context("read file", path)?;
    let attributes = Attributes {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified: metadata.mtime(),
    };
    Ok(ConfigurationFile { path: path.to_owned(), contents, attributes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_read_is_found_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for directory in ["etc/conf.d", "common", "data", "etc/lists"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        let absolute = at("common/shared.conf");
        for (name, contents) in [
            ("etc/postgresql.conf", format!("include_dir = 'conf.d'\ninclude '{}'\n", absolute.display())),
            ("etc/conf.d/a.conf", "include '../missing.conf'\ninclude_if_exists 'b.conf'\n".to_owned()),
            ("etc/conf.d/b.conf", "include 'a.conf'\n".to_owned()),
            ("etc/conf.d/.hidden.conf", String::new()),
            ("etc/conf.d/old.conf.bak", String::new()),
            ("etc/pg_hba.conf", "host all @lists/users all md5\n".to_owned()),
            ("etc/lists/users", "alice\n".to_owned()),
            ("etc/lists/others", "bob\n".to_owned()),
            ("etc/start.conf", "auto\n".to_owned()),
            ("etc/secret.key", "key\n".to_owned()),
            (
                "data/pg_ident.conf",
                "include ../common/ident.conf\ninclude linked/a.conf\ninclude own.conf\n".to_owned(),
            ),
            ("data/own.conf", String::new()),
            ("common/ident.conf", String::new()),
            ("common/shared.conf", "work_mem = 4MB\n".to_owned()),
        ] {
            fs::write(at(name), contents).unwrap();
        }
        std::os::unix::fs::symlink(at("etc/conf.d"), at("data/linked")).unwrap();
        let (main, hba, ident) = (at("etc/postgresql.conf"), at("etc/pg_hba.conf"), at("data/pg_ident.conf"));
        let roots = Roots { config_file: Some(&main), hba_file: Some(&hba), ident_file: Some(&ident) };
        let found = find(roots, &at("data"));
        let names: Vec<String> = found
            .files
            .iter()
            .map(|file| file.path.strip_prefix(scratch.path()).unwrap().display().to_string())
            .collect();
        let expected = [
            "common/ident.conf",
            "common/shared.conf",
            "data/linked/a.conf",
            "data/own.conf",
            "data/pg_ident.conf",
            "etc/conf.d/a.conf",
            "etc/conf.d/b.conf",
            "etc/lists/users",
            "etc/pg_hba.conf",
            "etc/postgresql.conf",
            "etc/start.conf",
        ];
        assert_eq!((names, found.problems), (expected.map(str::to_owned).to_vec(), vec![]));
        let own = at("data/own.conf");
        let roots = Roots { config_file: Some(&own), hba_file: None, ident_file: None };
        assert_eq!(find(roots, &at("data")), Found::default());
    }

    #[test]
    fn what_cannot_be_read_is_told_and_costs_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let main = scratch.path().join("postgresql.conf");
        fs::write(&main, "include 'conf.d'\n").unwrap();
        fs::create_dir(scratch.path().join("conf.d")).unwrap();
        let roots = Roots { config_file: Some(&main), hba_file: None, ident_file: None };
        let found = find(roots, Path::new("/data"));
        assert_eq!((found.files.len(), found.problems.len()), (1, 1), "{found:?}");
        assert!(found.problems[0].contains("conf.d"), "{found:?}");
    }
}
