//! The repository and the cluster in it that everything else is about.

use std::path::PathBuf;

use walkeep_common::error::{Kind, Result};
use walkeep_common::store::Store;
use walkeep_common::wal_archive::WalArchive;

use super::finding::{Area, Finding};
use super::{Check, PATIENCE, Patient, local, store};
use crate::catalog::{Catalog, archives};

impl Check<'_> {
    /// Tries the repository of a server's cluster as its archiver uses it. None where nothing can be read from it.
    pub(super) async fn repository_of(&mut self, patient: &Patient) -> Option<WalArchive> {
        let server = &patient.server;
        if let Some(directory) = &server.settings.data_directory {
            let tablespaces: Vec<PathBuf> =
                server.tablespaces.iter().map(|tablespace| directory.join(&tablespace.location)).collect();
            self.found.add(local::apart(self.config, directory, &tablespaces));
        }
        let opened = WalArchive::open(self.config, server.system_identifier, self.memory.clone(), PATIENCE);
        let archive = match opened {
            Ok(archive) => archive,
            Err(error) => {
                self.found.add([Finding::of_error(Area::Repository, "access", &error)]);
                return None;
            }
        };
        let (size, major) = (server.settings.segment_size, server.version.major());
        if let Err(error) = archive.prepare_to_write(Some(size), Some(major)).await {
            self.found.add([Finding::of_error(Area::Repository, "access", &error)]);
            return (error.kind() != Kind::Unavailable && archive.identity().await.is_ok_and(|found| found.is_some()))
                .then_some(archive);
        }
        store::judge(archive.store(), &self.memory, &mut self.found).await.then_some(archive)
    }

    /// Tries the repository alone, and returns the cluster that is asked for, or the one with the newest backup.
    pub(super) async fn repository(&mut self) -> Option<WalArchive> {
        match Store::open(self.config, PATIENCE) {
            Ok(store) => {
                if !store::judge(&store, &self.memory, &mut self.found).await {
                    return None;
                }
            }
            Err(error) => {
                self.found.add([Finding::of_error(Area::Repository, "access", &error)]);
                return None;
            }
        }
        match self.newest_cluster().await {
            Ok(archive) => archive,
            Err(error) => {
                self.found.add([Finding::of_error(Area::Repository, "cluster", &error)]);
                None
            }
        }
    }

    async fn newest_cluster(&mut self) -> Result<Option<WalArchive>> {
        let mut clusters = Vec::new();
        for archive in archives(self.config, self.args.system_identifier, PATIENCE).await? {
            let catalog = Catalog::load(&archive).await?;
            clusters.push((catalog.backups.last().map(|backup| backup.stop_time), archive));
        }
        let count = clusters.len();
        let newest = clusters.into_iter().max_by_key(|(newest, _)| *newest).map(|(_, archive)| archive);
        if let Some(archive) = newest.as_ref().filter(|_| count > 1) {
            let identifier = archive.layout().system_identifier();
            let text =
                format!("{count} clusters are stored here; this is about the one with the newest backup, {identifier}");
            self.found.add([Finding::note(Area::Repository, "cluster", text)]);
        }
        Ok(newest)
    }
}
