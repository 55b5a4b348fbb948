//! Checksums of data pages.
//!
//! Mirrors `pg_checksum_page` (src/include/storage/checksum_impl.h) and `PageHeaderData`
//! (src/include/storage/bufpage.h), PostgreSQL 13 to 19.

use walkeep_common::lsn::Lsn;

/// A page is a matrix with rows of this many 32-bit words, each column hashed for itself so that one instruction can
/// work on several (`N_SUMS`).
const COLUMNS: usize = 32;

const ROW_BYTES: usize = COLUMNS * 4;

/// What the columns' sums start from (`checksumBaseOffsets`).
const START: [u32; COLUMNS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// The prime of the FNV-1a hash.
const PRIME: u32 = 16_777_619;

/// The size of a cluster's pages (`BLCKSZ`), a build-time option of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSize(u32);

/// The number cannot be a cluster's block size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid block size {0}: expected a power of two from 1024 to 32768")]
pub struct InvalidBlockSize(u32);

impl TryFrom<u32> for BlockSize {
    type Error = InvalidBlockSize;

    fn try_from(bytes: u32) -> Result<Self, InvalidBlockSize> {
        let possible = bytes.is_power_of_two() && (1024..=32768).contains(&bytes);
        if possible { Ok(Self(bytes)) } else { Err(InvalidBlockSize(bytes)) }
    }
}

impl BlockSize {
    /// The size in bytes.
    pub fn bytes(self) -> usize {
        self.0 as usize
    }
}

/// What a page of a cluster with data checksums is found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// Zeros: the relation was extended and the page not written yet.
    New,
    /// Changed since the backup began: the WAL has its full image, so its contents do not matter.
    Newer,
    /// Its checksum is right.
    Sound,
    /// Its checksum is wrong: damaged, or caught in the middle of a write.
    Bad {
        /// The checksum of what was read.
        expected: u16,
        /// The checksum the page carries.
        found: u16,
    },
}

/// Checks one whole page. `block_number` counts from the beginning of the relation's fork, through all its segments.
///
/// Where pg_basebackup takes any page without an upper bound for new, this asks for zeros throughout, as the server
/// does when it reads the page: a wiped header would hide damage otherwise.
pub fn check_page(page: &[u8], block_number: u32, backup_start: Lsn) -> PageState {
    if is_zero(page) {
        return PageState::New;
    }
    if page_lsn(page) >= backup_start {
        return PageState::Newer;
    }
    let (expected, found) = (page_checksum(page, block_number), u16_at(page, 8));
    if expected == found { PageState::Sound } else { PageState::Bad { expected, found } }
}

/// In pieces, so that several bytes are looked at at once; most pages are told from zeros by the first.
fn is_zero(page: &[u8]) -> bool {
    let (pieces, rest) = page.as_chunks::<64>();
    let zero = |piece: &[u8]| piece.iter().fold(0, |seen, byte| seen | byte) == 0;
    pieces.iter().all(|piece| zero(piece)) && zero(rest)
}

/// The position in the WAL of the page's last change (`pd_lsn`): two 32-bit numbers, the high one first, whatever
/// the byte order of the machine.
fn page_lsn(page: &[u8]) -> Lsn {
    let half = |at: usize| u64::from(u16_at(page, at)) | u64::from(u16_at(page, at + 2)) << 16;
    Lsn(half(0) << 32 | half(4))
}

/// The checksum PostgreSQL gives a page of these contents; the one stored in it does not count.
pub fn page_checksum(page: &[u8], block_number: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    let mut sums = START;
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        first[8..10].fill(0);
        mix(&mut sums, &words(&first));
        for row in rest {
            mix(&mut sums, &words(row));
        }
    }
    mix(&mut sums, &[0; COLUMNS]);
    mix(&mut sums, &[0; COLUMNS]);
    let folded = sums.iter().fold(block_number, |folded, sum| folded ^ sum);
    // Never zero, so that zero can mean "none".
    u16::try_from(folded % 65535 + 1).unwrap_or(u16::MAX)
}

/// Adds one row to the sums of the columns.
#[inline]
fn mix(sums: &mut [u32; COLUMNS], row: &[u32; COLUMNS]) {
    for (sum, word) in sums.iter_mut().zip(row) {
        let mixed = *sum ^ word;
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

#[inline]
fn words(row: &[u8; ROW_BYTES]) -> [u32; COLUMNS] {
    let mut words = [0; COLUMNS];
    for (word, bytes) in words.iter_mut().zip(row.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

fn u16_at(page: &[u8], at: usize) -> u16 {
    page.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_OF_BACKUP: Lsn = Lsn(0x1_0000_0028);

    /// A page with contents, last changed at `lsn`, with the right checksum.
    fn page(size: usize, lsn: Lsn, block_number: u32) -> Vec<u8> {
        let mut page: Vec<u8> = (0..size).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
        page[0..4].copy_from_slice(&u32::try_from(lsn.0 >> 32).unwrap().to_le_bytes());
        page[4..8].copy_from_slice(&u32::try_from(lsn.0 & 0xFFFF_FFFF).unwrap().to_le_bytes());
        let checksum = page_checksum(&page, block_number);
        page[8..10].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    #[test]
    fn every_block_size_is_checked_in_full() {
        for size in [1024, 2048, 4096, 8192, 16384, 32768] {
            let sound = page(size, Lsn(0x28), 7);
            assert_eq!(check_page(&sound, 7, START_OF_BACKUP), PageState::Sound);
            assert!(matches!(check_page(&sound, 8, START_OF_BACKUP), PageState::Bad { .. }), "another block");
            for at in [10, size / 2, size - 1] {
                let mut damaged = sound.clone();
                damaged[at] ^= 1;
                assert!(matches!(check_page(&damaged, 7, START_OF_BACKUP), PageState::Bad { .. }), "{size} {at}");
            }
        }
    }

    #[test]
    fn a_page_changed_since_the_start_is_not_checked() {
        let mut newer = page(8192, START_OF_BACKUP, 7);
        newer[5000] ^= 1;
        assert_eq!(check_page(&newer, 7, START_OF_BACKUP), PageState::Newer);
        let mut older = page(8192, Lsn(START_OF_BACKUP.0 - 1), 7);
        older[5000] ^= 1;
        assert!(matches!(check_page(&older, 7, START_OF_BACKUP), PageState::Bad { .. }));
        // The high half comes first: as one little-endian number this would be far ahead.
        assert_eq!(check_page(&page(8192, Lsn(0xFFFF_FFFF), 7), 7, START_OF_BACKUP), PageState::Sound);
    }

    #[test]
    fn only_zeros_are_a_new_page() {
        let mut zeros = vec![0; 8192];
        assert_eq!(check_page(&zeros, 7, START_OF_BACKUP), PageState::New);
        zeros[8191] = 1;
        assert!(matches!(check_page(&zeros, 7, START_OF_BACKUP), PageState::Bad { .. }));
    }

    #[test]
    fn the_block_size_is_one_that_can_be_built() {
        assert_eq!(BlockSize::try_from(8192).unwrap().bytes(), 8192);
        for bytes in [0, 512, 1000, 8191, 65536] {
            assert!(BlockSize::try_from(bytes).is_err(), "{bytes}");
        }
    }
}
