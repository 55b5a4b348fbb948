//! The task that moves a connection's bytes, and the news of its end.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Connection};
use walkeep_common::error::{Error, Kind, Result};

use super::failure;

/// How long an orderly end may take before the socket is just closed.
const FAREWELL: Duration = Duration::from_secs(5);

/// Drives a connection in a task of its own. Dropping it ends the task, and that closes the socket.
#[derive(Debug)]
pub(super) struct Driver {
    task: JoinHandle<()>,
    end: End,
}

/// The end of a connection, announced by whoever notices it first: the driver, or the keep-alive.
#[derive(Debug, Clone)]
pub(super) struct End(Arc<watch::Sender<Option<Lost>>>);

/// Why the connection cannot be used any more.
#[derive(Debug, Clone)]
pub(super) enum Lost {
    /// It ended.
    Connection(String),
    /// It stands, but what it was kept for is gone.
    Backup(String),
}

impl Driver {
    pub(super) fn start<S, T>(connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let end = End(Arc::new(watch::Sender::new(None)));
        let announced = end.clone();
        let task = tokio::spawn(async move { announced.announce(Lost::Connection(drive(connection).await)) });
        Self { task, end }
    }

    pub(super) fn end(&self) -> End {
        self.end.clone()
    }

    /// Resolves with the error to fail with, once there is one.
    pub(super) async fn lost(&self) -> Error {
        self.end.error().await
    }

    /// Lets a connection whose clients are all gone say goodbye.
    pub(super) async fn finish(mut self) {
        // Too late or not: the socket is closed on return.
        let _ = timeout(FAREWELL, &mut self.task).await;
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl End {
    /// The first announcement stands.
    pub(super) fn announce(&self, lost: Lost) {
        let _ = self.0.send_if_modified(|announced| {
            let first = announced.is_none();
            if first {
                *announced = Some(lost);
            }
            first
        });
    }

    /// Fails if there has been an announcement.
    pub(super) fn check(&self) -> Result<()> {
        self.0.borrow().as_ref().map_or(Ok(()), |lost| Err(lost.error()))
    }

    async fn error(&self) -> Error {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(lost)) => lost.error(),
            // `self` holds a sender, so the channel cannot close before an announcement.
            Ok(None) | Err(_) => failure::lost("connection closed"),
        }
    }
}

impl Lost {
    fn error(&self) -> Error {
        match self {
            Self::Connection(reason) => failure::lost(reason),
            Self::Backup(message) => Error::new(Kind::Unavailable, message)
                .hint("PostgreSQL ends its backup mode by itself. Run basebackup again."),
        }
    }
}

/// Moves bytes until the end, and returns the reason for it. What the server says on the way is logged.
async fn drive<S, T>(mut connection: Connection<S, T>) -> String
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match poll_fn(|context| connection.poll_message(context)).await {
            Some(Ok(AsyncMessage::Notice(notice))) => {
                tracing::debug!("{}: {}", notice.severity(), notice.message());
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return reason(&error),
            None => return "connection closed".to_owned(),
        }
    }
}

fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(answer) = error.as_db_error() {
        return failure::words(answer);
    }
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}
