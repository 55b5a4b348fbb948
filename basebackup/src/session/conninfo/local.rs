//! Servers of this host by name, as units of systemd and people know them.

use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::postgres::control::ControlFile;

/// How a server is reached.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Local {
    /// The directory of its socket, or the address it listens on; none for the default.
    pub(super) host: Option<String>,
    pub(super) port: String,
}

/// Finds a server by its name in postgresql-common, such as `15/main`, or by its data directory. The slash before that
/// may be missing, as in what systemd makes of an instance.
///
/// # Errors
/// `Usage` for a name that nothing has; `Unavailable` when no server runs on the data directory.
pub(super) fn find(name: &str) -> Result<Local> {
    match name.split_once('/') {
        Some((major, cluster)) if is_major(major) && !cluster.contains('/') => {
            Ok(Local { host: None, port: port_in(&list()?, major, cluster)? })
        }
        _ => of_data_directory(&Path::new("/").join(name)),
    }
}

fn is_major(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What `pg_lsclusters` prints: major, name, port and more, one line for each cluster, running or not.
fn list() -> Result<String> {
    let output = Command::new("pg_lsclusters").arg("--no-header").output().map_err(|error| {
        Error::new(Kind::Usage, "could not run pg_lsclusters")
            .caused_by(error)
            .hint("Names such as 15/main are those of Debian's postgresql-common. Elsewhere name the data directory.")
    })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Reads which cluster a server is of, whether it runs or not. Named as for [`find`].
///
/// # Errors
/// `Usage` for a name that nothing has; from the operating system; `Invalid` if its `pg_control` cannot be used.
pub fn system_identifier_of(name: &str) -> Result<u64> {
    let directory = match name.split_once('/') {
        Some((major, cluster)) if is_major(major) && !cluster.contains('/') => {
            PathBuf::from(column_in(&list()?, major, cluster, 5)?)
        }
        _ => Path::new("/").join(name),
    };
    ControlFile::read(&directory).map(|control| control.system_identifier)
}

fn port_in(listing: &str, major: &str, cluster: &str) -> Result<String> {
    column_in(listing, major, cluster, 2)
}

fn column_in(listing: &str, major: &str, cluster: &str, column: usize) -> Result<String> {
    let lines = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = lines.into_iter().find(|line| line.starts_with(&[major, cluster]));
    found.and_then(|line| line.get(column).map(|&text| text.to_owned())).ok_or_else(|| {
        Error::new(Kind::Usage, format!("there is no cluster {major}/{cluster} on this host"))
            .hint("pg_lsclusters shows all of them.")
    })
}

/// From `postmaster.pid` (src/include/utils/pidfile.h): line 4 is the port, 5 the first socket's directory, 6 the first
/// address, which is `*` for all.
fn of_data_directory(directory: &Path) -> Result<Local> {
    if !directory.join("PG_VERSION").is_file() {
        let message = format!("\"{}\" is not a data directory of PostgreSQL", directory.display());
        return Err(Error::new(Kind::Usage, message).hint("On Debian name a cluster, such as 15/main."));
    }
    let not_running =
        || Error::new(Kind::Unavailable, format!("no server is running on data directory \"{}\"", directory.display()));
    let contents = std::fs::read(directory.join("postmaster.pid")).map_err(|error| not_running().caused_by(error))?;
    let text = String::from_utf8_lossy(&contents);
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let [_, _, _, port, socket, address, ..] = lines.as_slice() else { return Err(not_running()) };
    let host = match (*socket, *address) {
        ("", "*" | "") => "localhost",
        ("", address) => address,
        (socket, _) => socket,
    };
    Ok(Local { host: Some(host.to_owned()), port: (*port).to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_of_debian_is_found_by_its_name_although_it_is_down() {
        let listing = "15 main 5432 online postgres /data /log\n15 x 5433 down postgres /var/lib/a b /log\n";
        assert_eq!(port_in(listing, "15", "x").unwrap(), "5433");
        let unknown = port_in(listing, "15", "mai").unwrap_err();
        assert_eq!(unknown.kind(), Kind::Usage);
        assert!(unknown.to_string().contains("no cluster 15/mai"), "{unknown}");
    }

    #[test]
    fn a_server_elsewhere_is_found_by_its_data_directory_with_or_without_the_first_slash() {
        let directory = tempfile::tempdir().unwrap();
        let name = directory.path().to_str().unwrap();
        assert_eq!(find(name).unwrap_err().kind(), Kind::Usage);
        std::fs::write(directory.path().join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(find(name).unwrap_err().kind(), Kind::Unavailable);
        let pid = |socket: &str, address: &str| {
            let text = format!("1\n{name}\n1\n5434\n{socket}\n{address}\n  99 1\nready   \n");
            std::fs::write(directory.path().join("postmaster.pid"), text).unwrap();
            find(name.trim_start_matches('/')).unwrap()
        };
        let local = |host: &str| Local { host: Some(host.to_owned()), port: "5434".to_owned() };
        assert_eq!(pid("/run/postgresql", "*"), local("/run/postgresql"));
        assert_eq!(pid("", "*"), local("localhost"));
        assert_eq!(pid("", "10.0.0.1"), local("10.0.0.1"));
    }
}
