//! Which backup, and where recovery ends: as asked for, or drawn from a seed.

use std::slice;

use fastrand::Rng;
use jiff::SignedDuration;
use jiff::tz::TimeZone;
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::retry::Patience;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::WalArchive;

use super::args::{DrillArgs, Selection, TargetWish};
use crate::catalog::{Catalog, archives};
use crate::list::{Window, windows};
use crate::restore::args::TargetArgs;
use crate::restore::target::TargetAction;
use crate::restore::time::Moment;

/// The cluster that is meant, and its backups.
///
/// # Errors
/// `NotFound`, `Refused`, `Unavailable`.
pub(super) async fn find(args: &DrillArgs, config: &Config, patience: Patience) -> Result<(WalArchive, Catalog)> {
    let mut found: Option<(WalArchive, Catalog)> = None;
    for archive in archives(config, args.cluster.identifier()?, patience).await? {
        let catalog = Catalog::load(&archive).await?;
        let newest = |catalog: &Catalog| catalog.backups.last().map(|backup| backup.stop_time);
        let is_meant = match &args.backup {
            Selection::Id(id) => catalog.find(id).is_ok(),
            _ => found.as_ref().is_none_or(|(_, other)| newest(&catalog) > newest(other)),
        };
        if is_meant || found.is_none() {
            found = Some((archive, catalog));
        }
    }
    found.ok_or_else(|| Error::new(Kind::NotFound, "there is no cluster of this name"))
}

/// The backup that is meant.
///
/// # Errors
/// `NotFound`, `Usage`; `Damaged` where it cannot be read.
pub(super) fn backup<'c>(args: &DrillArgs, catalog: &'c Catalog, rng: &mut Rng) -> Result<&'c Backup> {
    let backups = &catalog.backups;
    // Ids begin with the time: of a backup that cannot be read nothing else is known.
    let unusable = catalog.unusable.last().filter(|(id, _)| backups.iter().all(|backup| backup.id < *id));
    if let (Selection::Latest, Some((id, problem))) = (&args.backup, unusable) {
        return Err(Error::new(Kind::Damaged, format!("base backup {id}, the newest, cannot be used: {problem}")));
    }
    let chosen = match &args.backup {
        Selection::Id(id) => return catalog.find(id),
        Selection::Latest => newest_before(&args.target, backups)?.or(backups.last()),
        Selection::Oldest => backups.first(),
        Selection::Random => backups.get(rng.usize(..backups.len().max(1))),
    };
    chosen.ok_or_else(|| {
        Error::new(Kind::NotFound, "there are no base backups to drill").hint("Take one with: basebackup take.")
    })
}

/// The newest backup before a target whose place is known from what the backups say.
fn newest_before<'b>(target: &TargetWish, backups: &'b [Backup]) -> Result<Option<&'b Backup>> {
    Ok(match target {
        TargetWish::Time(text) => {
            let time = Moment::parse(text, &TimeZone::system());
            let time = time.map_err(|error| Error::new(Kind::Usage, "cannot read the target").caused_by(error))?.time;
            backups.iter().rev().find(|backup| backup.stop_time < time)
        }
        TargetWish::Name(name) => {
            let writes_it = |backup: &&Backup| backup.restore_point.as_ref().is_some_and(|point| point.name == *name);
            backups.iter().rev().find(writes_it)
        }
        TargetWish::Latest | TargetWish::Immediate | TargetWish::Random => None,
    })
}

/// The target in the terms of a restore.
///
/// # Errors
/// `Refused` or `Unavailable`.
pub(super) async fn target(
    wish: &TargetWish,
    backup: &Backup,
    archive: &WalArchive,
    rng: &mut Rng,
) -> Result<TargetArgs> {
    let mut target = TargetArgs { target_inclusive: true, ..TargetArgs::default() };
    let immediate = || Some("immediate".to_owned());
    match wish {
        TargetWish::Latest if own_window(backup, archive).await?.is_some_and(|own| own.expired.is_some()) => {
            // The policy kept what makes this one consistent, and nothing behind it.
            target.target = immediate();
        }
        TargetWish::Latest => return Ok(target),
        TargetWish::Immediate => target.target = immediate(),
        TargetWish::Time(time) => target.target_time = Some(time.clone()),
        TargetWish::Name(name) => target.target_name = Some(name.clone()),
        TargetWish::Random => {
            let own = own_window(backup, archive).await?;
            if own.as_ref().is_some_and(|own| own.expired.is_some()) {
                target.target = immediate();
                target.target_action = Some(TargetAction::Promote);
                return Ok(target);
            }
            let reached = own.and_then(|own| own.last_segment.parse::<WalFileName>().ok());
            let end = match reached {
                Some(last) => archive.header(last).await?.map(|header| header.modified),
                None => None,
            };
            let between = end.map_or(SignedDuration::ZERO, |end| end.duration_since(backup.stop_time));
            let micros = i64::try_from(between.as_micros()).unwrap_or(0).max(1);
            let moment = backup.stop_time + SignedDuration::from_micros(rng.i64(1..=micros));
            target.target_time = Some(moment.to_string());
        }
    }
    target.target_action = Some(TargetAction::Promote);
    Ok(target)
}

/// What this backup alone reaches on the newest timeline that it reaches at all.
///
/// # Errors
/// `Refused` or `Unavailable`.
async fn own_window(backup: &Backup, archive: &WalArchive) -> Result<Option<Window>> {
    let inventory = archive.inventory(backup.segment_size).await?;
    Ok(windows(slice::from_ref(backup), &inventory).pop())
}

/// A target in words.
pub(super) fn describe(target: &TargetArgs) -> String {
    match target {
        TargetArgs { target_time: Some(time), .. } => format!("time {time}"),
        TargetArgs { target_name: Some(name), .. } => format!("restore point \"{name}\""),
        TargetArgs { target: Some(_), .. } => "immediate: the end of the backup".to_owned(),
        _ => "latest: the end of the archive".to_owned(),
    }
}

/// A selection in words.
pub(super) fn selection(args: &DrillArgs) -> &'static str {
    match (&args.backup, &args.target) {
        (Selection::Latest, TargetWish::Time(_) | TargetWish::Name(_)) => "the newest before the target",
        (Selection::Latest, _) => "the newest",
        (Selection::Oldest, _) => "the oldest",
        (Selection::Random, _) => "drawn at random",
        (Selection::Id(_), _) => "named",
    }
}
