//! The plan for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Plan, REPLAYED_PER_SECOND, RecoveryEnd, RecoveryTimeline};
use crate::list::time;
use crate::meter::duration;
use crate::output::bytes;
use crate::restore::target::{Bound, Role, Target};
use crate::restore::time::to_postgres;

impl Plan {
    /// The plan in lines.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| {
            let _ = writeln!(text, "{what:<12}{value}");
        };
        let backup = &self.backup;
        line(
            "Backup",
            format!(
                "{}, {} in {} files of PostgreSQL {}, taken {} to {} on host \"{}\"",
                backup.id,
                bytes(backup.plain_size),
                backup.files,
                backup.pg_major(),
                time(backup.start_time),
                time(backup.stop_time),
                backup.host
            ),
        );
        line("", self.backup_reason.clone());
        line("Target", self.target_text());
        line("", self.end_text());
        line("Timeline", format!("{}: {}", self.timeline_text(), self.timeline_reason));
        let wal = &self.wal;
        line(
            "WAL",
            match wal.segments {
                1 => format!("{}, which is there", wal.first),
                segments => format!("{} to {} ({segments} segments), all there", wal.first, wal.last),
            },
        );
        if let Some(written) = wal.written {
            line("", format!("the last one was written at {}; the archive goes on to {}", time(written), wal.end_lsn));
        }
        line(
            "Time",
            format!(
                "about {}, if the files take as long as they took to back up ({}) and WAL is replayed at {}/s ({})",
                duration(self.estimated_seconds()),
                duration(self.copy_time().as_secs().max(1)),
                bytes(REPLAYED_PER_SECOND),
                bytes(self.wal_bytes())
            ),
        );
        if let Some(last) = self.last_segment {
            line("", format!("nothing after {last} will be fetched"));
        }
        text
    }

    /// The plan as one JSON object.
    pub fn to_json(&self) -> Value {
        let backup = &self.backup;
        json!({
            "backup": {
                "id": backup.id, "reason": self.backup_reason, "timeline": backup.end_timeline(), "host": backup.host,
                "start_lsn": backup.start_lsn, "stop_lsn": backup.stop_lsn, "stop_time": backup.stop_time,
                "plain_size": backup.plain_size, "files": backup.files, "pg_version": backup.pg_version,
            },
            "system_identifier": backup.system_identifier.to_string(),
            "target": self.request.target.setting().map(|(name, value)| json!({
                "setting": name, "value": value, "inclusive": self.request.bound == Bound::Inclusive,
                "action": self.request.action.unwrap_or_default(),
            })),
            "copy_seconds": self.copy_time().as_secs(), "estimated_seconds": self.estimated_seconds(),
            "standby": self.request.role != Role::Primary,
            "end": self.end_text(),
            "timeline": self.timeline_text(),
            "timeline_reason": self.timeline_reason,
            "wal": {
                "first": self.wal.first.to_string(), "last": self.wal.last.to_string(), "segments": self.wal.segments,
                "end_lsn": self.wal.end_lsn, "written": self.wal.written, "bytes": self.wal_bytes(),
            },
            "last_segment": self.last_segment.map(|last| last.to_string()),
            "warnings": self.warnings,
        })
    }

    fn timeline_text(&self) -> String {
        match self.timeline {
            RecoveryTimeline::Number(timeline) => timeline.to_string(),
            RecoveryTimeline::Latest => "latest".to_owned(),
        }
    }

    fn target_text(&self) -> String {
        let bound = match self.request.bound {
            Bound::Inclusive => "inclusive",
            Bound::Exclusive => "exclusive",
        };
        let target = match &self.request.target {
            Target::End if self.request.role == Role::Primary => return "everything that is archived".to_owned(),
            Target::End => return "none: a standby".to_owned(),
            Target::Immediate => "the end of the backup".to_owned(),
            Target::Time(moment) => match &moment.assumed_zone {
                Some(zone) => format!("time {} (read in time zone {zone}), {bound}", to_postgres(moment.time)),
                None => format!("time {}, {bound}", to_postgres(moment.time)),
            },
            Target::Lsn(lsn) => format!("position {lsn}, {bound}"),
            Target::Xid(xid) => format!("transaction {xid}, {bound}"),
            Target::Name(name) => format!("restore point \"{name}\""),
        };
        format!("{target}; then {}", self.request.action.unwrap_or_default().as_str())
    }

    /// Where recovery will end, as far as that is known.
    pub fn end_text(&self) -> String {
        match self.end {
            RecoveryEnd::Position(lsn) => format!("recovery stops at {lsn}"),
            RecoveryEnd::Before(end) => {
                let time = to_postgres(end.time);
                format!("recovery stops at {}, before the transaction that ended at {time}", end.lsn)
            }
            RecoveryEnd::BeforeAtLatest(end) => {
                let time = to_postgres(end.time);
                format!("recovery stops at {} at the latest, before the transaction that ended at {time}", end.lsn)
            }
            RecoveryEnd::IfFound => {
                format!("recovery stops where it finds the target, and fails if it is not before {}", self.wal.end_lsn)
            }
            RecoveryEnd::ArchiveEnd => {
                format!("recovery ends with the archived WAL, at {} at the latest", self.wal.end_lsn)
            }
            RecoveryEnd::Hole(missing) => {
                format!("recovery ends at {}, for \"{missing}\" is missing", self.wal.end_lsn)
            }
            RecoveryEnd::Never => "the standby goes on after the archived WAL".to_owned(),
        }
    }
}
