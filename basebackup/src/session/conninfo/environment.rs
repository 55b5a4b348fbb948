//! What libpq takes from its surroundings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, Kind, Result};

/// Environment variables and the user's account, taken once so that everything after is decided from values.
#[derive(Debug, Clone)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// The operating system's name of the user: the default role.
    pub(super) user: Option<String>,
    /// Where `.pgpass`, `.pg_service.conf` and `.postgresql` are looked for.
    pub(super) home: Option<PathBuf>,
    /// The directory of the server's Unix socket where nothing else is said.
    pub(super) socket_directory: PathBuf,
}

impl Environment {
    /// The environment of this process.
    ///
    /// # Errors
    /// `Usage` if a variable of libpq is not UTF-8.
    pub fn of_process() -> Result<Self> {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with("PG")) else { continue };
            let not_utf8 = |_| Error::new(Kind::Usage, format!("environment variable \"{name}\" is not valid UTF-8"));
            variables.insert(name.to_owned(), value.into_string().map_err(not_utf8)?);
        }
        let debian = Path::new("/var/run/postgresql");
        Ok(Self {
            variables,
            user: whoami::username().ok(),
            home: std::env::home_dir(),
            socket_directory: if debian.is_dir() { debian } else { Path::new("/tmp") }.to_owned(),
        })
    }

    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    #[cfg(test)]
    pub(super) fn for_tests(variables: &[(&str, &str)], home: Option<&Path>) -> Self {
        Self {
            variables: variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
            user: Some("dba".to_owned()),
            home: home.map(Path::to_owned),
            socket_directory: "/var/run/postgresql".into(),
        }
    }
}
