//! From stored bytes back to members: which bytes of a pack to fetch, and which part of which file is in them.
//!
//! A [`PackLayout`] holds the members that are wanted of one pack: all of them, some, or one. It plans groups of
//! consecutive frames, each a single range of the object; a [`GroupReader`] turns the bytes of one group into pieces of
//! files. Groups are independent of each other: they can be fetched, decompressed and written in parallel.

use std::ops::Range;

use super::frames::{InvalidFrame, decompress_frame, frame_checksum};
use super::index::{Contents, IndexEntry};
use super::member::MemberPath;
use super::seek_table::{Frame, SeekTable};

/// The wanted members of one pack and its frames.
#[derive(Debug)]
pub struct PackLayout {
    table: SeekTable,
    /// In the order of the pack: without this, a piece could not be found by binary search.
    members: Vec<IndexEntry>,
}

/// A line of the index points outside the pack, or the lines are not in the order of the pack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{path}\" is at {start}, {size} bytes long, in a pack that has {available:?} left for it")]
pub struct InvalidLayout {
    /// The member.
    pub path: MemberPath,
    /// Where the index says that it begins.
    pub start: u64,
    /// How long the index says that it is.
    pub size: u64,
    /// The part of the plain stream after the member before.
    pub available: Range<u64>,
}

/// Consecutive frames, to be fetched as one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameGroup {
    /// Their numbers, from 0.
    pub frames: Range<usize>,
    /// Where they lie in the pack.
    pub stored: Range<u64>,
    /// Which part of the plain stream they hold.
    pub plain: Range<u64>,
}

/// A part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The file.
    pub member: &'a IndexEntry,
    /// Where the part begins in the file.
    pub offset: u64,
    /// Where it lies in the plain stream.
    pub plain: Range<u64>,
}

impl PackLayout {
    /// Lays members, in the order of the index, over the frames of their pack.
    ///
    /// Directories and empty files are nowhere in a pack but in its headers: no piece ever comes for them.
    pub fn new(table: SeekTable, mut members: Vec<IndexEntry>) -> Result<Self, InvalidLayout> {
        members.retain(|member| member.contents.as_ref().is_some_and(|contents| contents.size > 0));
        let mut available = 0..table.plain_bytes();
        for member in &members {
            let Range { start, end } = content(member);
            if start < available.start || end > available.end {
                return Err(InvalidLayout { path: member.path.clone(), start, size: end - start, available });
            }
            available.start = end;
        }
        Ok(Self { table, members })
    }

    /// Plans the groups that hold all wanted members: no frame without a part of one, and none twice.
    ///
    /// A group has at most `max_plain_bytes` of plain bytes, or is a single frame.
    pub fn groups(&self, max_plain_bytes: u64) -> Vec<FrameGroup> {
        let mut groups: Vec<FrameGroup> = Vec::new();
        for (number, frame) in self.table.frames().iter().enumerate() {
            if self.pieces(frame.plain()).next().is_none() {
                continue;
            }
            match groups.last_mut() {
                Some(group)
                    if group.frames.end == number && frame.plain().end - group.plain.start <= max_plain_bytes =>
                {
                    group.frames.end = number + 1;
                    group.stored.end = frame.stored().end;
                    group.plain.end = frame.plain().end;
                }
                _ => {
                    groups.push(FrameGroup {
                        frames: number..number + 1,
                        stored: frame.stored(),
                        plain: frame.plain(),
                    });
                }
            }
        }
        groups
    }

    /// The parts of wanted files that lie in this part of the plain stream, in order.
    pub fn pieces(&self, plain: Range<u64>) -> impl Iterator<Item = Piece<'_>> {
        let first = self.members.partition_point(|member| content(member).end <= plain.start);
        self.members.iter().skip(first).map_while(move |member| {
            let Range { start, end } = content(member);
            let part = start.max(plain.start)..end.min(plain.end);
            (part.start < part.end).then(|| Piece { member, offset: part.start - start, plain: part })
        })
    }

    /// Reads one of the planned groups.
    pub fn read(&self, group: &FrameGroup) -> GroupReader<'_> {
        let frames = self.table.frames().get(group.frames.clone()).unwrap_or_default();
        GroupReader { layout: self, frames, waiting: Vec::new(), plain: Vec::new() }
    }

    /// The frames of the pack.
    pub fn table(&self) -> &SeekTable {
        &self.table
    }
}

/// Where a member's content lies in the plain stream. [`PackLayout::new`] keeps only members that have some.
fn content(member: &IndexEntry) -> Range<u64> {
    match &member.contents {
        Some(Contents { offset, size, .. }) => *offset..offset.saturating_add(*size),
        None => 0..0,
    }
}

/// Where a part of the plain stream lies in the frame that holds it.
#[expect(clippy::cast_possible_truncation, reason = "a frame holds at most 4 MiB")]
fn within(frame: &Frame, part: &Range<u64>) -> Range<usize> {
    (part.start - frame.plain_offset) as usize..(part.end - frame.plain_offset) as usize
}

/// Turns the stored bytes of one group, as they arrive, into pieces of files.
#[derive(Debug)]
pub struct GroupReader<'a> {
    layout: &'a PackLayout,
    /// The frames that are still to come.
    frames: &'a [Frame],
    /// The beginning of the next frame, where a chunk ended inside of it.
    waiting: Vec<u8>,
    plain: Vec<u8>,
}

impl<'a> GroupReader<'a> {
    /// Takes the next stored bytes, in chunks of any size, and hands on the pieces of each frame that is complete.
    ///
    /// Every piece comes from a frame whose checksum was right.
    pub fn feed<E, F>(&mut self, mut stored: &[u8], mut each: F) -> Result<(), E>
    where
        E: From<InvalidFrame>,
        F: FnMut(&Piece<'a>, &[u8]) -> Result<(), E>,
    {
        let layout = self.layout;
        while !stored.is_empty() {
            let Some((frame, later)) = self.frames.split_first() else {
                return Err(InvalidFrame::Misplaced.into());
            };
            let missing = (frame.stored_bytes as usize).saturating_sub(self.waiting.len());
            let Some((now, rest)) = stored.split_at_checked(missing) else {
                self.waiting.reserve_exact(missing);
                self.waiting.extend_from_slice(stored);
                return Ok(());
            };
            if self.waiting.is_empty() {
                unpack(frame, now, &mut self.plain)?;
            } else {
                self.waiting.extend_from_slice(now);
                unpack(frame, &self.waiting, &mut self.plain)?;
                self.waiting.clear();
            }
            for piece in layout.pieces(frame.plain()) {
                each(&piece, self.plain.get(within(frame, &piece.plain)).ok_or(InvalidFrame::Misplaced)?)?;
            }
            (self.frames, stored) = (later, rest);
        }
        Ok(())
    }

    /// Ends the group: an error unless every frame of it came.
    pub fn finish(self) -> Result<(), InvalidFrame> {
        match self.frames.first() {
            None => Ok(()),
            Some(_) => Err(InvalidFrame::StoredSize { frame: None, stored: self.waiting.len() }),
        }
    }
}

/// Decompresses a frame and sees that it is the one which the table has in this place.
fn unpack(frame: &Frame, stored: &[u8], plain: &mut Vec<u8>) -> Result<(), InvalidFrame> {
    decompress_frame(stored, plain)?;
    if plain.len() == frame.plain_bytes as usize && frame_checksum(stored) == Some(frame.checksum) {
        Ok(())
    } else {
        Err(InvalidFrame::Misplaced)
    }
}
