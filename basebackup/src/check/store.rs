//! The repository as a store: whether it takes, gives and lists, refuses to overwrite, and tells the same time.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use walkeep_common::error::{Kind, Result};
use walkeep_common::host::{HostMemory, host_name};
use walkeep_common::repository::layout::probe;
use walkeep_common::store::{CreateOnly, Store};
use walkeep_common::wal_archive::note_create_only;

use super::finding::{Area, Finding, Findings, Limits, Outcome};

const AREA: Area = Area::Repository;
/// Clocks further apart make a time to recover to mean something else on each side.
const CLOCK: Limits = Limits::below(Some(10.0), Some(300.0));
const MAY_DELETE: &str = "may-delete";
/// Asking leaves a mark in a bucket that keeps versions, so it is done once a day.
const MAY_DELETE_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// What was found out about a store.
#[derive(Debug)]
struct Facts {
    create_only: CreateOnly,
    /// The mean time of a request.
    answer: Duration,
    clock_ahead: Option<SignedDuration>,
    may_delete: Option<bool>,
}

/// Tries the store. Whether anything further can be read from it is returned.
pub(super) async fn judge(store: &Store, memory: &HostMemory, found: &mut Findings) -> bool {
    match find(store, memory).await {
        Ok(facts) => {
            found.add(facts.judge());
            if let Some(ahead) = facts.clock_ahead {
                found.measure("clock_skew", ahead.as_secs_f64().abs(), "s", CLOCK);
            }
            true
        }
        Err(error) => {
            found.add([Finding::of_error(AREA, "access", &error)]);
            error.kind() == Kind::Refused && store.list_folder(&probe_folder()).await.is_ok()
        }
    }
}

fn probe_folder() -> object_store::path::Path {
    object_store::path::Path::from(walkeep_common::repository::layout::PROBE_FOLDER)
}

async fn find(store: &Store, memory: &HostMemory) -> Result<Facts> {
    // One object a day and host, however often this runs: nothing is ever deleted, and nothing else grows with it.
    let today = Timestamp::now().strftime("%F").to_string();
    let key = probe(number(&format!("{} {today}", host_name())));
    let begun = Instant::now();
    let create_only = store.probe_create_only(&key).await?;
    note_create_only(memory, store, create_only);
    if create_only == CreateOnly::Unsupported {
        // Nothing has been stored yet.
        let _ = store.create(&probe(fastrand::u64(..)), b"walkeep probe\n".to_vec()).await?;
    }
    store.list_folder(&probe_folder()).await?;
    let answer = begun.elapsed() / 4;
    Ok(Facts {
        create_only,
        answer,
        clock_ahead: store.health().clock_ahead(),
        may_delete: may_delete(store, memory).await,
    })
}

fn number(text: &str) -> u64 {
    let digest = blake3::hash(text.as_bytes());
    digest.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Nothing where that cannot be told. A directory's files can be deleted by whoever can write to it.
async fn may_delete(store: &Store, memory: &HostMemory) -> Option<bool> {
    if store.directory().is_some() || !memory.is_usable() {
        return None;
    }
    let is_fresh = memory.age(MAY_DELETE, store.place()).is_some_and(|age| age < MAY_DELETE_MEMORY);
    match memory.recall(MAY_DELETE, store.place()).as_deref().filter(|_| is_fresh) {
        Some("yes") => Some(true),
        Some("no") => Some(false),
        _ => {
            // Nobody ever stored anything under a name that was drawn just now.
            let may = store.may_delete(&probe(fastrand::u64(..))).await.ok()?;
            memory.note(MAY_DELETE, store.place(), if may { "yes" } else { "no" });
            Some(may)
        }
    }
}

impl Facts {
    fn judge(&self) -> Vec<Finding> {
        let time = self.answer.as_millis();
        let mut findings =
            vec![Finding::passed(AREA, "access", format!("put, get and list work, {time} ms a request"))];
        findings.push(match self.create_only {
            CreateOnly::Enforced => {
                Finding::passed(AREA, "create_only", "the store refuses to overwrite an object that exists")
            }
            CreateOnly::NotEnforced | CreateOnly::Unsupported => Finding::warning(
                AREA,
                "create_only",
                "the store does not refuse to overwrite: each object costs one more request, and of two hosts that \
                 archive the same name at the same moment the later one wins",
                "Let one host alone archive here, or use a store with conditional puts (If-None-Match).",
            ),
        });
        findings.extend(self.clock_ahead.map(clock));
        findings.extend(self.may_delete.map(|may| {
            if may {
                let text = "these credentials can delete; only basebackup expire needs to, and it can have others";
                return Finding::note(AREA, "delete", text);
            }
            Finding::passed(AREA, "delete", "these credentials cannot delete: nor can whoever steals them")
        }));
        findings
    }
}

fn clock(ahead: SignedDuration) -> Finding {
    let seconds = ahead.as_secs_f64();
    let apart = format!("{:.0} s {}", seconds.abs(), if seconds < 0.0 { "behind" } else { "ahead of" });
    let text = format!("the store's clock is {apart} this host's");
    match CLOCK.judge(seconds.abs()) {
        Outcome::Passed => Finding::passed(AREA, "clock", "this host's clock and the store's agree"),
        Outcome::Failed => Finding::failed(AREA, "clock", text, "timedatectl set-ntp true"),
        _ => Finding::warning(AREA, "clock", text, "timedatectl set-ntp true"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            create_only: CreateOnly::Enforced,
            answer: Duration::from_millis(7),
            clock_ahead: Some(SignedDuration::from_millis(-400)),
            may_delete: Some(false),
        }
    }

    #[test]
    fn a_stores_weaknesses_are_named() {
        let ahead = |seconds| Some(SignedDuration::from_secs(seconds));
        for (facts, expected) in [
            (good(), None),
            (Facts { create_only: CreateOnly::NotEnforced, ..good() }, Some(("create_only", Outcome::Warning))),
            (Facts { create_only: CreateOnly::Unsupported, ..good() }, Some(("create_only", Outcome::Warning))),
            (Facts { clock_ahead: ahead(60), ..good() }, Some(("clock", Outcome::Warning))),
            (Facts { clock_ahead: ahead(-600), ..good() }, Some(("clock", Outcome::Failed))),
            (Facts { clock_ahead: None, ..good() }, None),
            (Facts { may_delete: Some(true), ..good() }, Some(("delete", Outcome::Note))),
            (Facts { may_delete: None, ..good() }, None),
        ] {
            let findings = facts.judge();
            let bad = findings.iter().find(|finding| finding.outcome != Outcome::Passed);
            assert_eq!(bad.map(|finding| (finding.check, finding.outcome)), expected, "{facts:?}");
        }
        assert!(clock(SignedDuration::from_secs(-60)).text.contains("60 s behind this host's"));
    }
}
