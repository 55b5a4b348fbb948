//! The command line of `basebackup restore`.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use walkeep_common::error::{Error, Kind, Result};
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
    #[arg(short = 'D', long, value_name = "DIRECTORY", alias = "datadir", required_unless_present = "to_cluster")]
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
    /// All tablespaces go below this directory.
    #[arg(skip)]
    pub tablespaces_below: Option<PathBuf>,
    /// Only this database; may be repeated. The others become empty shells that nobody can connect to, only drop
    #[arg(long, value_name = "NAME", conflicts_with = "standby")]
    pub only_database: Vec<String>,
    /// Refuse to replay more WAL than this, such as 100GB: a newer backup may be faster
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_wal: Option<u64>,
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
    /// How Patroni calls it.
    #[command(flatten)]
    pub patroni: PatroniArgs,
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
    #[arg(long, value_name = "CONNINFO", requires = "standby", group = "upstream")]
    pub primary_conninfo: Option<String>,
    /// The replication slot to stream through
    #[arg(short = 'S', long, value_name = "NAME", requires = "upstream")]
    pub slot: Option<String>,
}

/// What Patroni passes to the commands of `create_replica_methods` and of `bootstrap`, besides `--datadir`, which is
/// `--pgdata`.
#[derive(Debug, Clone, Default, Args)]
pub struct PatroniArgs {
    /// Patroni's name of the cluster: accepted, and of no consequence
    #[arg(long, value_name = "NAME", hide = true)]
    pub scope: Option<String>,
    /// Patroni's role of the server to be: replica is --standby
    #[arg(long, value_name = "ROLE", hide = true)]
    pub role: Option<PatroniRole>,
    /// Patroni's --primary-conninfo; empty where there is no leader
    #[arg(long, value_name = "CONNINFO", hide = true, group = "upstream")]
    pub connstring: Option<String>,
    /// Patroni's: whether it may call this without a leader; accepted, and of no consequence
    #[arg(long = "no_leader", alias = "no_master", value_name = "BOOL", hide = true)]
    pub no_leader: Option<String>,
    /// Patroni's: whether it has left an earlier state of the cluster where it was; then this is --delta
    #[arg(long = "keep_data", value_name = "BOOL", hide = true)]
    pub keep_data: Option<String>,
}

/// What a server is to Patroni.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PatroniRole {
    /// Follows the leader
    #[value(alias = "standby", alias = "standby_leader")]
    Replica,
    /// Leads
    #[value(alias = "master")]
    Primary,
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
    /// A copy of `backup`, recovered to `target`, as whoever looks at copies wants it; where to is said later.
    pub fn of_copy(backup: BackupChoice, target: TargetArgs, jobs: Option<u16>, progress: bool) -> Self {
        Self {
            backup,
            pgdata: None,
            dry_run: false,
            target,
            delta: false,
            tablespace_mapping: Vec::new(),
            tablespaces_below: None,
            only_database: Vec::new(),
            max_wal: None,
            waldir: None,
            config_dir: None,
            to_cluster: None,
            jobs,
            progress,
            keep_archiving: false,
            system_identifier: None,
            patroni: PatroniArgs::default(),
            format: Format::Text,
        }
    }

    /// The target that is meant.
    ///
    /// # Errors
    /// `Usage` for a target of a standby.
    pub fn request(&self) -> Result<TargetArgs> {
        let mut target = self.target.clone();
        if self.patroni.role != Some(PatroniRole::Replica) {
            return Ok(target);
        }
        if target.has_end() || !self.only_database.is_empty() {
            return Err(Error::new(Kind::Usage, "a replica has no recovery target, and all databases"));
        }
        target.standby = true;
        let connstring = self.patroni.connstring.clone().filter(|text| !text.is_empty());
        target.primary_conninfo = target.primary_conninfo.or(connstring);
        Ok(target)
    }

    /// Whether the restored server is to archive as configured, wherever it is: said so, or Patroni makes it a member of
    /// its cluster, which may lead one day.
    pub fn keeps_archiving(&self) -> bool {
        self.keep_archiving || self.patroni.role == Some(PatroniRole::Replica)
    }

    /// Whether to restore over an earlier state of the same cluster.
    pub fn is_delta(&self) -> bool {
        let is_true = |value: &String| matches!(value.to_lowercase().as_str(), "true" | "on" | "yes" | "1");
        self.delta || self.patroni.keep_data.as_ref().is_some_and(is_true)
    }

    /// The data directory that is meant.
    pub fn data_directory(&self) -> PathBuf {
        let of_cluster = || self.to_cluster.as_ref().map(DebianCluster::data_directory);
        self.pgdata.clone().or_else(of_cluster).unwrap_or_default()
    }
}

impl TargetArgs {
    /// Whether recovery is to end anywhere.
    fn has_end(&self) -> bool {
        self.target_time.is_some()
            || self.target_lsn.is_some()
            || self.target_xid.is_some()
            || self.target_name.is_some()
            || self.target.is_some()
            || self.until_hole
    }
}

/// Bytes: a number with a unit as PostgreSQL's settings have it, or only its first letter.
fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start() {
        "B" => Some(0),
        "k" | "K" | "kB" | "KB" => Some(10),
        "M" | "MB" => Some(20),
        "G" | "GB" => Some(30),
        "T" | "TB" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    bytes.ok_or_else(|| "expected a size with a unit, such as 100GB".to_owned())
}

fn parse_backup(text: &str) -> std::result::Result<BackupChoice, String> {
    match text {
        "latest" => Ok(BackupChoice::Newest),
        id => id.parse().map(BackupChoice::Id).map_err(|error| error.to_string()),
    }
}

/// As in PostgreSQL, 0x begins a hexadecimal number: so timelines are written in file names.
fn parse_timeline(text: &str) -> std::result::Result<TimelineChoice, String> {
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

    fn parse(line: &[&str]) -> std::result::Result<RestoreArgs, clap::Error> {
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
            &["--only-database", "a", "--delta"],
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
            &["--standby", "-S", "slot"],
            &["--standby", "--primary-conninfo", "host=a", "--connstring", "host=b"],
            &["--target-timeline", "0"],
            &["--target-timeline", "newest"],
            &["-j", "0"],
            &["-T", "a=b"],
            &["-j", "65"],
            &["--max-wal", "100"],
            &["--max-wal", "GB"],
            &["--only-database", "a", "--standby"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("10MB", 10 << 20), ("1G", 1 << 30), ("5 TB", 5 << 40), ("7B", 7), ("3k", 3072)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert!(parse_size("99999999999TB").is_err());
    }

    #[test]
    fn patroni_s_words_mean_a_standby_of_its_leader() {
        let parse = |words: &[&str]| {
            let all = ["restore", "--datadir=/data", "--scope=batman"].iter().chain(words);
            Command::try_parse_from(all).unwrap().restore
        };
        let replica = parse(&["--role=replica", "--connstring=host=a user=b", "--slot=c"]);
        assert_eq!(replica.data_directory(), PathBuf::from("/data"));
        let request = replica.request().unwrap();
        assert_eq!((request.standby, request.primary_conninfo.as_deref()), (true, Some("host=a user=b")));
        assert_eq!(request.slot.as_deref(), Some("c"));
        let alone = parse(&["--role=replica", "--connstring="]).request().unwrap();
        assert_eq!((alone.standby, alone.primary_conninfo), (true, None));
        let in_place = parse(&["--role=replica", "--connstring=", "--no_leader=True", "--keep_data=True"]);
        assert!(in_place.is_delta() && !replica.is_delta() && !parse(&["--keep_data=False"]).is_delta());
        assert!(replica.keeps_archiving() && !parse(&["--role=primary"]).keeps_archiving());
        let bootstrap = parse(&["--target-time=2026-11-22 10:15:00+02"]).request().unwrap();
        assert!(!bootstrap.standby && bootstrap.target_time.is_some());
        assert!(parse(&["--role=replica", "--target=immediate"]).request().is_err());
    }
}
