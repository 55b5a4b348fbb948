//! The connection to the server and its backup mode. The only module that speaks to PostgreSQL.
//!
//! - [`conninfo`]: where the server is, decided as libpq does.
//! - [`server`]: what must be known of it, in a few queries.
//! - [`preflight`]: whether a backup can be taken from it, decided from those facts.
//! - [`relations`]: which relation a file belongs to.
//! - [`inspection`]: what a restored server is asked.
//! - [`archiver`]: how the server's archiver is doing.
//! - [`condition`]: what only a doctor asks.
//! - [`backup_mode`]: `pg_backup_start` to `pg_backup_stop`.
//! - [`restore_point`]: a name in the WAL behind a backup.
//!
//! A backup lives and dies with its session, so a [`Session`] never reconnects: once the connection is lost, everything
//! fails at once. Dropping it closes the socket, whatever the server is busy with. What to do is decided by SQLSTATE and
//! by typed values, never by text, which comes in the server's language and date style.

pub mod archiver;
pub mod backup_mode;
pub mod condition;
pub mod conninfo;
mod driver;
mod failure;
pub mod inspection;
mod pooling;
pub mod preflight;
pub mod relations;
pub mod restore_point;
pub mod server;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::config::SslMode as Transport;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Row, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;
use walkeep_common::error::{Error, Kind, Result};

use conninfo::{ConnectionParameters, Host};
use driver::Driver;

/// The longest a statement may take that has nothing to wait for.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// The oldest major that is supported.
const OLDEST_MAJOR: u32 = 13;

/// The server's version as `server_version_num` has it: 150018 is 15.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerVersion(pub u32);

impl ServerVersion {
    /// The major version.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }
}

/// One connection to a server, with every time-out off and a search path nobody can plant functions in.
#[derive(Debug)]
pub struct Session {
    client: Arc<Client>,
    driver: Driver,
    version: ServerVersion,
    target: String,
}

impl Session {
    /// Connects and prepares the session for a backup.
    ///
    /// # Errors
    /// `Usage` for parameters that cannot work, `Refused` when the server does not let us in, `Unavailable` when it
    /// cannot be reached; `Invalid` for a proxy that pools transactions or a PostgreSQL that is too old.
    pub async fn connect(parameters: &ConnectionParameters) -> Result<Self> {
        let (client, driver) = open(parameters).await?;
        pooling::refuse(&client, parameters).await?;
        let mut session =
            Self { client: Arc::new(client), driver, version: ServerVersion(0), target: parameters.target() };
        session.version = session.read_version().await?;
        session.set_up().await?;
        Ok(session)
    }

    /// The server's version.
    pub fn version(&self) -> ServerVersion {
        self.version
    }

    /// The server's place, as messages name it.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Resolves when the connection is lost, with the error to fail with. Long work that does not use the session
    /// itself waits for this too.
    pub async fn lost(&self) -> Error {
        self.driver.lost().await
    }

    /// Ends the session in order, so that the server has nothing to complain of in its log.
    pub async fn close(self) {
        drop(self.client);
        self.driver.finish().await;
    }

    async fn read_version(&self) -> Result<ServerVersion> {
        const DOING: &str = "read the server's version";
        let messages = self.bounded(DOING, self.client.simple_query("SHOW server_version_num")).await?;
        let text = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let unreadable = || Error::new(Kind::Internal, format!("could not {DOING}"));
        let version = ServerVersion(text.and_then(|text| text.parse().ok()).ok_or_else(unreadable)?);
        if version.major() < OLDEST_MAJOR {
            let message = format!("PostgreSQL {} at {} is too old", version.major(), self.target);
            return Err(
                Error::new(Kind::Invalid, message).hint(format!("PostgreSQL {OLDEST_MAJOR} and later are supported."))
            );
        }
        Ok(version)
    }

    /// What roles and databases may have set must not end a backup half-way or change what a query means.
    async fn set_up(&self) -> Result<()> {
        let settings = [
            (OLDEST_MAJOR, "search_path = pg_catalog"),
            (OLDEST_MAJOR, "statement_timeout = 0"),
            (OLDEST_MAJOR, "lock_timeout = 0"),
            // The one a standby refuses to read under.
            (OLDEST_MAJOR, "default_transaction_isolation = 'read committed'"),
            (OLDEST_MAJOR, "idle_in_transaction_session_timeout = 0"),
            (14, "idle_session_timeout = 0"),
            (17, "transaction_timeout = 0"),
            (OLDEST_MAJOR, "max_parallel_workers_per_gather = 0"),
            (OLDEST_MAJOR, "datestyle = 'ISO'"),
            (OLDEST_MAJOR, "client_encoding = 'UTF8'"),
        ];
        let known = settings.into_iter().filter(|(since, _)| self.version.major() >= *since);
        let statements: Vec<_> = known.map(|(_, setting)| format!("SET {setting}")).collect();
        self.bounded("set up the session", self.client.batch_execute(&statements.join("; "))).await
    }

    /// Runs a query that returns at once.
    async fn query(&self, doing: &str, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.bounded(doing, self.client.query(sql, parameters)).await
    }

    /// As [`Self::query`], for a query of one row.
    async fn query_one(&self, doing: &str, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        self.bounded(doing, self.client.query_one(sql, parameters)).await
    }

    async fn bounded<T>(
        &self,
        doing: &str,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        match timeout(STATEMENT_TIMEOUT, self.answer(doing, statement)).await {
            Ok(answer) => answer,
            Err(_) => Err(failure::lost(&format!("no answer within {} s", STATEMENT_TIMEOUT.as_secs()))
                .context(format_args!("could not {doing}"))),
        }
    }

    /// Waits for a statement's answer as long as the connection lives.
    async fn answer<T>(
        &self,
        doing: &str,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T> {
        match statement.await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.explain(doing, error).await),
        }
    }

    async fn explain(&self, doing: &str, error: tokio_postgres::Error) -> Error {
        match error.as_db_error() {
            Some(answer) if failure::ends_connection(answer.code()) => failure::lost(&failure::words(answer)),
            None if error.is_closed() => self.lost().await,
            _ => failure::statement(doing, error),
        }
    }
}

/// Connects in one of the ways that the TLS mode allows, in its order.
async fn open(parameters: &ConnectionParameters) -> Result<(Client, Driver)> {
    let connector = tls::connector(parameters)?;
    let within = async {
        let mut refused = None;
        for &transport in tls::transports(parameters) {
            match connect(parameters, transport, connector.clone()).await {
                Ok(connected) => {
                    warn_of_plaintext(parameters, transport, refused);
                    return Ok(connected);
                }
                Err(error) if is_about_encryption(&error) => refused = Some(refused.unwrap_or(error)),
                Err(error) => return Err(failure::connecting(parameters, refused.unwrap_or(error))),
            }
        }
        let nothing = || Error::new(Kind::Internal, "no way to connect");
        Err(refused.map_or_else(nothing, |error| failure::connecting(parameters, error)))
    };
    let Some(limit) = parameters.connect_timeout else { return within.await };
    let late = |_| {
        let message =
            format!("could not connect to PostgreSQL at {} within {} s", parameters.target(), limit.as_secs());
        Error::new(Kind::Unavailable, message).hint("Is the server reachable? The limit is PGCONNECT_TIMEOUT.")
    };
    timeout(limit, within).await.map_err(late)?
}

async fn connect(
    parameters: &ConnectionParameters,
    transport: Transport,
    connector: MakeRustlsConnect,
) -> Result<(Client, Driver), tokio_postgres::Error> {
    let (client, connection) = config(parameters, transport).connect(connector).await?;
    Ok((client, Driver::start(connection)))
}

/// Whether another way to connect may succeed: the handshake failed, or `pg_hba.conf` has no line for this one. libpq
/// tries again after any refusal; here a password that was refused under TLS is not sent again without.
fn is_about_encryption(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) || failure::handshake(error).is_some()
}

fn warn_of_plaintext(parameters: &ConnectionParameters, transport: Transport, refused: Option<tokio_postgres::Error>) {
    if let (Transport::Disable, Some(error)) = (transport, refused) {
        let reason = failure::connecting(parameters, error);
        tracing::warn!("the connection is not encrypted: {reason}");
    }
}

fn config(parameters: &ConnectionParameters, transport: Transport) -> Config {
    let mut config = Config::new();
    config.ssl_mode(transport).port(parameters.port).user(&parameters.user).dbname(&parameters.database);
    config.application_name(&parameters.application_name);
    if let Some(options) = &parameters.startup_options {
        config.options(options);
    }
    if let Some(password) = &parameters.password {
        config.password(&password.text);
    }
    match &parameters.host {
        Host::Socket(directory) => config.host_path(directory),
        Host::Name(name) => config.host(name),
    };
    // A lost peer is noticed within a minute, also while it is silent: the default of the system is two hours.
    config.keepalives(true).keepalives_idle(Duration::from_secs(30)).keepalives_interval(Duration::from_secs(10));
    config.keepalives_retries(3).tcp_user_timeout(Duration::from_secs(60));
    config
}
