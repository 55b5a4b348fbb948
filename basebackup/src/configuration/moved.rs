//! Configuration files in another place: where each goes, and what it says there.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::ConfigurationFile;
use super::find::resolve;
use super::syntax::{Grammar, Reference, references};

/// The way from where the files were to where they go. What lay beside the server's `config_file` or below stays
/// together; a file from elsewhere goes below the new directory under its whole path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The directory of the server's `config_file`.
    pub from: PathBuf,
    /// The new directory.
    pub to: PathBuf,
}

impl Move {
    /// Where a file or directory goes.
    pub fn path(&self, old: &Path) -> PathBuf {
        match old.strip_prefix(&self.from) {
            Ok(below) => self.to.join(below),
            Err(_) => self.to.join(old.strip_prefix("/").unwrap_or(old)),
        }
    }

    /// A file's contents with the names of other files as they are now. A name stays as it is written where it still
    /// leads to the file's copy, and where it leads to a file that is not among `all`.
    pub fn contents(&self, file: &ConfigurationFile, grammar: Grammar, all: &[ConfigurationFile]) -> Vec<u8> {
        let mut rewritten = Vec::with_capacity(file.contents.len());
        let mut copied = 0;
        for Reference { span, path, is_directory } in references(grammar, &file.contents) {
            let old = resolve(&file.path, &path);
            let is_kept = |kept: &ConfigurationFile| {
                if is_directory { kept.path.parent() == Some(&old) } else { kept.path == old }
            };
            let new = self.path(&old);
            if resolve(&self.path(&file.path), &path) == new || !all.iter().any(is_kept) {
                continue;
            }
            rewritten.extend_from_slice(file.contents.get(copied..span.start).unwrap_or_default());
            rewritten.extend(quoted(&new, grammar));
            copied = span.end;
        }
        rewritten.extend_from_slice(file.contents.get(copied..).unwrap_or_default());
        rewritten
    }
}

/// A path as each grammar has it.
fn quoted(path: &Path, grammar: Grammar) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes();
    let (quote, escaped) = match grammar {
        Grammar::Settings => (b'\'', true),
        Grammar::Access => (b'"', false),
    };
    let doubled = bytes.iter().flat_map(|&byte| {
        let twice = escaped && matches!(byte, b'\'' | b'\\');
        std::iter::repeat_n(byte, if twice { 2 } else { 1 })
    });
    std::iter::once(quote).chain(doubled).chain([quote]).collect()
}

/// How each of the files is to be read: those that `hba_file` and `ident_file` lead to, and all others.
pub fn grammar_of(file: &Path, all: &[ConfigurationFile], rules: &[&Path]) -> Grammar {
    let mut of_rules: Vec<PathBuf> = rules.iter().map(|&path| path.to_owned()).collect();
    let mut next = 0;
    while let Some(path) = of_rules.get(next).cloned() {
        next += 1;
        let Some(contents) = all.iter().find(|kept| kept.path == path).map(|kept| &kept.contents) else { continue };
        for reference in references(Grammar::Access, contents) {
            let named = resolve(&path, &reference.path);
            let leads = |kept: &&ConfigurationFile| {
                if reference.is_directory { kept.path.parent() == Some(&named) } else { kept.path == named }
            };
            for found in all.iter().filter(leads) {
                if !of_rules.contains(&found.path) {
                    of_rules.push(found.path.clone());
                }
            }
        }
    }
    if of_rules.iter().any(|path| path == file) { Grammar::Access } else { Grammar::Settings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::attributes::Attributes;

    fn file(path: &str, contents: &str) -> ConfigurationFile {
        let attributes = Attributes { mode: 0o640, uid: 0, gid: 0, modified: 0 };
        ConfigurationFile { path: path.into(), contents: contents.as_bytes().to_vec(), attributes }
    }

    #[test]
    fn files_stay_together_and_names_lead_to_the_copies() {
        let way = Move { from: "/etc/postgresql/15/main".into(), to: "/srv/it's/config".into() };
        let all = [
            file(
                "/etc/postgresql/15/main/postgresql.conf",
                "include_dir 'conf.d'\ninclude '/etc/postgresql/15/main/conf.d/a.conf' # a\ninclude='../../all.conf'\n\
                 include_if_exists '/nowhere.conf'\n",
            ),
            file("/etc/postgresql/15/main/conf.d/a.conf", ""),
            file("/etc/postgresql/all.conf", ""),
            file("/etc/postgresql/15/main/pg_hba.conf", "host @/etc/lists/users,@names all all md5\n"),
            file("/etc/lists/users", "@more"),
            file("/etc/lists/more", ""),
            file("/etc/postgresql/15/main/names", ""),
        ];
        assert_eq!(way.path(&all[1].path), Path::new("/srv/it's/config/conf.d/a.conf"));
        assert_eq!(way.path(&all[2].path), Path::new("/srv/it's/config/etc/postgresql/all.conf"));
        let moved = |index: usize, grammar| String::from_utf8(way.contents(&all[index], grammar, &all)).unwrap();
        assert_eq!(
            moved(0, Grammar::Settings),
            "include_dir 'conf.d'\ninclude '/srv/it''s/config/conf.d/a.conf' # a\n\
             include='/srv/it''s/config/etc/postgresql/all.conf'\ninclude_if_exists '/nowhere.conf'\n"
        );
        assert_eq!(moved(3, Grammar::Access), "host @\"/srv/it's/config/etc/lists/users\",@names all all md5\n");
        let rules = [all[3].path.as_path()];
        let grammars: Vec<Grammar> = all.iter().map(|file| grammar_of(&file.path, &all, &rules)).collect();
        let expected = [Grammar::Settings, Grammar::Settings, Grammar::Settings];
        assert_eq!(grammars[..3], expected);
        assert!(grammars[3..].iter().all(|&grammar| grammar == Grammar::Access));
    }
}
