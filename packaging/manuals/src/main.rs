//! Makes what packages carry besides the programs: manual pages, completions, a bill of materials and the licences of
//! everything that is linked in.
//!
//! usage: walkeep-manuals DIRECTORY DATE
//!
//! DATE (as in 2026-11-28) is what the manual pages show. Everything is made from the sources alone, so that the same
//! sources give the same files.

mod contents;
mod markdown;
mod programs;
mod roff;
mod settings;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use crate::roff::Page;

/// The top of the workspace.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [directory, date] = words.as_slice() else { return Err("usage: walkeep-manuals DIRECTORY DATE".into()) };
    let directory = Path::new(directory);

    let mut pages = programs::pages(date);
    pages.push(settings::page(&fs::read_to_string(workspace().join("packaging/walkeep.toml"))?, date));
    pages.push(markdown::page(
        &Page { name: "walkeep-repository", section: 7, date, summary: "the format of Walkeep's repository" },
        &fs::read_to_string(workspace().join("common/FORMAT.md"))?,
    ));
    for (name, text) in pages.into_iter().chain(programs::completions()?) {
        write(&directory.join(name), &text)?;
    }

    let linked = contents::Linked::read(&workspace())?;
    write(&directory.join("walkeep.cdx.json"), &linked.bill_of_materials()?)?;
    write(&directory.join("third-party-licenses.txt"), &linked.licenses()?)
}

fn write(path: &Path, text: &str) -> Result<(), Box<dyn Error>> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(fs::write(path, text)?)
}
