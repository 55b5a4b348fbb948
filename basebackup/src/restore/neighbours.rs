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
use super::plan::{Plan, RecoveryEnd};
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
pub(super) fn refuse_later_tablespaces(plan: &Plan, directories: &Directories, same_place: bool) -> Result<()> {
    let backup = &plan.backup;
    let end = match plan.end {
        // What is replayed was written before this, though the target may lie long before.
        RecoveryEnd::Before(end) | RecoveryEnd::BeforeAtLatest(end) => End::Before(end.time),
        _ if plan.request.target == Target::Immediate => End::OfBackup(backup.stop_time),
        _ => End::Unknown,
    };
    if let Some(Later { oid, directory, .. }) = later_tablespace(&directories.data, backup, end, Files::Some) {
        let message = format!(
            "tablespace {oid} was created after the backup, and recovery would create it over the files in \"{}\"",
            directory.display()
        );
        let hint = "Move that directory away: recovery makes a new one.";
        return Err(Error::new(Kind::Conflict, message).hint(hint));
    }
    let original = original(backup, directories).map(|original| (original, Files::Any));
    // What was moved away from this place.
    let around = directories.data.parent().filter(|_| same_place).and_then(|around| fs::read_dir(around).ok());
    let beside = around.into_iter().flatten().flatten().map(|entry| (entry.path(), Files::Some));
    for (other, files) in original.into_iter().chain(beside.filter(|(path, _)| *path != directories.data)) {
        let Some(Later { oid, directory }) = later_tablespace(&other, backup, end, files) else { continue };
        let message = format!(
            "tablespace {oid} of the cluster in \"{}\" was created after the backup, and recovery would write into its \
             directory \"{}\"",
            other.display(),
            directory.display()
        );
        let hint = "If no server needs it, move that directory away. Else recover to a time well before it was created, \
                    take a newer backup and restore that, or restore on another host.";
        return Err(Error::new(Kind::Conflict, message).hint(hint));
    }
    Ok(())
}

/// How far recovery goes.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Everything that is replayed was written before.
    Before(Timestamp),
    /// Little more is replayed than the backup itself needs, and that ended then.
    OfBackup(Timestamp),
    Unknown,
}

/// Whether only a tablespace with files counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    Any,
    Some,
}

/// A tablespace that the backup does not have.
struct Later {
    oid: u32,
    directory: PathBuf,
}

/// One of the cluster's that may be created on the way.
fn later_tablespace(data: &Path, backup: &Backup, end: End, files: Files) -> Option<Later> {
    let version = version_directory(data, backup)?;
    let recovered = last_recovery(data);
    let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
    let later = links.filter_map(|link| {
        let oid: u32 = link.file_name().to_str()?.parse().ok()?;
        let metadata = link.metadata().ok().filter(fs::Metadata::is_symlink)?;
        let linked = Timestamp::from_second(metadata.mtime()).ok()?;
        let may_be_reached = match end {
            // A link that recovery made is younger than the tablespace.
            End::Before(end) => linked <= end || recovered.is_none_or(|recovered| linked <= recovered),
            End::OfBackup(end) => linked <= end,
            End::Unknown => true,
        };
        if !may_be_reached || backup.tablespaces.iter().any(|known| known.oid == oid) {
            return None;
        }
        let directory = fs::canonicalize(link.path().join(&version)).ok()?;
        let is_empty = fs::read_dir(&directory).ok()?.next().is_none();
        (files == Files::Any || !is_empty).then_some(Later { oid, directory })
    });
    later.min_by_key(|later| later.oid)
}

/// When the cluster last ended a recovery, at the latest; nothing while it is in one. Each has written a history.
fn last_recovery(data: &Path) -> Option<Timestamp> {
    const SHUT_DOWN: u32 = 1;
    const IN_PRODUCTION: u32 = 6;
    let control = ControlFile::read(data).ok()?;
    if ![SHUT_DOWN, IN_PRODUCTION].contains(&control.state) {
        return None;
    }
    let entries = fs::read_dir(data.join("pg_wal")).ok()?.flatten();
    let histories = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".history"));
    let written = histories.filter_map(|entry| Timestamp::from_second(entry.metadata().ok()?.mtime()).ok());
    Some(written.max().unwrap_or(Timestamp::MIN))
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
        // Of a long queue a few are told.
        if lost.len() > NAMED {
            break;
        }
        if archive.store().head(&archive.layout().wal(*name)).await?.is_none() {
            lost.push(text.as_str());
        }
    }
    warn_of_a_crash(plan, directories);
    let Some(first) = lost.first() else { return Ok(()) };
    let named = lost.iter().take(NAMED).map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let more = lost.len().saturating_sub(NAMED);
    let more = if more > 0 { " and more" } else { "" };
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

/// A server that was not shut down has the last that was committed in a segment that nobody archives.
fn warn_of_a_crash(plan: &mut Plan, directories: &Directories) {
    const IN_PRODUCTION: u32 = 6;
    if ControlFile::read(&directories.data).is_ok_and(|control| control.state == IN_PRODUCTION) {
        plan.warnings.push(format!(
            "the server in \"{}\" was not shut down: what it committed last may be in its pg_wal alone, which this restore \
             removes; move pg_wal away to keep it",
            directories.data.display()
        ));
    }
}
