//! Push-ahead: when files wait, a [`worker`] in the background pushes them in parallel, so that by the time PostgreSQL
//! asks for one the answer is there.
//!
//! It is an optimisation and nothing else: a call that gets no answer, or not for exactly its file, pushes the file
//! itself, as if there were no worker. Only PostgreSQL says that a file is archived; the worker never writes into the
//! data directory.
//!
//! | module | is |
//! | --- | --- |
//! | [`ask`], [`start`] | the call's side |
//! | [`protocol`], [`place`] | what both sides say, and where they meet |
//! | [`worker`], [`desk`], [`queue`] | the worker, what its threads share, what is next |
//! | [`pusher`], [`pace`], [`budget`] | pushing in parallel within bounds |
//! | [`batch`] | the same within one call, where no worker may live |

mod ask;
pub(crate) mod batch;
mod budget;
mod data_directory;
mod desk;
mod detach;
mod pace;
mod place;
mod protocol;
mod pusher;
mod queue;
mod run_directory;
mod start;
mod warnings;
pub(crate) mod worker;

use std::path::Path;
use std::time::Duration;

use walkeep_common::cli::background::orphans_go_to_postgresql;
use walkeep_common::config::Config;
use walkeep_common::error::{Kind, Result};
use walkeep_common::postgres::postmaster::PostmasterPid;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::source::Source;

pub(crate) use self::ask::Asked;
use self::data_directory::DataDirectory;
use self::place::Place;
use self::protocol::Request;
pub(crate) use self::warnings::keep as keep_warnings;
use crate::limits::Limits;

/// How long no other is started then.
const NO_WORKER_MEMORY: Duration = Duration::from_secs(60);

/// Push-ahead as one call sees it.
#[derive(Debug)]
pub(crate) struct Ahead<'c> {
    config: &'c Config,
    name: WalFileName,
    place: Place,
    server: PostmasterPid,
}

impl<'c> Ahead<'c> {
    /// Nothing unless a running server waits for this file to be archived.
    pub(crate) fn find(path: &Path, name: WalFileName, config: &'c Config) -> Option<Self> {
        let data = DataDirectory::of(path).filter(|data| data.is_ready(name))?;
        let server = data.server()?;
        let place = Place::new(data, config).ok()?;
        Some(Self { config, name, place, server })
    }

    /// Asks the worker.
    pub(crate) fn ask(&self, source: &Source, limits: &mut Limits) -> Asked {
        let Some(socket) = self.place.socket(self.config) else { return Asked::Nobody };
        let give_up = |store_answers, trouble: Option<&str>| limits.exceeded(store_answers, trouble);
        ask::ask(&socket, &Request::new(source, &self.server), give_up)
    }

    /// The data directory for whose files this call must do what a worker would, because none may live.
    pub(crate) fn batch(&self) -> Option<DataDirectory> {
        let is_needed = orphans_go_to_postgresql(&self.server) && self.place.data.others_wait(self.name);
        is_needed.then(|| self.place.data.clone())
    }

    /// Starts a worker, after this call has pushed its file itself, if there is something for it to do: other files, or
    /// this one if it takes longer than a call may.
    pub(crate) fn start_if_useful(&self, result: &Result<()>, limits: &Limits) {
        let is_useful = match result {
            Ok(()) => self.place.data.others_wait(self.name),
            Err(error) => error.kind() == Kind::Unavailable && limits.is_used_up(),
        };
        if !is_useful || orphans_go_to_postgresql(&self.server) {
            return;
        }
        let socket = match self.place.create_socket_directory(self.config) {
            Ok(socket) => socket,
            Err(problem) => return tracing::warn!("{problem}; WAL files are pushed one by one"),
        };
        if let Some(problem) = start::failed_lately(&socket, NO_WORKER_MEMORY) {
            return tracing::warn!("no process pushes ahead, WAL files are pushed one by one: {problem}");
        }
        let pushed = result.is_ok().then_some(self.name);
        if let Err(error) = start::start(&socket, &self.place.data, self.config, pushed) {
            tracing::warn!("could not start a process that pushes ahead, WAL files are pushed one by one: {error}");
        }
    }
}
