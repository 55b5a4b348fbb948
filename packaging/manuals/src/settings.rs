//! walkeep.toml(5), from the file that packages install: each setting there stands below its explanation.

use std::fmt::Write as _;

use crate::roff::{self, Page};

/// The page, with its path.
pub(crate) fn page(file: &str, date: &str) -> (String, String) {
    let page = Page { name: "walkeep.toml", section: 5, date, summary: "configuration of Walkeep" };
    let mut text = page.head();
    let mut paragraphs = file.split("\n\n").map(Paragraph::parse);
    text.push_str(".SH DESCRIPTION\n");
    let mut settings = String::new();
    let mut first = true;
    for paragraph in paragraphs.by_ref() {
        if paragraph.settings.is_empty() {
            if !first {
                text.push_str(".PP\n");
            }
            first = false;
            text.push_str(&roff::filled(&roff::escaped(&paragraph.explanation)));
            continue;
        }
        let names: Vec<_> =
            paragraph.settings.iter().map(|setting| format!("\\fB{}\\fR", roff::escaped(setting))).collect();
        let _ = writeln!(settings, ".TP\n{}", names.join("\n.TQ\n"));
        settings.push_str(&roff::filled(&roff::escaped(&paragraph.explanation)));
    }
    let _ = write!(text, ".SH SETTINGS\n{settings}");
    text.push_str(
        ".SH FILES\n.I /etc/walkeep/walkeep.toml\n.SH SEE ALSO\n\
         .BR archive\\-push (1),\n.BR archive\\-get (1),\n.BR basebackup (1)\n",
    );
    (page.path(), text)
}

/// Lines without an empty one between them.
struct Paragraph {
    explanation: String,
    settings: Vec<String>,
}

impl Paragraph {
    /// `# ` begins an explanation, `#` alone a setting that is not set.
    fn parse(text: &str) -> Self {
        let mut paragraph = Self { explanation: String::new(), settings: Vec::new() };
        for line in text.lines() {
            match line.strip_prefix("# ") {
                Some(words) => {
                    paragraph.explanation.push_str(words);
                    paragraph.explanation.push(' ');
                }
                None => paragraph.settings.extend(line.strip_prefix('#').map(str::to_owned)),
            }
        }
        paragraph
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_explained_by_what_stands_above_it() {
        let (path, text) = page("# About the file.\n\n# How long\n# it takes.\n#timeout = \"60s\"\n", "2026-11-28");
        assert_eq!(path, "man/man5/walkeep.toml.5");
        assert!(text.contains(".SH DESCRIPTION\nAbout the file.\n"), "{text}");
        assert!(text.contains(".TP\n\\fBtimeout = \"60s\"\\fR\nHow long it takes.\n"), "{text}");
    }
}
