//! What a restored server is asked: whether everything that its catalogs speak of is there, and how far it has come.

use jiff::Timestamp;
use tokio_postgres::SimpleQueryMessage;
use walkeep_common::error::Result;

use super::Session;
use super::backup_mode::column;

/// Findings that are named one by one.
const NAMED: &str = "20";

/// What the last statement of a file of SQL has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// How many rows.
    pub rows: usize,
    /// Whether the first column of a row was false.
    pub has_false: bool,
}

impl Session {
    /// The databases that take connections, by name.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn databases_to_connect(&self) -> Result<Vec<String>> {
        let sql = "SELECT datname::text AS name FROM pg_database WHERE datallowconn ORDER BY 1";
        self.names("list the databases", sql).await
    }

    /// When the last transaction that recovery replayed was committed, by the clock of the server that did; none if there
    /// was none.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn last_replayed_commit(&self) -> Result<Option<Timestamp>> {
        let sql = "SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::int8 AS time";
        let row = self.query_one("ask how far recovery came", sql, &[]).await?;
        let micros: Option<i64> = column(&row, "time")?;
        Ok(micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()))
    }

    /// The relations of this database whose file is not there.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn relations_without_file(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT quote_ident(namespace.nspname) || '.' || quote_ident(class.relname) AS name
             FROM pg_class AS class JOIN pg_namespace AS namespace ON namespace.oid = class.relnamespace
             WHERE class.relpersistence <> 't' AND pg_relation_filepath(class.oid) IS NOT NULL
                AND (pg_stat_file(pg_relation_filepath(class.oid), true)).size IS NULL
             ORDER BY 1 LIMIT {NAMED}"
        );
        self.names("look for the files of relations", &sql).await
    }

    /// Reads every row of the system catalogs of this database.
    ///
    /// # Errors
    /// `Unavailable`, or whatever is wrong with one.
    pub async fn read_catalogs(&self) -> Result<()> {
        let sql = "SELECT quote_ident(relname) AS name FROM pg_class
                   WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' ORDER BY 1";
        for name in self.names("list the catalogs", sql).await? {
            let count = format!("SELECT count(*)::text AS name FROM pg_catalog.{name} AS row WHERE row IS NOT NULL");
            let _ = self.names("read a catalog", &count).await?;
        }
        Ok(())
    }

    /// Indexes of this database that were left invalid.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn invalid_indexes(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE NOT indisvalid ORDER BY 1 LIMIT {NAMED}"
        );
        self.names("look for invalid indexes", &sql).await
    }

    /// Collations that sort in another way on this host than where their indexes were built, as far as their versions tell.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn changed_collations(&self) -> Result<Vec<String>> {
        let mut sql = "SELECT quote_ident(collname) AS name FROM pg_collation
                       WHERE collversion <> pg_collation_actual_version(oid)"
            .to_owned();
        if self.version().major() >= 15 {
            sql.push_str(
                " UNION ALL SELECT 'the default of database ' || quote_ident(datname) FROM pg_database
                  WHERE datname = current_database()
                    AND datcollversion <> pg_database_collation_actual_version(oid)",
            );
        }
        self.names("compare the versions of collations", &sql).await
    }

    /// Runs SQL of the operator's and returns what its last query answered; nothing if there was none.
    ///
    /// # Errors
    /// Whatever is wrong with it.
    pub async fn run(&self, sql: &str) -> Result<Option<Answer>> {
        // It is written for sessions as everybody has them.
        self.bounded("set up the session", self.client.batch_execute("RESET ALL")).await?;
        let messages = self.answer("run the SQL", self.client.simple_query(sql)).await?;
        let mut answer: Option<Answer> = None;
        for message in &messages {
            match message {
                SimpleQueryMessage::RowDescription(_) => answer = Some(Answer { rows: 0, has_false: false }),
                SimpleQueryMessage::Row(row) => {
                    let answer = answer.get_or_insert(Answer { rows: 0, has_false: false });
                    answer.rows += 1;
                    answer.has_false |= row.try_get(0).ok().flatten() == Some("f");
                }
                _ => {}
            }
        }
        Ok(answer)
    }

    async fn names(&self, doing: &str, sql: &str) -> Result<Vec<String>> {
        let rows = self.query(doing, sql, &[]).await?;
        rows.iter().map(|row| column(row, "name")).collect()
    }
}
