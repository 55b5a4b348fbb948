//! `backup_label`: where recovery of a base backup starts.
//!
//! Mirrors `build_backup_content` (src/backend/access/transam/xlogbackup.c; xlog.c before 16), PostgreSQL 13 to 19.
//! PostgreSQL itself reads only the first two lines strictly; here all are, since a label that is not as the server
//! wrote it must not be trusted with a restore.

use std::str::Split;

use crate::lsn::Lsn;
use crate::wal::segment::{SegmentName, Timeline};

/// What a backup label says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// `START WAL LOCATION`: where replay starts, the redo position of the backup's checkpoint.
    pub start: Lsn,
    /// The segment that holds the start.
    pub start_segment: SegmentName,
    /// `CHECKPOINT LOCATION`: where the checkpoint's record lies.
    pub checkpoint: Lsn,
    /// `BACKUP METHOD`: "streamed" for everything but `pg_rewind` and the exclusive backups before 15.
    pub method: String,
    /// `BACKUP FROM`.
    pub from: BackupFrom,
    /// `START TIME`, as written in the server's `log_timezone`. Abbreviations of zones are ambiguous: for people to read.
    pub start_time: String,
    /// `LABEL`: what the caller of `pg_backup_start` gave.
    pub label: String,
    /// `START TIMELINE`; always that of the start segment.
    pub start_timeline: Timeline,
    /// The backup that this one is an increment of. A server refuses to start from such a label.
    pub incremental_from: Option<IncrementalFrom>,
}

/// Which kind of server was backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFrom {
    /// A primary: its WAL holds a record that ends the backup.
    Primary,
    /// A standby: `minRecoveryPoint` in the backup's `pg_control` ends the backup.
    Standby,
}

/// Where the backup before an incremental one started (17 and later).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// `INCREMENTAL FROM LSN`
    pub lsn: Lsn,
    /// `INCREMENTAL FROM TLI`
    pub timeline: Timeline,
}

/// The text is not a backup label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBackupLabel {
    /// The last line has no end.
    #[error("backup label is cut short")]
    Unterminated,
    /// The lines come in one order, and none is left out.
    #[error("invalid backup label: expected line \"{expected}\", found \"{found}\"")]
    Line {
        /// The name of the line.
        expected: &'static str,
        /// The line as found.
        found: String,
    },
    /// A line has the right name, but no such value.
    #[error("invalid backup label: \"{value}\" in line \"{line}\"")]
    Value {
        /// The name of the line.
        line: &'static str,
        /// What comes after it.
        value: String,
    },
    /// The label contradicts itself.
    #[error("invalid backup label: start timeline {timeline}, but start segment \"{segment}\"")]
    Timeline {
        /// `START TIMELINE`
        timeline: Timeline,
        /// The segment in `START WAL LOCATION`.
        segment: SegmentName,
    },
}

impl BackupLabel {
    /// Reads a label. Lines of a later PostgreSQL may follow those known.
    pub fn parse(text: &str) -> Result<Self, InvalidBackupLabel> {
        let mut lines = Lines(text.strip_suffix('\n').ok_or(InvalidBackupLabel::Unterminated)?.split('\n'));
        let (start, start_segment) = lines.value("START WAL LOCATION", |value| {
            let (start, file) = value.split_once(" (file ")?;
            Some((start.parse().ok()?, file.strip_suffix(')')?.parse::<SegmentName>().ok()?))
        })?;
        let label = Self {
            start,
            start_segment,
            checkpoint: lines.value("CHECKPOINT LOCATION", |value| value.parse().ok())?,
            method: lines.value("BACKUP METHOD", non_empty)?,
            from: lines.value("BACKUP FROM", |value| match value {
                // 13 says "master".
                "primary" | "master" => Some(BackupFrom::Primary),
                "standby" => Some(BackupFrom::Standby),
                _ => None,
            })?,
            start_time: lines.value("START TIME", non_empty)?,
            label: lines.value("LABEL", |value| Some(value.to_owned()))?,
            start_timeline: lines.value("START TIMELINE", timeline)?,
            incremental_from: lines.incremental_from()?,
        };
        if label.start_timeline != start_segment.timeline {
            return Err(InvalidBackupLabel::Timeline { timeline: label.start_timeline, segment: start_segment });
        }
        Ok(label)
    }
}

struct Lines<'a>(Split<'a, char>);

impl Lines<'_> {
    /// Reads the next line, which must have this name.
    fn value<T>(&mut self, name: &'static str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, InvalidBackupLabel> {
        let line = self.0.next().unwrap_or_default();
        let value = line
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(": "))
            .ok_or_else(|| InvalidBackupLabel::Line { expected: name, found: line.to_owned() })?;
        read(value).ok_or_else(|| InvalidBackupLabel::Value { line: name, value: value.to_owned() })
    }

    fn incremental_from(&mut self) -> Result<Option<IncrementalFrom>, InvalidBackupLabel> {
        const LSN: &str = "INCREMENTAL FROM LSN";
        if !self.0.clone().next().is_some_and(|line| line.starts_with(LSN)) {
            return Ok(None);
        }
        let lsn = self.value(LSN, |value| value.parse().ok())?;
        Ok(Some(IncrementalFrom { lsn, timeline: self.value("INCREMENTAL FROM TLI", timeline)? }))
    }
}

fn non_empty(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn timeline(value: &str) -> Option<Timeline> {
    value.parse().ok().filter(|&timeline| timeline > 0).map(Timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `pg_stop_backup` of 13 returns it.
    const PG13: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: master\n\
        START TIME: 2026-11-22 19:20:04 UTC\n\
        LABEL: my label: x\n\
        START TIMELINE: 1\n";

    /// As `pg_backup_stop` of 19 returns it.
    const PG19: &str = "START WAL LOCATION: 0/02000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/02000080\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-22 19:20:17 UTC\n\
        LABEL: my label: x\n\
        START TIMELINE: 1\n";

    #[test]
    fn labels_of_the_oldest_and_the_newest_major_are_read() {
        let label = BackupLabel::parse(PG13).unwrap();
        let expected = BackupLabel {
            start: Lsn(0x200_0028),
            start_segment: SegmentName { timeline: Timeline(1), id: 0, part: 2 },
            checkpoint: Lsn(0x200_0060),
            method: "streamed".to_owned(),
            from: BackupFrom::Primary,
            start_time: "2026-11-22 19:20:04 UTC".to_owned(),
            label: "my label: x".to_owned(),
            start_timeline: Timeline(1),
            incremental_from: None,
        };
        assert_eq!(label, expected);
        let start_time = "2026-11-22 19:20:17 UTC".to_owned();
        assert_eq!(BackupLabel::parse(PG19), Ok(BackupLabel { checkpoint: Lsn(0x200_0080), start_time, ..expected }));
    }

    #[test]
    fn standbys_empty_labels_increments_and_later_lines_are_read() {
        let text = PG19.replace("primary", "standby").replace("my label: x", "");
        let increment = format!("{text}INCREMENTAL FROM LSN: 1/A0\nINCREMENTAL FROM TLI: 12\nLATER: 1\n");
        let label = BackupLabel::parse(&increment).unwrap();
        assert_eq!((label.from, label.label.as_str()), (BackupFrom::Standby, ""));
        let from = IncrementalFrom { lsn: Lsn(0x1_0000_00A0), timeline: Timeline(12) };
        assert_eq!(label.incremental_from, Some(from));
        assert_eq!(BackupLabel::parse(&format!("{text}LATER: 1\n")).unwrap().incremental_from, None);
    }

    #[test]
    fn what_the_server_does_not_write_is_refused() {
        for (from, to) in [
            ("0/02000028", "0/020000280"),
            ("(file ", "("),
            (" (file 000000010000000000000002)", ""),
            ("000000010000000000000002)", "000000010000000000000002"),
            ("CHECKPOINT LOCATION", "CHECKPOINT"),
            ("streamed", ""),
            ("primary", "secondary"),
            ("START TIME: 2026-11-22 19:20:17 UTC\n", ""),
            ("my label", "my\nlabel"),
            ("TIMELINE: 1", "TIMELINE: 2"),
            ("TIMELINE: 1", "TIMELINE: one"),
            ("TIMELINE: 1\n", "TIMELINE: 1"),
            ("START TIMELINE: 1\n", ""),
            ("TIMELINE: 1\n", "TIMELINE: 1\nINCREMENTAL FROM LSN: 0/1\n"),
        ] {
            assert!(PG19.contains(from), "{from:?}");
            assert!(BackupLabel::parse(&PG19.replacen(from, to, 1)).is_err(), "{to:?} for {from:?}");
        }
        assert_eq!(BackupLabel::parse(""), Err(InvalidBackupLabel::Unterminated));
        assert!(BackupLabel::parse(&PG19.replace('\n', "\r\n")).is_err());
    }

    #[test]
    fn a_label_cut_short_anywhere_is_refused() {
        for length in 0..PG13.len() {
            assert!(BackupLabel::parse(&PG13[..length]).is_err(), "{length} bytes");
        }
    }
}
