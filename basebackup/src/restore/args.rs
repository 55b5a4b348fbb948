//! The command line of `basebackup restore`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal::segment::Timeline;

use super::debian::DebianCluster;
use super::tablespaces::Mapping;
use super::target::{TargetAction, TimelineChoice};
use crate::output::Format;

/// Options of `basebackup restore`.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own on the command line")]
pub struct RestoreArgs {
    /// The backup's id, or latest: the newest one that can reach the target
    #[arg(value_name = "ID", default_value = "latest", value_parser = parse_backup)]
    pub backup: BackupChoice,
    /// Where to restore to: an empty directory, or one that does not exist yet
    #[arg(short = 'D', long, value_name = "DIRECTORY", required_unless_present = "to_cluster")]
    pub pgdata: Option<PathBuf>,
    /// Only print what would be done, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Where recovery ends
    #[command(flatten)]
    pub target: TargetArgs,
    /// Restore over an earlier state of the same cluster: keep files that are the same, remove what is not in the backup
    #[arg(long)]
    pub delta: bool,
    /// Put the tablespace that was in OLDDIR into NEWDIR ("=" in a name is written "\=")
    #[arg(short = 'T', long, value_name = "OLDDIR=NEWDIR")]
    pub tablespace_mapping: Vec<Mapping>,
    /// Directory for WAL; pg_wal becomes a link to it
    #[arg(long, value_name = "DIRECTORY")]
    pub waldir: Option<PathBuf>,
    /// Directory for the server's configuration files, where they were outside the data directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "to_cluster")]
    pub config_dir: Option<PathBuf>,
    /// Make it a cluster of Debian's postgresql-common, such as 15/restored [with -D left out: its usual directory]
    #[arg(long, value_name = "VERSION/NAME")]
    pub to_cluster: Option<DebianCluster>,
    /// How many parts of the backup are fetched and written at the same time [default: one per processor, 8 at most]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: Option<u16>,
    /// Tell the progress every second where standard error is no terminal
    #[arg(short = 'P', long)]
    pub progress: bool,
    /// Leave archiving on although this is another place than where the backup was taken
    #[arg(long)]
    pub keep_archiving: bool,
    /// Only from the cluster with this system identifier
    #[arg(long, value_name = "NUMBER")]
    pub system_identifier: Option<u64>,
    /// Form of the plan
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// Where recovery ends.
#[derive(Debug, Clone, Default, Args)]
#[group(id = "recovery")]
pub struct TargetArgs {
    /// Recover up to this time, such as "2026-11-22 10:15:00+02"; without a zone, in this host's
    #[arg(long, value_name = "TIME", group = "recovery_target")]
    pub target_time: Option<String>,
    /// Recover up to this position in the WAL, such as 0/16B3748
    #[arg(long, value_name = "LSN", group = "recovery_target")]
    pub target_lsn: Option<Lsn>,
    /// Recover up to the end of this transaction
    #[arg(long, value_name = "XID", group = "recovery_target")]
    pub target_xid: Option<u64>,
    /// Recover up to this restore point, made by pg_create_restore_point
    #[arg(long, value_name = "NAME", group = "recovery_target")]
    pub target_name: Option<String>,
    /// Recover no further than the backup needs to be consistent
    #[arg(long, value_name = "immediate", value_parser = ["immediate"], group = "recovery_target")]
    pub target: Option<String>,
    /// Timeline to recover to: a number, latest, or current (the backup's) [default: latest]
    #[arg(long, value_name = "TIMELINE", value_parser = parse_timeline)]
    pub target_timeline: Option<TimelineChoice>,
    /// Whether to stop right after the target (true) or right before it
    #[arg(long, value_name = "BOOLEAN", action = ArgAction::Set, default_value_t = true)]
    pub target_inclusive: bool,
    /// What the server does at the target [default: pause]
    #[arg(long, value_name = "ACTION")]
    pub target_action: Option<TargetAction>,
    /// Where WAL is missing, recover up to there
    #[arg(long, conflicts_with_all = ["target_xid", "target_name"])]
    pub until_hole: bool,
    /// Make a standby, which goes on following the archive and its primary
    #[arg(long, conflicts_with_all = ["recovery_target", "target_action", "until_hole"])]
    pub standby: bool,
    /// The primary to stream from
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    pub primary_conninfo: Option<String>,
    /// The replication slot to stream through
    #[arg(short = 'S', long, value_name = "NAME", requires = "primary_conninfo")]
    pub slot: Option<String>,
}

/// Which backup is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupChoice {
    /// The newest that can reach the target.
    Newest,
    /// This one.
    Id(BackupId),
}

impl RestoreArgs {
    /// The data directory that is meant.
    pub fn data_directory(&self) -> PathBuf {
        let of_cluster = || self.to_cluster.as_ref().map(DebianCluster::data_directory);
        self.pgdata.clone().or_else(of_cluster).unwrap_or_default()
    }
}

fn parse_backup(text: &str) -> Result<BackupChoice, String> {
    match text {
        "latest" => Ok(BackupChoice::Newest),
        id => id.parse().map(BackupChoice::Id).map_err(|error| error.to_string()),
    }
}

/// As in PostgreSQL, 0x begins a hexadecimal number: so timelines are written in file names.
fn parse_timeline(text: &str) -> Result<TimelineChoice, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match (text, number) {
        ("latest", _) => Ok(TimelineChoice::Latest),
        ("current", _) => Ok(TimelineChoice::Current),
        (_, Some(number)) if number > 0 => Ok(TimelineChoice::Number(Timeline(number))),
        _ => Err("expected a number, latest or current".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        restore: RestoreArgs,
    }

    fn parse(line: &[&str]) -> Result<RestoreArgs, clap::Error> {
        let all = ["restore", "-D", "/data"].iter().chain(line);
        Command::try_parse_from(all).map(|command| command.restore)
    }

    #[test]
    fn at_most_one_target_is_taken() {
        for good in [
            &[][..],
            &["latest"],
            &["20261122T064500Z-3fa9", "--target-time", "2026-11-22 10:15:00+02"],
            &["--target=immediate"],
            &["--target-lsn", "0/1", "--target-inclusive=false", "--target-action", "promote"],
            &["--target-time=now", "--until-hole"],
            &["--standby", "--primary-conninfo", "host=a", "-S", "slot"],
            &["-T", "/a=/b", "-T", "/c=/d", "-j", "4", "--target-timeline", "0x1F"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}: {:?}", parse(good).unwrap_err());
        }
        for bad in [
            &["newest"][..],
            &["--target-lsn", "0/1", "--target-xid", "7"],
            &["--target=immediate", "--target-name", "a"],
            &["--target=soon"],
            &["--target-xid", "7", "--until-hole"],
            &["--standby", "--target-lsn", "0/1"],
            &["--primary-conninfo", "host=a"],
            &["--target-timeline", "0"],
            &["--target-timeline", "newest"],
            &["-j", "0"],
            &["-T", "a=b"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
