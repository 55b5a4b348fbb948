//! Which backups a policy keeps: a pure function of what there is, the pins and the time.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use walkeep_common::config::Retention;
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal::segment::Timeline;

use crate::pins::Pin;

/// A complete backup, and what a listing tells of its health.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Its record.
    pub backup: Backup,
    /// What is missing of it, of its own objects or of the WAL it needs; nothing if it can be restored.
    pub problem: Option<String>,
    /// The pins in force.
    pub pins: Vec<Pin>,
}

/// Nothing that belongs to no complete backup is touched before nobody has stored anything beside it for so long: it may be
/// a backup under way, on any host. A branch of the cluster's history to which something was added since is in use.
pub const GRACE: SignedDuration = SignedDuration::from_hours(48);

/// A branch of the cluster's history.
#[derive(Debug, Clone)]
pub struct Branch {
    /// Its history.
    pub history: TimelineHistory,
    /// When the newest of its objects was stored, by the store's clock.
    pub newest: Timestamp,
    /// When something was stored last that lies on no way to the newest timeline: a server is still on this one.
    pub apart: Option<Timestamp>,
    /// Whether it is the newest there is: a server may be on it, however idle.
    pub is_newest: bool,
}

/// Why a backup is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum Reason {
    /// It is among the newest so many.
    Full {
        /// Which of them, from 1.
        number: u32,
        /// Of how many.
        of: u32,
    },
    /// It ended within the window.
    Window {
        /// Its length.
        days: u32,
    },
    /// The window begins behind it.
    WindowStart {
        /// Its length.
        days: u32,
    },
    /// The newest of its day, week, month or year.
    Period {
        /// Which one, such as `2026-11` or `2026-W48`.
        period: String,
    },
    /// Somebody pinned it.
    Pinned(Pin),
    /// It is the newest from which a timeline in use can be recovered to.
    Branch {
        /// That timeline.
        timeline: Timeline,
    },
    /// A backup that is kept builds on it.
    Parent {
        /// That backup.
        of: BackupId,
    },
    /// It is the newest that can be restored.
    Newest,
    /// It is the newest that can be restored and has no damaged pages.
    NewestSound,
    /// It cannot be restored as it stands, and no policy counts it as long as it is among the newest.
    NotCounted,
}

/// How much WAL a kept backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeps {
    /// What makes it consistent: from its start to its end.
    OwnWal,
    /// All WAL since its start: any later moment can be reached.
    AllWalSince,
}

/// Why, and with how much WAL, each kept backup is kept. What is not in here is removed.
pub type Selection = BTreeMap<BackupId, (Keeps, BTreeSet<Reason>)>;

impl Branch {
    /// Whether a server may be on it.
    pub fn is_in_use(&self, now: Timestamp) -> bool {
        self.is_newest || self.apart.is_some_and(|stored| stored >= now - GRACE)
    }

    /// Whether recovery goes from this backup to here.
    fn is_reached_by(&self, backup: &Backup) -> bool {
        self.history.passes_through(backup.end_timeline(), backup.stop_lsn)
    }
}

impl Candidate {
    /// Whether it can be restored, as far as listings tell.
    pub fn is_whole(&self) -> bool {
        self.problem.is_none()
    }

    /// Whether it can be restored and has no damaged pages.
    pub fn is_sound(&self) -> bool {
        self.is_whole() && self.backup.bad_pages.is_empty()
    }
}

/// Chooses what is kept. `candidates` are in order of their recorded times, oldest first.
///
/// Only backups that can be restored count. One that cannot is kept all the same where it would be if it could: it may be
/// a listing that is wrong about it.
pub fn select(candidates: &[Candidate], policy: &Retention, branches: &[Branch], now: Timestamp) -> Selection {
    let whole: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.is_whole()).collect();
    let mut kept = counting(&whole, policy, branches, now);
    for candidate in candidates {
        for pin in &candidate.pins {
            keep(&mut kept, candidate, Keeps::OwnWal, Reason::Pinned(pin.clone()));
        }
    }
    let if_all_were_whole = counting(&candidates.iter().collect::<Vec<_>>(), policy, branches, now);
    for candidate in candidates.iter().filter(|candidate| !candidate.is_whole()) {
        if let Some((keeps, _)) = if_all_were_whole.get(&candidate.backup.id) {
            keep(&mut kept, candidate, *keeps, Reason::NotCounted);
        }
    }
    // Newest first, so that a parent's own parent is kept too.
    for child in candidates.iter().rev() {
        let parent = candidates.iter().find(|parent| child.backup.parent.as_ref() == Some(&parent.backup.id));
        if let (Some(parent), Some((keeps, _))) = (parent, kept.get(&child.backup.id).cloned()) {
            keep(&mut kept, parent, keeps, Reason::Parent { of: child.backup.id.clone() });
        }
    }
    kept
}

fn keep(kept: &mut Selection, candidate: &Candidate, keeps: Keeps, reason: Reason) {
    let entry = kept.entry(candidate.backup.id.clone()).or_insert_with(|| (keeps, BTreeSet::new()));
    entry.0 = entry.0.max(keeps);
    let _ = entry.1.insert(reason);
}

/// What stays without any pin when all of `counted` counts.
fn counting(counted: &[&Candidate], policy: &Retention, branches: &[Branch], now: Timestamp) -> Selection {
    let mut kept = Selection::new();
    if let Some(newest) = counted.last() {
        keep(&mut kept, newest, Keeps::AllWalSince, Reason::Newest);
    }
    if let Some(newest) = counted.iter().rfind(|candidate| candidate.backup.bad_pages.is_empty()) {
        keep(&mut kept, newest, Keeps::AllWalSince, Reason::NewestSound);
    }
    for branch in branches.iter().filter(|branch| branch.is_in_use(now)) {
        if let Some(newest) = counted.iter().rfind(|candidate| branch.is_reached_by(&candidate.backup)) {
            let timeline = branch.history.timeline();
            keep(&mut kept, newest, Keeps::AllWalSince, Reason::Branch { timeline });
        }
    }
    if let Some(of) = policy.keep_full {
        for (candidate, number) in counted.iter().rev().zip(1..=of) {
            keep(&mut kept, candidate, Keeps::AllWalSince, Reason::Full { number, of });
        }
    }
    if let Some(days) = policy.keep_days {
        let start = window_start(now, days);
        for candidate in counted.iter().filter(|candidate| candidate.backup.stop_time > start) {
            keep(&mut kept, candidate, Keeps::AllWalSince, Reason::Window { days });
        }
        for branch in branches.iter().filter(|branch| branch.is_newest || branch.newest >= start) {
            let reaches = |candidate: &&&Candidate| {
                candidate.backup.stop_time <= start && branch.is_reached_by(&candidate.backup)
            };
            if let Some(candidate) = counted.iter().rfind(reaches) {
                keep(&mut kept, candidate, Keeps::AllWalSince, Reason::WindowStart { days });
            }
        }
    }
    for (count, format) in [
        (policy.keep_daily, "%F"),
        (policy.keep_weekly, "%G-W%V"),
        (policy.keep_monthly, "%Y-%m"),
        (policy.keep_yearly, "%Y"),
    ] {
        let most = count.map_or(0, |count| count as usize);
        let mut periods = BTreeSet::new();
        for candidate in counted.iter().rev() {
            let period = candidate.backup.stop_time.to_zoned(TimeZone::UTC).strftime(format).to_string();
            if periods.len() < most && periods.insert(period.clone()) {
                keep(&mut kept, candidate, Keeps::OwnWal, Reason::Period { period });
            }
        }
    }
    kept
}

/// When the last `days` days began.
pub fn window_start(now: Timestamp, days: u32) -> Timestamp {
    now.checked_sub(SignedDuration::from_hours(i64::from(days) * 24)).unwrap_or(Timestamp::MIN)
}
