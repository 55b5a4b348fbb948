use sha2::{Digest as _, Sha256};

use super::super::frames::MAX_FRAME_BYTES;
use super::*;

fn small_pack() -> (Packed, Files) {
    let mut random = Random::new(3);
    let sources = [
        directory("base", 0o700),
        file("base/1", random.bytes(700)),
        file("base/2", "1,2,3,4,".repeat(90)),
        file("global/pg_control", vec![0; 8192]),
    ];
    let packed = Packed::new(&sources, 3);
    let files = read_all(&packed.layout(), &packed.stored, u64::MAX, usize::MAX).unwrap();
    assert_eq!(files.len(), 3);
    (packed, files)
}

/// Reads a pack of which nothing is known but its index.
fn read_stored(stored: &[u8], entries: &[IndexEntry]) -> Option<Files> {
    let table = SeekTable::parse(stored, stored.len() as u64).ok()?;
    let layout = PackLayout::new(table, entries.to_vec()).ok()?;
    read_all(&layout, stored, u64::MAX, usize::MAX).ok()
}

#[test]
fn no_flipped_bit_ever_yields_other_files() {
    let (packed, files) = small_pack();
    let frames_end = usize::try_from(packed.table().stored_bytes()).unwrap();
    for at in 0..packed.stored.len() {
        for bit in 0..8 {
            let mut damaged = packed.stored.clone();
            damaged[at] ^= 1 << bit;
            assert_ne!(<[u8; 32]>::from(Sha256::digest(&damaged)), packed.summary.sha256);
            // A few bits of a zstd frame mean nothing, or the same: only SHA-256 notices them, and no content is wrong.
            if let Some(read) = read_stored(&damaged, &packed.entries) {
                assert!(read == files, "bit {bit} of byte {at}");
                assert!(at < frames_end, "bit {bit} of byte {at} of the seek table");
            }
        }
    }
}

#[test]
fn a_pack_cut_short_or_extended_is_refused() {
    let (packed, _) = small_pack();
    for end in 0..packed.stored.len() {
        assert!(read_stored(&packed.stored[..end], &packed.entries).is_none(), "cut to {end} bytes");
        assert!(read_stored(&packed.stored[end + 1..], &packed.entries).is_none(), "from byte {end}");
    }
    assert!(read_stored(&[&packed.stored[..], b"\0"].concat(), &packed.entries).is_none());
    assert!(read_stored(&packed.stored.repeat(2), &packed.entries).is_none());
}

#[test]
fn an_intact_frame_in_the_place_of_another_is_refused() {
    let mut random = Random::new(5);
    // Two frames that do not compress, so both are stored in equally many bytes.
    let content: Vec<u8> = (0..2 * MAX_FRAME_BYTES).map(|_| u8::try_from(random.below(256)).unwrap()).collect();
    let packed = Packed::new(&[file("a", content)], 1);
    let table = packed.table();
    let [first, second] = [table.frames()[0], table.frames()[1]];
    assert_eq!(first.stored_bytes, second.stored_bytes);
    let size = first.stored_bytes as usize;
    let mut swapped = packed.stored.clone();
    let (one, other) = swapped[..2 * size].split_at_mut(size);
    one.swap_with_slice(other);
    assert_eq!(read_all(&packed.layout(), &swapped, u64::MAX, usize::MAX), Err(InvalidFrame::Misplaced));
}
