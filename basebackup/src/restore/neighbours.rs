//! What recovery or the restore itself would damage of a server on this host, and what is nowhere but in the directories
//! that are to be written into. Looked at before anything is written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::WalArchive;

use super::directories::{Directories, Place, link_to};
use super::plan::Plan;
use super::real_path;
use super::target::{Role, Target};

/// Names in one message.
const NAMED: usize = 3;

/// The server of the backup, if it is on this host and not the one that is restored.
fn original(backup: &Backup, directories: &Directories) -> Option<PathBuf> {
    let recorded = Path::new(&backup.data_directory);
    let data = recorded.is_absolute().then(|| real_path(recorded).ok()).flatten()?;
    (data != directories.data && version_directory(&data, backup).is_some()).then_some(data)
}

/// What its directory in a tablespace is called (`TABLESPACE_VERSION_DIRECTORY`), if this is a cluster like that of the backup.
fn version_directory(data: &Path, backup: &Backup) -> Option<String> {
    let control = ControlFile::read(data).ok()?;
    let is_same = control.system_identifier == backup.system_identifier;
    is_same.then(|| format!("PG_{}_{}", backup.pg_major(), control.catalog_version))
}

/// Refuses directories that the server of the backup has itself: what was copied or cloned with its links leads there.
///
/// # Errors
/// `Conflict`.
pub(super) fn refuse_shared(backup: &Backup, directories: &Directories) -> Result<()> {
    let Some(original) = original(backup, directories) else { return Ok(()) };
    for (place, path) in directories.all().filter(|(place, _)| *place != Place::Data) {
        let theirs = fs::canonicalize(original.join(link_to(place))).ok();
        if theirs.is_none() || theirs != fs::canonicalize(path).ok() {
            continue;
        }
        let message = format!("\"{}\" is in use by the cluster in \"{}\"", path.display(), original.display());
        return Err(Error::new(Kind::Conflict, message).hint(match place {
            Place::Wal => "Name another directory with --waldir.",
            _ => "Give the tablespace a directory of its own: --tablespace-mapping OLDDIR=NEWDIR.",
        }));
    }
    Ok(())
}

/// Refuses to recover where a tablespace was created after the backup: replay makes it in the directory that WAL names,
/// over whatever is in there (`create_tablespace_directories`, src/backend/commands/tablespace.c).
///
/// # Errors
/// `Conflict`.
pub(super) fn refuse_later_tablespaces(plan: &Plan, directories: &Directories) -> Result<()> {
    let backup = &plan.backup;
    let before = match &plan.request.target {
        Target::Immediate => return Ok(()),
        Target::Time(moment) => Some(moment.time),
        _ => None,
    };
    if let Some(Later { oid, directory, .. }) = later_tablespace(&directories.data, backup, before) {
        let message = format!(
            "tablespace {oid} was created after the backup, and recovery would create it over the files in \"{}\"",
            directory.display()
        );
        let hint = "Move that directory away: recovery makes a new one.";
        return Err(Error::new(Kind::Conflict, message).hint(hint));
    }
    // The server of the backup, or what was moved away from its place.
    let beside = directories.data.parent().and_then(|around| fs::read_dir(around).ok()).into_iter().flatten().flatten();
    let beside = beside.map(|entry| entry.path()).filter(|path| *path != directories.data);
    for other in original(backup, directories).into_iter().chain(beside) {
        let Some(Later { oid, directory, created }) = later_tablespace(&other, backup, before) else { continue };
        let message = format!(
            "tablespace {oid} of the cluster in \"{}\" was created after the backup, and recovery would write into its \
             directory \"{}\"",
            other.display(),
            directory.display()
        );
        let hint = format!(
            "If no server needs it, move that directory away. Else recover to a time before {}, take a newer backup and \
             restore that, or restore on another host.",
            created.strftime("%F %T UTC")
        );
        return Err(Error::new(Kind::Conflict, message).hint(hint));
    }
    Ok(())
}

/// A tablespace that the backup does not have.
struct Later {
    oid: u32,
    directory: PathBuf,
    created: Timestamp,
}

/// One with files, created before the target.
fn later_tablespace(data: &Path, backup: &Backup, target: Option<Timestamp>) -> Option<Later> {
    let version = version_directory(data, backup)?;
    let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
    let later = links.filter_map(|link| {
        let oid: u32 = link.file_name().to_str()?.parse().ok()?;
        let metadata = link.metadata().ok().filter(fs::Metadata::is_symlink)?;
        // A link is never changed.
        let created = Timestamp::from_second(metadata.mtime()).ok()?;
        let is_known = backup.tablespaces.iter().any(|known| known.oid == oid);
        if is_known || target.is_some_and(|target| target < created) {
            return None;
        }
        let directory = fs::canonicalize(link.path().join(&version)).ok()?;
        let _first = fs::read_dir(&directory).ok()?.next()?;
        Some(Later { oid, directory, created })
    });
    later.min_by_key(|later| later.oid)
}

/// What of the WAL in the directory that is restored over is in no archive.
///
/// # Errors
/// `Conflict` if it would be lost with the directory; `Refused`, `Unavailable`.
pub(super) async fn refuse_to_lose_wal(archive: &WalArchive, plan: &mut Plan, directories: &Directories) -> Result<()> {
    let pg_wal = directories.data.join("pg_wal");
    let waiting = fs::read_dir(pg_wal.join("archive_status")).into_iter().flatten().flatten();
    let waiting = waiting.filter_map(|entry| {
        let name: WalFileName = entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok()?;
        pg_wal.join(name.to_string()).exists().then_some((name.to_string(), name))
    });
    let waiting: BTreeMap<String, WalFileName> = waiting.collect();
    let mut lost = Vec::new();
    for (text, name) in &waiting {
        if archive.store().head(&archive.layout().wal(*name)).await?.is_none() {
            lost.push(text.as_str());
        }
    }
    let Some(first) = lost.first() else { return Ok(()) };
    let named = lost.iter().take(NAMED).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let more = lost.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let message = format!("{named}{more} in \"{}\" is in no archive", pg_wal.display());
    if matches!(plan.request.role, Role::Standby { .. }) {
        plan.warnings.push(format!("{message}, and is lost with this restore"));
        return Ok(());
    }
    let hint = format!(
        "It holds what was committed last. Archive it (cd \"{}\" && archive-push pg_wal/{first}), or move pg_wal away.",
        directories.data.display()
    );
    Err(Error::new(Kind::Conflict, message).hint(hint))
}
