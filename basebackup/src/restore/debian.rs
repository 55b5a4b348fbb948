//! Clusters as Debian's postgresql-common knows them: a directory below `/etc/postgresql` for each.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use walkeep_common::error::{Error, Kind, Result};

/// Where postgresql-common looks for clusters unless `PG_CLUSTER_CONF_ROOT` says otherwise (`PgCommon.pm`).
const CONFIGURATION_ROOT: &str = "/etc/postgresql";
const DATA_ROOT: &str = "/var/lib/postgresql";
const FIRST_PORT: u16 = 5432;

/// A cluster's name, such as `15/restored`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianCluster {
    /// PostgreSQL's major.
    pub major: u32,
    /// The name, unique for the major.
    pub name: String,
}

/// The text is no name of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected PostgreSQL's major and a name, such as 15/restored")]
pub struct InvalidCluster;

impl FromStr for DebianCluster {
    type Err = InvalidCluster;

    fn from_str(text: &str) -> Result<Self, InvalidCluster> {
        let (major, name) = text.split_once('/').ok_or(InvalidCluster)?;
        // What a unit's name and a path take; a dash would be read as another cluster's name in postgresql@15-x.service.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        let good = name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.chars().all(plain);
        let major = major.parse().map_err(|_| InvalidCluster)?;
        if good { Ok(Self { major, name: name.to_owned() }) } else { Err(InvalidCluster) }
    }
}

impl fmt::Display for DebianCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.major, self.name)
    }
}

impl DebianCluster {
    /// The directory of its configuration.
    pub fn configuration_directory(&self) -> PathBuf {
        let root = std::env::var_os("PG_CLUSTER_CONF_ROOT").map_or_else(|| CONFIGURATION_ROOT.into(), PathBuf::from);
        root.join(self.major.to_string()).join(&self.name)
    }

    /// Where its data goes unless something else is said.
    pub fn data_directory(&self) -> PathBuf {
        Path::new(DATA_ROOT).join(self.major.to_string()).join(&self.name)
    }

    /// The settings that postgresql-common gives a cluster of its own, besides where its files are.
    pub fn settings(&self, port: u16) -> Vec<(String, String)> {
        let Self { major, name } = self;
        let settings = [
            ("external_pid_file", format!("/var/run/postgresql/{major}-{name}.pid")),
            ("port", port.to_string()),
            ("cluster_name", self.to_string()),
        ];
        settings.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

/// The clusters of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownClusters {
    /// Names and ports.
    clusters: Vec<(String, u16)>,
}

impl KnownClusters {
    /// Asks `pg_lsclusters`.
    ///
    /// # Errors
    /// `Usage` where postgresql-common is not installed.
    pub fn read() -> Result<Self> {
        let unusable = |problem: String| {
            Error::new(Kind::Usage, format!("--to-cluster needs Debian's postgresql-common: {problem}"))
                .hint("Install postgresql-common, or restore with -D and --config-dir.")
        };
        let output = Command::new("pg_lsclusters").arg("--no-header").output();
        let output = output.map_err(|error| unusable(format!("could not run pg_lsclusters: {error}")))?;
        if !output.status.success() {
            return Err(unusable(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        Ok(Self::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    fn parse(listing: &str) -> Self {
        let cluster = |line: &str| {
            let mut columns = line.split_whitespace();
            let (major, name, port) = (columns.next()?, columns.next()?, columns.next()?);
            Some((format!("{major}/{name}"), port.parse().ok()?))
        };
        Self { clusters: listing.lines().filter_map(cluster).collect() }
    }

    /// Whether there is one of this name.
    pub fn has(&self, cluster: &DebianCluster) -> bool {
        self.clusters.iter().any(|(name, _)| *name == cluster.to_string())
    }

    /// The port if nobody has it, else the first one nobody has. Clusters that are down have theirs too.
    pub fn free_port(&self, wanted: u16) -> u16 {
        let is_free = |port: u16| {
            self.clusters.iter().all(|(_, taken)| *taken != port)
                && std::net::TcpListener::bind(("127.0.0.1", port)).is_ok()
        };
        std::iter::once(wanted).chain(FIRST_PORT..u16::MAX).find(|&port| is_free(port)).unwrap_or(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_that_postgresql_common_takes() {
        let cluster: DebianCluster = "15/restored".parse().unwrap();
        assert_eq!((cluster.major, cluster.name.as_str(), cluster.to_string()), (15, "restored", "15/restored".into()));
        for text in ["", "15", "15/", "/main", "main/15", "15/../x", "15/a b", "15/a-b", "15/.x", "15/a/b"] {
            assert!(text.parse::<DebianCluster>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_that_another_cluster_has_is_not_taken_even_if_that_is_down() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listing = format!("15 main {FIRST_PORT} down postgres /data /log\n15 x {taken} online,recovery a b c\n");
        let known = KnownClusters::parse(&listing);
        assert!(known.has(&"15/x".parse().unwrap()) && !known.has(&"16/x".parse().unwrap()));
        assert!(known.free_port(FIRST_PORT) > FIRST_PORT);
        assert_ne!(known.free_port(taken), taken);
    }
}
