//! `basebackup show`: everything that is recorded of one backup.

use std::fmt::Write as _;

use clap::Args;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::repository::layout::BackupId;

use crate::catalog::{Catalog, archives};
use crate::cluster::ClusterArgs;
use crate::list::{READ_PATIENCE, time};
use crate::output::{Format, bytes, print, print_json};

/// Options of `basebackup show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The backup's id, or latest
    pub id: String,
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Form of the output
    #[arg(long, value_name = "text|json", default_value = "text", hide_possible_values = true)]
    pub format: Format,
}

/// Prints one backup.
///
/// # Errors
/// `NotFound`, `Damaged`, `Usage`, `Refused`, `Unavailable`.
pub async fn show(args: &ShowArgs, config: &Config) -> Result<()> {
    let backup = find(args, config).await?;
    match args.format {
        Format::Json => print_json(&backup),
        Format::Text => print(&text(&backup)),
    }
}

async fn find(args: &ShowArgs, config: &Config) -> Result<Backup> {
    let wanted: Option<BackupId> = match args.id.as_str() {
        "latest" => None,
        id => Some(id.parse().map_err(|error| Error::new(Kind::Usage, "cannot show this").caused_by(error))?),
    };
    let mut newest: Option<Backup> = None;
    let mut failure = Error::new(Kind::NotFound, "there are no base backups").hint("Take one with: basebackup take.");
    for archive in archives(config, args.cluster.identifier()?, READ_PATIENCE).await? {
        let mut catalog = Catalog::load(&archive).await?;
        if let Some(id) = &wanted {
            match catalog.find(id) {
                Ok(backup) => return Ok(backup.clone()),
                Err(error) if error.kind() == Kind::Damaged => return Err(error),
                Err(error) => failure = error,
            }
        } else {
            let latest = catalog.backups.pop();
            if latest.as_ref().map(|backup| backup.stop_time) > newest.as_ref().map(|backup| backup.stop_time) {
                newest = latest;
            }
        }
    }
    newest.ok_or(failure)
}

fn text(backup: &Backup) -> String {
    let major = backup.pg_version / 10_000;
    let source = if backup.from_standby { "standby" } else { "primary" };
    let mut lines = vec![
        ("Backup", backup.id.to_string()),
        ("Type", backup.kind.clone()),
        ("Label", backup.label.clone()),
        ("Cluster", backup.system_identifier.to_string()),
        ("PostgreSQL", format!("{major}.{}", backup.pg_version % 10_000)),
        ("Taken from", format!("{source} on host {}, {}", backup.host, backup.data_directory)),
        ("Timeline", timelines(backup)),
        ("Start", format!("{} at {} ({})", backup.start_lsn, time(backup.start_time), backup.start_wal)),
        ("Stop", format!("{} at {} ({})", backup.stop_lsn, time(backup.stop_time), backup.stop_wal)),
        ("Next xid", format!("{} at start, {} at stop", backup.next_xid_at_start, backup.next_xid_at_stop)),
        ("Files", format!("{} of {} in all", backup.files, bytes(backup.plain_size))),
        ("Stored", format!("{} in {} packs", bytes(backup.stored_size), backup.packs.len())),
        ("Checksums", checksums(backup)),
        ("Walkeep", backup.version.clone()),
    ];
    lines.extend(
        backup
            .tablespaces
            .iter()
            .map(|space| ("Tablespace", format!("{} ({}) in {}", space.name, space.oid, space.location))),
    );
    lines.extend(
        backup.configuration.iter().flat_map(|kept| &kept.files).map(|file| ("Config file", format!("{file} (kept)"))),
    );
    lines.extend(backup.annotations.iter().map(|(key, value)| ("Note", format!("{key}={value}"))));
    lines.extend(backup.bad_pages.iter().map(|page| {
        let relation = page.relation.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        ("Bad page", format!("{} block {}{relation}", page.file, page.block))
    }));
    lines.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name:<11} {value}");
        text
    })
}

fn timelines(backup: &Backup) -> String {
    match (backup.timeline, backup.end_timeline()) {
        (start, end) if start == end => start.to_string(),
        (start, end) => format!("{start} at start, {end} at stop"),
    }
}

fn checksums(backup: &Backup) -> String {
    match (backup.data_checksums, backup.bad_pages.len()) {
        (false, _) => "off in this cluster: damaged pages go unnoticed".to_owned(),
        (true, 0) => "on; every page was sound".to_owned(),
        (true, bad) => format!("on; {bad} bad pages"),
    }
}
