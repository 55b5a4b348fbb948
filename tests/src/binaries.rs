//! Where the three programs are.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::user;

/// `archive-push`, an absolute path.
pub fn archive_push() -> PathBuf {
    directory().join("archive-push")
}

/// `archive-get`, an absolute path.
pub fn archive_get() -> PathBuf {
    directory().join("archive-get")
}

/// `basebackup`, an absolute path.
pub fn basebackup() -> PathBuf {
    directory().join("basebackup")
}

/// The directory of the programs: `$WALKEEP_BINARIES`, which tests an installed package, else built by cargo, once per
/// test process, so that a test never runs yesterday's program.
fn directory() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| match std::env::var_os("WALKEEP_BINARIES") {
        Some(directory) => std::fs::canonicalize(directory).expect("$WALKEEP_BINARIES"),
        None => reachable(built().to_owned()),
    });
    &DIRECTORY
}

/// Where cargo leaves what the workspace builds, from which packages are made.
pub fn built() -> &'static Path {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(build);
    &DIRECTORY
}

/// Builds the programs in the profile of the tests themselves.
fn build() -> PathBuf {
    let this_test = std::env::current_exe().expect("the path of the test program");
    let built = this_test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").to_owned();
    let profile = match built.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--workspace", "--bins", "--locked", "--profile", profile, "--target-dir"])
        .arg(built.parent().expect("target"))
        .output()
        .expect("run cargo");
    assert!(output.status.success(), "could not build the programs:\n{}", String::from_utf8_lossy(&output.stderr));
    built
}

/// Copies the programs to where the unprivileged user can run them, when a directory above them is closed to it
/// (a checkout in root's home).
fn reachable(built: PathBuf) -> PathBuf {
    let enterable =
        |directory: &Path| directory.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0);
    if !user::is_root() || built.ancestors().all(enterable) {
        return built;
    }
    let copy = PathBuf::from("/var/cache/walkeep-test/binaries");
    std::fs::create_dir_all(&copy).expect("create a directory for the programs");
    for program in ["archive-push", "archive-get", "basebackup"] {
        // By rename, since another test process may be running the old one.
        let temporary = copy.join(format!(".{program}.{}", std::process::id()));
        std::fs::copy(built.join(program), &temporary).expect("copy a program");
        std::fs::rename(&temporary, copy.join(program)).expect("rename a program");
    }
    copy
}
