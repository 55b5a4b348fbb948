//! What is checked of the restored server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::binaries::Binaries;
use super::isolation::SESSION;
use crate::session::Session;
use crate::session::conninfo::{ConnectionParameters, Host, RootCertificates, SslMode};

/// Lines of a program's output that go into the record.
const SHOWN_LINES: usize = 10;

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
    /// Makes a check. One that cannot be made because the server is lost fails.
    pub(super) async fn make(&mut self, name: &str, check: impl Future<Output = Result<Said>>) {
        let begun = Instant::now();
        let (outcome, detail) = check.await.unwrap_or_else(|error| (Outcome::Failed, error.to_string()));
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
            startup_options: Some(SESSION.to_owned()),
        })
        .await
    }
}

/// Whether everything in a list is well.
fn none(found: &[String], well: impl Into<String>, otherwise: Outcome, what: &str) -> Said {
    if found.is_empty() { (Outcome::Passed, well.into()) } else { (otherwise, format!("{what}: {}", found.join(", "))) }
}

/// Every database is connected to, its catalogs are read, and the file of every relation is there.
///
/// # Errors
/// Whatever is wrong with one.
pub(super) async fn databases(access: &Access, databases: &[String]) -> Result<Said> {
    let mut missing = Vec::new();
    for database in databases {
        let in_it = |error: Error| error.context(format_args!("database \"{database}\""));
        let session = access.connect(database).await.map_err(in_it)?;
        session.read_catalogs().await.map_err(in_it)?;
        let found = session.relations_without_file().await.map_err(in_it)?;
        missing.extend(found.into_iter().map(|relation| format!("{database}.{relation}")));
        session.close().await;
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

/// A file of the operator's: its last query must return a row, and none that begins with false.
///
/// # Errors
/// From the operating system; whatever is wrong with the SQL.
pub(super) async fn sql(access: &Access, database: &str, file: &Path) -> Result<Said> {
    let text = std::fs::read_to_string(file).context("read file", file)?;
    let session = access.connect(database).await?;
    let answer = session.run(&text).await;
    session.close().await;
    Ok(match answer? {
        None => (Outcome::Failed, "there is no query in it".to_owned()),
        Some(answer) if answer.rows == 0 => (Outcome::Failed, "its last query returned no row".to_owned()),
        Some(answer) if answer.has_false => (Outcome::Failed, "its last query returned false".to_owned()),
        Some(answer) if answer.rows == 1 => (Outcome::Passed, "one row".to_owned()),
        Some(answer) => (Outcome::Passed, format!("{} rows", answer.rows)),
    })
}

/// One of PostgreSQL's own programs, which says what it finds wrong.
///
/// # Errors
/// From the operating system.
pub(super) async fn program(binaries: &Binaries, name: &str, words: &[&str], well: &str) -> Result<Said> {
    let Some(path) = binaries.program(name) else {
        return Ok((Outcome::Skipped, format!("{name} is not installed")));
    };
    let mut command = Command::new(&path);
    let _ = command.args(words).env_clear().env("LC_ALL", "C").env("PGOPTIONS", SESSION);
    let output = spawn_blocking(move || command.output()).await;
    let output = output.map_err(|error| Error::new(Kind::Internal, "a thread failed").caused_by(error))?;
    let output = output.context("run", &path)?;
    if output.status.success() {
        return Ok((Outcome::Passed, well.to_owned()));
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().take(SHOWN_LINES).collect();
    let is_not_there = said.contains("extension \"amcheck\" is not available");
    Ok((if is_not_there { Outcome::Skipped } else { Outcome::Failed }, lines.join("\n")))
}
