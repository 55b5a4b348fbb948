//! Another entry for one file.

use std::io::{BufRead, Write};

use super::line::print_file;
use super::read::{Line, Lines, Parser};
use super::write::Hashing;
use super::{ManifestError, ManifestFile};

/// Copies a manifest with another entry for one file, `tablespace_map` for one after its tablespaces were moved.
///
/// # Errors
/// What is wrong with the manifest, or `NotListed` if it has no such file; the output is worthless then.
pub fn replace_file<W: Write>(input: impl BufRead, output: W, replacement: &ManifestFile) -> Result<W, ManifestError> {
    let mut output = Hashing::new(output);
    let mut lines = Lines::new(input);
    let mut parser = Parser::new();
    let mut replaced = false;
    while let Some(line) = lines.next()? {
        match parser.accept(line)? {
            Line::File(file) if file.path == replacement.path => {
                replaced = true;
                let separator = if line.text.ends_with(',') { "," } else { "" };
                writeln!(output, "{}{separator}", print_file(replacement))?;
            }
            // Another one is computed for the copy.
            Line::Checksum => {}
            Line::File(_) | Line::Other => writeln!(output, "{}", line.text)?,
        }
    }
    parser.end()?;
    if replaced { Ok(output.finish()?) } else { Err(ManifestError::NotListed(replacement.path.clone())) }
}
