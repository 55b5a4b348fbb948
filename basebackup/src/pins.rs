//! `basebackup pin` and `unpin`: backups that no policy removes.
//!
//! A pin is an object that is created once; what takes pins back is another one, which names them. So there is nothing to
//! overwrite or delete, and no clock that decides which came last.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use walkeep_common::config::Config;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::host::host_name;
use walkeep_common::repository::layout::BackupId;
use walkeep_common::repository::seal::{self, Seal, seal};
use walkeep_common::store::Created;
use walkeep_common::wal_archive::WalArchive;
use walkeep_common::wal_object::header::{FORMAT_VERSION, text_or_number};

use crate::catalog::{Catalog, archives};
use crate::list::{READ_PATIENCE, time};
use crate::output::print;
use crate::restore::time::Moment;

/// A pin is a few hundred bytes, the operator's note included.
const LIMIT: u64 = 1 << 20;
/// How many are read at the same time.
const READS: usize = 16;

/// Options of `basebackup pin`.
#[derive(Debug, Clone, Args)]
pub struct PinArgs {
    /// The backup's id
    #[arg(value_name = "ID")]
    pub backup: BackupId,
    /// When the pin ends by itself [default: never]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Why it is kept
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Run as root all the same
    #[arg(long)]
    pub allow_root: bool,
}

/// Options of `basebackup unpin`.
#[derive(Debug, Clone, Args)]
pub struct UnpinArgs {
    /// The backup's id
    #[arg(value_name = "ID")]
    pub backup: BackupId,
    /// Run as root all the same
    #[arg(long)]
    pub allow_root: bool,
}

/// An object below `pins/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    walkeep: u32,
    id: BackupId,
    #[serde(with = "text_or_number")]
    system_identifier: u64,
    created: Timestamp,
    host: String,
    user: String,
    version: String,
    backup: BackupId,
    #[serde(flatten)]
    act: Act,
}

/// What it does to the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase")]
enum Act {
    Pin {
        until: Option<Timestamp>,
        note: Option<String>,
    },
    Unpin {
        /// The pins that are taken back.
        pins: Vec<BackupId>,
    },
}

/// A pin that was not taken back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Pin {
    /// Its id.
    pub id: BackupId,
    /// Until when; none: for good.
    pub until: Option<Timestamp>,
    /// The operator's note.
    pub note: Option<String>,
}

impl Pin {
    /// In a few words.
    pub fn to_text(&self) -> String {
        let until = self.until.map_or_else(String::new, |until| format!(" until {}", time(until)));
        let note = self.note.as_ref().map(|note| format!(" ({})", note.replace(char::is_control, " ")));
        format!("pinned{until}{}", note.unwrap_or_default())
    }
}

/// The pins of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    by_backup: BTreeMap<BackupId, Vec<Pin>>,
    /// Objects that cannot be read, and why: any of them may be a pin.
    pub unreadable: Vec<(String, String)>,
}

impl Pins {
    /// Reads all of them. A listing that lacks one would let go of a backup, so there are two of different kinds.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub async fn load(archive: &WalArchive) -> Result<Self> {
        let folder = archive.layout().pins_folder();
        let mut listed = archive.store().list(&folder).await?;
        listed.extend(archive.store().list_folder(&folder).await?.objects);
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        listed.dedup_by(|a, b| a.key == b.key);
        let read = stream::iter(listed).map(|object| async move {
            let url = archive.store().url_of(&object.key);
            match archive.store().read(&object.key, LIMIT).await {
                // Removed since it was listed, by hand.
                Ok(None) => Ok(None),
                Ok(Some(bytes)) => Ok(Some(parse(&bytes).map_err(|problem| (url, problem)))),
                Err(error) if error.kind() == Kind::Damaged => Ok(Some(Err((url, error.to_string())))),
                Err(error) => Err(error),
            }
        });
        let read: Vec<_> = read.buffered(READS).try_collect().await?;
        let (mut pins, mut records) = (Self::default(), Vec::new());
        for outcome in read.into_iter().flatten() {
            match outcome {
                Ok(record) => records.push(record),
                Err(unreadable) => pins.unreadable.push(unreadable),
            }
        }
        pins.by_backup = in_force(records);
        Ok(pins)
    }

    /// The pins of a backup that have not ended at `now`.
    pub fn of(&self, backup: &BackupId, now: Timestamp) -> Vec<Pin> {
        let pins = self.by_backup.get(backup).into_iter().flatten();
        pins.filter(|pin| pin.until.is_none_or(|until| until > now)).cloned().collect()
    }

    /// The backups with a pin that has not ended at `now`.
    pub fn pinned(&self, now: Timestamp) -> BTreeSet<BackupId> {
        self.by_backup.keys().filter(|backup| !self.of(backup, now).is_empty()).cloned().collect()
    }
}

fn parse(bytes: &[u8]) -> Result<Record, String> {
    if seal::check(bytes) != Seal::Intact {
        return Err("it was changed since it was written".to_owned());
    }
    let record: Record = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if record.walkeep > FORMAT_VERSION {
        return Err(format!("it has format {}, newer than this program reads; upgrade Walkeep", record.walkeep));
    }
    Ok(record)
}

/// What is left when everything that was taken back is left out.
fn in_force(records: Vec<Record>) -> BTreeMap<BackupId, Vec<Pin>> {
    let taken_back: BTreeSet<BackupId> = records
        .iter()
        .filter_map(|record| match &record.act {
            Act::Unpin { pins } => Some(pins.clone()),
            Act::Pin { .. } => None,
        })
        .flatten()
        .collect();
    let mut by_backup: BTreeMap<BackupId, Vec<Pin>> = BTreeMap::new();
    for record in records {
        if let (Act::Pin { until, note }, false) = (record.act, taken_back.contains(&record.id)) {
            by_backup.entry(record.backup).or_default().push(Pin { id: record.id, until, note });
        }
    }
    by_backup
}

/// Pins a backup.
///
/// # Errors
/// `NotFound` without such a backup, `Usage` for a time that is over, `Refused`, `Unavailable`.
pub async fn pin(args: &PinArgs, config: &Config) -> Result<()> {
    let until = args.until.as_deref().map(parse_until).transpose()?;
    let archive = cluster_of(&args.backup, config).await?;
    store(&archive, &args.backup, Act::Pin { until, note: args.note.clone() }).await?;
    // Whoever removes it looks at the pins first: if it is still there now, it stays.
    if archive.store().head(&archive.layout().backup_object(&args.backup, "backup.json")).await?.is_none() {
        let message = format!("base backup {} was removed while it was being pinned", args.backup);
        return Err(Error::new(Kind::NotFound, message));
    }
    let end = until.map_or_else(|| "until it is unpinned".to_owned(), |until| format!("until {}", time(until)));
    print(&format!("{} is pinned {end}\n", args.backup))
}

/// Takes every pin of a backup back.
///
/// # Errors
/// `NotFound` if it has none, `Damaged` if one cannot be read, `Refused`, `Unavailable`.
pub async fn unpin(args: &UnpinArgs, config: &Config) -> Result<()> {
    for archive in archives(config, None, READ_PATIENCE).await? {
        let pins = Pins::load(&archive).await?;
        if let Some((object, problem)) = pins.unreadable.first() {
            let error = Error::new(Kind::Damaged, format!("could not use \"{object}\": {problem}"));
            return Err(error.hint("It may be a pin. If it is of no use any more, remove that object by hand."));
        }
        let Some(of_backup) = pins.by_backup.get(&args.backup) else { continue };
        let pins = of_backup.iter().map(|pin| pin.id.clone()).collect();
        store(&archive, &args.backup, Act::Unpin { pins }).await?;
        return print(&format!("{} is no longer pinned\n", args.backup));
    }
    Err(Error::new(Kind::NotFound, format!("base backup {} is not pinned", args.backup))
        .hint("basebackup list shows what is."))
}

fn parse_until(text: &str) -> Result<Timestamp> {
    let moment = Moment::parse(text, &TimeZone::system())
        .map_err(|error| Error::new(Kind::Usage, "invalid value for --until").caused_by(error))?;
    if moment.time <= Timestamp::now() {
        return Err(Error::new(Kind::Usage, format!("--until {} is over already", time(moment.time))));
    }
    Ok(moment.time)
}

/// The cluster that has this backup.
///
/// # Errors
/// `NotFound`, `Damaged`, `Refused`, `Unavailable`.
pub(crate) async fn cluster_of(backup: &BackupId, config: &Config) -> Result<WalArchive> {
    let mut unknown = None;
    for archive in archives(config, None, READ_PATIENCE).await? {
        match Catalog::load(&archive).await?.find(backup) {
            Ok(_) => return Ok(archive),
            Err(error) if error.kind() == Kind::NotFound => unknown = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(unknown.unwrap_or_else(|| Error::new(Kind::NotFound, format!("there is no base backup {backup}"))))
}

async fn store(archive: &WalArchive, backup: &BackupId, act: Act) -> Result<()> {
    let now = Timestamp::now();
    let record = Record {
        walkeep: FORMAT_VERSION,
        id: BackupId::new(now, fastrand::u16(..)),
        system_identifier: archive.layout().system_identifier(),
        created: now,
        host: host_name(),
        user: whoami::username().unwrap_or_default(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        backup: backup.clone(),
        act,
    };
    let json = serde_json::to_vec_pretty(&record)
        .map_err(|error| Error::new(Kind::Internal, "could not write the pin").caused_by(error))?;
    let (key, bytes) = (archive.layout().pin(&record.id), seal(&json));
    if archive.store().create(&key, bytes.clone()).await? == Created::New {
        return Ok(());
    }
    // Ours, whose answer was lost; or one of the same second and the same chance.
    match archive.store().read(&key, LIMIT).await? {
        Some(found) if found == bytes => Ok(()),
        _ => Err(Error::new(Kind::Conflict, format!("\"{}\" is there already", archive.store().url_of(&key)))
            .hint("Try again.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u16, act: Act) -> Record {
        let created: Timestamp = "2026-11-22T06:45:00Z".parse().unwrap();
        Record {
            walkeep: FORMAT_VERSION,
            id: BackupId::new(created, id),
            system_identifier: 7,
            created,
            host: "db1".to_owned(),
            user: "postgres".to_owned(),
            version: "1".to_owned(),
            backup: BackupId::new(created, 0xffff),
            act,
        }
    }

    #[test]
    fn a_pin_holds_until_it_is_taken_back_by_name_whatever_the_order() {
        let pin = |id| record(id, Act::Pin { until: None, note: None });
        let unpin = |id, of: u16| record(id, Act::Unpin { pins: vec![record(of, Act::Unpin { pins: vec![] }).id] });
        let count = |records| in_force(records).values().map(Vec::len).sum::<usize>();
        assert_eq!(count(vec![pin(1), pin(2)]), 2);
        assert_eq!(count(vec![pin(1), unpin(2, 1), pin(3)]), 1);
        assert_eq!(count(vec![unpin(2, 1), pin(1)]), 0);
    }

    #[test]
    fn a_pin_is_read_back_and_ends_by_itself() {
        let until: Timestamp = "2027-01-01T00:00:00Z".parse().unwrap();
        let record = record(1, Act::Pin { until: Some(until), note: Some("tax".to_owned()) });
        let bytes = seal(&serde_json::to_vec_pretty(&record).unwrap());
        assert_eq!(parse(&bytes), Ok(record.clone()));
        assert!(parse(&serde_json::to_vec(&record).unwrap()).is_err(), "without its checksum");
        let pins = Pins { by_backup: in_force(vec![record.clone()]), unreadable: Vec::new() };
        let second = jiff::SignedDuration::from_secs(1);
        assert_eq!(pins.of(&record.backup, until - second).len(), 1);
        assert_eq!(pins.of(&record.backup, until).len(), 0);
        assert!(pins.pinned(until).is_empty());
    }
}
