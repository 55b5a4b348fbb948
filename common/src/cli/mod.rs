//! The process: arguments common to all programs, messages, time limits, the way out.

pub mod background;
pub mod bounded;
pub mod memory;
mod report;

use std::path::PathBuf;

use clap::{Args, ValueEnum};

pub use self::report::{Reporter, Severity};
use crate::config::{Config, Flags, unknown_variables};
use crate::error::{Error, Kind, Result};

/// Options every program has.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Configuration file [default: $WALKEEP_CONFIG, else /etc/walkeep/walkeep.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Repository: s3://bucket/prefix, gs://…, az://… or file:///directory
    #[arg(long, value_name = "URL", global = true)]
    pub repository: Option<String>,
    /// Name of the cluster in the repository [default: main]
    #[arg(long, value_name = "NAME", global = true)]
    pub cluster: Option<String>,
    /// How messages are written to standard error
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true, global = true)]
    pub log_format: LogFormat,
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines as PostgreSQL writes them
    Text,
    /// One JSON object per line
    Json,
}

impl CommonArgs {
    /// Resolves the configuration from these options, the environment and the file.
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub fn resolve(&self) -> Result<Config> {
        for name in unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
            tracing::warn!("environment variable {name} sets nothing");
        }
        let flags =
            Flags { config: self.config.clone(), repository: self.repository.clone(), cluster: self.cluster.clone() };
        Config::resolve(&flags, |name| std::env::var(name).ok())
    }
}

/// Turns what is wrong with the arguments into one line and a hint.
pub fn usage_error(problem: &clap::Error) -> Error {
    if !problem.use_stderr() {
        return Error::new(Kind::Usage, "--help and --version must be the only argument");
    }
    let text = problem.to_string();
    let (message, usage) = text.split_once("Usage:").unwrap_or((&text, ""));
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let message = one_line(message.trim_start().trim_start_matches("error:"));
    let usage = one_line(usage.split("For more information").next().unwrap_or_default());
    let error = Error::new(Kind::Usage, message);
    if usage.is_empty() { error } else { error.hint(format!("Usage: {usage} (--help explains it)")) }
}

/// What a process must be before it touches anything: nobody but its user may read what it writes.
pub fn restrict_new_files() {
    let _ = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Refuses to run as root, whose files the user that runs PostgreSQL could not replace later.
///
/// # Errors
/// `Usage`.
pub fn refuse_root(allowed: bool) -> Result<()> {
    if allowed || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, "will not run as root")
        .hint("Run it as the user that owns the data directory (sudo -u postgres …), or say --allow-root."))
}
