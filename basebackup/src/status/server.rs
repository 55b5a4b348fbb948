//! The server's side: how far it has come and what waits to be archived.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::timeout;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::wal::segment::Timeline;

use crate::session::Session;
use crate::session::archiver::{Archiver, Attempt};
use crate::session::conninfo::ConnectionParameters;
use crate::session::server::Server;

/// A server that hangs is as good as none.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// What the server says, or why it does not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) struct ServerStatus {
    /// Why nothing is known.
    pub(super) problem: Option<String>,
    #[serde(flatten)]
    pub(super) facts: Option<ServerFacts>,
}

/// What it says.
#[derive(Debug, Serialize)]
pub(super) struct ServerFacts {
    #[serde(with = "walkeep_common::wal_object::header::text_or_number")]
    pub(super) system_identifier: u64,
    pub(super) version: u32,
    pub(super) in_recovery: bool,
    pub(super) timeline: Timeline,
    /// Up to where it has written WAL, or received it.
    pub(super) position: Lsn,
    /// Whether it is meant to archive.
    pub(super) archives: bool,
    /// None: this user may not look.
    pub(super) queue: Option<QueueStatus>,
    /// Whether the latest attempt to archive has failed.
    pub(super) archiving_fails: bool,
    pub(super) last_archived: Option<AttemptStatus>,
    pub(super) last_failed: Option<AttemptStatus>,
    pub(super) archived_count: u64,
    pub(super) failed_count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct QueueStatus {
    pub(super) files: u64,
    pub(super) oldest: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
pub(super) struct AttemptStatus {
    pub(super) file: String,
    pub(super) time: Timestamp,
}

/// Asks the server.
pub(super) async fn look(parameters: &ConnectionParameters) -> ServerStatus {
    let late = |_| {
        let message = format!("PostgreSQL at {} gave no answer within {ANSWER_TIME:?}", parameters.target());
        Err(Error::new(Kind::Unavailable, message))
    };
    match timeout(ANSWER_TIME, ask(parameters)).await.unwrap_or_else(late) {
        Ok((server, archiver)) => ServerStatus { problem: None, facts: Some(ServerFacts::new(&server, archiver)) },
        Err(error) => ServerStatus { problem: Some(error.to_string()), facts: None },
    }
}

async fn ask(parameters: &ConnectionParameters) -> Result<(Server, Archiver)> {
    let session = Session::connect(parameters).await?;
    let server = session.server().await?;
    let archiver = session.archiver(&server).await?;
    session.close().await;
    Ok((server, archiver))
}

impl ServerFacts {
    fn new(server: &Server, archiver: Archiver) -> Self {
        let archiving_fails = archiver.failure().is_some();
        let attempt = |attempt: Attempt| AttemptStatus { file: attempt.file, time: attempt.time };
        Self {
            system_identifier: server.system_identifier,
            version: server.version.0,
            in_recovery: server.in_recovery,
            timeline: server.timeline,
            position: archiver.position,
            archives: server.archives(),
            queue: archiver.queue.map(|queue| QueueStatus { files: queue.files, oldest: queue.oldest }),
            archiving_fails,
            last_archived: archiver.last_archived.map(attempt),
            last_failed: archiver.last_failed.map(attempt),
            archived_count: archiver.archived_count,
            failed_count: archiver.failed_count,
        }
    }
}
