//! What is found: an object, what is wrong with it, and what is lost with it.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use walkeep_common::lsn::Lsn;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal::segment::Timeline;

use crate::list::time;

/// An object that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its URL.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// What is lost with it.
    #[serde(flatten)]
    pub lost: Lost,
}

/// What cannot be restored any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Backups.
    #[serde(rename = "backups_lost")]
    pub backups: Vec<BackupId>,
    /// Moments between backups.
    #[serde(rename = "moments_lost")]
    pub spans: Vec<Span>,
}

/// Moments of one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The timeline recovered to.
    pub timeline: Timeline,
    /// The last position that can be reached.
    pub from_lsn: Lsn,
    /// When that was written, where it is known.
    pub from_time: Option<Timestamp>,
    /// From where on everything can be reached again, with a later backup; none: nothing can.
    pub to_lsn: Option<Lsn>,
    /// When that was.
    pub to_time: Option<Timestamp>,
}

impl Finding {
    /// In one line.
    pub fn to_text(&self) -> String {
        let Lost { backups, spans } = &self.lost;
        let backups = backups.iter().map(|id| format!("backup {id}"));
        let lost: Vec<String> = backups.chain(spans.iter().map(|span| span.to_text())).collect();
        let lost = if lost.is_empty() { "nothing that recovery needs".to_owned() } else { lost.join(", ") };
        format!("{}: {}; lost: {lost}", self.object, self.problem)
    }
}

impl Span {
    fn to_text(self) -> String {
        let at = |lsn: Lsn, when: Option<Timestamp>| {
            when.map_or_else(|| lsn.to_string(), |when| format!("{lsn} ({})", time(when)))
        };
        let mut text =
            format!("on timeline {} every moment after {}", self.timeline, at(self.from_lsn, self.from_time));
        if let Some(to) = self.to_lsn {
            let _ = write!(text, " and before {}", at(to, self.to_time));
        }
        text
    }
}
