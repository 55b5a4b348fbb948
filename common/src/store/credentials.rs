//! Credentials for S3: the environment, then the shared credentials file, both read anew for every request.
//!
//! Web identities, containers and instances are left to `object_store`.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::{AwsCredential, AwsCredentialProvider};

use crate::config::home_directory;

/// The provider for what this host says about credentials; none where `object_store`'s own chain must find them.
pub(super) fn s3_provider() -> Option<AwsCredentialProvider> {
    let from_file = || profile_credential().map(|_| ());
    let web_identity = variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some();
    match environment_credential() {
        Some(_) => Some(Arc::new(HostCredentials)),
        None if web_identity => None,
        None => from_file().map(|()| Arc::new(HostCredentials) as AwsCredentialProvider),
    }
}

/// The region of the chosen profile in `~/.aws/config`.
pub(super) fn profile_region() -> Option<String> {
    let path = file("AWS_CONFIG_FILE", "config")?;
    let text = std::fs::read_to_string(path).ok()?;
    let profile = profile();
    let section = if profile == "default" { profile.clone() } else { format!("profile {profile}") };
    value(&text, &section, "region")
}

#[derive(Debug)]
struct HostCredentials;

#[async_trait]
impl CredentialProvider for HostCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        environment_credential().or_else(profile_credential).map(Arc::new).ok_or_else(|| {
            object_store::Error::Unauthenticated {
                path: "S3".to_owned(),
                source: "no credentials in the environment or in the shared credentials file".into(),
            }
        })
    }
}

fn environment_credential() -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: variable("AWS_ACCESS_KEY_ID")?,
        secret_key: variable("AWS_SECRET_ACCESS_KEY")?,
        token: variable("AWS_SESSION_TOKEN"),
    })
}

fn profile_credential() -> Option<AwsCredential> {
    let text = std::fs::read_to_string(file("AWS_SHARED_CREDENTIALS_FILE", "credentials")?).ok()?;
    credential_in(&text, &profile())
}

fn credential_in(text: &str, profile: &str) -> Option<AwsCredential> {
    Some(AwsCredential {
        key_id: value(text, profile, "aws_access_key_id")?,
        secret_key: value(text, profile, "aws_secret_access_key")?,
        token: value(text, profile, "aws_session_token"),
    })
}

fn profile() -> String {
    variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned())
}

/// The file that the variable names, else the one in `~/.aws`.
fn file(name: &str, default: &str) -> Option<PathBuf> {
    let homes = || [variable("HOME").map(PathBuf::from), home_directory()].into_iter().flatten();
    let in_home = || homes().map(|home| home.join(".aws").join(default)).find(|path| path.is_file());
    variable(name).map(PathBuf::from).or_else(in_home)
}

/// A line end behind a key, as copied from a file, would break every signature.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// One value of an INI file.
fn value(text: &str, section: &str, key: &str) -> Option<String> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == section;
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim().eq_ignore_ascii_case(key)
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_of_the_shared_file_is_read_without_stray_white_space() {
        let text = "[other]\naws_access_key_id=o\naws_secret_access_key=s\n\n[ default ]\r\n\
                    aws_access_key_id = AK \r\naws_secret_access_key = a=b/c \r\n# comment\n";
        let credential = credential_in(text, "default").unwrap();
        assert_eq!((credential.key_id.as_str(), credential.secret_key.as_str()), ("AK", "a=b/c"));
        assert_eq!(credential.token, None);
        assert!(credential_in(text, "missing").is_none());
    }
}
