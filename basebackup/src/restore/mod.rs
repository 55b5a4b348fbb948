//! `basebackup restore`: a base backup in place of a data directory, ready to recover to a target.
//!
//! First everything is decided ([`mod@plan`]) and looked at ([`directories`]), then written ([`mod@execute`]): below the
//! declared directories only ([`root`]), verified, and durable before `pg_control`, without which no server starts,
//! gets its name.

mod advice;
pub mod args;
pub mod configuration;
pub mod contents;
pub mod debian;
mod delta;
pub mod destination;
pub mod directories;
pub mod execute;
mod finish;
mod neighbours;
pub mod owner;
pub mod plan;
pub mod recovery;
pub mod root;
pub mod selection;
pub mod settings;
pub mod space;
pub mod tablespaces;
pub mod target;
pub mod time;
mod write;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::tz::TimeZone;
use walkeep_common::cli::{Reporter, Severity};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::host::host_name;
use walkeep_common::postgres::tablespace_map::{self, TablespaceLink};
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal_archive::WalArchive;

use self::args::BackupChoice;
pub use self::args::RestoreArgs;
use self::configuration::ServerConfiguration;
use self::destination::Destination;
use self::directories::Directories;
use self::execute::{Existing, Work, execute};
use self::owner::Ownership;
use self::plan::{Plan, plan};
use self::recovery::{Archiving, find_archive_get, relied_on, restore_command, settings, signal_file};
use self::selection::Selection;
use self::space::{Space, Usage, refuse_too_little, replaced, spaces};
use self::tablespaces::{below, place};
use self::target::{Request, Target, TargetAction};
use crate::accounts::Accounts;
use crate::catalog::{Catalog, archives};
use crate::list::READ_PATIENCE;
use crate::meter::{Pace, Requests};
use crate::output::{Format, bytes, print, print_json};
use crate::pack::index::IndexEntry;

/// More jobs than this gain nothing on one host.
const MOST_JOBS: usize = 8;

/// What a server that recovers has in `pg_wal` at most, with the checkpoints it makes on the way. Its tables may grow too.
const MOST_WAL_KEPT: u64 = 2 << 30;

/// Everything that is known before anything is written.
#[derive(Debug)]
struct Preparation {
    archive: WalArchive,
    plan: Plan,
    directories: Directories,
    entries: Vec<IndexEntry>,
    spaces: Vec<Space>,
    ownership: Ownership,
    archiving: Archiving,
    settings: Vec<(String, String)>,
    configuration: Option<ServerConfiguration>,
    start_command: String,
    selection: Option<Selection>,
    /// Why the directories must not be written into, which a plan is made for all the same.
    refusal: Option<Error>,
}

/// Restores a backup, or says what a restore would do.
///
/// # Errors
/// `Usage`; `NotFound` or `Hole` if the target cannot be reached; `Conflict` if a directory is in use; `Damaged` if the
/// backup is not what was stored; `Refused`; `Unavailable`.
pub async fn restore(args: &RestoreArgs, config: &Config, reporter: Reporter) -> Result<()> {
    let begun = Instant::now();
    let requests = Requests::new();
    let prepared = prepare(args, config).await?;
    print_plan(&prepared, args.format)?;
    let warnings = prepared.plan.warnings.iter().chain(&prepared.ownership.warning);
    warnings.for_each(|warning| reporter.print(Severity::Warning, warning, None));
    let prepared = prepared.unless_refused()?;
    refuse_too_little(&prepared.spaces)?;
    let doubts = prepared.spaces.iter().filter_map(Space::doubt);
    doubts.for_each(|doubt| reporter.print(Severity::Warning, &doubt, None));
    let variables = relied_on(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()));
    if !variables.is_empty() {
        let message =
            format!("the restored server needs these environment variables as well: {}", variables.join(", "));
        reporter.print(Severity::Warning, &message, Some("It fetches WAL with the same settings as this command."));
    }
    if args.dry_run {
        return Ok(());
    }
    let (plan, archiving, start_command) = (prepared.plan.clone(), prepared.archiving, prepared.start_command.clone());
    let done = execute(prepared.into_work(args)?, reporter, &requests).await?;
    match args.format {
        Format::Text => print(&advice::next_steps(&plan, &done, &start_command, archiving, begun.elapsed())),
        Format::Json => Ok(()),
    }
}

/// A copy that was restored to be looked at.
#[derive(Debug)]
pub(crate) struct RestoredCopy {
    /// What was done.
    pub(crate) plan: Plan,
    /// Where it came from.
    pub(crate) archive: WalArchive,
}

/// Restores a copy that touches nothing outside `directory`: its data directory is `data` in there, and tablespaces lie
/// beside it.
///
/// # Errors
/// As [`restore`].
pub(crate) async fn copy(
    args: &RestoreArgs,
    config: &Config,
    directory: &Path,
    reporter: Reporter,
    requests: &Requests,
) -> Result<RestoredCopy> {
    let args =
        RestoreArgs { pgdata: Some(directory.join("data")), tablespaces_below: Some(directory.into()), ..args.clone() };
    let mut prepared = prepare(&args, config).await?;
    let for_recovery = prepared.plan.wal_bytes().min(MOST_WAL_KEPT) + prepared.plan.backup.plain_size / 10;
    prepared.spaces.iter_mut().for_each(|space| space.needed += for_recovery);
    // All of it is in one place.
    refuse_too_little(&prepared.spaces).map_err(|error| error.hint("Make room, or choose another directory."))?;
    let copy = RestoredCopy { plan: prepared.plan.clone(), archive: prepared.archive.clone() };
    let _ = execute(prepared.into_work(&args)?, reporter, requests).await?;
    Ok(copy)
}

impl Preparation {
    fn unless_refused(mut self) -> Result<Self> {
        self.refusal.take().map_or(Ok(self), Err)
    }

    fn into_work(self, args: &RestoreArgs) -> Result<Work> {
        let mode = data_directory_mode(&self.plan.backup);
        let destination = Destination::open(self.directories, mode, self.ownership.owner)?;
        // While everything was planned, somebody else may have restored to here, or started a server.
        let directories = destination.directories();
        let allowed = if args.is_delta() { directories.refuse_running_server() } else { directories.refuse_used() };
        allowed?;
        Ok(Work {
            archive: self.archive,
            backup: self.plan.backup,
            entries: self.entries,
            destination,
            jobs: args.jobs.map_or_else(processors, usize::from),
            settings: self.settings,
            signal_file: signal_file(&self.plan.request.role),
            configuration: self.configuration,
            selection: self.selection,
            existing: if args.is_delta() { Existing::Delta } else { Existing::Nothing },
            pace: Pace::of(args.progress),
        })
    }
}

async fn prepare(args: &RestoreArgs, config: &Config) -> Result<Preparation> {
    let request = Request::new(&args.request()?, &TimeZone::system())?;
    let data = real_path(&args.data_directory())?;
    let wal = args.waldir.as_deref().map(real_path).transpose()?;
    let (archive, catalog) = find_cluster(args, config).await?;
    let mut plan = plan(&archive, &catalog, &args.backup, request).await?;
    let backup = &plan.backup;
    refuse_much_wal(&plan, args.max_wal)?;
    let selection = Selection::new(backup, &args.only_database)?;
    let tablespaces = match &args.tablespaces_below {
        Some(directory) => below(&backup.tablespaces, &real_path(directory)?),
        None => place(&backup.tablespaces, &args.tablespace_mapping, &data, wal.as_deref())?,
    };
    let directories = Directories { data, wal, tablespaces };
    refuse_unwritable_map(backup, &directories)?;
    let allowed = may_be_written(args, &archive, &mut plan, &directories).await;
    let backup = &plan.backup;
    let refusal = match allowed {
        Err(error) if args.dry_run => Some(error),
        allowed => allowed.map(|()| None)?,
    };
    let program = find_archive_get(std::env::current_exe().ok().as_deref(), std::env::var_os("PATH").as_deref())?;
    let command = restore_command(&program, config, backup.system_identifier, plan.last_segment)?;
    let same_place = is_own_place(backup, &directories);
    let archiving = Archiving::decide(same_place, args.keeps_archiving());
    let entries = contents::index(&archive, backup).await?;
    let settings = settings(&plan, command, archiving, directories.in_place(&entries), selection.is_none());
    let replaced = if args.is_delta() { replaced(&directories, &entries)? } else { BTreeMap::new() };
    let kept = backup.kept_wal.len() as u64;
    let kept_wal = Usage { bytes: backup.segment_size.bytes() * kept, files: kept };
    let is_left_out = |entry: &IndexEntry| selection.as_ref().is_some_and(|selection| selection.leaves_out(entry));
    let spaces = spaces(&directories, entries.iter(), is_left_out, kept_wal, &replaced)?;
    let has_own = entries.iter().any(|entry| entry.path.as_bytes() == b"postgresql.conf");
    let configuration = configuration::prepare(args, &archive, backup, &directories, has_own).await?;
    let start_command = match &configuration {
        Some(configuration) => configuration.start_command(),
        None => configuration::start_command(backup, &directories.data, has_own, same_place),
    };
    let missing = configuration::missing(backup, &directories.data, &entries, same_place);
    plan.warnings.extend(missing.filter(|_| configuration.is_none()));
    if plan.request.target == Target::End
        && let Some(action @ (TargetAction::Pause | TargetAction::Shutdown)) = plan.request.action
    {
        let action = action.as_str();
        plan.warnings.push(format!(
            "--target-action={action} has no effect without a target: the server opens where recovery ends"
        ));
    }
    let ownership = if rustix::process::geteuid().is_root() {
        owner::decide(&backup.owner, &Accounts::read(), owner::surroundings(&directories.data))
    } else {
        Ownership { owner: None, warning: None }
    };
    Ok(Preparation {
        archive,
        plan,
        directories,
        entries,
        spaces,
        ownership,
        archiving,
        settings,
        configuration,
        start_command,
        selection,
        refusal,
    })
}

/// Refuses directories that must not be written into, and a recovery that would write into others.
async fn may_be_written(
    args: &RestoreArgs,
    archive: &WalArchive,
    plan: &mut Plan,
    directories: &Directories,
) -> Result<()> {
    if args.is_delta() {
        directories.refuse_foreign(&plan.backup)?;
        neighbours::refuse_shared(&plan.backup, directories)?;
        neighbours::refuse_to_lose_wal(archive, plan, directories).await?;
    } else {
        directories.refuse_used()?;
    }
    // A copy that is only looked at is given its WAL by somebody who sees to that.
    if args.tablespaces_below.is_some() {
        Ok(())
    } else {
        neighbours::refuse_later_tablespaces(plan, directories, is_own_place(&plan.backup, directories))
    }
}

/// Refuses paths that PostgreSQL's `tablespace_map` has no way to write.
fn refuse_unwritable_map(backup: &Backup, directories: &Directories) -> Result<()> {
    let links = directories.tablespaces.iter().map(|(oid, path)| TablespaceLink { oid: *oid, path: path.clone() });
    let written = tablespace_map::write(&links.collect::<Vec<_>>(), backup.pg_major());
    written.map(drop).map_err(|error| Error::new(Kind::Usage, "cannot map tablespaces").caused_by(error))
}

/// Refuses what would be replayed longer than a newer backup takes.
fn refuse_much_wal(plan: &Plan, most: Option<u64>) -> Result<()> {
    let wal = plan.wal_bytes();
    let Some(most) = most.filter(|&most| wal > most) else { return Ok(()) };
    let message = format!(
        "{} of WAL would have to be replayed from backup {} on, more than the {} of --max-wal",
        bytes(wal),
        plan.backup.id,
        bytes(most)
    );
    let hint =
        "Take a newer backup with: basebackup take. A standby can also be copied from its primary: pg_basebackup.";
    Err(Error::new(Kind::NotFound, message).hint(hint))
}

/// The archive of the cluster that is meant, and its backups.
async fn find_cluster(args: &RestoreArgs, config: &Config) -> Result<(WalArchive, Catalog)> {
    let mut found = Vec::new();
    for archive in archives(config, args.system_identifier, READ_PATIENCE).await? {
        let catalog = Catalog::load(&archive).await?;
        found.push((archive, catalog));
    }
    if let BackupChoice::Id(id) = &args.backup
        && let Some(holding) = found.iter().position(|(_, catalog)| catalog.find(id).is_ok())
    {
        return Ok(found.swap_remove(holding));
    }
    let several: Vec<String> =
        found.iter().map(|(archive, _)| archive.layout().system_identifier().to_string()).collect();
    match found.pop() {
        Some(only) if found.is_empty() => Ok(only),
        _ => Err(Error::new(Kind::Usage, format!("the repository holds {} clusters of this name", several.len()))
            .hint(format!("Say which with --system-identifier, one of: {}.", several.join(", ")))),
    }
}

fn print_plan(prepared: &Preparation, format: Format) -> Result<()> {
    let Preparation { plan, directories, spaces, archiving, settings, configuration, selection, .. } = prepared;
    if format == Format::Json {
        let mut json = plan.to_json();
        if let Some(fields) = json.as_object_mut() {
            let tablespaces: BTreeMap<String, &PathBuf> =
                directories.tablespaces.iter().map(|(oid, path)| (oid.to_string(), path)).collect();
            let settings: BTreeMap<&String, &String> = settings.iter().map(|(name, value)| (name, value)).collect();
            fields.extend([
                ("data_directory".to_owned(), serde_json::json!(directories.data)),
                ("wal_directory".to_owned(), serde_json::json!(directories.wal)),
                ("tablespaces".to_owned(), serde_json::json!(tablespaces)),
                ("space".to_owned(), serde_json::json!(spaces)),
                ("archiving".to_owned(), serde_json::json!(*archiving != Archiving::Off)),
                ("settings".to_owned(), serde_json::json!(settings)),
                (
                    "configuration_directory".to_owned(),
                    serde_json::json!(configuration.as_ref().map(|configuration| &configuration.directory)),
                ),
            ]);
        }
        return print_json(&json);
    }
    let mut text = plan.to_text();
    let _ = writeln!(text, "{:<12}\"{}\"", "Directory", directories.data.display());
    if let Some(wal) = &directories.wal {
        let _ = writeln!(text, "{:<12}WAL in \"{}\"", "", wal.display());
    }
    for tablespace in &plan.backup.tablespaces {
        let Some(path) = directories.tablespaces.get(&tablespace.oid) else { continue };
        let _ = writeln!(text, "{:<12}tablespace \"{}\" in \"{}\"", "", tablespace.name, path.display());
    }
    if let Some(selection) = selection {
        let _ = writeln!(text, "{:<12}without {}: empty shells of the same size", "Databases", selection.to_text());
    }
    if let Some(configuration) = configuration {
        let _ = writeln!(text, "{:<12}configuration in {}", "", configuration.to_text());
    }
    for space in spaces {
        let _ = writeln!(text, "{:<12}{}", "Space", space.to_text());
    }
    let _ = writeln!(text, "{:<12}{}", "Archiving", archiving.to_text(&plan.backup));
    print(&text)
}

/// Whether the data directory is that of the server that was backed up.
fn is_own_place(backup: &Backup, directories: &Directories) -> bool {
    host_name() == backup.host && is_same(Path::new(&backup.data_directory), &directories.data)
}

/// Whether a path that may have links in it, as PostgreSQL reports its own data directory, leads to this one without.
fn is_same(recorded: &Path, directory: &Path) -> bool {
    recorded.is_absolute() && real_path(recorded).is_ok_and(|real| real == directory)
}

/// The path without links, as far as it exists.
fn real_path(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).context("find", path)?;
    for existing in absolute.ancestors() {
        if let Ok(real) = fs::canonicalize(existing) {
            let rest = absolute.strip_prefix(existing).unwrap_or(Path::new(""));
            if rest.components().any(|part| part == std::path::Component::ParentDir) {
                return Err(Error::new(Kind::Usage, format!("path \"{}\" leads back up", path.display())));
            }
            return Ok(real.join(rest).components().collect());
        }
    }
    Ok(absolute)
}

/// PostgreSQL starts with no other permissions.
fn data_directory_mode(backup: &Backup) -> u32 {
    let recorded = u32::from_str_radix(&backup.data_directory_mode, 8).unwrap_or(0o700);
    if recorded & 0o050 == 0o050 { 0o750 } else { 0o700 }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MOST_JOBS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_the_same_by_whatever_path() {
        let scratch = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(scratch.path()).unwrap();
        fs::create_dir(root.join("disk")).unwrap();
        std::os::unix::fs::symlink(root.join("disk"), root.join("link")).unwrap();
        let data = real_path(&root.join("link/data")).unwrap();
        assert_eq!(data, root.join("disk/data"));
        assert!(is_same(&root.join("link/data"), &data) && is_same(&root.join("disk//data/"), &data));
        assert!(!is_same(&root.join("link/other"), &data) && !is_same(Path::new("data"), &data));
    }
}
