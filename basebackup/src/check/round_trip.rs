//! The real path: a segment is ended, PostgreSQL's own archiver archives it, and it is read back and verified.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_before};
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_archive::inventory::Inventory;

use super::finding::{Area, Finding, Findings, Limits};
use crate::session::Session;
use crate::session::archiver::{Archiver, Attempt};
use crate::session::server::Server;

const AREA: Area = Area::Archiving;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After so many failures PostgreSQL waits for a minute before it tries again (`NUM_ARCHIVE_RETRIES`,
/// src/backend/postmaster/pgarch.c).
const ATTEMPTS: u64 = 3;
/// Somebody who waits longer than this wants to know what for.
const SILENCE: Duration = Duration::from_secs(5);
/// Names in one message.
const NAMED: usize = 3;

/// How a segment came into the archive, or did not.
#[derive(Debug)]
enum Outcome {
    /// It is there and was read back, after so long.
    ReadBack(Duration),
    /// It is not there although PostgreSQL has archived it.
    NotHere,
    /// PostgreSQL fails to archive.
    Fails(Option<Attempt>),
    /// Nothing happened for so long.
    Late(Duration),
}

/// Has the server archive a segment and reads it back.
pub(super) async fn try_it(
    session: &Session,
    server: &Server,
    archive: &WalArchive,
    limit: Duration,
    reporter: Reporter,
    found: &mut Findings,
) {
    let segment = match finish_segment(session, server).await {
        Ok(segment) => segment,
        Err(error) => return found.add([Finding::of_error(AREA, "round_trip", &error)]),
    };
    match wait(session, server, archive, segment, limit, reporter).await {
        Ok(outcome) => {
            if let Outcome::ReadBack(time) = outcome {
                found.measure("round_trip", time.as_secs_f64(), "s", Limits::below(None, Some(limit.as_secs_f64())));
            }
            found.add([judge(segment, &outcome)]);
        }
        Err(error) => found.add([Finding::of_error(AREA, "round_trip", &error)]),
    }
}

async fn finish_segment(session: &Session, server: &Server) -> Result<SegmentName> {
    let size = server.settings.segment_size;
    let end = session.finish_segment().await?;
    Ok(SegmentName::new(server.timeline, segment_before(end, size), size))
}

async fn wait(
    session: &Session,
    server: &Server,
    archive: &WalArchive,
    segment: SegmentName,
    limit: Duration,
    reporter: Reporter,
) -> Result<Outcome> {
    let before = session.archiver(server).await?;
    let (begun, mut pause, mut told) = (Instant::now(), FIRST_PAUSE, false);
    loop {
        let archiver = session.archiver(server).await?;
        if read_back(archive, segment).await? {
            return Ok(Outcome::ReadBack(begun.elapsed()));
        }
        if has_passed(&archiver, segment) {
            return Ok(Outcome::NotHere);
        }
        if archiver.failed_count >= before.failed_count + ATTEMPTS {
            return Ok(Outcome::Fails(archiver.last_failed));
        }
        if begun.elapsed() >= limit {
            let fails = archiver.failed_count > before.failed_count || archiver.failure().is_some();
            return Ok(if fails { Outcome::Fails(archiver.last_failed) } else { Outcome::Late(limit) });
        }
        if begun.elapsed() >= SILENCE && !told {
            told = true;
            reporter.print(Severity::Info, &format!("waiting for PostgreSQL to archive \"{segment}\""), None);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the archiver, which takes the oldest first, is done with this segment.
fn has_passed(archiver: &Archiver, segment: SegmentName) -> bool {
    let last = archiver.last_archived.as_ref().and_then(|last| last.file.parse::<SegmentName>().ok());
    last.is_some_and(|last| last.timeline == segment.timeline && last >= segment)
}

/// Reads a segment with both its hashes, its size and its pages' header verified; whether it is there.
pub(super) async fn read_back(archive: &WalArchive, segment: SegmentName) -> Result<bool> {
    let fetched = archive.fetch(WalFileName::Segment(segment), || Ok(io::sink())).await?;
    Ok(fetched.is_some())
}

fn judge(segment: SegmentName, outcome: &Outcome) -> Finding {
    match outcome {
        Outcome::ReadBack(time) => {
            let text = format!(
                "\"{segment}\" was archived by PostgreSQL and read back within {:.1} s, both hashes right",
                time.as_secs_f64()
            );
            Finding::passed(AREA, "round_trip", text)
        }
        Outcome::NotHere => Finding::failed(
            AREA,
            "round_trip",
            format!("PostgreSQL believes that it has archived \"{segment}\", which is not in this repository"),
            "ALTER SYSTEM SET archive_command = 'archive-push %p'; SELECT pg_reload_conf(); and use one configuration for both.",
        ),
        Outcome::Fails(attempt) => {
            let file = attempt.as_ref().map_or_else(|| segment.to_string(), |attempt| attempt.file.clone());
            let text = format!("PostgreSQL fails to archive \"{file}\"; \"{segment}\" waits behind it");
            let fix = "The server's log says why (look for \"archive-push: ERROR\"), and what to do about it.";
            Finding::failed(AREA, "round_trip", text, fix)
        }
        Outcome::Late(limit) => Finding::failed(
            AREA,
            "round_trip",
            format!(
                "PostgreSQL has not archived \"{segment}\" within {} s, and counts no failure of archive_command",
                limit.as_secs()
            ),
            "It is still at work (--archive-timeout waits longer), or archive_command ends with more than 125 or by a signal, \
             which PostgreSQL does not count: look into the server's log.",
        ),
    }
}

/// What PostgreSQL believes to be archived: the files marked `.done` in the data directory, and the last one it counted.
pub(super) fn acknowledged(data_directory: Option<&Path>, archiver: &Archiver) -> BTreeSet<SegmentName> {
    let marked = data_directory.and_then(|directory| std::fs::read_dir(directory.join("pg_wal/archive_status")).ok());
    let marked = marked.into_iter().flatten().filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.strip_suffix(".done")?.parse().ok()
    });
    let last = archiver.last_archived.as_ref().and_then(|last| last.file.parse().ok());
    marked.chain(last).collect()
}

/// Names what PostgreSQL believes to be archived and is not there. What was archived elsewhere before anything was here, or
/// on timelines that were left, is not missing.
pub(super) fn missing(
    acknowledged: &BTreeSet<SegmentName>,
    timeline: Timeline,
    inventory: &Inventory,
) -> Option<Finding> {
    let size = inventory.segment_size();
    let first = inventory.runs(timeline).first()?.first;
    let is_expected = |name: &&SegmentName| name.timeline == timeline && is_after(**name, first, size);
    let missing: Vec<String> = acknowledged
        .iter()
        .filter(is_expected)
        .filter(|name| !inventory.has(**name))
        .map(ToString::to_string)
        .collect();
    let (named, more) = (missing.iter().take(NAMED).cloned().collect::<Vec<_>>(), missing.len().saturating_sub(NAMED));
    let (first, last) = (missing.first()?, if more == 0 { String::new() } else { format!(" and {more} more") });
    let text = format!(
        "PostgreSQL believes that it has archived {}{last}, and the repository does not have it",
        named.join(", ")
    );
    let fix = format!(
        "In the data directory, for each of them while PostgreSQL still has it: archive-push pg_wal/{first}; otherwise take a \
         base backup."
    );
    Some(Finding::failed(AREA, "acknowledged", text, fix))
}

fn is_after(name: SegmentName, first: u64, size: SegmentSize) -> bool {
    name.number(size).is_some_and(|number| number > first)
}

/// Reads the newest archived segment of a timeline, which is what can be tried where nothing can be switched.
pub(super) async fn newest(archive: &WalArchive, timeline: Timeline, inventory: &Inventory) -> Finding {
    let last = inventory.runs(timeline).last().map(|run| run.last);
    let Some(last) = last else {
        let text = format!("nothing of timeline {timeline} is archived");
        let fix = "Run basebackup check on the primary, which archives.";
        return Finding::failed(AREA, "read_back", text, fix);
    };
    let segment = SegmentName::new(timeline, last, inventory.segment_size());
    match read_back(archive, segment).await {
        Ok(true) => {
            Finding::passed(AREA, "read_back", format!("\"{segment}\", the newest, was read back, both hashes right"))
        }
        Ok(false) => {
            let error = Error::new(Kind::Unavailable, format!("\"{segment}\" is listed, but cannot be read"));
            Finding::of_error(AREA, "read_back", &error)
        }
        Err(error) => Finding::of_error(AREA, "read_back", &error),
    }
}

#[cfg(test)]
mod tests {
    use walkeep_common::store::Listed;

    use super::super::finding::Outcome as Result;
    use super::*;

    const SIZE: u64 = 1 << 24;

    fn inventory(names: &[&str]) -> Inventory {
        let listed = |name: &&str| Listed {
            key: format!("main/7/wal/x/{name}.zst").into(),
            size: 1,
            modified: jiff::Timestamp::UNIX_EPOCH,
        };
        let objects: Vec<Listed> = names.iter().map(listed).collect();
        Inventory::new(SegmentSize::try_from(SIZE).unwrap(), &objects, Vec::new())
    }

    fn names(names: &[&str]) -> BTreeSet<SegmentName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn what_postgresql_believes_to_be_archived_must_be_there() {
        let archived = inventory(&["000000020000000000000004", "000000020000000000000005"]);
        for (acknowledged, expected) in [
            (&[][..], None),
            (&["000000020000000000000005"], None),
            (&["000000020000000000000003"], None),
            (&["000000010000000000000009"], None),
            (&["000000020000000000000006"], Some("000000020000000000000006")),
        ] {
            let finding = missing(&names(acknowledged), Timeline(2), &archived);
            assert_eq!(finding.is_some(), expected.is_some(), "{acknowledged:?}");
            assert!(finding.is_none_or(|finding| finding.text.contains(expected.unwrap())));
        }
        let many = names(
            &["6", "7", "8", "9", "A"]
                .map(|last| format!("00000002000000000000000{last}"))
                .each_ref()
                .map(String::as_str),
        );
        let finding = missing(&many, Timeline(2), &archived).unwrap();
        assert!(finding.text.contains("000000020000000000000008 and 2 more"), "{}", finding.text);
        assert_eq!(missing(&many, Timeline(2), &inventory(&[])), None);
    }

    #[test]
    fn each_way_not_to_arrive_has_its_own_words() {
        let segment = "000000010000000000000007".parse().unwrap();
        let limit = Duration::from_secs(60);
        for (outcome, expected, words) in [
            (Outcome::ReadBack(Duration::from_millis(1100)), Result::Passed, "within 1.1 s"),
            (Outcome::NotHere, Result::Failed, "not in this repository"),
            (Outcome::Fails(None), Result::Failed, "fails to archive"),
            (Outcome::Late(limit), Result::Failed, "within 60 s"),
        ] {
            let finding = judge(segment, &outcome);
            assert!(finding.outcome == expected && finding.text.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn marks_and_the_last_count_are_what_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let status = directory.path().join("pg_wal/archive_status");
        std::fs::create_dir_all(&status).unwrap();
        for name in ["000000010000000000000001.done", "000000010000000000000002.ready", "00000002.history.done"] {
            std::fs::write(status.join(name), "").unwrap();
        }
        let last = Attempt { file: "000000010000000000000003".to_owned(), time: jiff::Timestamp::UNIX_EPOCH };
        let archiver = Archiver {
            now: jiff::Timestamp::UNIX_EPOCH,
            position: walkeep_common::lsn::Lsn(0),
            queue: None,
            last_archived: Some(last),
            last_failed: None,
            archived_count: 1,
            failed_count: 0,
        };
        let expected = names(&["000000010000000000000001", "000000010000000000000003"]);
        assert_eq!(acknowledged(Some(directory.path()), &archiver), expected);
    }
}
