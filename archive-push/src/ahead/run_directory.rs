//! Where the sockets are: a directory that nobody else can enter.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use walkeep_common::config::{Config, DEFAULT_RUN_DIRECTORY};

/// The run directory, if it is there and ours.
pub(crate) fn find(config: &Config) -> Option<PathBuf> {
    candidates(config).into_iter().find(|directory| check(directory).is_ok())
}

/// The run directory, created where it is missing. Without packages nobody may write to the default place: then a
/// directory of the user's own is taken.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn create(config: &Config) -> Result<PathBuf, String> {
    let mut problems = Vec::new();
    for directory in candidates(config) {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        match created.map_err(|error| error.to_string()).and_then(|()| check(&directory)) {
            Ok(()) => return Ok(directory),
            Err(problem) => problems.push(format!("\"{}\": {problem}", directory.display())),
        }
    }
    Err(format!("cannot use run directory {}", problems.join(", nor ")))
}

fn candidates(config: &Config) -> Vec<PathBuf> {
    let mut candidates = vec![config.run_directory.clone()];
    if config.run_directory == Path::new(DEFAULT_RUN_DIRECTORY) {
        candidates.push(PathBuf::from(format!("/tmp/walkeep-{}", rustix::process::geteuid().as_raw())));
    }
    candidates
}

/// Whoever else could put a socket there would be asked whether WAL is safely stored.
fn check(directory: &Path) -> Result<(), String> {
    let metadata = fs::symlink_metadata(directory).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        return Err("it is not a directory".to_owned());
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("it belongs to user {}", metadata.uid()));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(format!("its mode is {:04o} instead of 0700", metadata.mode() & 0o7777));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use walkeep_common::config::Flags;

    use super::*;

    fn config(run: &Path) -> Config {
        let flags = Flags { repository: Some("file:///r".into()), ..Flags::default() };
        let run = run.display().to_string();
        Config::resolve(&flags, |name| (name == "WALKEEP_RUN_DIRECTORY").then(|| run.clone())).unwrap()
    }

    #[test]
    fn a_directory_that_others_can_enter_or_that_is_a_link_is_not_used() {
        let scratch = tempfile::tempdir().unwrap();
        let run = scratch.path().join("run");
        assert_eq!(find(&config(&run)), None);
        assert_eq!(create(&config(&run)), Ok(run.clone()));
        assert_eq!(find(&config(&run)), Some(run.clone()));
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&run, &link).unwrap();
        assert!(create(&config(&link)).unwrap_err().contains("not a directory"));
        fs::set_permissions(&run, Permissions::from_mode(0o750)).unwrap();
        assert_eq!(find(&config(&run)), None);
        assert!(create(&config(&run)).unwrap_err().contains("0750"));
    }
}
