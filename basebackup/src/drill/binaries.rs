//! The programs of the PostgreSQL major a backup is of.

use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_common::error::{Error, Kind, Result};

/// A directory with PostgreSQL's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    directory: PathBuf,
    /// What `postgres --version` says, such as "15.18".
    pub(super) version: String,
    pub(super) major: u32,
}

impl Binaries {
    /// Finds them: where it was said they are, where Debian and PGDG put them, and along `PATH`.
    ///
    /// # Errors
    /// `Invalid` if this major is not installed.
    pub(super) fn find(said: Option<&Path>, major: u32) -> Result<Self> {
        let usual = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")];
        let along_path: Vec<PathBuf> =
            std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
        let places = match said {
            Some(directory) => vec![directory.to_owned()],
            None => usual.into_iter().map(PathBuf::from).chain(along_path).collect(),
        };
        let found = places.into_iter().find_map(|directory| {
            let version = version(&directory.join("postgres"))?;
            (leading_number(&version) == Some(major)).then_some(Self { directory, version, major })
        });
        found.ok_or_else(|| {
            Error::new(Kind::Invalid, format!("PostgreSQL {major}, which the backup is of, was not found on this host"))
                .hint(format!(
                    "Install it (Debian: postgresql-{major}), or name the directory of its programs with --pg-bindir."
                ))
        })
    }

    /// One of the programs; nothing if this installation does not have it.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.join(name)).filter(|path| path.exists())
    }
}

fn version(postgres: &Path) -> Option<String> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().strip_prefix("postgres (PostgreSQL) ").map(|version| version.split(' ').next().unwrap_or("").to_owned())
}

/// Of "15.18", "19beta1".
fn leading_number(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..end)?.parse().ok()
}
