//! Where recovery is to end.

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::lsn::Lsn;
use walkeep_common::wal::segment::Timeline;

use super::args::TargetArgs;
use super::time::{Moment, to_postgres};

/// PostgreSQL keeps names of restore points in fields of this length, with a zero at the end (`MAXFNAMELEN`,
/// src/include/access/xlog_internal.h).
const MAX_NAME_BYTES: usize = 63;

/// The one thing recovery stops at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nothing: everything that is archived is replayed, then the server opens.
    End,
    /// The end of the backup.
    Immediate,
    /// The first transaction that ended later.
    Time(Moment),
    /// A position.
    Lsn(Lsn),
    /// The end of a transaction: its 32-bit id, or the 64-bit one with the epoch.
    Xid(u64),
    /// A restore point.
    Name(String),
}

/// The timeline that recovery follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimelineChoice {
    /// The newest in the archive.
    #[default]
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Number(Timeline),
}

/// What the server does at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetAction {
    /// Answers queries, and waits for pg_wal_replay_resume()
    #[default]
    Pause,
    /// Opens for writing
    Promote,
    /// Shuts down
    Shutdown,
}

impl TargetAction {
    /// As `recovery_target_action` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

/// Whether the target itself is replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Recovery stops right after it.
    Inclusive,
    /// Recovery stops right before it.
    Exclusive,
}

/// What the restored server is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A server of its own, once recovery has ended.
    Primary,
    /// A standby.
    Standby {
        /// Where it streams from.
        primary_conninfo: Option<String>,
        /// Through which slot.
        slot: Option<String>,
    },
}

/// Everything that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Where recovery ends.
    pub target: Target,
    /// Whether the target itself is replayed.
    pub bound: Bound,
    /// What the server does there; none where nothing was said.
    pub action: Option<TargetAction>,
    /// The timeline to follow.
    pub timeline: TimelineChoice,
    /// Whether a hole in the archive ends recovery, instead of making it impossible.
    pub until_hole: bool,
    /// What the server becomes.
    pub role: Role,
}

impl Request {
    /// Reads the options; a time without a zone is meant in `host`'s.
    ///
    /// # Errors
    /// `Usage`.
    pub fn new(args: &TargetArgs, host: &TimeZone) -> Result<Self> {
        let target = match args {
            TargetArgs { target_time: Some(text), .. } => {
                let moment = Moment::parse(text, host);
                Target::Time(moment.map_err(|error| Error::new(Kind::Usage, "invalid target time").caused_by(error))?)
            }
            TargetArgs { target_lsn: Some(lsn), .. } => Target::Lsn(*lsn),
            TargetArgs { target_xid: Some(xid), .. } => Target::Xid(check_xid(*xid)?),
            TargetArgs { target_name: Some(name), .. } => Target::Name(check_name(name)?),
            TargetArgs { target: Some(_), .. } => Target::Immediate,
            _ => Target::End,
        };
        let primary_conninfo = check_text("--primary-conninfo", args.primary_conninfo.as_deref())?;
        let slot = args.slot.as_deref().map(check_slot).transpose()?;
        Ok(Self {
            target,
            bound: if args.target_inclusive { Bound::Inclusive } else { Bound::Exclusive },
            action: args.target_action,
            timeline: args.target_timeline.unwrap_or_default(),
            until_hole: args.until_hole,
            role: if args.standby { Role::Standby { primary_conninfo, slot } } else { Role::Primary },
        })
    }
}

/// 0, 1 and 2 are no transactions (`FirstNormalTransactionId`, src/include/access/transam.h).
fn check_xid(xid: u64) -> Result<u64> {
    if low_half(xid) >= 3 {
        Ok(xid)
    } else {
        Err(Error::new(Kind::Usage, format!("{xid} is not the id of a transaction")))
    }
}

fn check_name(name: &str) -> Result<String> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(Error::new(Kind::Usage, format!("\"{name}\" cannot be the name of a restore point"))
        .hint(format!("PostgreSQL takes names of 1 to {MAX_NAME_BYTES} bytes.")))
}

/// A line of a configuration file cannot hold everything.
fn check_text(option: &str, text: Option<&str>) -> Result<Option<String>> {
    match text {
        Some(text) if text.contains(char::is_control) => {
            Err(Error::new(Kind::Usage, format!("{option} has a control character in it")))
        }
        text => Ok(text.map(str::to_owned)),
    }
}

/// As `ReplicationSlotValidateName` (src/backend/replication/slot.c) has it.
fn check_slot(name: &str) -> Result<String> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(good) {
        return Ok(name.to_owned());
    }
    Err(Error::new(Kind::Usage, format!("\"{name}\" cannot be the name of a replication slot"))
        .hint("It consists of lower-case letters, digits and underscores, 63 at most."))
}

/// What `recovery_target_xid` compares.
#[expect(clippy::cast_possible_truncation, reason = "the epoch is dropped on purpose")]
pub fn low_half(xid: u64) -> u32 {
    xid as u32
}

impl Target {
    /// The time, if that is what it is.
    pub fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Time(moment) => Some(moment.time),
            _ => None,
        }
    }

    /// The setting that makes PostgreSQL stop there, and its value.
    pub fn setting(&self) -> Option<(&'static str, String)> {
        match self {
            Self::End => None,
            Self::Immediate => Some(("recovery_target", "immediate".to_owned())),
            Self::Time(moment) => Some(("recovery_target_time", to_postgres(moment.time))),
            Self::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
            Self::Xid(xid) => Some(("recovery_target_xid", low_half(*xid).to_string())),
            Self::Name(name) => Some(("recovery_target_name", name.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &TargetArgs) -> Result<Request> {
        Request::new(args, &TimeZone::UTC)
    }

    #[test]
    fn each_target_has_its_setting() {
        let base = TargetArgs { target_inclusive: true, ..TargetArgs::default() };
        for (args, setting) in [
            (base.clone(), None),
            (TargetArgs { target: Some("immediate".into()), ..base.clone() }, Some(("recovery_target", "immediate"))),
            (
                TargetArgs { target_time: Some("2026-11-22 10:15:00+02".into()), ..base.clone() },
                Some(("recovery_target_time", "2026-11-22 08:15:00.000000+00")),
            ),
            (TargetArgs { target_lsn: Some(Lsn(0x1_0000_0007)), ..base.clone() }, Some(("recovery_target_lsn", "1/7"))),
            (TargetArgs { target_xid: Some(0x2_0000_0007), ..base.clone() }, Some(("recovery_target_xid", "7"))),
            (TargetArgs { target_name: Some("a b".into()), ..base.clone() }, Some(("recovery_target_name", "a b"))),
        ] {
            let found = request(&args).unwrap().target.setting();
            assert_eq!(found.as_ref().map(|(name, value)| (*name, value.as_str())), setting);
        }
    }

    #[test]
    fn what_postgresql_could_never_reach_is_refused() {
        for args in [
            TargetArgs { target_xid: Some(2), ..TargetArgs::default() },
            TargetArgs { target_xid: Some(1 << 32), ..TargetArgs::default() },
            TargetArgs { target_name: Some(String::new()), ..TargetArgs::default() },
            TargetArgs { target_name: Some("x".repeat(64)), ..TargetArgs::default() },
            TargetArgs { target_name: Some("a\nb".into()), ..TargetArgs::default() },
            TargetArgs { target_time: Some("yesterday".into()), ..TargetArgs::default() },
            TargetArgs { primary_conninfo: Some("host=a\nport=1".into()), ..TargetArgs::default() },
            TargetArgs { slot: Some("a\tb".into()), ..TargetArgs::default() },
        ] {
            assert_eq!(request(&args).unwrap_err().kind(), Kind::Usage);
        }
    }
}
