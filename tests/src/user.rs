//! Who runs PostgreSQL and the programs.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// A user that is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// The numeric user id.
    pub uid: u32,
    /// The user's own group.
    pub gid: u32,
}

/// Tells whether the tests themselves run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the user everything runs as: `postgres` when the tests run as root, else whoever runs them.
pub fn unprivileged() -> User {
    static USER: LazyLock<User> = LazyLock::new(|| {
        if !is_root() {
            return User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        }
        let accounts = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
        let account = accounts.lines().find(|line| line.starts_with("postgres:")).expect("no user \"postgres\"");
        let mut numbers = account.split(':').skip(2).map(|field| field.parse().expect("numeric ids in /etc/passwd"));
        User { uid: numbers.next().expect("uid"), gid: numbers.next().expect("gid") }
    });
    *USER
}

/// Makes the command run as the unprivileged user, without any supplementary group.
pub fn drop_privileges(command: &mut Command) {
    if is_root() {
        let user = unprivileged();
        command.uid(user.uid).gid(user.gid);
    }
}

/// Gives a file or directory to the unprivileged user.
pub fn give(path: &Path) {
    if is_root() {
        let user = unprivileged();
        std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid)).expect("chown");
    }
}
