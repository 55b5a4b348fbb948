//! The configuration file as written: TOML in which every key is known.

use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::error::{Error, Kind, Result};

/// The keys of the file. Values are kept as text so that each is checked in one place, wherever it came from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileSettings {
    pub(super) repository: Option<String>,
    pub(super) cluster: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) timeout: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) compression_level: Option<String>,
    pub(super) standby_outage: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) prefetch: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) jobs: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) linger: Option<String>,
    pub(super) run_directory: Option<String>,
    pub(super) spool_directory: Option<String>,
    pub(super) s3: S3FileSettings,
    pub(super) retention: RetentionFileSettings,
}

/// The keys of `[s3]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct S3FileSettings {
    pub(super) endpoint: Option<String>,
    pub(super) region: Option<String>,
    pub(super) path_style: Option<bool>,
    pub(super) ca_file: Option<String>,
}

/// The keys of `[retention]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "they are the names of the settings")]
pub(super) struct RetentionFileSettings {
    #[serde(deserialize_with = "number_or_text")]
    pub(super) keep_full: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) keep_days: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) keep_daily: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) keep_weekly: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) keep_monthly: Option<String>,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) keep_yearly: Option<String>,
}

pub(super) const KEYS: [&str; 12] = [
    "repository",
    "cluster",
    "timeout",
    "compression_level",
    "standby_outage",
    "prefetch",
    "jobs",
    "linger",
    "run_directory",
    "spool_directory",
    "s3",
    "retention",
];
pub(super) const S3_KEYS: [&str; 4] = ["endpoint", "region", "path_style", "ca_file"];
pub(super) const RETENTION_KEYS: [&str; 6] =
    ["keep_full", "keep_days", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly"];

impl FileSettings {
    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    /// `Usage` with file and line; for an unknown key also the known one it looks like.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let problem = error.message().lines().next().unwrap_or_default();
            let place = format!("\"{}\", line {line}", path.display());
            match problem.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
                Some(key) => Error::new(Kind::Usage, format!("unknown configuration key \"{key}\" in {place}"))
                    .hint(nearest_key(key)),
                None => Error::new(Kind::Usage, format!("could not read configuration in {place}: {problem}")),
            }
        })
    }
}

fn nearest_key(key: &str) -> String {
    let known = KEYS.iter().map(|&known| (known, known.to_owned()));
    let in_section =
        |section: &'static str| move |&known: &&'static str| (known, format!("{known}\" in the section \"[{section}]"));
    let known = known.chain(S3_KEYS.iter().map(in_section("s3")));
    let known = known.chain(RETENTION_KEYS.iter().map(in_section("retention")));
    let distance = |known: &str| strsim::damerau_levenshtein(&key.to_ascii_lowercase(), known);
    match known.map(|(known, shown)| (distance(known), shown)).min_by_key(|(distance, _)| *distance) {
        Some((distance, shown)) if distance <= key.len().div_ceil(2) => format!("Did you mean \"{shown}\"?"),
        _ => format!("The known keys are {}.", KEYS.join(", ")),
    }
}

fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number or a string")]
    enum Value {
        Number(i64),
        Text(String),
    }
    Ok(Some(match Value::deserialize(deserializer)? {
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text,
    }))
}
