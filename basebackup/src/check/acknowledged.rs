//! What PostgreSQL believes to be archived, beside what is.

use std::collections::BTreeSet;
use std::path::Path;

use walkeep_common::wal::segment::{SegmentName, Timeline};
use walkeep_common::wal_archive::inventory::Inventory;

use super::finding::{Area, Finding};
use crate::session::archiver::Archiver;

/// Names in one message.
const NAMED: usize = 3;

/// The segments PostgreSQL believes to be archived: those marked `.done` in the data directory, and the last one it counted.
pub(super) fn segments(data_directory: Option<&Path>, archiver: &Archiver) -> BTreeSet<SegmentName> {
    let marks = data_directory.and_then(|directory| std::fs::read_dir(directory.join("pg_wal/archive_status")).ok());
    let marked = marks.into_iter().flatten().filter_map(|mark| {
        let name = mark.ok()?.file_name();
        name.to_str()?.strip_suffix(".done")?.parse().ok()
    });
    let last = archiver.last_archived.as_ref().and_then(|last| last.file.parse().ok());
    marked.chain(last).collect()
}

/// Names those that are not there. What was archived elsewhere before anything was here, or on timelines that were left, is
/// not missing.
pub(super) fn missing(
    acknowledged: &BTreeSet<SegmentName>,
    timeline: Timeline,
    inventory: &Inventory,
) -> Option<Finding> {
    let begin = inventory.runs(timeline).first()?.first;
    let is_after_begin =
        |name: &SegmentName| name.number(inventory.segment_size()).is_some_and(|number| number > begin);
    let is_missing = |name: &&SegmentName| name.timeline == timeline && is_after_begin(name) && !inventory.has(**name);
    let missing: Vec<String> = acknowledged.iter().filter(is_missing).map(ToString::to_string).collect();
    let first = missing.first()?;
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named: Vec<&str> = missing.iter().take(NAMED).map(String::as_str).collect();
    let text = format!(
        "PostgreSQL believes that it has archived {}{more}, and the repository does not have it",
        named.join(", ")
    );
    let fix = format!(
        "In the data directory, for each of them that PostgreSQL still has: archive-push pg_wal/{first}; for the others: \
         basebackup take"
    );
    Some(Finding::failed(Area::Archiving, "acknowledged", text, fix))
}

#[cfg(test)]
mod tests {
    use walkeep_common::store::Listed;
    use walkeep_common::wal::segment::SegmentSize;

    use super::*;
    use crate::session::archiver::Attempt;

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
        assert_eq!(segments(Some(directory.path()), &archiver), expected);
    }
}
