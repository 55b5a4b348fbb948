//! From members to plain frames: the tar stream of one pack, in the order the members are given.

use super::frames::{FrameCutter, PlainFrame, TooManyFrames};
use super::index::{Contents, IndexEntry};
use super::member::{Member, MemberKind, MemberPath};
use super::tar::{END_OF_ARCHIVE, member_header, padding_bytes};

/// Writes the tar stream of one pack.
///
/// Per member one [`begin`](Self::begin), its content in any number of [`data`](Self::data), one [`end`](Self::end);
/// at last [`finish`](Self::finish). After an error the pack is of no use.
#[derive(Debug)]
pub struct PackWriter {
    pack: u32,
    cutter: FrameCutter,
    open: Option<OpenMember>,
    /// Zeros that the last member still needs: written with what follows, so that `end` completes no frame.
    padding: usize,
}

#[derive(Debug)]
struct OpenMember {
    member: Member,
    offset: u64,
    missing: u64,
    blake3: blake3::Hasher,
    crc32c: u32,
}

/// The calls do not make up a pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// More content than the member's size.
    #[error("more than the announced {size} bytes of \"{path}\"")]
    TooMuch {
        /// The member.
        path: MemberPath,
        /// As announced.
        size: u64,
    },
    /// The member ended before its size was reached.
    #[error("{missing} bytes short of the announced {size} of \"{path}\"")]
    TooLittle {
        /// The member.
        path: MemberPath,
        /// As announced.
        size: u64,
        /// What never came.
        missing: u64,
    },
    /// `begin` or `finish` while a member was open.
    #[error("\"{0}\" was not ended")]
    NotEnded(MemberPath),
    /// `data` or `end` while none was open.
    #[error("no member was begun")]
    NotBegun,
    /// The pack is full.
    #[error(transparent)]
    Full(#[from] TooManyFrames),
}

impl PackWriter {
    /// Starts the pack with this number; the first pack of a backup is 1.
    pub fn new(pack: u32, cutter: FrameCutter) -> Self {
        Self { pack, cutter, open: None, padding: 0 }
    }

    /// Begins a member and returns the frames this completes.
    pub fn begin(&mut self, member: Member) -> Result<Vec<PlainFrame>, WriteError> {
        self.refuse_open()?;
        let mut header = vec![0; std::mem::take(&mut self.padding)];
        header.extend_from_slice(&member_header(&member));
        let frames = self.cutter.append(&header)?;
        self.open = Some(OpenMember {
            offset: self.cutter.plain_bytes(),
            missing: member.kind.size(),
            blake3: blake3::Hasher::new(),
            crc32c: 0,
            member,
        });
        Ok(frames)
    }

    /// Adds content of the member and returns the frames this completes.
    pub fn data(&mut self, bytes: &[u8]) -> Result<Vec<PlainFrame>, WriteError> {
        let open = self.open.as_mut().ok_or(WriteError::NotBegun)?;
        open.missing = open
            .missing
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| WriteError::TooMuch { path: open.member.path.clone(), size: open.member.kind.size() })?;
        open.blake3.update(bytes);
        open.crc32c = crc32c::crc32c_append(open.crc32c, bytes);
        Ok(self.cutter.append(bytes)?)
    }

    /// Ends the member, which must have got all its content, and returns its line of the index.
    pub fn end(&mut self) -> Result<IndexEntry, WriteError> {
        let OpenMember { member, offset, missing, blake3, crc32c } = self.open.take().ok_or(WriteError::NotBegun)?;
        let size = member.kind.size();
        if missing > 0 {
            return Err(WriteError::TooLittle { path: member.path, size, missing });
        }
        self.padding = padding_bytes(size);
        let contents = match member.kind {
            MemberKind::File { .. } => Some(Contents { offset, size, blake3: blake3.finalize(), crc32c }),
            MemberKind::Directory => None,
        };
        Ok(IndexEntry {
            path: member.path,
            pack: self.pack,
            mode: member.mode & 0o7777,
            modified: member.modified,
            uid: member.owner.uid,
            gid: member.owner.gid,
            contents,
        })
    }

    /// Ends the tar stream and returns the last frames.
    pub fn finish(mut self) -> Result<Vec<PlainFrame>, WriteError> {
        self.refuse_open()?;
        let mut end = vec![0; self.padding];
        end.extend_from_slice(&END_OF_ARCHIVE);
        let mut frames = self.cutter.append(&end)?;
        frames.extend(self.cutter.finish()?);
        Ok(frames)
    }

    /// The length of the tar stream so far: what tells when the pack is large enough.
    pub fn plain_bytes(&self) -> u64 {
        self.cutter.plain_bytes()
    }

    fn refuse_open(&self) -> Result<(), WriteError> {
        match &self.open {
            Some(open) => Err(WriteError::NotEnded(open.member.path.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::super::frames::Compressors;
    use super::super::member::Owner;
    use super::*;

    fn member(kind: MemberKind) -> Member {
        let owner = Owner { uid: 26, gid: 26, user: "postgres".into(), group: "postgres".into() };
        Member {
            path: MemberPath::new(&b"base/1/1259"[..]).unwrap(),
            kind,
            mode: 0o100_600,
            modified: Timestamp::UNIX_EPOCH,
            owner: Arc::new(owner),
        }
    }

    #[test]
    fn a_member_has_exactly_its_announced_size() {
        let path = member(MemberKind::Directory).path;
        let mut writer = PackWriter::new(1, Compressors::new(3).cutter());
        writer.begin(member(MemberKind::File { size: 5 })).unwrap();
        writer.data(b"1234").unwrap();
        assert_eq!(writer.data(b"56"), Err(WriteError::TooMuch { path: path.clone(), size: 5 }));

        let mut writer = PackWriter::new(1, Compressors::new(3).cutter());
        writer.begin(member(MemberKind::File { size: 5 })).unwrap();
        writer.data(b"1234").unwrap();
        assert_eq!(writer.end(), Err(WriteError::TooLittle { path: path.clone(), size: 5, missing: 1 }));

        let mut writer = PackWriter::new(1, Compressors::new(3).cutter());
        writer.begin(member(MemberKind::Directory)).unwrap();
        assert_eq!(writer.data(b"1"), Err(WriteError::TooMuch { path, size: 0 }));
    }

    #[test]
    fn calls_out_of_order_are_refused() {
        let path = member(MemberKind::Directory).path;
        let mut writer = PackWriter::new(1, Compressors::new(3).cutter());
        assert_eq!(writer.data(b""), Err(WriteError::NotBegun));
        assert_eq!(writer.end(), Err(WriteError::NotBegun));
        writer.begin(member(MemberKind::File { size: 0 })).unwrap();
        assert_eq!(writer.begin(member(MemberKind::Directory)), Err(WriteError::NotEnded(path.clone())));
        assert_eq!(writer.finish(), Err(WriteError::NotEnded(path)));
    }

    #[test]
    fn the_index_line_says_where_the_content_is_and_what_it_hashes_to() {
        let mut writer = PackWriter::new(7, Compressors::new(3).cutter());
        writer.begin(member(MemberKind::File { size: 9 })).unwrap();
        writer.data(b"1234").unwrap();
        writer.data(b"56789").unwrap();
        let entry = writer.end().unwrap();
        let contents = entry.contents.unwrap();
        assert_eq!((entry.pack, entry.mode, contents.offset, contents.size), (7, 0o600, 512, 9));
        // The check value of CRC-32C.
        assert_eq!((contents.blake3, contents.crc32c), (blake3::hash(b"123456789"), 0xE306_9283));
        let frames = writer.finish().unwrap();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].bytes.len(), 512 + 512 + 1024);
        assert_eq!(&frames[0].bytes[512..521], b"123456789");
    }
}
