//! The configuration as meant: every setting resolved from flag, environment, file and default, in that order.

mod duration;
mod file;
mod home;
mod location;
mod retention;

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

pub use duration::parse_duration;
pub use home::home_directory;
pub use location::{Location, Scheme};
pub use retention::{Retention, parse_count};

use self::file::{FileSettings, S3FileSettings};
use crate::error::{Error, Kind, Result};

/// Where the configuration file is looked for when nothing else is said.
pub const DEFAULT_FILE: &str = "/etc/walkeep/walkeep.toml";

/// The value of `cluster` when it is not set.
const DEFAULT_CLUSTER: &str = "main";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
const DEFAULT_PREFETCH: u32 = 16;
const MOST_PREFETCHED: u32 = 1024;
const DEFAULT_LINGER: Duration = Duration::from_secs(10);
const MOST_JOBS: usize = 256;
/// The value of `run_directory` when it is not set.
pub const DEFAULT_RUN_DIRECTORY: &str = "/run/walkeep";
pub(crate) const DEFAULT_SPOOL_DIRECTORY: &str = "/var/spool/walkeep";

/// Every environment variable that sets something, without the names of the object stores' own chains.
const VARIABLES: [&str; 21] = [
    "WALKEEP_CONFIG",
    "WALKEEP_REPOSITORY",
    "WALKEEP_CLUSTER",
    "WALKEEP_TIMEOUT",
    "WALKEEP_COMPRESSION_LEVEL",
    "WALKEEP_STANDBY_OUTAGE",
    "WALKEEP_PREFETCH",
    "WALKEEP_JOBS",
    "WALKEEP_LINGER",
    "WALKEEP_RUN_DIRECTORY",
    "WALKEEP_SPOOL_DIRECTORY",
    "WALKEEP_S3_ENDPOINT",
    "WALKEEP_S3_REGION",
    "WALKEEP_S3_PATH_STYLE",
    "WALKEEP_S3_CA_FILE",
    "WALKEEP_RETENTION_KEEP_FULL",
    "WALKEEP_RETENTION_KEEP_DAYS",
    "WALKEEP_RETENTION_KEEP_DAILY",
    "WALKEEP_RETENTION_KEEP_WEEKLY",
    "WALKEEP_RETENTION_KEEP_MONTHLY",
    "WALKEEP_RETENTION_KEEP_YEARLY",
];

/// What flags on the command line set; they win over everything else.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The configuration file; it must exist when it is named.
    pub config: Option<PathBuf>,
    /// The repository's URL.
    pub repository: Option<String>,
    /// The cluster's name in the repository.
    pub cluster: Option<String>,
}

/// The configuration of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from, if there was one.
    pub file: Option<PathBuf>,
    /// Where the repository is.
    pub repository: Location,
    /// The cluster's folder in the repository.
    pub cluster: String,
    /// How long PostgreSQL is kept waiting by one call of `archive-push` or `archive-get`.
    pub timeout: Duration,
    /// The zstd level of everything that is stored.
    pub compression_level: CompressionLevel,
    /// What a standby is told when the repository cannot be reached.
    pub standby_outage: StandbyOutage,
    /// How many segments `archive-get` fetches ahead of recovery; 0 for none.
    pub prefetch: u32,
    /// How many WAL files are pushed at the same time; none for one per processor.
    pub jobs: Option<NonZero<usize>>,
    /// How long a process that pushes or fetches ahead stays when nothing is asked of it.
    pub linger: Duration,
    /// Where sockets and short-lived state live.
    pub run_directory: PathBuf,
    /// Where what is remembered across calls lives.
    pub spool_directory: PathBuf,
    /// Settings of S3 and compatible stores.
    pub s3: S3Settings,
    /// What `basebackup expire` keeps.
    pub retention: Retention,
}

/// The zstd level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompressionLevel {
    /// The level that is right for most: 3.
    #[default]
    Auto,
    /// A level from -7 (fastest) to 19 (smallest).
    Fixed(i32),
}

impl CompressionLevel {
    /// The level to give to zstd.
    pub fn level(self) -> i32 {
        match self {
            Self::Auto => 3,
            Self::Fixed(level) => level,
        }
    }

    /// The level to give to zstd while so many files wait: the faster they go, the less is lost with the host.
    pub fn level_with_backlog(self, waiting: usize) -> i32 {
        const BACKLOG: usize = 8;
        if self == Self::Auto && waiting > BACKLOG { 1 } else { self.level() }
    }
}

/// What `archive-get` answers on a standby when it could not tell whether a file is archived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StandbyOutage {
    /// PostgreSQL asks again or streams: the standby stays up.
    #[default]
    Retry,
    /// PostgreSQL stops the standby.
    Fatal,
}

/// Settings of S3 and compatible stores; credentials come from the standard chain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct S3Settings {
    /// The endpoint's URL; none for AWS itself or `AWS_ENDPOINT_URL_S3`.
    pub endpoint: Option<String>,
    /// The region; none for `AWS_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is part of the path instead of the host name.
    pub path_style: Option<bool>,
    /// Certificates of the authorities to trust, in PEM; none for the system's.
    pub ca_file: Option<PathBuf>,
}

impl Config {
    /// Resolves the configuration: `flags`, then variables, then the file, then defaults.
    ///
    /// The file is `--config`, else `$WALKEEP_CONFIG`, else [`DEFAULT_FILE`] if that exists.
    ///
    /// # Errors
    /// `Usage`, naming the setting and where it was set.
    pub fn resolve(flags: &Flags, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let (file, settings) = read_file(flags, &variable)?;
        let place = file.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        let pick = |name: &'static str, from_file: Option<String>| match variable(name) {
            Some(value) => Some((value, format!("environment variable {name}"))),
            None => from_file.map(|value| (value, format!("\"{place}\""))),
        };
        let flag = |value: &Option<String>, name: &str| value.clone().map(|value| (value, format!("option {name}")));

        let Some((url, set_by)) =
            flag(&flags.repository, "--repository").or_else(|| pick("WALKEEP_REPOSITORY", settings.repository))
        else {
            return Err(no_repository(file.as_deref()));
        };
        let repository = Location::parse(&url)
            .map_err(|problem| invalid(&set_by, "repository", &location::without_credentials(&url), &problem))?;

        let cluster = flag(&flags.cluster, "--cluster").or_else(|| pick("WALKEEP_CLUSTER", settings.cluster));
        let cluster = match cluster {
            Some((name, set_by)) => {
                check_cluster(&name).map_err(|problem| invalid(&set_by, "cluster", &name, problem))?;
                name
            }
            None => DEFAULT_CLUSTER.to_owned(),
        };
        let timeout = resolved(pick("WALKEEP_TIMEOUT", settings.timeout), "timeout", parse_duration)?;
        let level =
            resolved(pick("WALKEEP_COMPRESSION_LEVEL", settings.compression_level), "compression_level", parse_level)?;
        let outage = resolved(pick("WALKEEP_STANDBY_OUTAGE", settings.standby_outage), "standby_outage", parse_outage)?;
        let prefetch = resolved(pick("WALKEEP_PREFETCH", settings.prefetch), "prefetch", parse_prefetch)?;
        let jobs = resolved(pick("WALKEEP_JOBS", settings.jobs), "jobs", parse_jobs)?;
        let linger = resolved(pick("WALKEEP_LINGER", settings.linger), "linger", parse_duration)?;
        let directory = |name, from_file, setting, default: &str| {
            resolved(pick(name, from_file), setting, parse_directory).map(|path| path.unwrap_or_else(|| default.into()))
        };
        Ok(Self {
            repository,
            cluster,
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            compression_level: level.unwrap_or_default(),
            standby_outage: outage.unwrap_or_default(),
            prefetch: prefetch.unwrap_or(DEFAULT_PREFETCH),
            jobs,
            linger: linger.unwrap_or(DEFAULT_LINGER),
            run_directory: directory(
                "WALKEEP_RUN_DIRECTORY",
                settings.run_directory,
                "run_directory",
                DEFAULT_RUN_DIRECTORY,
            )?,
            spool_directory: directory(
                "WALKEEP_SPOOL_DIRECTORY",
                settings.spool_directory,
                "spool_directory",
                DEFAULT_SPOOL_DIRECTORY,
            )?,
            s3: resolve_s3(settings.s3, &pick)?,
            retention: Retention::resolve(settings.retention, &pick)?,
            file,
        })
    }

    /// How many WAL files are pushed at the same time: what is set, else one per processor.
    pub fn jobs(&self) -> usize {
        self.jobs.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZero::get)
    }

    /// The file's path and the settings `restore_command` needs to find the same repository again.
    pub fn flags(&self) -> Flags {
        Flags {
            config: self.file.clone(),
            repository: Some(self.repository.to_string()),
            cluster: Some(self.cluster.clone()),
        }
    }
}

/// Whether a variable of this name sets something.
pub fn is_variable(name: &str) -> bool {
    VARIABLES.contains(&name)
}

/// Names of set variables that begin with `WALKEEP_` but set nothing: most likely mistyped.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    names.filter(|name| name.starts_with("WALKEEP_") && !is_variable(name)).collect()
}

fn resolve_s3(
    file: S3FileSettings,
    pick: &impl Fn(&'static str, Option<String>) -> Option<(String, String)>,
) -> Result<S3Settings> {
    let path_style = pick("WALKEEP_S3_PATH_STYLE", file.path_style.map(|value| value.to_string()));
    let ca_file = pick("WALKEEP_S3_CA_FILE", file.ca_file);
    Ok(S3Settings {
        endpoint: resolved(pick("WALKEEP_S3_ENDPOINT", file.endpoint), "s3.endpoint", location::parse_endpoint)?,
        region: pick("WALKEEP_S3_REGION", file.region).map(|(value, _)| value),
        path_style: resolved(path_style, "s3.path_style", |text| {
            text.parse().map_err(|_| "expected true or false".to_owned())
        })?,
        ca_file: resolved(ca_file, "s3.ca_file", parse_directory)?,
    })
}

fn resolved<T>(
    value: Option<(String, String)>,
    setting: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>> {
    let Some((text, set_by)) = value else { return Ok(None) };
    parse(&text).map(Some).map_err(|problem| invalid(&set_by, setting, &text, &problem))
}

fn read_file(flags: &Flags, variable: &impl Fn(&str) -> Option<String>) -> Result<(Option<PathBuf>, FileSettings)> {
    let named = flags.config.clone().or_else(|| variable("WALKEEP_CONFIG").map(PathBuf::from));
    let path = named.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let settings = FileSettings::parse(&text, &path)?;
            Ok((Some(std::path::absolute(&path).unwrap_or(path)), settings))
        }
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Ok((None, FileSettings::default()))
        }
        Err(error) => Err(Error::io("read configuration file", &path, error)
            .with_kind(Kind::Usage)
            .hint("The user that runs PostgreSQL must be able to read it.")),
    }
}

fn no_repository(file: Option<&Path>) -> Error {
    let hint = match file {
        Some(path) => {
            format!("Add a line to \"{}\", for example: repository = \"s3://bucket/prefix\".", path.display())
        }
        None => format!("Write one line into \"{DEFAULT_FILE}\", for example: repository = \"s3://bucket/prefix\"."),
    };
    Error::new(Kind::Usage, "no repository is configured").hint(hint)
}

fn invalid(set_by: &str, setting: &str, value: &str, problem: &str) -> Error {
    Error::new(Kind::Usage, format!("invalid value for \"{setting}\" in {set_by}: \"{value}\": {problem}"))
}

/// The name is a folder in a path, an object key and a URL alike.
fn check_cluster(name: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 100 || !name.chars().all(plain) || name.starts_with('.') {
        return Err("expected letters, digits, \"-\", \"_\" and \".\"");
    }
    if name == crate::repository::layout::PROBE_FOLDER { Err("this name is reserved") } else { Ok(()) }
}

fn parse_level(text: &str) -> Result<CompressionLevel, String> {
    if text == "auto" {
        return Ok(CompressionLevel::Auto);
    }
    match text.parse() {
        Ok(level) if (-7..=19).contains(&level) && level != 0 => Ok(CompressionLevel::Fixed(level)),
        _ => Err("expected \"auto\" or a zstd level from 1 to 19 (or -7 to -1)".to_owned()),
    }
}

fn parse_jobs(text: &str) -> Result<NonZero<usize>, String> {
    let number = text.parse().ok().filter(|number: &NonZero<usize>| number.get() <= MOST_JOBS);
    number.ok_or_else(|| format!("expected a number from 1 to {MOST_JOBS}"))
}

fn parse_outage(text: &str) -> Result<StandbyOutage, String> {
    match text {
        "retry" => Ok(StandbyOutage::Retry),
        "fatal" => Ok(StandbyOutage::Fatal),
        _ => Err("expected \"retry\" or \"fatal\"".to_owned()),
    }
}

fn parse_prefetch(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| *number <= MOST_PREFETCHED);
    number.ok_or_else(|| format!("expected a number of segments from 0 to {MOST_PREFETCHED}"))
}

fn parse_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("expected an absolute path".to_owned()) }
}

#[cfg(test)]
mod tests;
