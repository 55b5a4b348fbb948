//! Text as `man` reads it: the macros of man(7), one sentence of them per line.

use std::fmt::Write as _;

/// Longer lines are hard to read in the source, and `mandoc -T lint` says so.
const WIDTH: usize = 78;

/// What is in a page's first lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    pub(crate) name: &'a str,
    pub(crate) section: u8,
    pub(crate) date: &'a str,
    pub(crate) summary: &'a str,
}

impl Page<'_> {
    /// Where the page lies.
    pub(crate) fn path(&self) -> String {
        path(self.name, self.section)
    }

    /// The title and the section NAME.
    pub(crate) fn head(&self) -> String {
        format!(
            ".TH {} {} {} \"{}\" \"Walkeep\"\n.SH NAME\n{} \\- {}\n",
            self.name.to_uppercase(),
            self.section,
            self.date,
            source(),
            escaped(self.name),
            escaped(self.summary)
        )
    }
}

/// Where a page lies.
pub(crate) fn path(name: &str, section: u8) -> String {
    format!("man/man{section}/{name}.{section}")
}

/// What stands at the foot of every page.
pub(crate) fn source() -> String {
    format!("walkeep {}", env!("CARGO_PKG_VERSION"))
}

/// The text with nothing in it that roff would read as its own.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\e"),
            '-' => out.push_str("\\-"),
            '\'' => out.push_str("\\(aq"),
            '`' => out.push_str("\\(ga"),
            '^' => out.push_str("\\(ha"),
            '~' => out.push_str("\\(ti"),
            c => out.push(c),
        }
    }
    out
}

/// A line that roff does not take for a request.
pub(crate) fn guarded(line: &str) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() }
}

/// How long a line is to `mandoc`, which reads `…` as `\\[u2026]`.
fn width(text: &str) -> usize {
    text.chars().map(|c| if c.is_ascii() { 1 } else { 8 }).sum()
}

/// Escaped text as lines of moderate length.
pub(crate) fn filled(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in words(text) {
        if !line.is_empty() && width(&line) + 1 + width(word) > WIDTH {
            let _ = writeln!(lines, "{}", guarded(&line));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(lines, "{}", guarded(&line));
    }
    lines
}

/// What may be parted by the end of a line: `\ ` is a blank that may not.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut last = '\0';
    text.split(move |c: char| {
        let parts = c.is_whitespace() && last != '\\';
        last = c;
        parts
    })
    .filter(|word| !word.is_empty())
}

/// Text of fixed layout, indented.
pub(crate) fn verbatim(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(|line| guarded(&escaped(line))).collect();
    format!(".RS 4\n.nf\n{}\n.fi\n.RE\n", lines.join("\n"))
}

/// The same page without lines that are longer than need be; what is set as it stands stays.
pub(crate) fn refilled(page: &str) -> String {
    let mut out = String::new();
    let mut as_it_stands = false;
    // What clap_mangen puts before the list of possible values.
    for line in page.replace("\n.br\n\n.br\n", "\n.sp\n").lines() {
        match line {
            ".nf" => as_it_stands = true,
            ".fi" => as_it_stands = false,
            _ => {}
        }
        if as_it_stands || line.starts_with(['.', '\'']) || width(line) <= WIDTH {
            out.push_str(line);
            out.push('\n');
        } else {
            out.push_str(&filled(line));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_roff_would_obey_is_escaped() {
        assert_eq!(escaped("a\\b -c 'd'"), "a\\eb \\-c \\(aqd\\(aq");
        assert_eq!(guarded(".conf"), "\\&.conf");
        assert_eq!(verbatim(".a\n"), ".RS 4\n.nf\n\\&.a\n.fi\n.RE\n");
    }

    #[test]
    fn lines_are_short_and_unbreakable_blanks_stay() {
        let text = filled(&"word\\ word other ".repeat(20));
        assert!(text.lines().all(|line| line.len() <= WIDTH && !line.ends_with('\\')), "{text}");
        assert_eq!(text.matches("word\\ word").count(), 20);
    }
}
