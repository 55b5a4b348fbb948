//! The restore point behind a backup: a name in the WAL, written right after the backup's end, that a drill can look for.

use walkeep_common::error::Result;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::backup::RestorePoint;

use super::Session;
use super::backup_mode::column;
use super::server::{lsn, unexpected};

impl Session {
    /// Writes a restore point where the role may, and does not return before it is on the server's disk. Nothing where it
    /// may not: superusers may, and whom they grant it to. The server must be a primary.
    ///
    /// # Errors
    /// `Unavailable` if the connection is lost; `Refused` by the server.
    pub async fn create_restore_point(&self, name: String) -> Result<Option<RestorePoint>> {
        const DOING: &str = "write a restore point";
        // The right is checked before anything is evaluated, so it must be asked for on its own.
        let may = "SELECT has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE') AS may";
        if !column::<bool>(&self.query_one(DOING, may, &[]).await?, "may")? {
            return Ok(None);
        }
        // The function itself does not wait for the disk. The end of a transaction with an id does.
        let sql =
            "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), pg_catalog.pg_current_xact_id()::text,
                       pg_catalog.pg_create_restore_point($1)::text AS lsn";
        let row = self.query_one(DOING, sql, &[&name]).await?;
        let end: Lsn = lsn(&row, "lsn").map_err(|error| unexpected(&error))?;
        Ok(Some(RestorePoint { name, lsn: end }))
    }
}
