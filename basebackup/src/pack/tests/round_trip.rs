use sha2::{Digest as _, Sha256};

use super::super::frames::MAX_FRAME_BYTES;
use super::super::reader::InvalidLayout;
use super::*;

const MIB: usize = 1024 * 1024;

#[test]
fn members_come_back_whatever_their_sizes_the_chunks_and_the_groups() {
    for seed in 1..=24 {
        let mut random = Random::new(seed);
        let sizes = [0, 0, 1, 511, 512, 513, 8192, 8193, 100_000, MIB, MAX_FRAME_BYTES - 512, MAX_FRAME_BYTES];
        let sources: Vec<_> = (0..=random.below(12))
            .map(|number| {
                let path = format!("base/5/{number}");
                if random.below(8) == 0 {
                    return directory(path, 0o700);
                }
                let size = sizes[random.below(sizes.len())] + random.below(3);
                file(path, random.bytes(size))
            })
            .collect();
        let level = if seed % 2 == 0 { 1 } else { 6 };
        let packed = Packed::in_chunks(&sources, level, |rest| &rest[..rest.len().min(1 + random.below(2 * MIB))]);

        let groups = [1, 5 * MIB, usize::MAX][random.below(3)] as u64;
        let files = read_all(&packed.layout(), &packed.stored, groups, 1 + random.below(3 * MIB))
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for ((member, content), entry) in sources.iter().zip(&packed.entries) {
            assert_eq!(member.path, entry.path);
            let Some(content) = content else { continue };
            let found = files.get(&member.path).map_or(&[][..], |found| found);
            assert!(found == content, "seed {seed}, member {}", member.path);
            let contents = entry.contents.as_ref().unwrap();
            assert_eq!(contents.blake3, blake3::hash(content), "seed {seed}");
            assert_eq!(contents.crc32c, crc32c::crc32c(content), "seed {seed}");
        }
    }
}

#[test]
fn the_summary_is_about_the_stored_object() {
    let packed = Packed::new(&[file("a", vec![1; 5 * MIB]), directory("b", 0o700)], 3);
    assert_eq!(packed.summary.sha256, <[u8; 32]>::from(Sha256::digest(&packed.stored)));
    assert_eq!(packed.summary.stored_bytes, packed.stored.len() as u64);
    assert_eq!(packed.summary.plain_bytes, packed.table().plain_bytes());
    assert_eq!(packed.summary.plain_bytes, (512 + 5 * MIB + 512 + 1024) as u64);
}

#[test]
fn a_pack_without_members_is_an_empty_tar_stream() {
    let packed = Packed::new(&[], 3);
    assert_eq!(packed.summary.plain_bytes, 1024);
    assert_eq!(packed.layout().groups(u64::MAX), []);
}

#[test]
fn one_member_is_read_from_its_own_frames() {
    let mut random = Random::new(7);
    let sources: Vec<_> = (0..9).map(|number| file(format!("{number}"), random.bytes(3 * MIB))).collect();
    let packed = Packed::new(&sources, 9);
    for (entry, (_, content)) in packed.entries.iter().zip(&sources) {
        let layout = PackLayout::new(packed.table(), vec![entry.clone()]).unwrap();
        let groups = layout.groups(u64::MAX);
        assert_eq!(groups.len(), 1);
        assert!(groups[0].frames.len() <= 2, "{groups:?}");
        let files = read_all(&layout, &packed.stored, u64::MAX, usize::MAX).unwrap();
        assert!(files.len() == 1 && files.get(&entry.path) == content.as_ref());
    }
}

#[test]
fn groups_hold_the_wanted_members_and_no_other_frame() {
    let sources: Vec<_> = (0..4).map(|number| file(format!("{number}"), vec![number; 8 * MIB])).collect();
    let packed = Packed::new(&sources, 9);
    let first_and_last = vec![packed.entries[0].clone(), packed.entries[3].clone()];
    let layout = PackLayout::new(packed.table(), first_and_last).unwrap();
    // Each member begins after the 512 bytes of its header, so it reaches into a third frame.
    let frames: Vec<_> = layout.groups(u64::MAX).into_iter().map(|group| group.frames).collect();
    assert_eq!(frames, [0..3, 6..9]);
    let frames: Vec<_> = layout.groups(2 * MAX_FRAME_BYTES as u64).into_iter().map(|group| group.frames).collect();
    assert_eq!(frames, [0..2, 2..3, 6..8, 8..9]);
    let frames: Vec<_> = layout.groups(0).into_iter().map(|group| group.frames).collect();
    assert_eq!(frames, [0..1, 1..2, 2..3, 6..7, 7..8, 8..9]);
    assert_eq!(read_all(&layout, &packed.stored, 0, usize::MAX).unwrap().len(), 2);
}

#[test]
fn a_group_is_complete_only_with_its_last_byte_and_takes_no_more() {
    let packed = Packed::new(&[file("a", vec![1; 5 * MIB])], 1);
    let layout = packed.layout();
    let group = &layout.groups(u64::MAX)[0];
    let stored = &packed.stored[..usize::try_from(group.stored.end).unwrap()];
    let mut reader = layout.read(group);
    reader.feed(&stored[..stored.len() - 1], |_, _| Ok::<_, InvalidFrame>(())).unwrap();
    assert!(matches!(reader.finish(), Err(InvalidFrame::StoredSize { .. })));
    let mut reader = layout.read(group);
    reader.feed(stored, |_, _| Ok::<_, InvalidFrame>(())).unwrap();
    assert_eq!(reader.feed(b"x", |_, _| Ok(())), Err(InvalidFrame::Misplaced));
}

#[test]
fn an_index_that_points_outside_the_pack_or_back_is_refused() {
    let packed = Packed::new(&[file("a", "1234"), file("b", "5678")], 1);
    let refused = |change: &dyn Fn(&mut Vec<IndexEntry>)| -> InvalidLayout {
        let mut entries = packed.entries.clone();
        change(&mut entries);
        PackLayout::new(packed.table(), entries).unwrap_err()
    };
    let outside = refused(&|entries| entries[1].contents.as_mut().unwrap().size = 1 << 40);
    assert_eq!(outside.path.as_bytes(), b"b");
    refused(&|entries| entries[1].contents.as_mut().unwrap().offset = u64::MAX);
    refused(&|entries| entries[0].contents.as_mut().unwrap().size = 2000);
    refused(&|entries| entries.swap(0, 1));
}
