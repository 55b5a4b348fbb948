//! This host: its name, and what it remembers across calls, in the spool. Losing that costs requests, never correctness.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::Mode;

use crate::config::{Config, home_directory};

/// This host's name.
pub fn host_name() -> String {
    const LONGEST: usize = 255;
    rustix::system::uname().nodename().to_string_lossy().chars().take(LONGEST).collect()
}

/// Small facts in files: what was found out about stores, and when. Without a directory to write to they are kept for
/// the life of the process.
#[derive(Debug, Clone, Default)]
pub struct HostMemory {
    directory: Option<PathBuf>,
    problem: Option<String>,
    facts: Arc<Mutex<HashMap<String, (String, SystemTime)>>>,
}

impl HostMemory {
    /// Opens the memory in the spool, which is created where it is missing. Without packages nobody may write to the
    /// default place: then a directory of the user's own is taken.
    pub fn open(config: &Config) -> Self {
        let spool = &config.spool_directory;
        let mut problem = match prepare(spool) {
            Ok(()) => return Self { directory: Some(spool.clone()), ..Self::default() },
            Err(error) => format!("cannot use spool directory \"{}\": {error}", spool.display()),
        };
        if let Some(own) = own_directory().filter(|_| is_default(spool) && !spool.exists()) {
            match prepare(&own) {
                Ok(()) => return Self { directory: Some(own), ..Self::default() },
                Err(error) => problem = format!("{problem}; nor \"{}\": {error}", own.display()),
            }
        }
        Self { problem: Some(problem), ..Self::default() }
    }

    /// What was noted here before, for those who only look: nothing is created.
    pub fn look(config: &Config) -> Self {
        let spool = Some(config.spool_directory.clone()).filter(|spool| spool.exists());
        let directory = spool.or_else(|| own_directory().filter(|_| is_default(&config.spool_directory)));
        let directory = directory.filter(|directory| directory.is_dir() && check_writers(directory).is_ok());
        Self { directory, ..Self::default() }
    }

    /// The directory in use, which nobody else may write to.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// No memory: for what only reads, which leaves nothing behind on the host.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether there is anything to remember with.
    pub fn is_usable(&self) -> bool {
        self.directory.is_some()
    }

    /// Why nothing can be remembered, if so.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// What is remembered about `subject`.
    pub fn recall(&self, fact: &str, subject: &str) -> Option<String> {
        match self.path(fact, subject) {
            Some(path) => fs::read_to_string(path).ok(),
            None => self.facts(|facts| facts.get(&file_name(fact, subject)).map(|(value, _)| value.clone())),
        }
    }

    /// How long ago the fact was noted.
    pub fn age(&self, fact: &str, subject: &str) -> Option<Duration> {
        let modified = match self.path(fact, subject) {
            Some(path) => fs::metadata(path).ok()?.modified().ok()?,
            None => self.facts(|facts| facts.get(&file_name(fact, subject)).map(|(_, noted)| *noted))?,
        };
        // A time in the future is a clock that was set back: nothing is known then.
        SystemTime::now().duration_since(modified).ok()
    }

    /// Notes a fact about `subject`. A failure only means that it will not be remembered.
    pub fn note(&self, fact: &str, subject: &str, value: &str) {
        let Some(path) = self.path(fact, subject) else {
            let noted = (value.to_owned(), SystemTime::now());
            let _ = self.facts(|facts| facts.insert(file_name(fact, subject), noted));
            return;
        };
        let staged = path.with_extension(std::process::id().to_string());
        let written = fs::write(&staged, value).and_then(|()| fs::rename(&staged, &path));
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "could not remember");
            let _ = fs::remove_file(&staged);
        }
    }

    /// Forgets a fact about `subject`.
    pub fn forget(&self, fact: &str, subject: &str) {
        let _ = match self.path(fact, subject) {
            Some(path) => fs::remove_file(path).is_ok(),
            None => self.facts(|facts| facts.remove(&file_name(fact, subject))).is_some(),
        };
    }

    fn path(&self, fact: &str, subject: &str) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(file_name(fact, subject)))
    }

    fn facts<T>(&self, look: impl FnOnce(&mut HashMap<String, (String, SystemTime)>) -> T) -> T {
        look(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn file_name(fact: &str, subject: &str) -> String {
    let digest = blake3::hash(subject.as_bytes()).to_hex();
    format!("{fact}-{}", digest.get(..16).unwrap_or_default())
}

/// `$XDG_STATE_HOME/walkeep`, else below the user's home directory; the data directory is never written to.
fn own_directory() -> Option<PathBuf> {
    let absolute = |path: PathBuf| Some(path).filter(|path| path.is_absolute());
    let state = std::env::var_os("XDG_STATE_HOME").and_then(|path| absolute(path.into()));
    let own = state.or_else(|| absolute(home_directory()?).map(|home| home.join(".local/state")))?.join("walkeep");
    let inside = std::env::current_dir().is_ok_and(|directory| own.starts_with(directory));
    Some(own).filter(|_| !inside)
}

fn is_default(spool: &Path) -> bool {
    spool == Path::new(crate::config::DEFAULT_SPOOL_DIRECTORY)
}

fn prepare(directory: &Path) -> io::Result<()> {
    match fs::metadata(directory) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
        Err(_) => fs::DirBuilder::new().recursive(true).create(directory)?,
    }
    rustix::fs::access(directory, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)?;
    check_writers(directory)
}

fn check_writers(directory: &Path) -> io::Result<()> {
    // Whoever else may write here could make us believe that a store refuses to overwrite.
    let mode = Mode::from_raw_mode(rustix::fs::stat(directory)?.st_mode);
    if mode.contains(Mode::WOTH) { Err(io::Error::other("everyone may write to it")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Flags;

    fn config(spool: &Path) -> Config {
        let flags = Flags { repository: Some("file:///r".into()), ..Flags::default() };
        let spool = spool.display().to_string();
        Config::resolve(&flags, |name| (name == "WALKEEP_SPOOL_DIRECTORY").then(|| spool.clone())).unwrap()
    }

    fn memory(spool: &Path) -> HostMemory {
        HostMemory::open(&config(spool))
    }

    #[test]
    fn who_only_looks_creates_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let spool = directory.path().join("spool");
        assert!(HostMemory::look(&config(&spool)).recall("fact", "subject").is_none() && !spool.exists());
        memory(&spool).note("fact", "subject", "value");
        assert_eq!(HostMemory::look(&config(&spool)).recall("fact", "subject").as_deref(), Some("value"));
    }

    #[test]
    fn facts_are_remembered_until_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let memory = memory(&directory.path().join("a/b"));
        assert_eq!(memory.recall("fact", "s3://one"), None);
        memory.note("fact", "s3://one", "yes");
        assert_eq!(memory.recall("fact", "s3://one").as_deref(), Some("yes"));
        assert_eq!(memory.recall("fact", "s3://two"), None);
        assert!(memory.age("fact", "s3://one").unwrap() < Duration::from_secs(60));
        memory.forget("fact", "s3://one");
        assert_eq!(memory.recall("fact", "s3://one"), None);
    }

    #[test]
    fn an_unusable_spool_is_a_problem_to_mention_and_nothing_more() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let memory = memory(&file);
        assert!(memory.problem().unwrap().contains("file"));
        memory.note("fact", "subject", "value");
        assert_eq!(memory.recall("fact", "subject").as_deref(), Some("value"), "for as long as the process lives");
        assert!(memory.age("fact", "subject").unwrap() < Duration::from_secs(60));
        assert_eq!(HostMemory { facts: Arc::default(), ..memory.clone() }.recall("fact", "subject"), None);
        memory.forget("fact", "subject");
        assert_eq!(memory.recall("fact", "subject"), None);
    }
}
