//! One backup: that every object of it is there, and what `backup.json` and the index say.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use object_store::path::Path;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::{Backup, Begin, Pack, StoredObject};
use walkeep_common::repository::layout::BackupId;
use walkeep_common::repository::seal::{self, Seal};
use walkeep_common::wal::name::WalFileName;

use super::finding::{Finding, Lost};
use super::{ALTERED, RECORD_LIMIT, Verification, members, pack};
use crate::configuration::stored;
use crate::pack::index::IndexEntry;
use crate::pack::seek_table::{FOOTER_BYTES, SeekTable, table_bytes};
use crate::restore::contents;

const BEGIN: &str = "begin.json";
const MANIFEST: &str = "backup_manifest.zst";
/// No backup waits so long for the rest of its WAL to be archived.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_hours(6);
/// Bytes fetched at a time.
const CHUNK_BYTES: u64 = 4 << 20;
/// The end of a pack that most likely holds its whole seek table.
const LIKELY_TABLE_BYTES: u64 = 64 * 1024;
/// What seems damaged is fetched once more: the network may have done it.
const FETCHES: usize = 2;
/// Packs whose members wait for their turn.
const WAITING_PACKS: usize = 1;

impl Verification {
    /// Verifies one backup; of its packs those that are chosen are read.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`: what is damaged is found, not failed with.
    pub(super) async fn backup(&self, backup: &Backup) -> Result<Vec<Finding>> {
        let mut findings = self.sizes(backup).await?;
        let missing: Vec<String> = findings.iter().map(|finding| finding.object.clone()).collect();
        let is_whole = |name: &str| !missing.contains(&self.url(backup, name));

        let index = self.object(backup, "files.ndjson.zst", &backup.index, &mut findings).await?;
        let manifest = self.object(backup, MANIFEST, &backup.manifest, &mut findings).await?;
        if let Some(configuration) = &backup.configuration
            && let Some(bytes) = self.object(backup, stored::OBJECT, &configuration.object, &mut findings).await?
            && let Err(error) = stored::unpack(&bytes)
        {
            findings.push(self.finding(backup, stored::OBJECT, error.to_string()));
        }
        findings.extend(self.begin(backup).await?);
        findings.extend(self.kept_wal(backup).await?);

        let chosen = self.sample(backup.packs.len());
        let is_chosen = |number: u32| chosen.contains(&(number as usize)) && is_whole(&pack_name(backup, number));
        let (sender, receiver) = mpsc::channel(WAITING_PACKS);
        let listing = index.map(|index| {
            let backup = backup.clone();
            spawn_blocking(move || members::list(&backup, &index, manifest, &sender))
        });
        // Every pack once: those that the index lists with their members, the others without.
        let numbers: Vec<u32> = (1..).take(backup.packs.len()).filter(|&number| is_chosen(number)).collect();
        let mut seen = Vec::new();
        let listed = stream::unfold(receiver, |mut receiver| async {
            let next: Option<(u32, Vec<IndexEntry>)> = receiver.recv().await;
            next.map(|next| (next, receiver))
        });
        let listed = listed.filter(|(number, _)| {
            let wanted = numbers.contains(number);
            async move { wanted }
        });
        let listed = listed.inspect(|(number, _)| seen.push(*number));
        let checks = listed.map(|(number, members)| self.pack(backup, number, Some(members)));
        let found: Vec<Option<Finding>> = checks.buffer_unordered(self.jobs).try_collect().await?;
        findings.extend(found.into_iter().flatten());
        if let Some(listing) = listing {
            let problems = listing.await.map_err(thread_failed)?;
            let problem =
                |name: &str, problem: Option<String>| problem.map(|problem| self.finding(backup, name, problem));
            findings.extend(problem("files.ndjson.zst", problems.index));
            findings.extend(problem(MANIFEST, problems.manifest));
        }
        let unlisted = numbers.into_iter().filter(|number| !seen.contains(number));
        let checks = stream::iter(unlisted).map(|number| self.pack(backup, number, None));
        let found: Vec<Option<Finding>> = checks.buffer_unordered(self.jobs).try_collect().await?;
        findings.extend(found.into_iter().flatten());
        Ok(findings)
    }

    /// Sees that every object that `backup.json` names is there and as long as it says.
    async fn sizes(&self, backup: &Backup) -> Result<Vec<Finding>> {
        let listed = self.archive.store().list(&self.archive.layout().backup_folder(&backup.id)).await?;
        let listed: BTreeMap<Path, u64> = listed.into_iter().map(|object| (object.key, object.size)).collect();
        let packs = backup.packs.iter().map(|pack| (pack.name.as_str(), pack.size));
        let beside = [("files.ndjson.zst", backup.index.size), (MANIFEST, backup.manifest.size)];
        let configuration = backup.configuration.iter().map(|kept| (stored::OBJECT, kept.object.size));
        let mut findings = Vec::new();
        for (name, expected) in packs.chain(beside).chain(configuration) {
            let found = listed.get(&self.archive.layout().backup_object(&backup.id, name));
            let problem = match found {
                None => "it is missing".to_owned(),
                Some(&found) if found != expected => format!("it is {found} bytes long, backup.json says {expected}"),
                Some(_) => continue,
            };
            findings.push(self.finding(backup, name, problem));
        }
        Ok(findings)
    }

    /// Reads an object that `backup.json` describes; nothing if it was found to be damaged, now or before.
    async fn object(
        &self,
        backup: &Backup,
        name: &str,
        expected: &StoredObject,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<Bytes>> {
        let url = self.url(backup, name);
        if findings.iter().any(|finding| finding.object == url) {
            return Ok(None);
        }
        for _ in 0..FETCHES {
            match contents::object(&self.archive, backup, name, expected).await {
                Ok(bytes) => {
                    self.note_read(expected.size);
                    return Ok(Some(bytes));
                }
                Err(error) if error.kind() == Kind::Damaged => {}
                Err(error) => return Err(error),
            }
        }
        findings.push(self.finding(backup, name, "its bytes do not have the SHA-256 of backup.json".to_owned()));
        Ok(None)
    }

    /// Looks at the backup's first object, which nobody needs any more once the last one is there.
    async fn begin(&self, backup: &Backup) -> Result<Option<Finding>> {
        let key = self.archive.layout().backup_object(&backup.id, BEGIN);
        let problem = match self.archive.store().read(&key, RECORD_LIMIT).await {
            Ok(Some(bytes)) => {
                let begin: Option<Begin> = serde_json::from_slice(&bytes).ok();
                let is_its_own = begin.is_some_and(|begin| begin.id == backup.id);
                (!is_its_own || seal::check(&bytes) == Seal::Broken).then_some(ALTERED)
            }
            Ok(None) => Some("it is missing"),
            Err(error) if error.kind() == Kind::Damaged => Some(ALTERED),
            Err(error) => return Err(error),
        };
        let object = self.archive.store().url_of(&key);
        Ok(problem.map(|problem| Finding { object, problem: problem.to_owned(), lost: Lost::default() }))
    }

    async fn kept_wal(&self, backup: &Backup) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        for text in &backup.kept_wal {
            let name = format!("wal/{text}.zst");
            let problem = match text.parse::<WalFileName>() {
                Ok(segment) => self.wal_object(&self.archive.layout().backup_wal(&backup.id, segment), segment).await?,
                Err(error) => Some(error.to_string()),
            };
            findings.extend(problem.map(|problem| self.finding(backup, &name, problem)));
        }
        Ok(findings)
    }

    /// Reads a whole pack, once more if it seems damaged.
    async fn pack(&self, backup: &Backup, number: u32, members: Option<Vec<IndexEntry>>) -> Result<Option<Finding>> {
        let members = members.map(Arc::new);
        let name = pack_name(backup, number);
        let mut problem = String::new();
        for _ in 0..FETCHES {
            match self.read_pack(backup, number, members.clone()).await? {
                Ok(()) => return Ok(None),
                Err(found) => problem = found,
            }
        }
        Ok(Some(self.finding(backup, &name, problem)))
    }

    async fn read_pack(
        &self,
        backup: &Backup,
        number: u32,
        members: Option<Arc<Vec<IndexEntry>>>,
    ) -> Result<Result<(), String>> {
        let _work = self.work().await?;
        let Some(Pack { name, size, sha256 }) = backup.packs.get(number as usize - 1).cloned() else {
            return Ok(Ok(()));
        };
        let key = self.archive.layout().backup_object(&backup.id, &name);
        let changed = || Ok(Err("it changes while it is read, or is gone".to_owned()));

        let first = size.saturating_sub(LIKELY_TABLE_BYTES);
        let Some(mut tail) = self.range(&key, first..size, size).await? else { return changed() };
        let footer = tail.last_chunk::<FOOTER_BYTES>().copied().unwrap_or_default();
        let needed = match table_bytes(&footer) {
            Ok(needed) => needed.min(size),
            Err(error) => return Ok(Err(error.to_string())),
        };
        if needed > tail.len() as u64 {
            let Some(bytes) = self.range(&key, size - needed..size, size).await? else { return changed() };
            tail = bytes;
        }
        let table = match SeekTable::parse(&tail, size) {
            Ok(table) => table,
            Err(error) => return Ok(Err(error.to_string())),
        };

        let (sender, mut receiver) = mpsc::channel::<Bytes>(1);
        let checking = spawn_blocking(move || {
            let chunks = std::iter::from_fn(|| receiver.blocking_recv());
            pack::check(chunks, &table, &sha256, members.as_ref().map(|members| &members[..]))
        });
        let starts = (0..size).step_by(usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX));
        let chunks = stream::iter(starts).map(|start| self.range(&key, start..(start + CHUNK_BYTES).min(size), size));
        let mut chunks = std::pin::pin!(chunks.buffered(2));
        while let Some(chunk) = chunks.next().await {
            let Some(bytes) = chunk? else { return changed() };
            self.note_read(bytes.len() as u64);
            if sender.send(bytes).await.is_err() {
                // It has found something.
                break;
            }
        }
        drop(sender);
        checking.await.map_err(thread_failed)
    }

    /// Reads a part of an object that is `size` bytes long; nothing if it is not.
    async fn range(&self, key: &Path, range: Range<u64>, size: u64) -> Result<Option<Bytes>> {
        let length = range.end - range.start;
        let read = self.archive.store().read_range(key, range).await?;
        Ok(read.filter(|(bytes, found)| *found == size && bytes.len() as u64 == length).map(|(bytes, _)| bytes))
    }

    /// Something about an object of a backup, without which the backup is lost.
    pub(super) fn finding(&self, backup: &Backup, name: &str, problem: String) -> Finding {
        let lost = Lost { backups: vec![backup.id.clone()], spans: Vec::new() };
        Finding { object: self.url(backup, name), problem, lost }
    }

    /// A backup whose last object is not what was written. What it says may still be true.
    pub(super) fn altered(&self, backup: &Backup) -> Finding {
        self.finding(backup, "backup.json", ALTERED.to_owned())
    }

    /// A backup of which everything is there but its record, and has been for longer than any backup waits for its WAL.
    ///
    /// # Errors
    /// `Refused` or `Unavailable`.
    pub(super) async fn without_record(&self, id: &BackupId) -> Result<Option<Finding>> {
        let listed = self.archive.store().list(&self.archive.layout().backup_folder(id)).await?;
        let has_manifest = listed.iter().any(|object| object.key.filename() == Some(MANIFEST));
        let newest = listed.iter().map(|object| object.modified).max();
        let is_old = newest.is_some_and(|newest| Timestamp::now().duration_since(newest) > LONGEST_WAIT);
        Ok((has_manifest && is_old).then(|| self.unusable(id, "it is missing, though the backup was all but complete")))
    }

    /// A backup whose last object cannot be read: nothing else of it can be either.
    pub(super) fn unusable(&self, id: &BackupId, problem: &str) -> Finding {
        let key = self.archive.layout().backup_object(id, "backup.json");
        let lost = Lost { backups: vec![id.clone()], spans: Vec::new() };
        Finding { object: self.archive.store().url_of(&key), problem: problem.to_owned(), lost }
    }

    fn url(&self, backup: &Backup, name: &str) -> String {
        self.archive.store().url_of(&self.archive.layout().backup_object(&backup.id, name))
    }
}

fn pack_name(backup: &Backup, number: u32) -> String {
    backup.packs.get(number as usize - 1).map(|pack| pack.name.clone()).unwrap_or_default()
}

fn thread_failed(error: tokio::task::JoinError) -> Error {
    Error::new(Kind::Internal, "a thread ended before its work").caused_by(error)
}
