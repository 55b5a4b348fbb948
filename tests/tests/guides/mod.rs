//! The guides in `packaging/guides`: every command is run as it stands there, and what they quote was said.

mod document;
mod monitoring;
mod moving;
mod place;
mod recovery;
mod runbook;
mod stores;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use self::document::{ELSEWHERE, blocks, directory, sections};

/// The guides by name.
fn guides() -> BTreeMap<String, String> {
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The sources of these tests.
fn tests() -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guides");
    fs::read_dir(directory).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect()
}

#[test]
fn no_section_with_commands_is_forgotten() {
    let tests = tests();
    for (file, text) in guides() {
        for (heading, section) in sections(&text) {
            let has_commands = blocks(&section).iter().any(|block| block.language == "sh");
            let read = format!("Section::read(\"{file}\", \"{heading}\")");
            assert!(!has_commands || tests.contains(&read), "no test has {read}");
        }
    }
}

#[test]
fn few_commands_need_what_no_test_has() {
    let elsewhere = |text: &str| blocks(text).iter().filter(|block| block.language == ELSEWHERE).count();
    let counted = guides().into_iter().map(|(file, text)| (file, elsewhere(&text))).filter(|(_, count)| *count > 0);
    let expected = [("drills.md", 1), ("runbook.md", 1), ("stores.md", 3)];
    assert_eq!(counted.collect::<Vec<_>>(), expected.map(|(file, count)| (file.to_owned(), count)));
}

#[test]
fn lines_of_configuration_have_keys_that_there_are() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let mut seen = 0;
    for (file, text) in guides() {
        for block in blocks(&text).iter().filter(|block| block.language == "toml") {
            let mut table = String::new();
            for line in block.text.lines() {
                if let Some(name) = line.strip_prefix('[') {
                    table = format!("{}.", name.trim_end_matches(']'));
                } else if let Some((key, _)) = line.split_once(" = ") {
                    assert!(readme.contains(&format!("| `{table}{key}` |")), "{file}: {line}");
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 5, "only {seen} lines were found: the search is broken");
}

/// The anchor that a heading has, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

#[test]
fn links_lead_somewhere() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let mut texts: Vec<_> = guides().into_iter().map(|(file, text)| (directory().join(file), text)).collect();
    texts.push((readme.clone(), fs::read_to_string(&readme).unwrap()));
    let mut seen = 0;
    for (path, text) in texts {
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if !heading.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                let found = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == heading);
                assert!(found, "{}: {link} leads to no heading", path.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} links were found: the search is broken");
}
