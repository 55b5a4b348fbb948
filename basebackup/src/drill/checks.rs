//! What is checked of the restored server.

use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use walkeep_common::error::{Error, Result};

use crate::session::Session;
use crate::session::conninfo::{ConnectionParameters, Host, RootCertificates, SslMode};

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Check {
    /// What was checked.
    pub(super) name: String,
    /// What came out.
    pub(super) outcome: Outcome,
    /// What was found, in a line or a few.
    pub(super) detail: String,
    /// How long it took.
    pub(super) milliseconds: u64,
}

/// What came out of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Outcome {
    /// It is as it must be.
    Passed,
    /// The operator should know; the drill passes all the same.
    Warning,
    /// The backup or the WAL is bad.
    Failed,
    /// Could not be checked here.
    Skipped,
}

/// What a check says: its outcome and its detail.
pub(super) type Said = (Outcome, String);

/// All checks so far.
#[derive(Debug, Default)]
pub(super) struct Checks(pub(super) Vec<Check>);

impl Checks {
    /// Makes a check of the server. One that cannot be made, because the server is lost or refuses, fails.
    pub(super) async fn make(&mut self, name: &str, check: impl Future<Output = Result<Said>>) {
        let begun = Instant::now();
        let said = check.await.unwrap_or_else(|error| (Outcome::Failed, error.to_string()));
        self.note(name, begun, said);
    }

    /// Takes in what a check that began then has said.
    pub(super) fn note(&mut self, name: &str, begun: Instant, (outcome, detail): Said) {
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.push(Check { name: name.to_owned(), outcome, detail, milliseconds });
    }

    /// Whether none failed.
    pub(super) fn have_passed(&self) -> bool {
        self.0.iter().all(|check| check.outcome != Outcome::Failed)
    }
}

/// How the drill's server is reached.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) socket: PathBuf,
    pub(super) port: u16,
    pub(super) user: String,
    /// Of every session, whatever the role or the database sets.
    pub(super) options: String,
}

impl Access {
    /// Connects to one of its databases.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub(super) async fn connect(&self, database: &str) -> Result<Session> {
        Session::connect(&ConnectionParameters {
            host: Host::Socket(self.socket.clone()),
            port: self.port,
            user: self.user.clone(),
            database: database.to_owned(),
            password: None,
            sslmode: SslMode::Disable,
            root_certificates: RootCertificates::Default(None),
            connect_timeout: Some(std::time::Duration::from_secs(60)),
            application_name: "basebackup drill".to_owned(),
            startup_options: Some(self.options.clone()),
        })
        .await
    }

    /// Connects to a database that is there in any cluster.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub(super) async fn connect_to_any(&self) -> Result<Session> {
        match self.connect("postgres").await {
            Ok(session) => Ok(session),
            Err(_) => self.connect("template1").await,
        }
    }
}

/// Whether everything in a list is well.
fn none(found: &[String], well: impl Into<String>, otherwise: Outcome, what: &str) -> Said {
    if found.is_empty() { (Outcome::Passed, well.into()) } else { (otherwise, format!("{what}: {}", found.join(", "))) }
}

/// Every database is connected to, its catalogs are read, and what they speak of is there.
///
/// # Errors
/// Whatever is wrong with one.
pub(super) async fn databases(access: &Access, databases: &[String]) -> Result<Said> {
    let (mut missing, mut dangling) = (Vec::new(), Vec::new());
    for database in databases {
        let in_it = |error: Error| error.context(format_args!("database \"{database}\""));
        let session = access.connect(database).await.map_err(in_it)?;
        session.read_catalogs().await.map_err(in_it)?;
        let found = session.relations_without_file().await.map_err(in_it)?;
        missing.extend(found.into_iter().map(|relation| format!("{database}.{relation}")));
        let found = session.dangling_references().await.map_err(in_it)?;
        dangling.extend(found.into_iter().map(|reference| format!("{reference} in {database}")));
        session.close().await;
    }
    if !dangling.is_empty() {
        return Ok(none(&dangling, "", Outcome::Failed, "missing from the catalogs"));
    }
    let well = format!("{} connected to and their catalogs read: {}", databases.len(), databases.join(", "));
    Ok(none(&missing, well, Outcome::Failed, "relations without a file"))
}

/// Collations and indexes that need the operator's attention.
///
/// # Errors
/// Whatever asking fails with.
pub(super) async fn collations(access: &Access, databases: &[String]) -> Result<Said> {
    let mut found = Vec::new();
    for database in databases {
        let session = access.connect(database).await?;
        let changed = session.changed_collations().await?;
        found
            .extend(changed.into_iter().map(|name| format!("collation {name} in {database} has another version here")));
        let invalid = session.invalid_indexes().await?;
        found.extend(invalid.into_iter().map(|name| format!("index {name} in {database} is invalid")));
        session.close().await;
    }
    Ok(none(&found, "versions are those of this host, and no index is invalid", Outcome::Warning, "found"))
}

/// SQL of the operator's: its last query must return a row, and none that begins with false.
///
/// # Errors
/// Whatever is wrong with it.
pub(super) async fn sql(access: &Access, database: &str, text: &str) -> Result<Said> {
    let session = access.connect(database).await?;
    let answer = session.run(text).await;
    session.close().await;
    Ok(match answer? {
        None => (Outcome::Failed, "there is no query in it".to_owned()),
        Some(answer) if answer.rows == 0 => (Outcome::Failed, "its last query returned no row".to_owned()),
        Some(answer) if answer.has_false => (Outcome::Failed, "its last query returned false".to_owned()),
        Some(answer) if answer.rows == 1 => (Outcome::Passed, "one row".to_owned()),
        Some(answer) => (Outcome::Passed, format!("{} rows", answer.rows)),
    })
}

/// Switches off the event triggers of the copy, for majors that have no setting for it.
///
/// # Errors
/// Whatever it fails with.
pub(super) async fn disable_event_triggers(access: &Access, databases: &[String]) -> Result<()> {
    for database in databases {
        let session = access.connect(database).await?;
        session.disable_event_triggers().await?;
        session.close().await;
    }
    Ok(())
}

/// What extensions need of this host. Without it the database is whole, but this host cannot serve all of it.
///
/// # Errors
/// Whatever asking fails with.
pub(super) async fn extensions(access: &Access, databases: &[String]) -> Result<Said> {
    let (mut missing, mut count) = (Vec::new(), 0);
    for database in databases {
        let session = access.connect(database).await?;
        count += session.extensions().await?;
        let found = [session.missing_extensions().await?, session.missing_libraries().await?].concat();
        missing.extend(found.into_iter().map(|name| format!("{name} of database {database}")));
        session.close().await;
    }
    let well = format!("the versions and the libraries of all {count} are installed here");
    Ok(none(&missing, well, Outcome::Warning, "not installed on this host"))
}

/// Transactions that somebody must finish in a restored database, and what is empty in it because it is never in a backup.
///
/// # Errors
/// Whatever asking fails with.
pub(super) async fn left_over(access: &Access, databases: &[String]) -> Result<(Said, Said)> {
    let (mut unlogged, mut filled) = (Vec::new(), Vec::new());
    let mut prepared = Vec::new();
    for (number, database) in databases.iter().enumerate() {
        let session = access.connect(database).await?;
        if number == 0 {
            // Any database shows those of all.
            prepared = session.prepared_transactions().await?;
        }
        unlogged.extend(session.unlogged_tables().await?.into_iter().map(|name| format!("{database}.{name}")));
        filled.extend(session.filled_unlogged_tables().await?.into_iter().map(|name| format!("{database}.{name}")));
        session.close().await;
    }
    let waiting = none(&prepared, "none is left over", Outcome::Warning, "to be committed or rolled back by hand");
    let empty = if unlogged.is_empty() {
        "there are none".to_owned()
    } else {
        format!("empty, as after any recovery: {}", unlogged.join(", "))
    };
    Ok((waiting, none(&filled, empty, Outcome::Failed, "not emptied by recovery")))
}
