//! What a drill is asked to do.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use walkeep_common::config::parse_duration;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::layout::BackupId;

use crate::cluster::ClusterArgs;
use crate::output::Format;

/// Options of `basebackup drill`.
#[derive(Debug, Clone, Args)]
pub struct DrillArgs {
    /// The backup: an id, latest, oldest or random
    #[arg(value_name = "ID", default_value = "latest")]
    pub backup: Selection,
    /// Where recovery ends: latest (the end of the archive), immediate, random (a moment drawn between the backup and the
    /// end of the archive), a time, or the name of a restore point
    #[arg(long, value_name = "TARGET", default_value = "latest")]
    pub target: TargetWish,
    /// Repeat what was drawn at random in a drill whose record has this seed, from the same backups and WAL
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u32>,
    /// Directory below which the drill takes place; needs room for the whole database
    #[arg(long, value_name = "DIRECTORY", default_value = "/var/tmp")]
    pub directory: PathBuf,
    /// File with SQL whose last query must return a row, and none that begins with false; may be repeated
    #[arg(long, value_name = "FILE")]
    pub sql: Vec<PathBuf>,
    /// Database in which the SQL is run
    #[arg(short, long, value_name = "DBNAME", default_value = "postgres")]
    pub dbname: String,
    /// Superuser to connect as
    #[arg(short = 'U', long, value_name = "NAME", default_value = "postgres")]
    pub username: String,
    /// Compare tables with their indexes, page by page (`pg_amcheck`)
    #[arg(long)]
    pub amcheck: bool,
    /// End that comparison after so long, such as 10min; the record says how far it came
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "amcheck")]
    pub amcheck_time: Option<Duration>,
    /// Library the server cannot replay its WAL or be read without, such as timescaledb; may be repeated
    #[arg(long, value_name = "LIBRARY")]
    pub preload: Vec<String>,
    /// Fail if recovering takes longer than this, such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub rto: Option<Duration>,
    /// Fail if more than this is missing at the end of the archive, such as 5min
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub rpo: Option<Duration>,
    /// Write a report as one page of HTML
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Directory of PostgreSQL's programs [default: that of the backup's major on this host]
    #[arg(long, value_name = "DIRECTORY")]
    pub pg_bindir: Option<PathBuf>,
    /// Leave the restored copy and the server's log where they are
    #[arg(long)]
    pub keep: bool,
    /// How many parts of the backup are fetched and written at the same time [default: one per processor, 8 at most]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Tell the progress every second where standard error is no terminal
    #[arg(short = 'P', long)]
    pub progress: bool,
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form of the output
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
    /// Print this help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl DrillArgs {
    /// Refuses options that contradict each other.
    ///
    /// # Errors
    /// `Usage`.
    pub(super) fn check(&self) -> Result<()> {
        if self.rpo.is_some() && self.target != TargetWish::Latest {
            return Err(Error::new(
                Kind::Usage,
                "--rpo is measured at the end of the archive, and --target ends before",
            )
            .hint("Leave one of the two away."));
        }
        let is_random = self.backup == Selection::Random || self.target == TargetWish::Random;
        if self.seed.is_some() && !is_random {
            return Err(Error::new(Kind::Usage, "--seed needs something to draw: random, or --target random"));
        }
        Ok(())
    }
}

/// Which backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The newest that reaches the target.
    Latest,
    /// The oldest.
    Oldest,
    /// Any.
    Random,
    /// This one.
    Id(BackupId),
}

impl FromStr for Selection {
    type Err = <BackupId as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "latest" => Self::Latest,
            "oldest" => Self::Oldest,
            "random" => Self::Random,
            id => Self::Id(id.parse()?),
        })
    }
}

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetWish {
    /// With the archive.
    Latest,
    /// With the backup.
    Immediate,
    /// Somewhere in between.
    Random,
    /// At a time.
    Time(String),
    /// At a restore point.
    Name(String),
}

impl FromStr for TargetWish {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_date = text.get(..5).is_some_and(|start| {
            start.ends_with('-') && start.chars().take(4).all(|character| character.is_ascii_digit())
        });
        Ok(match text {
            "latest" => Self::Latest,
            "immediate" => Self::Immediate,
            "random" => Self::Random,
            time if is_date => Self::Time(time.to_owned()),
            name => Self::Name(name.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart() {
        let wish = |text: &str| text.parse::<TargetWish>().unwrap_or(TargetWish::Latest);
        assert_eq!(wish("random"), TargetWish::Random);
        assert_eq!(wish("2026-11-22 10:15:00+01"), TargetWish::Time("2026-11-22 10:15:00+01".to_owned()));
        assert_eq!(wish("2026 release"), TargetWish::Name("2026 release".to_owned()));
        assert_eq!(wish("before the drop"), TargetWish::Name("before the drop".to_owned()));
    }
}
