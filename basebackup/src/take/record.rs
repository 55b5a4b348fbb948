//! `backup.json`: what is known of a backup once everything else of it is stored.

use std::path::{Path, PathBuf};

use walkeep_common::cli::Severity;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::host_name;
use walkeep_common::repository::backup::{Backup, Configuration, Owner, RestorePoint, StoredObject, Tablespace};
use walkeep_common::wal::history::TimelineHistory;
use walkeep_common::wal_object::header::FORMAT_VERSION;

use super::args::ChecksumFailures;
use super::listing::Totals;
use super::wal::NeededWal;
use super::{Job, owner};
use crate::accounts::Accounts;
use crate::files::manifest::{WalRange, wal_ranges};
use crate::files::scan::Scan;
use crate::session::backup_mode::{Started, Stopped};
use crate::session::server;

/// Bad pages that are named one by one; `backup.json` has them all.
const SHOWN_PAGES: usize = 20;

/// What came out of the copy.
pub(super) struct Facts<'f> {
    pub(super) started: Started,
    pub(super) stopped: Stopped,
    pub(super) scan: &'f Scan,
    pub(super) restore_point: Option<RestorePoint>,
}

/// The objects beside the packs.
pub(super) struct Objects {
    pub(super) index: StoredObject,
    pub(super) manifest: StoredObject,
    pub(super) configuration: Option<Configuration>,
    pub(super) kept_wal: Vec<String>,
}

impl Facts<'_> {
    /// The WAL the backup needs, as PostgreSQL's manifest lists it.
    pub(super) fn wal_ranges(&self, history: &TimelineHistory) -> Result<Vec<WalRange>> {
        let Stopped { lsn, timeline, .. } = self.stopped;
        wal_ranges(history, timeline, self.started.lsn, lsn).map_err(|error| {
            Error::new(Kind::Invalid, "the backup's start and end do not belong together").caused_by(error)
        })
    }
}

/// The directory of a tablespace. Somebody may have replaced its link by one that is relative to `pg_tblspc`.
fn absolute(data_directory: &Path, link: &Path) -> PathBuf {
    let from_here = data_directory.join("pg_tblspc").join(link);
    if link.is_absolute() { from_here } else { from_here.canonicalize().unwrap_or(from_here) }
}

impl Job<'_> {
    pub(super) fn record(
        &self,
        facts: Facts<'_>,
        totals: Totals,
        needed: &NeededWal,
        objects: Objects,
    ) -> Result<Backup> {
        let Facts { started, stopped, scan, restore_point } = facts;
        let root = super::root(scan)?;
        let named = owner::named(&Accounts::read(), root.uid, root.gid);
        let known = |name: String| Some(name).filter(|name| !name.is_empty());
        // One made in place lies in the data directory, as its files in the packs do.
        let is_outside = |space: &&server::Tablespace| !space.is_in_place();
        let outside = self.server.tablespaces.iter().filter(is_outside);
        let tablespaces = outside.map(|space| Tablespace {
            oid: space.oid,
            name: space.name.clone(),
            location: absolute(self.data_directory, &space.location).display().to_string(),
        });
        Ok(Backup {
            walkeep: FORMAT_VERSION,
            id: self.id.clone(),
            kind: "full".to_owned(),
            parent: None,
            label: self.args.label.clone(),
            system_identifier: self.server.system_identifier,
            pg_version: self.server.version.0,
            segment_size: self.server.settings.segment_size,
            timeline: stopped.timeline,
            stop_timeline: Some(stopped.stop_timeline),
            start_lsn: started.lsn,
            stop_lsn: stopped.lsn,
            start_wal: needed.first(),
            stop_wal: needed.last(),
            start_time: started.time,
            stop_time: stopped.time,
            next_xid_at_start: started.next_xid,
            next_xid_at_stop: stopped.next_xid,
            from_standby: started.from_standby,
            host: host_name(),
            data_directory: self.data_directory.display().to_string(),
            data_directory_mode: format!("{:04o}", root.mode),
            tablespaces: tablespaces.collect(),
            databases: self.server.databases.clone(),
            owner: Owner { uid: root.uid, gid: root.gid, user: known(named.user), group: known(named.group) },
            data_checksums: self.server.settings.data_checksums,
            bad_pages: totals.bad_pages,
            files: totals.files,
            restore_point,
            plain_size: totals.plain_size,
            stored_size: totals.packs.iter().map(|pack| pack.size).sum(),
            packs: totals.packs,
            index: objects.index,
            manifest: objects.manifest,
            configuration: objects.configuration,
            kept_wal: objects.kept_wal,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            annotations: self.args.notes.iter().cloned().collect(),
        })
    }

    /// Names the pages whose checksums were wrong, and fails if that was asked for.
    pub(super) fn report_bad_pages(&self, backup: &Backup) -> Result<()> {
        for page in backup.bad_pages.iter().take(SHOWN_PAGES) {
            let relation = page.relation.as_ref().map_or(String::new(), |name| format!(", which is {name},"));
            let message = format!("page {} of \"{}\"{relation} has a wrong checksum", page.block, page.file);
            self.reporter.print(Severity::Warning, &message, None);
        }
        let count = backup.bad_pages.len();
        if count == 0 {
            return Ok(());
        }
        let message = format!("{count} pages of this cluster are damaged");
        if self.args.checksum_failures == ChecksumFailures::Error {
            return Err(Error::new(Kind::Damaged, message)
                .hint("To keep the backup all the same, say --checksum-failures=warn."));
        }
        let hint = format!("basebackup show {} lists them.", backup.id);
        self.reporter.print(Severity::Warning, &message, Some(&hint));
        Ok(())
    }
}
