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

/// Queries for what is referred to and not there (`pg_get_catalog_foreign_keys`; PostgreSQL's own regression test
/// `oidjoins` builds its queries alike).
const REFERENCES_SQL: &str = "
    SELECT format('SELECT DISTINCT %L || key%s AS name FROM (SELECT %s FROM %s) AS fk WHERE key%s <> 0 AND NOT EXISTS
                       (SELECT FROM %s AS pk WHERE %s) LIMIT 5',
            fktable || '.' || fkcols[last] || ' refers to ' || pktable || ' ', last,
            (SELECT string_agg(CASE WHEN is_array AND number = last THEN format('unnest(%I) AS key%s', name, number)
                                    ELSE format('%I AS key%s', name, number) END, ', ')
             FROM unnest(fkcols) WITH ORDINALITY AS fkcol (name, number)),
            fktable, last, pktable,
            (SELECT string_agg(format('pk.%I = key%s', name, number), ' AND ')
             FROM unnest(pkcols) WITH ORDINALITY AS pkcol (name, number))) AS name
    FROM pg_get_catalog_foreign_keys(), array_length(fkcols, 1) AS last";

impl Session {
    /// The databases that take connections, by name; none for a name that is not UTF-8, to which there is no connecting.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn databases_to_connect(&self) -> Result<Vec<Option<String>>> {
        let sql = r"SELECT decode(replace(datname::text, E'\\', E'\\\\'), 'escape') AS name
                    FROM pg_database WHERE datallowconn ORDER BY 1";
        let rows = self.query("list the databases", sql, &[]).await?;
        rows.iter().map(|row| Ok(String::from_utf8(column(row, "name")?).ok())).collect()
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

    /// What this database's catalogs speak of and do not have: a page of zeros is an empty page to PostgreSQL, so whoever
    /// only reads a catalog misses nothing.
    ///
    /// # Errors
    /// `Unavailable`, or whatever is wrong with one.
    pub async fn dangling_references(&self) -> Result<Vec<String>> {
        const DOING: &str = "compare the catalogs with each other";
        let columns = format!(
            "SELECT 'columns of ' || class.oid::regclass::text AS name FROM pg_class AS class
             WHERE relnatts <> (SELECT count(*) FROM pg_attribute WHERE attrelid = class.oid AND attnum > 0)
             ORDER BY 1 LIMIT {NAMED}"
        );
        let mut missing = self.names(DOING, &columns).await?;
        if self.version().major() < 14 {
            return Ok(missing);
        }
        // One query for each of the references that PostgreSQL documents. An array refers with its elements, and with the
        // columns before it; zero refers to nothing.
        let queries = self.names(DOING, REFERENCES_SQL).await?;
        for query in queries {
            missing.extend(self.names(DOING, &query).await?);
        }
        missing.truncate(NAMED.parse().unwrap_or(usize::MAX));
        Ok(missing)
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

    /// How many extensions this database has.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn extensions(&self) -> Result<usize> {
        let names = self.names("list the extensions", "SELECT extname::text AS name FROM pg_extension").await?;
        Ok(names.len())
    }

    /// The extensions of this database that are not installed on this host in this version.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn missing_extensions(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT 'extension ' || quote_ident(extname) || ' ' || extversion AS name FROM pg_extension
             WHERE NOT EXISTS (SELECT FROM pg_available_extension_versions AS available
                               WHERE available.name = extname AND available.version = extversion)
             ORDER BY 1 LIMIT {NAMED}"
        );
        self.names("look for extensions", &sql).await
    }

    /// The libraries of this database's functions that are not installed on this host.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn missing_libraries(&self) -> Result<Vec<String>> {
        // A name without a directory is looked for where extensions' libraries are.
        let sql = format!(
            "WITH library AS (SELECT DISTINCT probin FROM pg_proc WHERE probin IS NOT NULL),
                  place AS (SELECT probin, CASE WHEN probin LIKE '/%' THEN probin
                                ELSE setting || '/' || replace(probin, '$libdir/', '') END AS path
                            FROM library, pg_config WHERE name = 'PKGLIBDIR')
             SELECT 'library ' || probin AS name FROM place
             WHERE (pg_stat_file(path, true)).size IS NULL AND (pg_stat_file(path || '.so', true)).size IS NULL
             ORDER BY 1 LIMIT {NAMED}"
        );
        self.names("look for libraries", &sql).await
    }

    /// Transactions that were prepared and neither committed nor rolled back, of all databases.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn prepared_transactions(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT quote_literal(gid) || ' of ' || quote_ident(owner) || ' in ' || quote_ident(database) AS name
             FROM pg_prepared_xacts ORDER BY prepared LIMIT {NAMED}"
        );
        self.names("list the prepared transactions", &sql).await
    }

    /// The unlogged tables of this database.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn unlogged_tables(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT oid::regclass::text AS name FROM pg_class
             WHERE relpersistence = 'u' AND relkind = 'r' ORDER BY 1 LIMIT {NAMED}"
        );
        self.names("list the unlogged tables", &sql).await
    }

    /// Those among them that have something in them.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn filled_unlogged_tables(&self) -> Result<Vec<String>> {
        let sql = format!(
            "SELECT oid::regclass::text AS name FROM pg_class
             WHERE relpersistence = 'u' AND relkind IN ('r', 't') AND pg_relation_size(oid) > 0 ORDER BY 1 LIMIT {NAMED}"
        );
        self.names("look into the unlogged tables", &sql).await
    }

    /// Switches off the event triggers of this database, which the majors before 17 have no setting for.
    ///
    /// # Errors
    /// `Unavailable`, `Refused`.
    pub async fn disable_event_triggers(&self) -> Result<()> {
        let sql = "SELECT quote_ident(evtname) AS name FROM pg_event_trigger WHERE evtenabled <> 'D'";
        for name in self.names("list the event triggers", sql).await? {
            let statement = format!("ALTER EVENT TRIGGER {name} DISABLE");
            self.bounded("switch off an event trigger", self.client.batch_execute(&statement)).await?;
        }
        Ok(())
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
