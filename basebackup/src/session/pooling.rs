//! Proxies that pool transactions: behind one, `pg_backup_start` and `pg_backup_stop` run in different sessions, and
//! nobody notices until the restore.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};
use walkeep_common::error::{Error, Kind, Result};

use super::conninfo::ConnectionParameters;
use super::failure;

/// How often the two connections take turns. A busy pool may hand the same backend out again by chance.
const TURNS: u32 = 3;

/// How long all that may take. A pool of one backend never answers while the other connection holds it.
const ANSWER: Duration = Duration::from_secs(10);

/// Refuses a connection whose backend changes from one transaction to the next.
///
/// Asking twice would not do, for an idle pool hands out the backend it got back last. So a second connection holds a
/// transaction open, and with it the backend that the first one would get again: if the first still gets the same
/// answer, the backend is its own.
pub(super) async fn refuse(client: &Client, parameters: &ConnectionParameters) -> Result<()> {
    let doing = "find out whether a connection pooler is in between";
    let (other, driver) = match super::open(parameters).await {
        Ok(other) => other,
        Err(error) => {
            // A limit of one connection is no reason to go without a backup.
            tracing::warn!("could not {doing}: {error}");
            return Ok(());
        }
    };
    let answer = timeout(ANSWER, keeps_its_backend(client, &other)).await;
    drop(other);
    driver.finish().await;
    match answer {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => {
            let message = format!("{} is a connection pooler that pools transactions", parameters.target());
            Err(Error::new(Kind::Invalid, message).hint(HINT))
        }
        Ok(Err(error)) => Err(failure::statement(doing, error)),
        Err(_) => {
            let message = format!("{} does not answer while another connection is busy", parameters.target());
            Err(Error::new(Kind::Invalid, message).hint(HINT))
        }
    }
}

const HINT: &str =
    "A backup needs one session from start to end. Connect to PostgreSQL itself, or to a pool in session mode.";

async fn keeps_its_backend(client: &Client, other: &Client) -> Result<bool, tokio_postgres::Error> {
    let own = backend(client).await?;
    for _ in 0..TURNS {
        other.batch_execute(BEGIN).await?;
        let taken = answer(&other.simple_query(BACKEND).await?);
        let again = backend(client).await?;
        other.batch_execute("COMMIT").await?;
        if taken == own || again != own {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Not in the level that the server's configuration may name: a standby refuses to read in a serializable transaction. To
/// set another one is no option before it is known whose session that would change.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
const BACKEND: &str = "SELECT pg_catalog.pg_backend_pid()";

async fn backend(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    client.simple_query(&format!("{BEGIN}; {BACKEND}; COMMIT")).await.map(|messages| answer(&messages))
}

fn answer(messages: &[SimpleQueryMessage]) -> Option<String> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}
