//! Where a repository is: the URL, taken apart once.

use std::fmt;
use std::path::PathBuf;

/// The kind of store, and its bucket or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// `s3://bucket/prefix`: Amazon S3 or a compatible store.
    S3 {
        /// The bucket's name.
        bucket: String,
    },
    /// `gs://bucket/prefix`: Google Cloud Storage.
    Gcs {
        /// The bucket's name.
        bucket: String,
    },
    /// `az://container/prefix`: Azure Blob Storage; the account is in `AZURE_STORAGE_ACCOUNT_NAME`.
    Azure {
        /// The container's name.
        container: String,
    },
    /// `file:///path`: a directory.
    File {
        /// The directory; it must exist.
        directory: PathBuf,
    },
}

/// A repository's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The kind of store, and its bucket or directory.
    pub scheme: Scheme,
    /// The folder inside the bucket, without slashes at its ends; always empty for a directory.
    pub prefix: String,
}

impl Location {
    /// Reads a repository's URL.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let expected = "expected s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///directory";
        let (scheme, rest) = url.split_once("://").ok_or(expected)?;
        if url.chars().any(|c| c.is_control() || c.is_whitespace() && scheme != "file") {
            return Err("a URL has no white space".to_owned());
        }
        if scheme == "file" {
            return parse_directory(rest);
        }
        let in_bucket: fn(String) -> Scheme = match scheme {
            "s3" => |bucket| Scheme::S3 { bucket },
            "gs" => |bucket| Scheme::Gcs { bucket },
            "az" => |container| Scheme::Azure { container },
            _ => return Err(expected.to_owned()),
        };
        if rest.contains(['?', '#', '@']) {
            return Err("credentials and options do not belong into it: expected scheme://bucket/prefix".to_owned());
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/').to_owned();
        if bucket.is_empty() {
            return Err(format!("the bucket is missing: expected {scheme}://bucket/prefix"));
        }
        if bucket.contains(':') {
            return Err(
                "an endpoint does not belong into the URL; set it as \"endpoint\" in the section [s3]".to_owned()
            );
        }
        if prefix.split('/').any(|part| matches!(part, "." | "..") || part.is_empty() && !prefix.is_empty()) {
            return Err("the prefix has an empty part, \".\" or \"..\"".to_owned());
        }
        Ok(Self { scheme: in_bucket(bucket.to_owned()), prefix })
    }
}

/// The URL for messages: without what stands before an "@", which may be a secret.
pub(super) fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.to_owned(),
    }
}

fn parse_directory(rest: &str) -> Result<Location, String> {
    let directory = PathBuf::from(rest);
    if !directory.is_absolute() {
        return Err("expected three slashes and an absolute path, as in file:///mnt/backup".to_owned());
    }
    if directory.components().any(|part| part == std::path::Component::ParentDir) {
        return Err("the path has a \"..\"".to_owned());
    }
    Ok(Location { scheme: Scheme::File { directory: directory.components().collect() }, prefix: String::new() })
}

/// Checks an S3 endpoint: a URL of http or https with a host and nothing else.
pub(super) fn parse_endpoint(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    match host.map(|host| host.trim_end_matches('/')) {
        Some(host) if !host.is_empty() && !host.contains(['?', '#', '@', ' ']) => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err("expected https://host or https://host:port".to_owned()),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        match &self.scheme {
            Scheme::S3 { bucket } => write!(f, "s3://{bucket}{slash}{}", self.prefix),
            Scheme::Gcs { bucket } => write!(f, "gs://{bucket}{slash}{}", self.prefix),
            Scheme::Azure { container } => write!(f, "az://{container}{slash}{}", self.prefix),
            Scheme::File { directory } => write!(f, "file://{}", directory.display()),
        }
    }
}
