//! The index of a backup beside PostgreSQL's manifest, both read as streams: a million files take no memory.

use std::collections::HashSet;
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt as _;

use bytes::Bytes;
use tokio::sync::mpsc;
use walkeep_common::repository::backup::Backup;
use zstd::stream::read::Decoder;

use crate::files::checksum::Checksum;
use crate::files::manifest::ManifestReader;
use crate::pack::index::{IndexEntry, IndexReader};

/// Without these no server starts, whatever else there is.
const NEEDED: [&str; 3] = ["PG_VERSION", "backup_label", "global/pg_control"];

/// What is wrong with the two lists.
#[derive(Debug, Default)]
pub(super) struct Problems {
    pub(super) index: Option<String>,
    pub(super) manifest: Option<String>,
}

/// Reads the index and hands on the members of one pack after the other, while each file is compared with the manifest,
/// which lists the same files in the same order.
///
/// What was handed on before a problem is as the index has it.
pub(super) fn list(
    backup: &Backup,
    index: &[u8],
    manifest: Option<Bytes>,
    packs: &mpsc::Sender<(u32, Vec<IndexEntry>)>,
) -> Problems {
    let mut problems = Problems::default();
    let mut manifest = match manifest.map(Manifest::open).transpose() {
        Ok(manifest) => manifest,
        Err(problem) => {
            problems.manifest = Some(problem);
            None
        }
    };
    let each = |entry: &IndexEntry| {
        if let Some(reading) = &mut manifest
            && let Err(problem) = reading.compare(entry)
        {
            problems.manifest = Some(problem);
            manifest = None;
        }
    };
    problems.index = read_index(backup, index, packs, each).err();
    if problems.index.is_none()
        && let Some(manifest) = manifest
    {
        problems.manifest = manifest.finish(backup).err();
    }
    problems
}

fn read_index(
    backup: &Backup,
    stored: &[u8],
    packs: &mpsc::Sender<(u32, Vec<IndexEntry>)>,
    mut each: impl FnMut(&IndexEntry),
) -> Result<(), String> {
    let mut reader = IndexReader::new(stored).map_err(|error| error.to_string())?;
    let mut paths: HashSet<u128> = HashSet::new();
    let mut needed: Vec<&str> = NEEDED.to_vec();
    let mut members: Vec<IndexEntry> = Vec::new();
    let mut next_pack = 1;
    let mut files = 0;
    loop {
        let entry = reader.next_entry().map_err(|error| chain(&error))?;
        let pack = entry.as_ref().map(|entry| entry.pack);
        if let Some(done) = members.first().map(|member| member.pack)
            && pack != Some(done)
        {
            if done != next_pack || done as usize > backup.packs.len() {
                return Err(format!("it lists pack {done} where pack {next_pack} must come"));
            }
            next_pack += 1;
            if packs.blocking_send((done, std::mem::take(&mut members))).is_err() {
                // Nobody wants more: reading failed, and says why.
                return Ok(());
            }
        }
        let Some(entry) = entry else { break };
        // Of a path only a hash is kept, long enough that no two are alike.
        let hash = blake3::hash(entry.path.as_bytes());
        let hash = hash.as_bytes().first_chunk().map_or(0, |bytes| u128::from_le_bytes(*bytes));
        if !paths.insert(hash) {
            return Err(format!("it lists \"{}\" twice", entry.path));
        }
        needed.retain(|needed| needed.as_bytes() != entry.path.as_bytes());
        if entry.contents.is_some() {
            files += 1;
            each(&entry);
        }
        members.push(entry);
    }
    if let Some(missing) = needed.first() {
        return Err(format!("it does not list \"{missing}\""));
    }
    if next_pack as usize <= backup.packs.len() {
        return Err(format!("it lists nothing of pack {next_pack}"));
    }
    if files != backup.files {
        return Err(format!("it lists {files} files, backup.json says {}", backup.files));
    }
    Ok(())
}

/// PostgreSQL's manifest, read along with the index.
struct Manifest {
    reader: ManifestReader<BufReader<Decoder<'static, BufReader<std::io::Cursor<Bytes>>>>>,
}

impl Manifest {
    fn open(stored: Bytes) -> Result<Self, String> {
        let plain = Decoder::new(std::io::Cursor::new(stored)).map_err(|error| error.to_string())?;
        Ok(Self { reader: ManifestReader::new(BufReader::new(plain)) })
    }

    fn compare(&mut self, entry: &IndexEntry) -> Result<(), String> {
        let Some(file) = self.reader.next_file().map_err(|error| chain(&error))? else {
            return Err(format!("it does not list \"{}\", which the index has", entry.path));
        };
        if file.path.as_os_str().as_bytes() != entry.path.as_bytes() {
            return Err(format!("it lists \"{}\" where the index has \"{}\"", file.path.display(), entry.path));
        }
        let fits = entry.contents.as_ref().is_some_and(|contents| {
            let same_checksum = match file.checksum {
                Checksum::Crc32c(crc32c) => crc32c == contents.crc32c,
                // The index has none of these; that of the file itself is compared with the index.
                _ => true,
            };
            file.size == contents.size && same_checksum
        });
        if fits { Ok(()) } else { Err(format!("it has another size or checksum of \"{}\" than the index", entry.path)) }
    }

    fn finish(mut self, backup: &Backup) -> Result<(), String> {
        if let Some(file) = self.reader.next_file().map_err(|error| chain(&error))? {
            return Err(format!("it lists \"{}\", which the index does not have", file.path.display()));
        }
        if self.reader.system_identifier().is_some_and(|found| found != backup.system_identifier) {
            return Err("it is of another cluster".to_owned());
        }
        let ranges = self.reader.wal_ranges();
        let ends = (ranges.last().map(|range| range.start), ranges.first().map(|range| range.end));
        if ends == (Some(backup.start_lsn), Some(backup.stop_lsn)) {
            Ok(())
        } else {
            Err("its WAL ranges are not those of backup.json".to_owned())
        }
    }
}

/// An error and what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
