//! Read-ahead: a process in the background keeps the next segments verified in a [`spool`], so that a call only has to
//! move one to where PostgreSQL wants it.
//!
//! It is an optimisation and nothing else. A call looks for the one file it was asked for; what is not in the spool it
//! fetches itself, as if there were no worker, and what the worker did not find or could not fetch is not remembered.
//! History files are never fetched ahead, and a request by hand is none of a recovery.
//!
//! [`predict`] says what comes next, [`mailbox`] is how the [`worker`] hears of it, [`server`] is who recovers.

mod mailbox;
mod place;
mod predict;
mod server;
mod spool;
pub(crate) mod worker;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use walkeep_common::config::Config;
use walkeep_common::host::HostMemory;
use walkeep_common::postgres::control::ControlFile;
use walkeep_common::wal::header::{LONG_HEADER_BYTES, SegmentHeader};
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize};

use self::mailbox::Message;
use self::place::NoPlace;
use self::server::Server;
use self::spool::Spool;
use crate::destination;
use crate::exit;
use archive_get::args::Args;

/// What the host remembers having complained about.
const WARNED_FACT: &str = "no-read-ahead";
/// How often a call looks at a segment the worker is fetching.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How long such a segment may stop growing before the call fetches it itself.
const STALL: Duration = Duration::from_secs(2);
/// How long a whole one may take to be synchronized: beside a checkpoint that can be a while.
const STALL_WHEN_WHOLE: Duration = Duration::from_secs(10);
/// What PostgreSQL wants a file to be called in its own requests (`RestoreArchivedFile`,
/// src/backend/access/transam/xlogarchive.c); pg_rewind and people name others.
const ASKED_BY_SERVER: &str = "RECOVERYXLOG";

/// Read-ahead as one call sees it: for one segment that a recovering server asks for.
#[derive(Debug)]
pub(crate) struct ReadAhead {
    spool: Result<Spool, NoPlace>,
    memory: HostMemory,
    server: Server,
    segment: SegmentName,
    segment_size: SegmentSize,
    system_identifier: u64,
    /// Whether recovery begins with this segment.
    is_first: bool,
}

impl ReadAhead {
    /// Nothing unless a server asks for a segment, in archive recovery, and read-ahead is on.
    pub(crate) fn find(args: &Args, config: &Config, name: WalFileName) -> Option<Self> {
        let WalFileName::Segment(segment) = name else { return None };
        let data_directory = Path::new(".");
        let is_by_hand = args.path.file_name().is_none_or(|name| name != ASKED_BY_SERVER);
        if config.prefetch == 0 || is_by_hand || exit::signal(data_directory).is_none() {
            return None;
        }
        // Root would leave files that PostgreSQL's user cannot remove.
        let server = Server::find().filter(|_| !rustix::process::geteuid().is_root())?;
        let control = ControlFile::read(data_directory).ok()?;
        let system_identifier = args.system_identifier.unwrap_or(control.system_identifier);
        let memory = HostMemory::open(config);
        let key = place::key(config, system_identifier, &server).ok()?;
        let directory = match &args.read_ahead {
            Some(directory) => Ok(directory.clone()),
            None => place::find(memory.directory()).ok()?,
        };
        let spool = directory.map(|directory| Spool::new(directory, key));
        let segment_size = control.segment_size?;
        let is_first = segment.number(segment_size) == Some(control.redo.0 / segment_size.bytes());
        Some(Self { spool, memory, server, segment, segment_size, system_identifier, is_first })
    }

    /// Puts the segment at `path` if it is in the spool, or comes there while it is waited for, at most until `deadline`;
    /// tells whether it did.
    pub(crate) fn serve(&self, path: &Path, deadline: Instant) -> bool {
        let Ok(spool) = &self.spool else { return false };
        let mut told = false;
        loop {
            match self.take(&spool.ready(self.segment), path) {
                Ok(true) => return true,
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::debug!(%error, segment = %self.segment, "could not take a segment from the spool");
                    return false;
                }
                Ok(false) | Err(_) => {}
            }
            // From now on all of the link is for this one.
            if !told && !mailbox::tell(spool, Message::Wanted(self.segment)) {
                return false;
            }
            told = true;
            if !self.comes_soon(spool, deadline) {
                return false;
            }
        }
    }

    /// Moves a segment from the spool. Every hash was checked before it got its name there; that it is the right one is
    /// looked at again. What is not goes.
    fn take(&self, ready: &Path, path: &Path) -> io::Result<bool> {
        let mut file = File::open(ready)?;
        let mut start = [0; LONG_HEADER_BYTES];
        file.read_exact(&mut start)?;
        let header = SegmentHeader::parse(&start).ok().filter(|header| header.check_name(self.segment).is_ok());
        let right = header.is_some_and(|header| header.system_identifier == self.system_identifier);
        if !right || file.metadata()?.len() != self.segment_size.bytes() {
            fs::remove_file(ready)?;
            return Ok(false);
        }
        destination::take_over(ready, path)?;
        Ok(true)
    }

    /// Whether it is worth looking again for a segment the worker is fetching: waits as long as it grows.
    fn comes_soon(&self, spool: &Spool, deadline: Instant) -> bool {
        let partial = spool.partial(self.segment);
        let size = || fs::metadata(&partial).ok().map(|metadata| metadata.size());
        let Some(mut seen) = size() else { return false };
        let mut grown = Instant::now();
        let whole = self.segment_size.bytes();
        let stall = |size: u64| if size < whole { STALL } else { STALL_WHEN_WHOLE };
        loop {
            sleep(LOOK_AGAIN);
            match size() {
                // It is ready, or the worker has failed.
                None => return true,
                Some(now) if now != seen => (seen, grown) = (now, Instant::now()),
                // PostgreSQL will ask for it again, and it goes on.
                Some(_) if Instant::now() > deadline => return false,
                Some(now) if grown.elapsed() > stall(now) || !mailbox::is_read(spool) => {
                    // Nobody waits for it again.
                    let _ = fs::remove_file(&partial);
                    return false;
                }
                Some(_) => {}
            }
        }
    }

    /// After the segment was served: makes the worker go on from there, and starts it where there is none.
    pub(crate) fn go_on(&self) {
        if self.server.adopts_orphans() {
            return;
        }
        let spool = match &self.spool {
            Ok(spool) => spool,
            Err(NoPlace(tried)) => return self.warn_once(tried),
        };
        if mailbox::tell(spool, Message::Served(self.segment)) {
            return;
        }
        let prepared = spool.create().map_err(|error| error.to_string()).and_then(|()| {
            // What a killed worker left takes up room, and nobody else removes it.
            if let Ok(Some(_lock)) = mailbox::lock(spool) {
                spool.keep_only(&[]);
            }
            if !spool.has_room(1, self.segment_size) {
                return Err(format!("not enough space is free in \"{}\"", spool.directory().display()));
            }
            mailbox::create(spool).map_err(|error| error.to_string())
        });
        if let Err(problem) = prepared {
            spool.remove_if_empty();
            return self.warn_once(&problem);
        }
        worker::start(spool.directory());
    }

    /// Says why there is no read-ahead, once for each run of the server if that can be remembered.
    fn warn_once(&self, problem: &str) {
        let (memory, run) = (&self.memory, self.server.identity());
        let data_directory = place::data_directory_identity().unwrap_or_default();
        if !memory.is_usable() && !self.is_first {
            return;
        }
        if memory.recall(WARNED_FACT, &data_directory).as_ref() != Some(&run) {
            memory.note(WARNED_FACT, &data_directory, &run);
            let more = memory.problem().map(|problem| format!("; {problem}")).unwrap_or_default();
            tracing::warn!("no segments are fetched ahead, for want of a place for them: {problem}{more}");
        }
    }
}
