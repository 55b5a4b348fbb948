//! Symbolic links in the data directory: PostgreSQL follows them, its own tools and a backup leave out what they point to.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::finding::{Area, Finding};
use crate::files::relation::Place;

const AREA: Area = Area::PostgreSQL;
/// Names in one message.
const NAMED: usize = 3;
/// Looks for links where data is.
pub(super) fn judge(data_directory: &Path) -> Option<Finding> {
    let base = data_directory.join("base");
    let links = links_in(data_directory).chain(links_in(&base));
    let mut links: Vec<PathBuf> =
        links.filter_map(|link| Some(link.strip_prefix(data_directory).ok()?.to_owned())).collect();
    links.sort_unstable();
    let is_data = |link: &&PathBuf| link.starts_with("base") || Place::Root.holds_data(link.as_os_str().as_bytes());
    let named = |links: &[&PathBuf]| {
        let names: Vec<String> = links.iter().take(NAMED).map(|link| format!("\"{}\"", link.display())).collect();
        let more = links.len().saturating_sub(NAMED);
        if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
    };
    let data: Vec<&PathBuf> = links.iter().filter(is_data).collect();
    if !data.is_empty() {
        let text =
            format!("{} in the data directory: a symbolic link, and no backup has what it points to", named(&data));
        let fix = "Stop PostgreSQL, move the files back to where the link is, and use a tablespace instead (CREATE TABLESPACE).";
        return Some(Finding::failed(AREA, "links", text, fix));
    }
    let others: Vec<&PathBuf> = links.iter().filter(|link| link.as_path() != Path::new("pg_wal")).collect();
    (!others.is_empty()).then(|| {
        let text =
            format!("{} in the data directory: symbolic links, what they point to is not in a backup", named(&others));
        Finding::note(AREA, "links", text)
    })
}

fn links_in(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::finding::Outcome;
    use super::*;

    #[test]
    fn links_to_data_are_worse_than_others() {
        let directory = tempfile::tempdir().unwrap();
        let link = |name: &str| symlink("/nonexistent", directory.path().join(name)).unwrap();
        std::fs::create_dir(directory.path().join("base")).unwrap();
        let outcome = || judge(directory.path()).map(|finding| finding.outcome);
        link("pg_wal");
        assert_eq!(outcome(), None);
        link("log");
        assert_eq!(outcome(), Some(Outcome::Note));
        link("base/16384");
        assert_eq!(outcome(), Some(Outcome::Failed));
        std::fs::remove_file(directory.path().join("base/16384")).unwrap();
        link("pg_xact");
        assert!(judge(directory.path()).unwrap().text.starts_with("\"pg_xact\" in the data directory"));
    }
}
