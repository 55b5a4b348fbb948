//! The server's configuration where it lay outside the data directory: put in a place of its own, and made to fit the
//! restored data directory.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::repository::backup::{Backup, Configuration};
use walkeep_common::wal_archive::WalArchive;

use super::args::RestoreArgs;
use super::contents::{damaged, object};
use super::debian::{DebianCluster, KnownClusters};
use super::destination::make_with_parents;
use super::directories::{Directories, first_entry};
use super::root::{FileOwner, Root};
use super::settings::{rewrite, setting, without_recovery};
use crate::configuration::ConfigurationFile;
use crate::configuration::find::resolve;
use crate::configuration::moved::{Move, grammar_of};
use crate::configuration::stored::{OBJECT, unpack};
use crate::configuration::syntax::{Grammar, references, value_of};
use crate::files::attributes::Attributes;
use crate::pack::index::IndexEntry;

const MAIN: &str = "postgresql.conf";
const START: &str = "start.conf";
/// The first major without `stats_temp_directory`.
const STATISTICS_IN_MEMORY: u32 = 15;
const DEFAULT_PORT: u16 = 5432;

/// The files as they will be, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfiguration {
    /// The directory that `postgresql.conf` goes into.
    pub directory: PathBuf,
    /// The cluster it becomes, where it is one of Debian's.
    pub cluster: Option<DebianCluster>,
    /// The port of a cluster of Debian's.
    pub port: Option<u16>,
    files: Vec<ConfigurationFile>,
    /// Directories that the files include: a server does not start without them, though there be nothing in them.
    included: Vec<PathBuf>,
    /// Names of the settings that say where everything is now.
    pub sets: Vec<String>,
}

/// Prepares the configuration, if it is asked for.
///
/// # Errors
/// `Usage` if there is none to restore, or the cluster is of another major; `Conflict` if the directory or the cluster
/// is in use; `Damaged` if the object is not what was stored; `Refused`; `Unavailable`.
pub async fn prepare(
    args: &RestoreArgs,
    archive: &WalArchive,
    backup: &Backup,
    directories: &Directories,
    has_own: bool,
) -> Result<Option<ServerConfiguration>> {
    let known = args.to_cluster.as_ref().map(|cluster| known(cluster, backup)).transpose()?;
    let directory = match (&args.to_cluster, &args.config_dir) {
        (Some(cluster), _) => cluster.configuration_directory(),
        (None, Some(directory)) => super::real_path(directory)?,
        (None, None) => return Ok(None),
    };
    if directory.starts_with(&directories.data) || directories.data.starts_with(&directory) {
        let message = format!("\"{}\" and the data directory lie in each other", directory.display());
        return Err(Error::new(Kind::Usage, message).hint("Give the configuration a directory of its own."));
    }
    if let Some(first) = first_entry(&directory)? {
        let found = format!("directory \"{}\" is not empty: \"{}\" is in it", directory.display(), first.display());
        return Err(Error::new(Kind::Conflict, found).hint("Name another directory, or empty it."));
    }
    let kept = kept(archive, backup).await?;
    if kept.is_empty() && !has_own {
        return Err(Error::new(Kind::Usage, format!("backup {} holds no postgresql.conf", backup.id)));
    }
    let site = Site { backup, directory: &directory, data: &directories.data };
    let mut files = site.files(&kept);
    let main = site.main(&kept, &files);
    let port = known.map(|known| known.free_port(port_of(&main.contents)));
    let mut added = site.places(&kept);
    if let (Some(cluster), Some(port)) = (&args.to_cluster, port) {
        added.extend(cluster.settings(port));
        let attributes = main.attributes;
        files.retain(|file| file.path != directory.join(START));
        files.push(ConfigurationFile { path: directory.join(START), contents: b"manual\n".to_vec(), attributes });
    } else {
        // It would be the original server's.
        added.push(("external_pid_file".to_owned(), String::new()));
    }
    files.retain(|file| file.path != main.path);
    files.push(ConfigurationFile { contents: rewrite(&main.contents, &added), ..main });
    let included = site.included(&kept);
    let sets = added.into_iter().map(|(name, _)| name).collect();
    Ok(Some(ServerConfiguration { directory, cluster: args.to_cluster.clone(), port, files, included, sets }))
}

/// The command that starts a server whose configuration is not restored as well.
pub fn start_command(backup: &Backup, data: &Path, has_own: bool, same_place: bool) -> String {
    let there = old_directory(backup).filter(|_| same_place);
    match there {
        _ if has_own => format!("pg_ctl -D \"{}\" start", data.display()),
        Some(directory) => format!("pg_ctl -D \"{}\" start", directory.display()),
        None => format!("pg_ctl -D \"{}\" -o '-c config_file=…' start", data.display()),
    }
}

/// Where the server's `postgresql.conf` is outside its data directory, if that is on this host.
fn old_directory(backup: &Backup) -> Option<PathBuf> {
    let file = PathBuf::from(&backup.configuration.as_ref()?.config_file);
    file.exists().then(|| file.parent().map(Path::to_owned)).flatten()
}

/// What of the server's configuration is neither in the backup's data directory nor in its place, with what to do about it.
pub fn missing(backup: &Backup, data: &Path, members: &[IndexEntry], same_place: bool) -> Option<String> {
    let is_member = |path: &Path| members.iter().any(|entry| entry.path.as_path() == path);
    if !is_member(Path::new(MAIN)) {
        if same_place && old_directory(backup).is_some() {
            return None;
        }
        let place = data.display();
        let what_to_do = if backup.configuration.is_some() {
            "With --config-dir DIRECTORY it comes back too, adapted; on Debian --to-cluster makes a cluster of it"
        } else {
            "Write one, in which max_connections and its like are not lower than they were"
        };
        return Some(format!("there is no postgresql.conf in \"{place}\": the server had it elsewhere. {what_to_do}"));
    }
    let files = backup.configuration.iter().flat_map(|configuration| &configuration.files).map(Path::new);
    let places = files.filter_map(|file| match file.strip_prefix(&backup.data_directory) {
        Ok(below) if is_member(below) => None,
        // A link to it was in the data directory.
        Ok(below) => Some(data.join(below)),
        Err(_) => Some(file.to_owned()),
    });
    let missing: Vec<PathBuf> = places.filter(|place| !place.exists()).collect();
    let first = missing.first()?.display();
    Some(format!(
        "{} configuration file(s) of the server are not in the data directory, nor where they were, such as \"{first}\". \
         With --config-dir DIRECTORY they come back too; or put them in their place",
        missing.len()
    ))
}

impl ServerConfiguration {
    /// Writes the files.
    ///
    /// # Errors
    /// From the operating system.
    pub fn write(&self, owner: Option<FileOwner>) -> Result<()> {
        // Of Debian's clusters everybody may know that they exist.
        let mode = if self.cluster.is_some() { 0o755 } else { 0o700 };
        make_with_parents(&self.directory, mode, owner)?;
        let root = Root::open(&self.directory)?;
        let make_parents = |below: &Path| -> Result<()> {
            let mut parents: Vec<_> = below.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
            parents.reverse();
            parents.into_iter().try_for_each(|parent| root.make_directory(parent, mode, owner))
        };
        for directory in &self.included {
            let below = directory.strip_prefix(&self.directory).unwrap_or(directory);
            make_parents(below)?;
            root.make_directory(below, mode, owner)?;
        }
        for file in &self.files {
            let below = file.path.strip_prefix(&self.directory).unwrap_or(&file.path);
            make_parents(below)?;
            let mut created = root.create_file(below, 0, 0o600, owner)?;
            created.write_all(&file.contents).context("write file", &file.path)?;
            root.settle(below, file.attributes.mode | 0o600, owner)?;
            root.synchronize(below.parent().unwrap_or(Path::new("")))?;
        }
        root.synchronize(Path::new(""))
    }

    /// The command that starts the server.
    pub fn start_command(&self) -> String {
        match &self.cluster {
            Some(DebianCluster { major, name }) => format!("pg_ctlcluster {major} {name} start"),
            None => format!("pg_ctl -D \"{}\" start", self.directory.display()),
        }
    }

    /// What it is, for the plan.
    pub fn to_text(&self) -> String {
        match (&self.cluster, self.port) {
            (Some(cluster), Some(port)) => {
                format!("\"{}\": cluster {cluster} on port {port}, started by hand", self.directory.display())
            }
            _ => format!("\"{}\"", self.directory.display()),
        }
    }
}

/// The clusters there are, if the new one can be among them.
fn known(cluster: &DebianCluster, backup: &Backup) -> Result<KnownClusters> {
    if cluster.major != backup.pg_major() {
        let message =
            format!("cluster {cluster} is of PostgreSQL {}, the backup of {}", cluster.major, backup.pg_major());
        return Err(Error::new(Kind::Usage, message).hint(format!("Name it {}/{}.", backup.pg_major(), cluster.name)));
    }
    let known = KnownClusters::read()?;
    if known.has(cluster) {
        return Err(Error::new(Kind::Conflict, format!("there is a cluster {cluster} already"))
            .hint("pg_lsclusters shows all of them. Choose another name, or drop that one with pg_dropcluster."));
    }
    Ok(known)
}

/// The files that were kept with the backup.
async fn kept(archive: &WalArchive, backup: &Backup) -> Result<Vec<ConfigurationFile>> {
    let Some(Configuration { object: expected, .. }) = &backup.configuration else { return Ok(Vec::new()) };
    let stored = object(archive, backup, OBJECT, expected).await?;
    unpack(&stored).map_err(|error| damaged(archive, backup, OBJECT, &error.to_string()))
}

/// From where to where.
struct Site<'s> {
    backup: &'s Backup,
    directory: &'s Path,
    data: &'s Path,
}

impl Site<'_> {
    fn recorded(&self) -> Option<&Configuration> {
        self.backup.configuration.as_ref()
    }

    fn way(&self) -> Move {
        let main = self.recorded().map(|recorded| Path::new(&recorded.config_file));
        let from = main.and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
        Move { from, to: self.directory.to_owned() }
    }

    /// The kept files in their new place, without the settings of an earlier recovery.
    fn files(&self, kept: &[ConfigurationFile]) -> Vec<ConfigurationFile> {
        let rules: Vec<&Path> = self
            .recorded()
            .map_or_else(Vec::new, |recorded| vec![Path::new(&recorded.hba_file), Path::new(&recorded.ident_file)]);
        let way = self.way();
        let moved = kept.iter().map(|file| {
            let grammar = grammar_of(&file.path, kept, &rules);
            let contents = way.contents(file, grammar, kept);
            let contents = if grammar == Grammar::Settings { without_recovery(&contents) } else { contents };
            ConfigurationFile { path: way.path(&file.path), contents, attributes: file.attributes }
        });
        moved.collect()
    }

    /// The directories below the new one that the files include by a name that stays as it is written.
    fn included(&self, kept: &[ConfigurationFile]) -> Vec<PathBuf> {
        let way = self.way();
        let of_file = |file: &ConfigurationFile| {
            let file_path = way.path(&file.path);
            let named = references(Grammar::Settings, &file.contents).into_iter().filter(|named| named.is_directory);
            named.map(|named| resolve(&file_path, &named.path)).collect::<Vec<_>>()
        };
        let below = |path: &PathBuf| path != self.directory && path.starts_with(self.directory);
        kept.iter().flat_map(of_file).filter(below).collect()
    }

    /// `postgresql.conf`: the kept one, or one that leads to the one in the data directory.
    fn main(&self, kept: &[ConfigurationFile], moved: &[ConfigurationFile]) -> ConfigurationFile {
        let old = self.recorded().map(|recorded| PathBuf::from(&recorded.config_file));
        let index = kept.iter().position(|file| Some(&file.path) == old.as_ref());
        if let Some(found) = index.and_then(|index| moved.get(index)) {
            let path = self.directory.join(MAIN);
            return ConfigurationFile { path, ..found.clone() };
        }
        let attributes = Attributes { mode: 0o644, uid: 0, gid: 0, modified: 0 };
        let contents = setting("include", &self.data.join(MAIN).display().to_string()).into_bytes();
        ConfigurationFile { path: self.directory.join(MAIN), contents, attributes }
    }

    /// The settings that say where everything is.
    fn places(&self, kept: &[ConfigurationFile]) -> Vec<(String, String)> {
        let way = self.way();
        let place = |recorded: Option<&str>, name: &str| {
            let old = recorded.map(Path::new).filter(|old| kept.iter().any(|file| file.path == **old));
            let new = old.map_or_else(|| self.data.join(name), |old| way.path(old));
            new.display().to_string()
        };
        let recorded = self.recorded();
        let mut places = vec![
            ("data_directory".to_owned(), self.data.display().to_string()),
            ("hba_file".to_owned(), place(recorded.map(|recorded| recorded.hba_file.as_str()), "pg_hba.conf")),
            ("ident_file".to_owned(), place(recorded.map(|recorded| recorded.ident_file.as_str()), "pg_ident.conf")),
        ];
        if self.backup.pg_major() < STATISTICS_IN_MEMORY {
            // Debian's is another cluster's, below /run, and a server does not start without it.
            places.push(("stats_temp_directory".to_owned(), "pg_stat_tmp".to_owned()));
        }
        places
    }
}

/// The port that a configuration sets; where it is in another file, the default one.
fn port_of(contents: &[u8]) -> u16 {
    let port = value_of(contents, "port").and_then(|value| String::from_utf8(value).ok()?.parse().ok());
    port.unwrap_or(DEFAULT_PORT)
}
