//! Whole packs, written and read: by this code, by other programs, and after damage.

mod damage;
mod index;
mod programs;
mod round_trip;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::assembler::{PackAssembler, PackSummary};
use super::frames::{Compressors, InvalidFrame, PlainFrame};
use super::index::IndexEntry;
use super::member::{Member, MemberKind, MemberPath, Owner};
use super::reader::PackLayout;
use super::seek_table::SeekTable;
use super::writer::PackWriter;

/// Reproducible random numbers (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    /// Half of it compresses, half does not.
    fn bytes(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        for part in bytes.chunks_mut(4096) {
            if self.below(2) == 0 {
                part.fill_with(|| u8::try_from(self.below(256)).unwrap());
            } else {
                part.fill(u8::try_from(self.below(256)).unwrap());
            }
        }
        bytes
    }
}

/// A directory has no content at all, unlike an empty file.
type Source = (Member, Option<Vec<u8>>);

fn directory(path: impl AsRef<[u8]>, mode: u32) -> Source {
    (member(path.as_ref(), MemberKind::Directory, mode), None)
}

fn file(path: impl AsRef<[u8]>, content: impl Into<Vec<u8>>) -> Source {
    let content = content.into();
    (member(path.as_ref(), MemberKind::File { size: content.len() as u64 }, 0o600), Some(content))
}

fn member(path: &[u8], kind: MemberKind, mode: u32) -> Member {
    let owner = Owner { uid: 26, gid: 27, user: "postgres".into(), group: "postgres".into() };
    Member {
        path: MemberPath::new(path).unwrap(),
        kind,
        mode,
        modified: Timestamp::from_second(1_795_329_900).unwrap(),
        owner: Arc::new(owner),
    }
}

struct Packed {
    stored: Vec<u8>,
    entries: Vec<IndexEntry>,
    summary: PackSummary,
}

impl Packed {
    fn new(sources: &[Source], level: i32) -> Self {
        Self::in_chunks(sources, level, |content| content)
    }

    /// Hands the content over in chunks as `next` cuts them off.
    fn in_chunks(sources: &[Source], level: i32, mut next: impl FnMut(&[u8]) -> &[u8]) -> Self {
        let compressors = Compressors::new(level);
        let mut writer = PackWriter::new(1, compressors.cutter());
        let mut frames = Vec::new();
        let mut entries = Vec::new();
        for (member, content) in sources {
            frames.extend(writer.begin(member.clone()).unwrap());
            let mut rest = content.as_deref().unwrap_or_default();
            while !rest.is_empty() {
                let chunk = next(rest);
                frames.extend(writer.data(chunk).unwrap());
                rest = &rest[chunk.len()..];
            }
            entries.push(writer.end().unwrap());
        }
        frames.extend(writer.finish().unwrap());
        let (stored, summary) = assemble(frames, &compressors);
        Self { stored, entries, summary }
    }

    fn table(&self) -> SeekTable {
        SeekTable::parse(&self.stored, self.stored.len() as u64).unwrap()
    }

    fn layout(&self) -> PackLayout {
        PackLayout::new(self.table(), self.entries.clone()).unwrap()
    }
}

fn assemble(frames: Vec<PlainFrame>, compressors: &Compressors) -> (Vec<u8>, PackSummary) {
    let mut assembler = PackAssembler::default();
    let mut stored = Vec::new();
    for frame in frames {
        stored.extend_from_slice(&assembler.push(compressors.compress(frame).unwrap()).unwrap());
    }
    let (table, summary) = assembler.finish();
    stored.extend_from_slice(&table);
    (stored, summary)
}

type Files = BTreeMap<MemberPath, Vec<u8>>;

/// Reads all wanted files of a stored pack, the last group first: groups do not depend on each other.
fn read_all(layout: &PackLayout, stored: &[u8], group_bytes: u64, chunk_bytes: usize) -> Result<Files, InvalidFrame> {
    let mut files = Files::new();
    for group in layout.groups(group_bytes).iter().rev() {
        let mut reader = layout.read(group);
        let range = usize::try_from(group.stored.start).unwrap()..usize::try_from(group.stored.end).unwrap();
        for chunk in stored[range].chunks(chunk_bytes) {
            reader.feed(chunk, |piece, data| {
                let size = piece.member.contents.as_ref().unwrap().size;
                let file = files
                    .entry(piece.member.path.clone())
                    .or_insert_with(|| vec![0xEE; usize::try_from(size).unwrap()]);
                let start = usize::try_from(piece.offset).unwrap();
                file[start..start + data.len()].copy_from_slice(data);
                Ok::<_, InvalidFrame>(())
            })?;
        }
        reader.finish()?;
    }
    Ok(files)
}
