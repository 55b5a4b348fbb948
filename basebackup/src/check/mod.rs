//! `basebackup check`: the doctor. Tests the real path from PostgreSQL's archiver to the repository and back, and says of
//! everything that is wrong what to type.
//!
//! Facts are gathered by one module for each area and judged by pure functions in it; `report` prints what was found.
//! Nothing is deleted, and what is written is one small object a day among the probes.

mod acknowledged;
mod args;
mod command;
mod finding;
mod links;
mod local;
mod programs;
mod queue;
mod recovery;
mod releases;
mod report;
mod repository;
mod round_trip;
mod settings;
mod store;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use walkeep_common::cli::Reporter;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::{HostMemory, host_name};
use walkeep_common::retry::Patience;
use walkeep_common::wal::segment::Timeline;
use walkeep_common::wal_archive::WalArchive;

pub use self::args::{CheckArgs, CheckFormat, EXIT_CODES};
use self::command::Surroundings;
pub use self::finding::{Area, Finding, Findings, Limits, Measure, Outcome};
use self::recovery::Ages;
use self::report::Report;
use crate::catalog::Catalog;
use crate::list::segment_size;
use crate::output::{print, print_json};
use crate::session::Session;
use crate::session::archiver::local_data_directory;
use crate::session::conninfo::{ConnectionParameters, Environment};
use crate::session::preflight;
use crate::session::server::Server;
use crate::status::drills::Drills;

/// How long a request is tried again: whoever waits for the result wants to know that the store does not answer.
const PATIENCE: Patience = Patience::For(Duration::from_secs(10));
const FAILED: u8 = 1;
/// Nagios' word for: nothing could be tested.
const UNKNOWN: u8 = 3;

/// Checks everything, prints what was found, and returns the exit code.
///
/// # Errors
/// `Usage` where nothing could be checked at all. What is wrong with server and repository is found, not failed with.
pub async fn check(args: &CheckArgs, config: &Config, reporter: Reporter) -> Result<u8> {
    let mut check = Check::new(args, config, reporter);
    check.run().await?;
    check.finish()
}

/// Whether these arguments are those of a check by monitoring, which knows other exit codes.
pub fn is_for_nagios(mut arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.any(|word| word == "check") && arguments.any(|word| word == "nagios" || word == "--format=nagios")
}

/// Tells monitoring that nothing could be checked, and returns the exit code for it.
pub fn unknown(error: &Error) -> u8 {
    let _ = print(&report::nagios_unknown(&error.to_string()));
    UNKNOWN
}

/// One run.
struct Check<'c> {
    args: &'c CheckArgs,
    config: &'c Config,
    reporter: Reporter,
    memory: HostMemory,
    found: Findings,
    /// Findings that a person has read already.
    printed: usize,
}

/// A server that could be asked.
struct Patient {
    session: Session,
    server: Server,
    /// Its data directory, if that is on this host and may be read.
    data_directory: Option<PathBuf>,
    /// Whether its settings name a program that could archive.
    can_archive: bool,
}

impl<'c> Check<'c> {
    fn new(args: &'c CheckArgs, config: &'c Config, reporter: Reporter) -> Self {
        Self { args, config, reporter, memory: HostMemory::open(config), found: Findings::default(), printed: 0 }
    }

    async fn run(&mut self) -> Result<()> {
        self.found.add(local::configuration(self.config, &self.memory));
        self.show()?;
        let patient = if self.args.repository_only { None } else { self.examine().await? };
        self.show()?;
        let archive = match &patient {
            Some(patient) => self.repository_of(patient).await,
            None => self.repository().await,
        };
        self.show()?;
        if let Some(patient) = &patient {
            self.way(patient, archive.as_ref()).await;
            self.show()?;
        }
        if let Some(archive) = &archive
            && let Err(error) = self.stored(archive, patient.as_ref()).await
        {
            self.found.add([Finding::of_error(Area::Recovery, "access", &error)]);
        }
        self.show()?;
        if let Some(patient) = patient {
            patient.session.close().await;
        }
        Ok(())
    }

    /// Asks the server. One that does not answer is found to be so.
    async fn examine(&mut self) -> Result<Option<Patient>> {
        let parameters = ConnectionParameters::resolve(&self.args.connection, &Environment::of_process()?)?;
        let session = match Session::connect(&parameters).await {
            Ok(session) => session,
            Err(error) if error.kind() == Kind::Usage => return Err(error),
            Err(error) => {
                self.found.add([Finding::of_error(Area::PostgreSQL, "connection", &error)]);
                return Ok(None);
            }
        };
        match self.ask(session).await {
            Ok(patient) => Ok(Some(patient)),
            Err(error) => {
                self.found.add([Finding::of_error(Area::PostgreSQL, "connection", &error)]);
                Ok(None)
            }
        }
    }

    async fn ask(&mut self, session: Session) -> Result<Patient> {
        let server = session.server().await?;
        let condition = session.condition().await?;
        self.found.add([Finding::passed(Area::PostgreSQL, "connection", format!("connected to {}", session.target()))]);
        let data_directory = self.data_directory(&server, session.target());
        self.found.add(settings::judge(&server, &condition, Timestamp::now()));
        let mut can_archive = server.archives() && condition.may_switch_wal;
        if let Some(directory) = &data_directory {
            let surroundings = Surroundings::of_server(directory);
            let programs = programs::judge(&server, &condition.restore_command, &surroundings, self.config).await;
            can_archive &= programs.can_archive;
            self.found.add(programs.findings);
            self.found.add(links::judge(directory));
        }
        can_archive &= !(server.settings.archive_command.is_empty() && server.settings.archive_library.is_empty());
        Ok(Patient { session, server, data_directory, can_archive })
    }

    fn data_directory(&mut self, server: &Server, target: &str) -> Option<PathBuf> {
        let directory = match preflight::data_directory(server, target) {
            Ok((directory, _)) => directory.to_owned(),
            // That the role may not see it is among its missing rights.
            Err(_) if server.settings.data_directory.is_none() => return None,
            Err(error) => {
                self.found.add([Finding::of_error(Area::PostgreSQL, "data_directory", &error)]);
                return None;
            }
        };
        if let Ok(metadata) = std::fs::metadata(&directory) {
            self.found.add([local::user(&metadata)]);
        }
        local_data_directory(server).map(Path::to_owned)
    }

    /// Tries the way from the server to the repository and back.
    async fn way(&mut self, patient: &Patient, archive: Option<&WalArchive>) {
        let Patient { session, server, data_directory, can_archive } = patient;
        if !server.archives() {
            return;
        }
        if let Some(archive) = archive.filter(|_| *can_archive && !server.in_recovery) {
            let limit = self.args.archive_timeout;
            round_trip::try_it(session, server, archive, limit, self.reporter, &mut self.found).await;
        }
        match session.archiver(server).await {
            Ok(archiver) => {
                queue::judge(&archiver, &mut self.found);
                if let Some(directory) = data_directory {
                    queue::disk(server, &archiver, directory, &mut self.found);
                }
            }
            Err(error) => self.found.add([Finding::of_error(Area::Archiving, "archiver", &error)]),
        }
    }

    /// Judges what is stored, beside what the server believes to be.
    async fn stored(&mut self, archive: &WalArchive, patient: Option<&Patient>) -> Result<()> {
        // Asked before the listing, which is to have all of it.
        let archiver = match patient {
            Some(patient) if patient.server.archives() => Some(patient.session.archiver(&patient.server).await?),
            _ => None,
        };
        let data_directory = patient.and_then(|patient| patient.data_directory.as_deref());
        let acknowledged = archiver.map(|archiver| acknowledged::segments(data_directory, &archiver));
        let catalog = Catalog::load(archive).await?;
        let now = Timestamp::now();
        let size = match patient {
            Some(patient) => Some(patient.server.settings.segment_size),
            None => segment_size(archive, &catalog).await?,
        };
        if let Some(size) = size {
            let inventory = archive.inventory(size).await?;
            let timeline = patient.map(|patient| patient.server.timeline).or_else(|| inventory.newest_timeline());
            let timeline = timeline.unwrap_or(Timeline(1));
            if let Some(acknowledged) = &acknowledged {
                self.found.add(acknowledged::missing(acknowledged, timeline, &inventory));
            }
            if patient.is_none_or(|patient| patient.server.in_recovery) {
                self.found.add([round_trip::newest(archive, timeline, &inventory).await]);
            }
            self.found.add(recovery::wal(&catalog.backups, &inventory, timeline));
        }
        let ages = Ages { backup: self.args.max_backup_age, drill: self.args.max_drill_age };
        recovery::backups(&catalog, ages, now, &mut self.found);
        self.found.add(recovery::objects(archive, &catalog).await?);
        let last = Drills::look(archive).await?.last;
        recovery::drill(last.as_ref(), ages.drill, now, &mut self.found);
        Ok(())
    }

    /// Prints what is new to somebody who waits for it.
    fn show(&mut self) -> Result<()> {
        if self.args.format != CheckFormat::Text {
            return Ok(());
        }
        let (before, new) = self.found.findings.split_at(self.printed);
        let text = report::lines(new, before.last().map(|finding| finding.area));
        self.printed = self.found.findings.len();
        print(&text)
    }

    /// Prints the rest.
    fn finish(&self) -> Result<u8> {
        let outcome = self.found.outcome();
        match self.args.format {
            CheckFormat::Text => print(&format!("{}\n", report::summary(&self.found)))?,
            CheckFormat::Json => print_json(&Report {
                outcome,
                host: host_name(),
                repository: self.config.repository.to_string(),
                cluster: self.config.cluster.clone(),
                found: &self.found,
            })?,
            CheckFormat::Nagios => print(&report::nagios(&self.found))?,
        }
        Ok(match (self.args.format, outcome) {
            (_, Outcome::Passed | Outcome::Note) => 0,
            (CheckFormat::Nagios, Outcome::Warning) => 1,
            (CheckFormat::Nagios, Outcome::Failed) => 2,
            (_, Outcome::Warning) => 0,
            (_, Outcome::Failed) => FAILED,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monitoring_is_recognized_by_its_arguments() {
        let is_it = |line: &str| is_for_nagios(line.split(' ').map(OsString::from));
        assert!(is_it("basebackup check --format nagios --wrong"));
        assert!(is_it("basebackup --cluster x check --format=nagios"));
        assert!(!is_it("basebackup check --format json"));
        assert!(!is_it("basebackup take --format nagios"));
    }
}
