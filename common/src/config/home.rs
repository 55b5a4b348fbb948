//! Whose process this is.

use std::fs;
use std::path::PathBuf;

/// The home directory of the user this process runs as, from the list of users; where that has none, `$HOME`.
///
/// PostgreSQL is often started without its user's environment: Debian's service has no `HOME` at all.
pub fn home_directory() -> Option<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let home = home_of(&users, user).filter(|home| home.is_dir());
    home.or_else(|| std::env::var_os("HOME").map(PathBuf::from))
}

/// The sixth field of the user's line.
fn home_of(users: &str, user: u32) -> Option<PathBuf> {
    let mut lines = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2).and_then(|number| number.parse().ok()) == Some(user))?.get(5).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_directory_is_found_by_the_user_s_number() {
        let users = "root:x:0:0:root:/root:/bin/bash\nbroken\npostgres:x:104:110::/var/lib/postgresql:/bin/bash\n";
        assert_eq!(home_of(users, 104), Some("/var/lib/postgresql".into()));
        assert_eq!(home_of(users, 7), None);
    }
}
