//! Which cluster is meant, where several of one host keep their backups under the same name.

use clap::Args;
use walkeep_common::error::Result;

use crate::session::conninfo::system_identifier_of;

/// How it is told.
#[derive(Debug, Clone, Default, Args)]
pub struct ClusterArgs {
    /// Only the cluster with this system identifier
    #[arg(long, value_name = "NUMBER")]
    pub system_identifier: Option<u64>,
    /// Only the cluster of this server of this host: a cluster of Debian's, such as 15/main, else its data directory
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
}

impl ClusterArgs {
    /// The system identifier; nothing where any cluster is meant.
    ///
    /// # Errors
    /// `Usage` for a server that there is not; what reading its `pg_control` gives.
    pub fn identifier(&self) -> Result<Option<u64>> {
        match (self.system_identifier, &self.server) {
            (None, Some(server)) => system_identifier_of(server).map(Some),
            (identifier, _) => Ok(identifier),
        }
    }
}
