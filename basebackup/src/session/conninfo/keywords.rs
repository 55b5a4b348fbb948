//! libpq's connection parameters, as of PostgreSQL 18 (`PQconninfoOptions`, src/interfaces/libpq/fe-connect.c).

/// A parameter, its environment variable, and what is made of it here.
#[derive(Debug)]
pub(super) struct Keyword {
    pub(super) name: &'static str,
    pub(super) variable: Option<&'static str>,
    pub(super) support: Support,
}

/// What is made of a parameter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Support {
    /// It does what it does in libpq.
    Full,
    /// Only values that ask for what happens anyway; all others are refused, since silently ignoring one could mean
    /// another server or a weaker connection than asked for.
    Only(&'static [&'static str]),
}

impl Keyword {
    /// Finds a parameter by its name in connection strings and service files.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        KEYWORDS.iter().find(|keyword| keyword.name == name)
    }

    /// Whether this value can be honoured; an empty one is the default.
    pub(super) fn accepts(&self, value: &str) -> bool {
        match self.support {
            Support::Full => true,
            Support::Only(values) => value.is_empty() || values.contains(&value),
        }
    }
}

const fn full(name: &'static str, variable: &'static str) -> Keyword {
    Keyword { name, variable: Some(variable), support: Support::Full }
}

const fn only(name: &'static str, variable: &'static str, values: &'static [&'static str]) -> Keyword {
    Keyword { name, variable: Some(variable), support: Support::Only(values) }
}

const fn without_variable(name: &'static str, values: &'static [&'static str]) -> Keyword {
    Keyword { name, variable: None, support: Support::Only(values) }
}

/// All of them. `client_encoding` has no variable here: `PGCLIENTENCODING` is about what a program shows, and this one
/// always speaks UTF-8.
pub(super) const KEYWORDS: &[Keyword] = &[
    full("service", "PGSERVICE"),
    full("host", "PGHOST"),
    full("port", "PGPORT"),
    full("user", "PGUSER"),
    full("dbname", "PGDATABASE"),
    full("password", "PGPASSWORD"),
    full("passfile", "PGPASSFILE"),
    full("connect_timeout", "PGCONNECT_TIMEOUT"),
    full("application_name", "PGAPPNAME"),
    full("sslmode", "PGSSLMODE"),
    full("sslrootcert", "PGSSLROOTCERT"),
    only("channel_binding", "PGCHANNELBINDING", &["prefer"]),
    only("gssdelegation", "PGGSSDELEGATION", &["0"]),
    only("gssencmode", "PGGSSENCMODE", &["disable", "prefer"]),
    only("gsslib", "PGGSSLIB", &[]),
    only("hostaddr", "PGHOSTADDR", &[]),
    only("krbsrvname", "PGKRBSRVNAME", &["postgres"]),
    only("load_balance_hosts", "PGLOADBALANCEHOSTS", &["disable"]),
    only("max_protocol_version", "PGMAXPROTOCOLVERSION", &["3.0"]),
    only("min_protocol_version", "PGMINPROTOCOLVERSION", &["3.0"]),
    only("options", "PGOPTIONS", &[]),
    only("require_auth", "PGREQUIREAUTH", &[]),
    only("requirepeer", "PGREQUIREPEER", &[]),
    only("requiressl", "PGREQUIRESSL", &["0"]),
    only("sslcert", "PGSSLCERT", &[]),
    only("sslcertmode", "PGSSLCERTMODE", &["disable", "allow"]),
    only("sslcompression", "PGSSLCOMPRESSION", &["0"]),
    only("sslcrl", "PGSSLCRL", &[]),
    only("sslcrldir", "PGSSLCRLDIR", &[]),
    only("sslkey", "PGSSLKEY", &[]),
    only("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION", &["TLSv1.3"]),
    only("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
    only("sslnegotiation", "PGSSLNEGOTIATION", &["postgres"]),
    only("sslsni", "PGSSLSNI", &["1"]),
    only("target_session_attrs", "PGTARGETSESSIONATTRS", &["any"]),
    without_variable("client_encoding", &["auto", "UTF8", "utf8", "UTF-8", "utf-8"]),
    without_variable("fallback_application_name", &[]),
    without_variable("keepalives", &["1"]),
    without_variable("keepalives_count", &[]),
    without_variable("keepalives_idle", &[]),
    without_variable("keepalives_interval", &[]),
    without_variable("oauth_client_id", &[]),
    without_variable("oauth_client_secret", &[]),
    without_variable("oauth_issuer", &[]),
    without_variable("oauth_scope", &[]),
    without_variable("replication", &[]),
    without_variable("scram_client_key", &[]),
    without_variable("scram_server_key", &[]),
    without_variable("servicefile", &[]),
    without_variable("sslkeylogfile", &[]),
    without_variable("sslpassword", &[]),
    without_variable("tcp_user_timeout", &[]),
];
