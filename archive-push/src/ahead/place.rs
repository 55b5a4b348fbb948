//! Which worker answers whom: one per user, data directory and configuration.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use walkeep_common::config::Config;

use super::data_directory::DataDirectory;
use super::run_directory;

/// How the variables begin that credentials and certificates come from.
const PREFIXES: [&str; 9] = ["WALKEEP_", "AWS_", "AZURE_", "GOOGLE_", "GCE_", "IDENTITY_", "MSI_", "SSL_CERT_", "XDG_"];

/// A worker's place: the data directory it works for, and the name of its socket.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) data: DataDirectory,
    socket_name: String,
}

impl Place {
    /// The place of whoever works on this data directory with this configuration.
    ///
    /// # Errors
    /// From the operating system.
    pub(crate) fn new(data: DataDirectory, config: &Config) -> io::Result<Self> {
        let directory = fs::metadata(data.path())?;
        let mut digest = Digest::default();
        let mut add = |part: &[u8]| digest.add(part);
        add(&rustix::process::geteuid().as_raw().to_le_bytes());
        add(&directory.dev().to_le_bytes());
        add(&directory.ino().to_le_bytes());
        add(format!("{config:?}").as_bytes());
        Ok(Self { data, socket_name: format!("push-{}.sock", digest.finish()) })
    }

    /// The socket, if its directory is there and ours.
    pub(crate) fn socket(&self, config: &Config) -> Option<PathBuf> {
        run_directory::find(config).map(|directory| directory.join(&self.socket_name))
    }

    /// The socket, its directory created where it is missing.
    ///
    /// # Errors
    /// What is wrong with the directory.
    pub(crate) fn create_socket_directory(&self, config: &Config) -> Result<PathBuf, String> {
        run_directory::create(config).map(|directory| directory.join(&self.socket_name))
    }
}

/// What else decides what a program does: the program itself, and the variables that say who it is to the store. Of
/// calls and workers that differ in this, none works for the other.
pub(crate) fn surroundings() -> String {
    let mut digest = Digest::default();
    let program = env::current_exe().and_then(fs::metadata);
    if let Ok(program) = program {
        for number in [program.dev(), program.ino(), program.size(), program.mtime().cast_unsigned()] {
            digest.add(&number.to_le_bytes());
        }
    }
    let is_ours = |name: &str| {
        PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || name.to_ascii_lowercase().ends_with("_proxy")
            || name == "HOME"
    };
    let mut variables: Vec<_> = env::vars_os().filter(|(name, _)| name.to_str().is_none_or(is_ours)).collect();
    variables.sort_unstable();
    for (name, value) in &variables {
        digest.add(name.as_bytes());
        digest.add(value.as_bytes());
    }
    digest.finish()
}

/// A hash of several parts, of which none runs into the next.
#[derive(Default)]
struct Digest(blake3::Hasher);

impl Digest {
    fn add(&mut self, part: &[u8]) {
        let _ = self.0.update(&(part.len() as u64).to_le_bytes()).update(part);
    }

    fn finish(self) -> String {
        self.0.finalize().to_hex().get(..32).unwrap_or_default().to_owned()
    }
}
