//! The session of a running backup is used now and then: firewalls forget silent connections, and a server that is
//! gone, hangs or was promoted should be noticed long before the last file is copied.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use walkeep_common::error::Result;

use super::PROMOTED;
use crate::session::Session;
use crate::session::driver::{End, Lost};

/// How long the server may take to answer. A busy one still does; longer means that it hangs.
const ANSWER: Duration = Duration::from_secs(60);

/// Asks the server whether it is still what it was, until dropped.
#[derive(Debug)]
pub(super) struct KeepAlive {
    task: JoinHandle<()>,
    end: End,
}

impl KeepAlive {
    pub(super) fn start(session: &Session, in_recovery: bool, every: Duration) -> Self {
        let (client, end) = (Arc::clone(&session.client), session.driver.end());
        let announced = end.clone();
        let task = tokio::spawn(async move {
            loop {
                sleep(every).await;
                let answer = timeout(ANSWER, client.query_one("SELECT pg_is_in_recovery()", &[])).await;
                let lost = match answer.map(|answer| answer.and_then(|row| row.try_get::<_, bool>(0))) {
                    Ok(Ok(now)) if now == in_recovery => continue,
                    Ok(Ok(_)) => PROMOTED.to_owned(),
                    // The driver announces the reason.
                    Ok(Err(error)) if error.is_closed() => return,
                    Ok(Err(error)) => format!("the server does not answer any more: {error}"),
                    Err(_) => format!("the server has not answered for {} s", ANSWER.as_secs()),
                };
                return announced.announce(Lost::Backup(lost));
            }
        });
        Self { task, end }
    }

    /// Ends the questions, and fails if one of them was answered wrongly.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.task.abort();
        // Cancelled or ended: either way its share of the client is gone now.
        let _ = (&mut self.task).await;
        self.end.check()
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use walkeep_tests::cluster::Cluster;

    use super::*;
    use crate::session::conninfo::{ConnectionArgs, ConnectionParameters, Environment};

    #[tokio::test(flavor = "multi_thread")]
    async fn a_promotion_is_noticed_while_files_are_copied() {
        let primary = Cluster::options().start();
        let mut standby = primary.standby(Cluster::options());
        standby.start();
        let dbname = format!("host={} user=postgres", standby.socket_directory().display());
        let args = ConnectionArgs { dbname: Some(dbname), ..ConnectionArgs::default() };
        let parameters = ConnectionParameters::resolve(&args, &Environment::of_process().unwrap()).unwrap();
        let session = Session::connect(&parameters).await.unwrap();
        let keep_alive = KeepAlive::start(&session, true, Duration::from_millis(50));
        standby.promote();
        let lost = timeout(Duration::from_secs(60), session.lost()).await.unwrap();
        assert_eq!(lost.to_string(), PROMOTED);
        assert_eq!(keep_alive.stop().await.unwrap_err().to_string(), PROMOTED);
    }
}
