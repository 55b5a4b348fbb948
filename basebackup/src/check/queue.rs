//! The files that wait to be archived, the archiver that works on them, and the disk they wait on.

use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use walkeep_common::lsn::Lsn;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, Timeline, segment_of, segment_start};

use super::finding::{Area, Finding, Findings, Limits, Outcome};
use crate::list::time;
use crate::output::{bytes, seconds};
use crate::session::archiver::{Archiver, WalSpace, wal_space};
use crate::session::server::Server;

const AREA: Area = Area::Archiving;
/// How long a file may wait. PostgreSQL tries again every minute.
const WAIT: Limits = Limits::below(Some(300.0), Some(900.0));
/// How soon the disk may be full. Somebody has to wake up and act.
const FULL: Limits = Limits::above(4.0 * 3600.0, 3600.0);
/// A rate that was observed for less time than this says nothing about the next hours.
const LONG_ENOUGH: f64 = 600.0;

/// Judges the archiver of a server that archives.
pub(super) fn judge(archiver: &Archiver, found: &mut Findings) {
    found.add([failures(archiver), waiting(archiver)]);
    if let Some(queue) = &archiver.queue {
        #[expect(clippy::cast_precision_loss, reason = "a number of files")]
        found.measure("ready_files", queue.files as f64, "", Limits::default());
        found.measure("oldest_ready", oldest(archiver).unwrap_or_default(), "s", WAIT);
    }
}

fn failures(archiver: &Archiver) -> Finding {
    if let Some(failure) = archiver.failure() {
        let (file, time, count) = (&failure.file, time(failure.time), archiver.failed_count);
        return Finding::failed(
            AREA,
            "archiver",
            format!("PostgreSQL could not archive \"{file}\" at {time} ({count} failures so far)"),
            "The server's log says why (look for \"archive-push: ERROR\"); PostgreSQL tries again by itself.",
        );
    }
    let last = archiver.last_archived.as_ref().map_or_else(
        || "nothing archived yet".to_owned(),
        |last| format!("\"{}\" archived at {}", last.file, time(last.time)),
    );
    Finding::passed(AREA, "archiver", format!("no failure since the last success: {last}"))
}

fn waiting(archiver: &Archiver) -> Finding {
    const FIX: &str =
        "The server's log says what archive_command is doing; \"jobs\" in the configuration pushes more at a time.";
    let Some(queue) = &archiver.queue else {
        let text = "what waits to be archived cannot be seen";
        return Finding::warning(
            AREA,
            "queue",
            text,
            "As a superuser: GRANT pg_monitor TO the role that basebackup connects as;",
        );
    };
    let Some(age) = oldest(archiver) else { return Finding::passed(AREA, "queue", "no file waits to be archived") };
    let files = if queue.files == 1 { "1 file waits".to_owned() } else { format!("{} files wait", queue.files) };
    let text = format!("{files} to be archived, the oldest for {}", seconds(age));
    match WAIT.judge(age) {
        Outcome::Failed => Finding::failed(AREA, "queue", text, FIX),
        Outcome::Warning => Finding::warning(AREA, "queue", text, FIX),
        _ => Finding::passed(AREA, "queue", text),
    }
}

/// How long the oldest file has waited.
fn oldest(archiver: &Archiver) -> Option<f64> {
    let oldest = archiver.queue.as_ref()?.oldest?;
    Some(archiver.now.duration_since(oldest).as_secs_f64().max(0.0))
}

/// Says how long it takes until the disk of `pg_wal` is full once nothing is archived any more.
pub(super) fn disk(server: &Server, archiver: &Archiver, data_directory: &Path, found: &mut Findings) {
    let Ok(space) = wal_space(data_directory) else { return };
    let oldest = oldest_segment(data_directory, server.timeline, archiver.position, server.settings.segment_size);
    let rate = oldest.and_then(|(end, written)| rate(end, written, archiver.position, archiver.now));
    found.add([full(space, rate)]);
    #[expect(clippy::cast_precision_loss, reason = "a figure to be drawn")]
    found.measure("wal_disk_free", space.free_bytes as f64, "B", Limits::default());
    if let Some(left) = time_left(space, rate) {
        found.measure("wal_disk_full_in", left, "s", FULL);
    }
}

/// The end of the oldest complete segment in `pg_wal` that lies before `position`, and when it was written.
fn oldest_segment(
    data_directory: &Path,
    timeline: Timeline,
    position: Lsn,
    size: SegmentSize,
) -> Option<(Lsn, Timestamp)> {
    let entries = std::fs::read_dir(data_directory.join("pg_wal")).ok()?;
    let segments = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name: SegmentName = entry.file_name().to_str()?.parse().ok()?;
        // Files behind the position are old ones that wait to be written anew.
        let number = name.number(size).filter(|&number| number < segment_of(position, size))?;
        (name.timeline == timeline).then_some((number, entry.metadata().and_then(|metadata| metadata.modified()).ok()?))
    });
    let (number, written): (u64, SystemTime) = segments.min()?;
    Some((segment_start(number + 1, size), Timestamp::try_from(written).ok()?))
}

/// Bytes of WAL a second, as far as it was observed for long enough.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn rate(end: Lsn, written: Timestamp, position: Lsn, now: Timestamp) -> Option<f64> {
    let elapsed = now.duration_since(written).as_secs_f64();
    let bytes = position.0.checked_sub(end.0)? as f64;
    (elapsed >= LONG_ENOUGH && bytes > 0.0).then_some(bytes / elapsed)
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn time_left(space: WalSpace, rate: Option<f64>) -> Option<f64> {
    rate.map(|rate| space.free_bytes as f64 / rate)
}

fn full(space: WalSpace, rate: Option<f64>) -> Finding {
    const FIX: &str = "Enlarge the file system of pg_wal, or move pg_wal to a larger one.";
    let free = bytes(space.free_bytes);
    let Some(left) = time_left(space, rate) else {
        return Finding::passed(
            AREA,
            "disk",
            format!("{free} free where pg_wal is; too little was written lately to tell for how long"),
        );
    };
    let text = format!("{free} free where pg_wal is: full within {} if nothing were archived any more", seconds(left));
    match FULL.judge(left) {
        Outcome::Failed => Finding::failed(AREA, "disk", text, FIX),
        Outcome::Warning => Finding::warning(AREA, "disk", text, FIX),
        _ => Finding::passed(AREA, "disk", text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::archiver::{Attempt, Queue};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn archiver(archived: Option<i64>, failed: Option<i64>, oldest: Option<i64>) -> Archiver {
        let attempt = |second: i64| Attempt { file: "000000010000000000000001".to_owned(), time: at(second) };
        Archiver {
            now: at(10_000),
            position: Lsn(0),
            queue: Some(Queue { files: u64::from(oldest.is_some()), oldest: oldest.map(at) }),
            last_archived: archived.map(attempt),
            last_failed: failed.map(attempt),
            archived_count: 1,
            failed_count: 7,
        }
    }

    #[test]
    fn an_archiver_that_fails_or_falls_behind_is_seen() {
        for (archiver, expected) in [
            (archiver(Some(9_999), None, None), [Outcome::Passed, Outcome::Passed]),
            (archiver(None, None, Some(9_990)), [Outcome::Passed, Outcome::Passed]),
            (archiver(Some(9_000), Some(9_500), Some(9_990)), [Outcome::Failed, Outcome::Passed]),
            (archiver(Some(9_600), Some(9_500), Some(9_600)), [Outcome::Passed, Outcome::Warning]),
            (archiver(Some(9_600), Some(9_500), Some(9_000)), [Outcome::Passed, Outcome::Failed]),
            (Archiver { queue: None, ..archiver(Some(1), None, None) }, [Outcome::Passed, Outcome::Warning]),
        ] {
            let mut found = Findings::default();
            judge(&archiver, &mut found);
            assert_eq!(
                found.findings.iter().map(|finding| finding.outcome).collect::<Vec<_>>(),
                expected,
                "{archiver:?}"
            );
        }
    }

    #[test]
    fn the_time_until_the_disk_is_full_is_told_once_there_is_a_rate() {
        let space = WalSpace { free_bytes: 3_600_000, size_bytes: 10_000_000 };
        assert_eq!(rate(Lsn(1000), at(0), Lsn(2_001_000), at(1000)), Some(2000.0));
        assert_eq!(rate(Lsn(1000), at(0), Lsn(2_001_000), at(60)), None, "it was not observed for long enough");
        assert_eq!(rate(Lsn(1000), at(0), Lsn(1000), at(1000)), None, "nothing was written");
        for (rate, outcome, words) in [
            (None, Outcome::Passed, "too little"),
            (Some(100.0), Outcome::Passed, "full within 10 h 0 min"),
            (Some(500.0), Outcome::Warning, "full within 2 h 0 min"),
            (Some(2000.0), Outcome::Failed, "full within 30 min 0 s"),
        ] {
            let finding = full(space, rate);
            assert!(finding.outcome == outcome && finding.text.contains(words), "{finding:?}");
        }
    }

    #[test]
    fn only_segments_before_the_servers_position_count() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("pg_wal")).unwrap();
        let size = SegmentSize::try_from(1 << 20).unwrap();
        let oldest = || oldest_segment(directory.path(), Timeline(2), Lsn(0x50_0000), size).map(|(end, _)| end);
        for name in ["000000020000000000000007", "000000010000000000000001", "00000002.history"] {
            std::fs::write(directory.path().join("pg_wal").join(name), "").unwrap();
        }
        assert_eq!(oldest(), None);
        for name in ["000000020000000000000004", "000000020000000000000003"] {
            std::fs::write(directory.path().join("pg_wal").join(name), "").unwrap();
        }
        assert_eq!(oldest(), Some(Lsn(0x40_0000)));
    }
}
