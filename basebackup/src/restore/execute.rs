//! A plan carried out: every step before the last leaves a directory that no server starts on.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use walkeep_common::cli::Reporter;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::retry::Patience;
use walkeep_common::wal_archive::WalArchive;

use super::configuration::ServerConfiguration;
use super::contents::damaged;
use super::delta;
use super::destination::Destination;
use super::directories::{STAGED_CONTROL, early_name};
use super::finish::{Manifest, SIGNAL_FILES, publish_control, write_manifest, write_settings, write_wal};
use super::selection::Selection;
use super::write::{FileWriter, create_directories, create_file, create_files, footprint, settle, size};
use crate::meter::{Meter, Pace, Requests};
use crate::pack::index::IndexEntry;
use crate::pack::member::MemberPath;

/// An outage shorter than this costs a restore nothing but time.
const PATIENCE: Patience = Patience::For(Duration::from_secs(10 * 60));

const CONTROL: &str = "global/pg_control";
const VERSION: &str = "PG_VERSION";

/// What to write, and where to.
#[derive(Debug)]
pub struct Work {
    /// Where it comes from.
    pub archive: WalArchive,
    /// The backup.
    pub backup: Backup,
    /// All its members.
    pub entries: Vec<IndexEntry>,
    /// Where it goes.
    pub destination: Destination,
    /// How many parts at a time.
    pub jobs: usize,
    /// The settings for recovery.
    pub settings: Vec<(String, String)>,
    /// The file that makes the server recover.
    pub signal_file: &'static str,
    /// The server's configuration files outside the data directory.
    pub configuration: Option<ServerConfiguration>,
    /// The databases that are left out.
    pub selection: Option<Selection>,
    /// What to do with what is there.
    pub existing: Existing,
    /// How often progress is told.
    pub(crate) pace: Pace,
}

/// What to do with what is in the directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// They are empty.
    Nothing,
    /// Keep what is the same.
    Delta,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// How many files could stay as they were.
    pub kept: usize,
    /// The databases that were left out.
    pub left_out: Option<String>,
}

/// Restores.
///
/// # Errors
/// `Damaged` if the backup is not what was stored; `Refused`; `Unavailable`; from the operating system. The directories
/// are left as they are then, for `--delta` to go on with.
pub(crate) async fn execute(work: Work, reporter: Reporter, requests: &Requests) -> Result<Done> {
    let archive = work.archive.with_patience(PATIENCE);
    let destination = Arc::new(work.destination);
    let (early, entries) = sort_out(&archive, &work.backup, work.entries)?;
    let entries = Arc::new(entries);
    let is_left_out = |entry: &IndexEntry| work.selection.as_ref().is_some_and(|selection| selection.leaves_out(entry));
    let total = entries.iter().filter(|entry| !is_left_out(entry)).map(size).sum();
    let meter = Arc::new(Meter::new("restored", total));
    let writer = |meter: &Arc<Meter>| {
        let (archive, backup) = (archive.clone(), work.backup.clone());
        Arc::new(FileWriter::new(archive, backup, Arc::clone(&destination), Arc::clone(meter)))
    };
    let beginning = async {
        begin(&destination, &early, writer(&Arc::new(Meter::new("", 0)))).await?;
        let kept = match work.existing {
            Existing::Delta => delta::clear(&destination, &entries, is_left_out, &meter, work.jobs).await?,
            Existing::Nothing => HashSet::new(),
        };
        create_directories(&destination, &entries)?;
        destination.set_modes()?;
        Ok::<_, Error>(Arc::new(kept))
    };
    let kept = meter.report_until(beginning, reporter, work.pace, requests).await?;
    let is_missing = |entry: &IndexEntry| entry.contents.is_some() && !kept.contains(&entry.path);
    let made = Arc::new(Meter::of_files("created", entries.iter().filter(|entry| is_missing(entry)).count()));
    let creating = create_files(&destination, &entries, &kept, &made);
    made.report_until(creating, reporter, work.pace, requests).await?;
    let writing = writer(&meter).write(&entries, |entry| is_missing(entry) && !is_left_out(entry), work.jobs);
    meter.report_until(writing, reporter, work.pace, requests).await?;
    let kept = kept.len();
    write_wal(&archive, &work.backup, &destination).await?;
    // PostgreSQL's manifest lists what is left out as well: nothing could be verified with it.
    let manifest = if work.selection.is_none() { Manifest::Written } else { Manifest::LeftAway };
    write_manifest(&archive, &work.backup, &destination, manifest).await?;
    let elsewhere = work.configuration.as_ref();
    write_settings(&work.backup, &destination, &work.settings, elsewhere, work.signal_file)?;
    let meter = Arc::new(Meter::new("made durable", entries.iter().map(footprint).sum()));
    let settling = settle(&destination, &entries, &meter);
    meter.report_until(settling, reporter, work.pace, requests).await?;
    destination.directories().refuse_running_server()?;
    publish_control(&destination)?;
    // Last: with it a cluster of Debian's is known to others.
    if let Some(elsewhere) = elsewhere {
        elsewhere.write(destination.owner)?;
    }
    let left_out = work.selection.as_ref().map(Selection::to_text);
    Ok(Done { kept, left_out })
}

/// A member that is written before all others.
struct Early {
    /// The member, under the name it is written under.
    entry: IndexEntry,
    /// The name it gets once it is durable.
    name: &'static str,
}

/// The members that are written first, and all others.
fn sort_out(
    archive: &WalArchive,
    backup: &Backup,
    mut entries: Vec<IndexEntry>,
) -> Result<(Vec<Early>, Vec<IndexEntry>)> {
    entries.retain(|entry| !SIGNAL_FILES.iter().any(|name| entry.path.as_path() == Path::new(name)));
    let is = |entry: &IndexEntry, name: &str| entry.path.as_path() == Path::new(name) && entry.contents.is_some();
    let find = |name: &str| {
        let missing = || damaged(archive, backup, "files.ndjson.zst", &format!("\"{name}\" is not in it"));
        entries.iter().find(|entry| is(entry, name)).cloned().ok_or_else(missing)
    };
    let _ = find("backup_label")?;
    let mut early = Vec::new();
    for (member, name) in [(VERSION, VERSION), (CONTROL, STAGED_CONTROL)] {
        let path = MemberPath::new(early_name(name).into_os_string().into_encoded_bytes());
        let path = path.map_err(|error| Error::new(Kind::Internal, "cannot stage a file").caused_by(error))?;
        early.push(Early { entry: IndexEntry { path, ..find(member)? }, name });
    }
    early.sort_by_key(|early| early.entry.pack);
    entries.retain(|entry| !is(entry, CONTROL) && !is(entry, VERSION));
    Ok((early, entries))
}

/// Makes the directory one that no server starts on and that is known, whatever happens from here on: its version, its
/// system identifier and the links to the other directories are there, its `pg_control` is not.
async fn begin(destination: &Destination, early: &[Early], writer: Arc<FileWriter>) -> Result<()> {
    let data = destination.data()?;
    data.make_directory(Path::new("global"), destination.mode, destination.owner)?;
    if data.exists(Path::new(CONTROL))? {
        data.rename(Path::new(CONTROL), Path::new(STAGED_CONTROL))?;
        data.synchronize(Path::new("global"))?;
    }
    destination.link()?;
    let entries: Vec<IndexEntry> = early.iter().map(|early| early.entry.clone()).collect();
    for entry in &entries {
        data.remove_file(entry.path.as_path())?;
    }
    entries.iter().try_for_each(|entry| create_file(destination, entry))?;
    writer.write(&entries, |_| true, 1).await?;
    for Early { entry, name } in early {
        data.settle(entry.path.as_path(), entry.mode, destination.owner)?;
        data.rename(entry.path.as_path(), Path::new(name))?;
    }
    data.synchronize(Path::new("global"))?;
    data.synchronize(Path::new(""))
}
