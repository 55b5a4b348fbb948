//! Which worker answers whom: one per user, data directory, configuration and version of the program.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use walkeep_common::config::Config;

use super::data_directory::DataDirectory;
use super::run_directory;

/// Variables that a shell sets anew for each command and that mean nothing to us.
const PASSING: [&str; 4] = ["_", "SHLVL", "PWD", "OLDPWD"];

/// A worker's place: the data directory it works for, and the name of its socket.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) data: DataDirectory,
    socket_name: String,
}

impl Place {
    /// The place of whoever works on this data directory with this configuration and this process's environment.
    ///
    /// # Errors
    /// From the operating system.
    pub(crate) fn new(data: DataDirectory, config: &Config) -> io::Result<Self> {
        let directory = fs::metadata(data.path())?;
        let mut hasher = blake3::Hasher::new();
        let mut add = |part: &[u8]| {
            let _ = hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        };
        add(env!("CARGO_PKG_VERSION").as_bytes());
        add(&rustix::process::geteuid().as_raw().to_le_bytes());
        add(&directory.dev().to_le_bytes());
        add(&directory.ino().to_le_bytes());
        add(format!("{config:?}").as_bytes());
        // Credentials, proxies and certificates come from the environment as well.
        let mut variables: Vec<_> =
            env::vars_os().filter(|(name, _)| PASSING.iter().all(|other| name != other)).collect();
        variables.sort_unstable();
        for (name, value) in &variables {
            add(name.as_bytes());
            add(value.as_bytes());
        }
        let digest = hasher.finalize().to_hex();
        let socket_name = format!("push-{}.sock", digest.get(..32).unwrap_or_default());
        Ok(Self { data, socket_name })
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
