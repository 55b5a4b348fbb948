//! The guides as text: their blocks of commands, of what the programs say, and of what goes into files.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::place::Place;
use walkeep_tests::run::Finished;

/// Where the guides are.
pub(super) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/guides")
}

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// The word behind the fence: `sh` is run, `sh elsewhere` is not, `text` was said, others go into files.
    pub(super) language: String,
    /// What stands between the fences.
    pub(super) text: String,
}

/// A section of a guide, or all of it, whose blocks are taken in the order they stand there. All must be taken.
#[derive(Debug)]
pub(super) struct Section {
    name: String,
    blocks: VecDeque<Block>,
}

impl Section {
    /// The section below this heading of the second level.
    pub(super) fn read(file: &str, heading: &str) -> Self {
        let text = std::fs::read_to_string(directory().join(file)).unwrap();
        let section = sections(&text).into_iter().find(|(name, _)| name == heading);
        let (_, text) = section.unwrap_or_else(|| panic!("{file} has no section {heading:?}"));
        let blocks = blocks(&text).into_iter().filter(|block| block.language != ELSEWHERE).collect();
        Self { name: format!("{file}, {heading}"), blocks }
    }

    /// The next block, which must be of this language.
    #[track_caller]
    pub(super) fn next(&mut self, language: &str) -> String {
        let block = self.blocks.pop_front().unwrap_or_else(|| panic!("{}: no block is left", self.name));
        assert_eq!(block.language, language, "{}: {}", self.name, block.text);
        block.text
    }

    /// Runs the next block of commands, whatever comes of it.
    #[track_caller]
    pub(super) fn try_run(&mut self, place: &Place) -> Finished {
        place.sh(&self.next("sh"))
    }

    /// Runs the next block of commands, which must succeed.
    #[track_caller]
    pub(super) fn run(&mut self, place: &Place) -> Finished {
        let finished = self.try_run(place);
        assert!(finished.code() == 0, "{}\n{finished}", self.name);
        finished
    }

    /// Fails the test unless each line of the next block was said, in this order. `…` stands for what differs each time.
    #[track_caller]
    pub(super) fn expect_said(&mut self, place: &Place, said: &str) {
        let expected = place.adapted(&self.next("text"));
        let mut lines = said.lines();
        for line in expected.lines().filter(|line| !line.trim().is_empty()) {
            let found = lines.any(|said| matches(line, said));
            assert!(found, "{}: the guide says\n{line}\nwhere this was said:\n{said}", self.name);
        }
    }

    /// As [`Self::expect_said`], of a program's output and messages.
    #[track_caller]
    pub(super) fn expect_of(&mut self, place: &Place, finished: &Finished) {
        self.expect_said(place, &format!("{}\n{}", finished.stdout, finished.stderr));
    }

    /// Fails the test if the guide has more than the test has looked at.
    #[track_caller]
    pub(super) fn end(self) {
        assert!(self.blocks.is_empty(), "{}: not looked at: {:#?}", self.name, self.blocks);
    }
}

/// The mark of commands that need what no test has, a cloud account for one.
pub(super) const ELSEWHERE: &str = "sh elsewhere";

/// The sections of a guide; what stands before the first heading is one without a name.
pub(super) fn sections(text: &str) -> Vec<(String, String)> {
    let mut sections = vec![(String::new(), String::new())];
    let mut fenced = false;
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        if let Some(heading) = line.strip_prefix("## ").filter(|_| !fenced) {
            sections.push((heading.to_owned(), String::new()));
        } else {
            let (_, section) = sections.last_mut().unwrap();
            section.push_str(line);
            section.push('\n');
        }
    }
    sections
}

/// The fenced blocks of a text.
pub(super) fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```") else { continue };
        let text = lines.by_ref().take_while(|line| *line != "```").flat_map(|line| [line, "\n"]).collect();
        blocks.push(Block { language: language.to_owned(), text });
    }
    blocks
}

/// Whether a line has what the guide's line says, where `…` stands for anything.
fn matches(expected: &str, said: &str) -> bool {
    let mut rest = Some(said);
    for part in expected.trim().split('…') {
        rest = rest.and_then(|rest| rest.find(part).and_then(|at| rest.get(at + part.len()..)));
    }
    rest.is_some()
}

#[test]
fn what_differs_is_left_open() {
    assert!(matches("ERROR: … is missing", "archive-get: ERROR: \"7\" is missing in the archive"));
    assert!(!matches("ERROR: … is missing … here", "ERROR: \"7\" is missing in the archive"));
    assert!(matches("plain", "it is plain to see"));
}
