//! The real path: a segment is ended, PostgreSQL's own archiver archives it, and it is read back and verified.

use std::io;
use std::time::{Duration, Instant};

use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, Timeline, segment_before};
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
        // That it is there is not enough: what pushes ahead works without PostgreSQL's asking for a while.
        if has_passed(&archiver, segment) {
            let is_there = read_back(archive, segment).await?;
            return Ok(if is_there { Outcome::ReadBack(begun.elapsed()) } else { Outcome::NotHere });
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
    let last = archiver.last_archived.as_ref().and_then(|last| last.file.parse::<WalFileName>().ok());
    let last = last.and_then(WalFileName::segment);
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
    use super::super::finding::Outcome as Result;
    use super::*;

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
}
