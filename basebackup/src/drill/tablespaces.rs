//! Tablespaces that were created after the backup: WAL names their directories on the server, which may be this very host.
//! A drill's own server makes them in its data directory instead.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::records::keep_tablespaces_in_place;
use walkeep_common::wal::segment::{SegmentName, SegmentSize, segment_start};

/// Minor releases since which a directory of the data directory may be a tablespace, in majors that did not begin with it.
const IN_PLACE_SINCE: [(u32, u32); 2] = [(13, 8), (14, 5)];

/// The setting that permits it, where this PostgreSQL ("15.18") has it.
pub(super) fn permission(version: &str) -> Option<(&'static str, String)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let (major, minor) = (numbers.next()?, numbers.next().unwrap_or(0));
    let since = IN_PLACE_SINCE.iter().find(|(since, _)| *since == major);
    let knows = major >= 15 || since.is_some_and(|(_, since)| minor >= *since);
    knows.then(|| ("allow_in_place_tablespaces", "on".to_owned()))
}

/// Changes a segment so that the tablespaces it creates lie in the data directory. Returns how many.
///
/// # Errors
/// `Invalid` if that cannot be; from the operating system.
pub(super) fn keep_in_place(path: &Path, segment: SegmentName, size: SegmentSize, pg_major: u32) -> Result<usize> {
    let Some(number) = segment.number(size) else { return Ok(0) };
    let mut bytes = fs::read(path).context("read file", path)?;
    let created = keep_tablespaces_in_place(&mut bytes, segment_start(number, size), pg_major).map_err(|error| {
        Error::new(Kind::Invalid, format!("WAL segment \"{segment}\" cannot be replayed in a drill"))
            .caused_by(error)
            .hint("What it creates could be a directory of a server on this host. Drill a later backup.")
    })?;
    if !created.is_empty() {
        let file = File::options().write(true).open(path).context("open file", path)?;
        file.write_all_at(&bytes, 0).context("write file", path)?;
    }
    Ok(created.len())
}

/// The same for the segments that came with the backup.
///
/// # Errors
/// As [`keep_in_place`].
pub(super) fn keep_those_in_place(pg_wal: &Path, size: SegmentSize, pg_major: u32) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(pg_wal).context("read directory", pg_wal)? {
        let path = entry.context("read directory", pg_wal)?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(WalFileName::Segment(segment)) = name {
            count += keep_in_place(&path, segment, size, pg_major)?;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_given_where_it_is_known() {
        for (version, known) in [
            ("13.7", false),
            ("13.8", true),
            ("13.23", true),
            ("14.4", false),
            ("14.5", true),
            ("15.0", true),
            ("18.1", true),
            ("19beta1", true),
            ("devel", false),
        ] {
            assert_eq!(permission(version).is_some(), known, "{version}");
        }
    }
}
