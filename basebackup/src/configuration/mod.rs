//! The server's configuration files that lie outside the data directory, as Debian has them.
//!
//! - [`find`]: which files those are, from the paths the server reports and what the files include.
//! - [`stored`]: how they are kept with a backup.
//! - [`moved`]: what they say after they were put elsewhere.
//! - [`syntax`]: their lines.

pub mod find;
pub mod moved;
pub mod stored;
pub mod syntax;

use std::path::PathBuf;

use crate::files::attributes::Attributes;

/// One configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigurationFile {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its bytes.
    pub contents: Vec<u8>,
    /// Owner, mode and time.
    pub attributes: Attributes,
}
