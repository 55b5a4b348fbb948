//! Markdown as a manual page: headings, paragraphs, lists, tables of a term and its meaning, and code.

use std::fmt::Write as _;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::roff::{self, Page};

/// The page, with its path. The document's first heading is its title and becomes the section DESCRIPTION.
pub(crate) fn page(page: &Page<'_>, document: &str) -> (String, String) {
    let mut writer = Writer { text: page.head(), ..Writer::default() };
    for event in Parser::new_ext(document, Options::ENABLE_TABLES) {
        writer.take(event);
    }
    (page.path(), writer.text)
}

/// What has been written, and what is being read.
#[derive(Default)]
struct Writer {
    text: String,
    /// The text of the paragraph, heading, item or cell so far, escaped.
    inline: String,
    /// Whether the next paragraph begins without a macro of its own: after a heading or a bullet.
    begun: bool,
    /// For each list around: the number of the next item, where they are numbered.
    lists: Vec<Option<u64>>,
    /// The cells of the row so far.
    row: Vec<String>,
    code: Option<String>,
}

impl Writer {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => match &mut self.code {
                Some(code) => code.push_str(&text),
                None => self.inline.push_str(&roff::escaped(&text)),
            },
            // Within code nothing is parted by the end of a line.
            Event::Code(text) => {
                let _ = write!(self.inline, "\\fB{}\\fR", roff::escaped(&text).replace(' ', "\\ "));
            }
            Event::SoftBreak | Event::HardBreak => self.inline.push(' '),
            Event::Html(text) | Event::InlineHtml(text) => self.inline.push_str(&roff::escaped(&text)),
            _ => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::CodeBlock(_) => {
                self.flush();
                self.code = Some(String::new());
            }
            Tag::List(first) => {
                self.flush();
                if !self.lists.is_empty() {
                    self.text.push_str(".RS 2\n");
                }
                self.lists.push(*first);
            }
            Tag::Item => {
                let bullet = if let Some(Some(number)) = self.lists.last_mut() {
                    *number += 1;
                    format!("{}. 4", *number - 1)
                } else {
                    "\\(bu 2".to_owned()
                };
                let _ = writeln!(self.text, ".IP {bullet}");
                self.begun = true;
            }
            Tag::TableHead | Tag::TableRow => self.row.clear(),
            Tag::Emphasis => self.inline.push_str("\\fI"),
            Tag::Strong => self.inline.push_str("\\fB"),
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph | TagEnd::Item => self.flush(),
            TagEnd::Heading(level) => {
                let heading = std::mem::take(&mut self.inline);
                let _ = match level {
                    HeadingLevel::H1 => writeln!(self.text, ".SH DESCRIPTION"),
                    HeadingLevel::H2 => writeln!(self.text, ".SH {}", quoted(&heading.to_uppercase())),
                    _ => writeln!(self.text, ".SS {}", quoted(&heading)),
                };
                self.begun = true;
            }
            TagEnd::CodeBlock => {
                let code = self.code.take().unwrap_or_default();
                if !self.begun {
                    self.text.push_str(".sp\n");
                }
                self.text.push_str(&roff::verbatim(&code));
                self.begun = false;
            }
            TagEnd::List(_) => {
                let _ = self.lists.pop();
                if !self.lists.is_empty() {
                    self.text.push_str(".RE\n");
                }
                self.begun = false;
            }
            TagEnd::TableCell => self.row.push(std::mem::take(&mut self.inline)),
            // What is in a table of terms is plain without its head.
            TagEnd::TableRow => {
                if let Some((term, meaning)) = self.row.split_first() {
                    let _ = write!(self.text, ".TP\n{}{}", roff::filled(term), roff::filled(&meaning.join(", ")));
                }
                self.begun = false;
            }
            TagEnd::Emphasis | TagEnd::Strong => self.inline.push_str("\\fR"),
            _ => {}
        }
    }

    /// Writes the paragraph that was read.
    fn flush(&mut self) {
        let inline = std::mem::take(&mut self.inline);
        if inline.trim().is_empty() {
            return;
        }
        if !self.begun {
            self.text.push_str(if self.lists.is_empty() { ".PP\n" } else { ".sp\n" });
        }
        self.begun = false;
        self.text.push_str(&roff::filled(&inline));
    }
}

/// A macro's argument of several words.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\\(dq"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(document: &str) -> String {
        let (_, text) = page(&Page { name: "x", section: 7, date: "2026-11-28", summary: "about x" }, document);
        text.split_once("about x\n").unwrap().1.to_owned()
    }

    #[test]
    fn headings_paragraphs_and_code_become_macros() {
        let man = text("# X\n\nA `b c`.\nD.\n\n## Two words\n\nE\n\n```\n.f -g\n```\n\nH\n");
        let expected = ".SH DESCRIPTION\nA \\fBb\\ c\\fR. D.\n.SH \"TWO WORDS\"\nE\n.sp\n.RS 4\n.nf\n\\&.f \\-g\n.fi\n.RE\n.PP\nH\n";
        assert_eq!(man, expected);
    }

    #[test]
    fn lists_and_tables_become_indented_paragraphs() {
        assert_eq!(text("- a\n- b\n\nc\n"), ".IP \\(bu 2\na\n.IP \\(bu 2\nb\n.PP\nc\n");
        assert_eq!(text("1. a\n2. b\n"), ".IP 1. 4\na\n.IP 2. 4\nb\n");
        assert_eq!(text("| field | what |\n| --- | --- |\n| `a` | an a |\n"), ".TP\n\\fBa\\fR\nan a\n");
    }
}
