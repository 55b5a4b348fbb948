//! Connection strings: `keyword=value` pairs and `postgresql://` URIs.
//!
//! Mirrors `conninfo_parse` and `conninfo_uri_parse` (src/interfaces/libpq/fe-connect.c). Errors never repeat a value:
//! it may be a password.

use std::fmt;

/// The pairs of a connection string in its order.
pub(super) type Pairs = Vec<(String, String)>;

/// The text is not a connection string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidConnectionString {
    /// A keyword without a value.
    #[error("missing \"=\" after \"{0}\" in connection string")]
    MissingValue(String),
    /// A quote is opened and never closed.
    #[error("unterminated quoted string for \"{0}\" in connection string")]
    Unterminated(String),
    /// `[` without `]`, or something other than a port, path or query after it.
    #[error("invalid IPv6 host address in URI: expected \"[address]\"")]
    Ipv6Address,
    /// `%` without two hexadecimal digits, or `%00`, or bytes that are not UTF-8.
    #[error("invalid percent-encoding in the {0} of the URI")]
    Encoding(Part),
    /// A query parameter without `=`, or with two.
    #[error("invalid parameter \"{0}\" in URI: expected \"name=value\"")]
    Parameter(String),
}

/// A part of a URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Before the `@`.
    User,
    /// Between `:` and `@`.
    Password,
    /// The host.
    Host,
    /// After the host's `:`.
    Port,
    /// The path.
    Database,
    /// After the `?`.
    Parameters,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "user",
            Self::Password => "password",
            Self::Host => "host",
            Self::Port => "port",
            Self::Database => "database",
            Self::Parameters => "parameters",
        })
    }
}

/// Whether libpq takes a database name for a connection string (`recognized_connection_string`).
pub(super) fn is_connection_string(name: &str) -> bool {
    after_scheme(name).is_some() || name.contains('=')
}

/// Reads either form.
pub(super) fn parse(text: &str) -> Result<Pairs, InvalidConnectionString> {
    match after_scheme(text) {
        Some(rest) => parse_uri(rest),
        None => parse_pairs(text),
    }
}

fn after_scheme(text: &str) -> Option<&str> {
    ["postgresql://", "postgres://"].into_iter().find_map(|scheme| text.strip_prefix(scheme))
}

fn parse_pairs(text: &str) -> Result<Pairs, InvalidConnectionString> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_ascii_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (keyword, after) = rest.split_at(end);
        let missing = || InvalidConnectionString::MissingValue(keyword.to_owned());
        let after = after.trim_ascii_start().strip_prefix('=').ok_or_else(missing)?;
        let (value, after) = value(keyword, after.trim_ascii_start())?;
        pairs.push((keyword.to_owned(), value));
        rest = after.trim_ascii_start();
    }
    Ok(pairs)
}

/// Reads one value, quoted or not; a backslash takes the next character as it is.
fn value<'a>(keyword: &str, text: &'a str) -> Result<(String, &'a str), InvalidConnectionString> {
    let (quoted, text) = text.strip_prefix('\'').map_or((false, text), |text| (true, text));
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, characters.as_str())),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, text.get(at..).unwrap_or_default())),
            c => value.push(c),
        }
    }
    if quoted { Err(InvalidConnectionString::Unterminated(keyword.to_owned())) } else { Ok((value, "")) }
}

fn parse_uri(text: &str) -> Result<Pairs, InvalidConnectionString> {
    let mut pairs = Pairs::new();
    let mut put = |keyword: &str, text: &str, part| {
        if !text.is_empty() {
            pairs.push((keyword.to_owned(), decode(text, part)?));
        }
        Ok(())
    };
    let authority_end = text.find(['@', '/']).filter(|&at| text[at..].starts_with('@'));
    let rest = match authority_end.and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?))) {
        Some((user, rest)) => {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            put("user", user, Part::User)?;
            put("password", password, Part::Password)?;
            rest
        }
        None => text,
    };
    let (hosts, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = host_and_port(hosts)?;
    put("host", host, Part::Host)?;
    put("port", port, Part::Port)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    put("dbname", path.strip_prefix('/').unwrap_or(path), Part::Database)?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        pairs.push(query_parameter(parameter)?);
    }
    Ok(pairs)
}

/// Splits `host:port`. A list of hosts stays in one piece, for the caller to refuse.
fn host_and_port(text: &str) -> Result<(&str, &str), InvalidConnectionString> {
    if text.contains(',') {
        return Ok((text, ""));
    }
    let Some(bracketed) = text.strip_prefix('[') else {
        return Ok(text.split_once(':').unwrap_or((text, "")));
    };
    let (address, after) = bracketed.split_once(']').ok_or(InvalidConnectionString::Ipv6Address)?;
    match after.strip_prefix(':') {
        Some(port) if !address.is_empty() => Ok((address, port)),
        None if !address.is_empty() && after.is_empty() => Ok((address, "")),
        _ => Err(InvalidConnectionString::Ipv6Address),
    }
}

fn query_parameter(text: &str) -> Result<(String, String), InvalidConnectionString> {
    let invalid = |name: &str| InvalidConnectionString::Parameter(name.to_owned());
    let (name, value) = text.split_once('=').ok_or_else(|| invalid(text))?;
    if value.contains('=') {
        return Err(invalid(name));
    }
    let (name, value) = (decode(name, Part::Parameters)?, decode(value, Part::Parameters)?);
    // For JDBC's URIs, as libpq.
    if name == "ssl" && value == "true" { Ok(("sslmode".to_owned(), "require".to_owned())) } else { Ok((name, value)) }
}

fn decode(text: &str, part: Part) -> Result<String, InvalidConnectionString> {
    let invalid = || InvalidConnectionString::Encoding(part);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(invalid);
            let decoded = u8::try_from(digit()? * 16 + digit()?).map_err(|_| invalid())?;
            bytes.push(if decoded == 0 { return Err(invalid()) } else { decoded });
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(expected: &[(&str, &str)]) -> Pairs {
        expected.iter().map(|&(keyword, value)| (keyword.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn pairs_are_read_with_quotes_escapes_and_blanks() {
        for (text, expected) in [
            ("", &[][..]),
            (" host = /tmp port=5433", &[("host", "/tmp"), ("port", "5433")]),
            (r"password='it\'s \\ =' dbname=a\ b", &[("password", r"it's \ ="), ("dbname", "a b")]),
            ("host='' user=''", &[("host", ""), ("user", "")]),
            ("host= port=1", &[("host", "port=1")]),
            ("user='a'dbname=b", &[("user", "a"), ("dbname", "b")]),
            (r"user=a\", &[("user", "a")]),
        ] {
            assert_eq!(parse(text).unwrap(), pairs(expected), "{text}");
        }
    }

    #[test]
    fn uris_are_read_in_all_their_parts() {
        for (text, expected) in [
            ("postgresql://", &[][..]),
            ("postgres:///db", &[("dbname", "db")]),
            (
                "postgresql://us%40er:p%3Aw@host:5433/d%2Fb?sslmode=require&connect_timeout=3",
                &[
                    ("user", "us@er"),
                    ("password", "p:w"),
                    ("host", "host"),
                    ("port", "5433"),
                    ("dbname", "d/b"),
                    ("sslmode", "require"),
                    ("connect_timeout", "3"),
                ],
            ),
            ("postgresql://[::1]:5433/?ssl=true", &[("host", "::1"), ("port", "5433"), ("sslmode", "require")]),
            ("postgresql://%2Fvar%2Frun/db", &[("host", "/var/run"), ("dbname", "db")]),
            ("postgresql:///db?host=/tmp&user=a@b", &[("dbname", "db"), ("host", "/tmp"), ("user", "a@b")]),
            ("postgresql://a:1,b:2/db", &[("host", "a:1,b:2"), ("dbname", "db")]),
            ("postgresql://host?user=x", &[("host", "host"), ("user", "x")]),
        ] {
            assert_eq!(parse(text).unwrap(), pairs(expected), "{text}");
        }
    }

    #[test]
    fn what_libpq_refuses_is_refused_without_repeating_a_value() {
        for text in [
            "host",
            "host /tmp",
            "password='secret",
            "postgresql://[::1",
            "postgresql://[]:1/",
            "postgresql://[::1]secret/",
            "postgresql://u:secret%zz@h/",
            "postgresql://u:secret%@h/",
            "postgresql://h/db?password=sec=ret",
            "postgresql://h/db?secretless",
            "postgresql://h/%00",
            "postgresql://h/%ff",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(!error.contains("secret\"") && !error.contains("sec="), "{text}: {error}");
        }
    }

    #[test]
    fn a_database_name_is_told_from_a_connection_string() {
        assert!(is_connection_string("postgres://") && is_connection_string("host=x"));
        assert!(!is_connection_string("postgres") && !is_connection_string("postgres:"));
    }
}
