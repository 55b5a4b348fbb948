//! Which relation a file belongs to, as far as the server can tell.

use std::collections::BTreeMap;

use walkeep_common::error::Result;

use super::Session;
use super::conninfo::ConnectionParameters;
use crate::files::relation::{FileLocation, RelationFile};

/// Damage that is everywhere is not looked up file by file.
const MOST_FILES: usize = 200;

/// The relations of files, as `database.schema.name` with SQL's quotes, by the files' paths; without a database where all
/// share the relation. A file whose relation cannot be told is left
/// out: it was dropped meanwhile, or its database takes no connection.
pub async fn names(
    session: &Session,
    parameters: &ConnectionParameters,
    files: impl Iterator<Item = &str>,
) -> BTreeMap<String, String> {
    let mut by_database: BTreeMap<Option<u32>, Vec<(String, FileLocation)>> = BTreeMap::new();
    for file in files.take(MOST_FILES) {
        let Some(location) = FileLocation::parse(file) else { continue };
        by_database.entry(location.database).or_default().push((file.to_owned(), location));
    }
    let mut names = BTreeMap::new();
    for (database, files) in by_database {
        match in_database(session, parameters, database, &files).await {
            Ok(found) => names.extend(found),
            Err(error) => tracing::debug!(%error, "could not look up the relations of damaged files"),
        }
    }
    names
}

async fn in_database(
    session: &Session,
    parameters: &ConnectionParameters,
    database: Option<u32>,
    files: &[(String, FileLocation)],
) -> Result<Vec<(String, String)>> {
    const DOING: &str = "look up a relation";
    let Some(oid) = database else { return in_session(session, None, files).await };
    let name = "SELECT datname::text AS name, quote_ident(datname) AS quoted FROM pg_database WHERE oid = $1";
    let Some(row) = session.query(DOING, name, &[&oid]).await?.pop() else { return Ok(Vec::new()) };
    let name: String = super::backup_mode::column(&row, "name")?;
    let quoted: &str = super::backup_mode::column(&row, "quoted")?;
    let there = Session::connect(&ConnectionParameters { database: name, ..parameters.clone() }).await?;
    let found = in_session(&there, Some(quoted), files).await;
    there.close().await;
    found
}

async fn in_session(
    session: &Session,
    database: Option<&str>,
    files: &[(String, FileLocation)],
) -> Result<Vec<(String, String)>> {
    const SQL: &str = "
        SELECT quote_ident(namespace.nspname) || '.' || quote_ident(class.relname) AS name
        FROM pg_class AS class JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
        WHERE class.oid = pg_filenode_relation($1, $2)";
    let mut found = Vec::new();
    for (file, FileLocation { tablespace, relation: RelationFile { number, .. }, .. }) in files {
        let Some(row) = session.query("look up a relation", SQL, &[tablespace, number]).await?.pop() else { continue };
        let name: String = super::backup_mode::column(&row, "name")?;
        found.push((file.clone(), database.map_or(name.clone(), |database| format!("{database}.{name}"))));
    }
    Ok(found)
}
