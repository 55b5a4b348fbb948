//! This host: the configuration and who may change or read it, and who runs the check.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use walkeep_common::config::{self, Config, Scheme};
use walkeep_common::host::HostMemory;

use super::finding::{Area, Finding};
use crate::accounts::{Accounts, name};

const AREA: Area = Area::Configuration;

/// A file as `stat` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    path: PathBuf,
    /// Permission bits.
    mode: u32,
    /// Its owner's number.
    owner: u32,
}

impl File {
    fn look(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self { path: path.to_owned(), mode: metadata.mode() & 0o7777, owner: metadata.uid() })
    }
}

/// Looks at the configuration and at files with secrets.
pub(super) fn configuration(config: &Config, memory: &HostMemory) -> Vec<Finding> {
    let variables: Vec<String> = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let mut findings = vec![sources(config, &variables)];
    let accounts = Accounts::read();
    let me = rustix::process::geteuid().as_raw();
    let file = config.file.as_deref().and_then(File::look);
    findings.extend(file.map(|file| writers(&file, me, &accounts)));
    let secrets = secret_files(config, |name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    findings.extend(secrets.iter().filter_map(|path| File::look(path)).map(|file| readers(&file)));
    findings.extend(memory.problem().map(|problem| {
        let fix = format!("install -d -o $(id -un) -m 700 {}", config.spool_directory.display());
        Finding::warning(AREA, "spool", format!("nothing can be remembered between calls: {problem}"), fix)
    }));
    findings
}

/// Where the settings come from.
fn sources(config: &Config, variables: &[String]) -> Finding {
    let file = config.file.as_ref().map(|file| format!("from \"{}\"", file.display()));
    let mut set: Vec<&str> = variables
        .iter()
        .map(String::as_str)
        .filter(|name| config::is_variable(name) && *name != "WALKEEP_CONFIG")
        .collect();
    set.sort_unstable();
    let environment = (!set.is_empty()).then(|| format!("{} from the environment", set.join(", ")));
    let sources: Vec<String> = file.into_iter().chain(environment).collect();
    let sources = if sources.is_empty() { "from the command line".to_owned() } else { sources.join(", ") };
    let text = format!("repository {}, cluster \"{}\": {sources}", config.repository, config.cluster);
    Finding::passed(AREA, "configuration", text)
}

/// Whoever can write to the configuration decides where the WAL goes.
fn writers(file: &File, me: u32, accounts: &Accounts) -> Finding {
    let path = file.path.display();
    let owner = name(&accounts.users, file.owner).map_or_else(|| file.owner.to_string(), str::to_owned);
    let what = format!("\"{path}\" has mode {:04o} and belongs to {owner}", file.mode);
    if file.mode & 0o002 != 0 {
        let text = format!("{what}: everybody can send your WAL elsewhere");
        return Finding::failed(AREA, "configuration_file", text, format!("chmod 0640 {path}"));
    }
    if file.owner != 0 && file.owner != me {
        let text = format!("{what}, who can send your WAL elsewhere");
        return Finding::warning(AREA, "configuration_file", text, format!("chown root {path}"));
    }
    Finding::passed(AREA, "configuration_file", what)
}

/// Whoever can read a secret can do with the repository what its owner can.
fn readers(file: &File) -> Finding {
    let path = file.path.display();
    if file.mode & 0o004 != 0 {
        let text = format!("\"{path}\" has mode {:04o}: everybody can read the repository's secrets", file.mode);
        return Finding::failed(AREA, "secrets", text, format!("chmod 0600 {path}"));
    }
    Finding::passed(AREA, "secrets", format!("\"{path}\" has mode {:04o}", file.mode))
}

/// Files with the credentials of this kind of store.
fn secret_files(config: &Config, variable: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    match config.repository.scheme {
        Scheme::S3 { .. } => {
            let in_home = || Some(PathBuf::from(variable("HOME")?).join(".aws/credentials"));
            let named = variable("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
            named.or_else(in_home).into_iter().collect()
        }
        Scheme::Gcs { .. } => variable("GOOGLE_APPLICATION_CREDENTIALS").map(PathBuf::from).into_iter().collect(),
        Scheme::Azure { .. } | Scheme::File { .. } => Vec::new(),
    }
}

/// Whether this is the user whose archiver is checked: another one's rights say nothing about the archiver's.
pub(super) fn user(data_directory: &Metadata) -> Finding {
    same_user(rustix::process::geteuid().as_raw(), data_directory.uid(), &Accounts::read())
}

fn same_user(me: u32, owner: u32, accounts: &Accounts) -> Finding {
    let word = |number: u32| name(&accounts.users, number).map_or_else(|| number.to_string(), str::to_owned);
    if me == owner {
        return Finding::passed(Area::PostgreSQL, "user", format!("running as {}, as PostgreSQL does", word(me)));
    }
    let text =
        format!("running as {}, but PostgreSQL runs as {}: what is found may not hold for it", word(me), word(owner));
    Finding::warning(Area::PostgreSQL, "user", text, format!("sudo -u {} basebackup check", word(owner)))
}

/// Whether what destroys the data directory's disk would destroy the repository too.
pub(super) fn apart(config: &Config, data_directory: &Path, tablespaces: &[PathBuf]) -> Option<Finding> {
    let Scheme::File { directory } = &config.repository.scheme else { return None };
    let device = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.dev());
    let repository = device(directory)?;
    let wal = data_directory.join("pg_wal");
    let places = [data_directory, &wal].into_iter().chain(tablespaces.iter().map(PathBuf::as_path));
    let shared = places.into_iter().find(|place| device(place) == Some(repository));
    let place = directory.display();
    Some(match shared {
        Some(shared) => Finding::failed(
            Area::Repository,
            "other_disk",
            format!(
                "the repository \"{place}\" is on the file system of \"{}\": both are lost together",
                shared.display()
            ),
            "Put the repository on another disk, another host, or into an object store.",
        ),
        None => Finding::passed(
            Area::Repository,
            "other_disk",
            format!("\"{place}\" is on another file system than the server's data"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Outcome;
    use super::*;

    fn config(url: &str) -> Config {
        let flags = config::Flags { repository: Some(url.to_owned()), config: None, cluster: None };
        Config::resolve(&flags, |_| None).unwrap()
    }

    fn accounts() -> Accounts {
        Accounts { users: "root:x:0:0::/:\npostgres:x:104:110::/:\n".to_owned(), groups: String::new() }
    }

    #[test]
    fn the_settings_origins_are_told() {
        let variables = ["PATH", "WALKEEP_CONFIG", "WALKEEP_CLUSTER"].map(str::to_owned);
        let found = sources(&Config { file: Some("/x.toml".into()), ..config("s3://b/p") }, &variables);
        assert_eq!(
            found.text,
            "repository s3://b/p, cluster \"main\": from \"/x.toml\", WALKEEP_CLUSTER from the environment"
        );
        assert!(sources(&config("s3://b/p"), &[]).text.ends_with("from the command line"));
    }

    #[test]
    fn nobody_else_may_write_the_configuration_or_read_secrets() {
        let file = |mode, owner| File { path: "/x".into(), mode, owner };
        for (mode, owner, outcome) in [
            (0o640, 0, Outcome::Passed),
            (0o644, 104, Outcome::Passed),
            (0o644, 1000, Outcome::Warning),
            (0o646, 0, Outcome::Failed),
        ] {
            assert_eq!(writers(&file(mode, owner), 104, &accounts()).outcome, outcome, "{mode:o} {owner}");
        }
        for (mode, outcome) in [(0o600, Outcome::Passed), (0o640, Outcome::Passed), (0o644, Outcome::Failed)] {
            assert_eq!(readers(&file(mode, 0)).outcome, outcome, "{mode:o}");
        }
    }

    #[test]
    fn secrets_are_looked_for_where_the_stores_client_finds_them() {
        let variable = |name: &str| {
            [("HOME", "/home/x"), ("GOOGLE_APPLICATION_CREDENTIALS", "/key.json")]
                .into_iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.to_owned())
        };
        for (url, expected) in
            [("s3://b/p", Some("/home/x/.aws/credentials")), ("gs://b/p", Some("/key.json")), ("az://c/p", None)]
        {
            assert_eq!(
                secret_files(&config(url), variable),
                expected.map(PathBuf::from).into_iter().collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn the_user_should_be_the_servers() {
        assert_eq!(same_user(104, 104, &accounts()).outcome, Outcome::Passed);
        let other = same_user(7, 104, &accounts());
        assert_eq!(
            (other.outcome, other.fix.as_deref()),
            (Outcome::Warning, Some("sudo -u postgres basebackup check"))
        );
    }
}
