//! Pages that fail their checksum, looked at until they are known to be torn or damaged.

use std::io;

use walkeep_common::lsn::Lsn;

use super::page::{BlockSize, PageState, check_page};

/// How long to wait before each further look at a page that fails its checksum. A page is written by one system
/// call, so one that was caught half-way is whole a moment later, unless the machine is very busy.
const PAUSES_MS: [u64; 7] = [0, 1, 2, 5, 10, 20, 50];

/// So many bad pages in one file are no coincidence of timing: from then on pages are looked at again without waiting.
const PATIENCE_PAGES: usize = 16;

/// How the pages of relations are checked, in a cluster that has data checksums.
#[derive(Debug, Clone, Copy)]
pub struct PageChecks {
    /// `block_size`.
    pub block_size: BlockSize,
    /// `segment_size` in blocks: 131072 unless configured otherwise at build time.
    pub segment_blocks: u32,
    /// Where the backup's WAL begins.
    pub backup_start: Lsn,
}

/// A page whose checksum stayed wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPage {
    /// Its number in the relation's fork, counted through all segments.
    pub block: u32,
    /// The checksum of what was read.
    pub expected: u16,
    /// The checksum it carries.
    pub found: u16,
}

/// The checks of the pages in one chunk.
pub(super) struct Settling<'f> {
    pub(super) checks: PageChecks,
    /// The number of the chunk's first page.
    pub(super) first_block: u32,
    /// Those of the whole file.
    pub(super) bad_pages: &'f mut Vec<BadPage>,
}

impl Settling<'_> {
    /// Checks all pages, and looks again and again at those that fail. Returns where the file has ended meanwhile,
    /// if a second look met its end.
    pub(super) fn settle(
        &mut self,
        pages: &mut [u8],
        mut reread: impl FnMut(usize, &mut [u8]) -> io::Result<usize>,
        mut pause: impl FnMut(u64),
    ) -> io::Result<Option<usize>> {
        let block_bytes = self.checks.block_size.bytes();
        let mut failing: Vec<(usize, BadPage)> = Vec::new();
        for (index, page) in pages.chunks_exact(block_bytes).enumerate() {
            failing.extend(self.bad_page(index, page).map(|bad| (index, bad)));
        }
        let mut end = None;
        for pause_ms in PAUSES_MS {
            if failing.is_empty() {
                break;
            }
            if pause_ms > 0 && self.bad_pages.len() + failing.len() < PATIENCE_PAGES {
                pause(pause_ms);
            }
            let mut still_failing = Vec::new();
            for (index, _) in failing {
                let start = index * block_bytes;
                let Some(page) = pages.get_mut(start..start + block_bytes) else { continue };
                if reread(start, page)? < block_bytes {
                    // Truncated meanwhile: what lay behind is gone as well.
                    end = Some(start);
                    break;
                }
                still_failing.extend(self.bad_page(index, page).map(|bad| (index, bad)));
            }
            failing = still_failing;
        }
        self.bad_pages.extend(failing.into_iter().map(|(_, bad)| bad));
        Ok(end)
    }

    fn bad_page(&self, index: usize, page: &[u8]) -> Option<BadPage> {
        let block = self.first_block.wrapping_add(u32::try_from(index).unwrap_or(u32::MAX));
        match check_page(page, block, self.checks.backup_start) {
            PageState::Bad { expected, found } => Some(BadPage { block, expected, found }),
            PageState::New | PageState::Newer | PageState::Sound => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::page::page_checksum;

    const BLOCK: usize = 8192;

    fn checks() -> PageChecks {
        PageChecks {
            block_size: BlockSize::try_from(8192).unwrap(),
            segment_blocks: 131_072,
            backup_start: Lsn(u64::MAX),
        }
    }

    /// Sound pages, the first with this number.
    fn pages(first_block: u32, count: u32) -> Vec<u8> {
        let page = |block: u32| {
            let mut page = vec![u8::try_from(block % 200 + 1).unwrap(); BLOCK];
            let checksum = page_checksum(&page, block);
            page[8..10].copy_from_slice(&checksum.to_le_bytes());
            page
        };
        (first_block..first_block + count).flat_map(page).collect()
    }

    /// Settles pages of which those given are damaged, and then look as `reread` says; returns the bad blocks, where
    /// the file ended, and the pauses.
    fn settle(
        pages: &mut [u8],
        damaged: &[usize],
        reread: impl FnMut(usize, &mut [u8]) -> io::Result<usize>,
    ) -> (Vec<u32>, Option<usize>, Vec<u64>) {
        for index in damaged {
            pages[index * BLOCK + 100] ^= 1;
        }
        let (mut bad_pages, mut pauses) = (Vec::new(), Vec::new());
        let mut settling = Settling { checks: checks(), first_block: 1000, bad_pages: &mut bad_pages };
        let end = settling.settle(pages, reread, |ms| pauses.push(ms)).unwrap();
        (bad_pages.iter().map(|bad| bad.block).collect(), end, pauses)
    }

    #[test]
    fn a_torn_page_is_read_again_until_it_is_whole() {
        let (whole, mut read) = (pages(1000, 4), pages(1000, 4));
        let mut looks = 0;
        let settled = settle(&mut read, &[2], |at, page| {
            looks += 1;
            assert_eq!(at, 2 * BLOCK);
            if looks == 4 {
                page.copy_from_slice(&whole[at..at + BLOCK]);
            }
            Ok(BLOCK)
        });
        assert_eq!(settled, (vec![], None, vec![1, 2, 5]));
        assert!(read == whole, "what was read last is what the backup gets");
    }

    #[test]
    fn a_page_that_stays_wrong_is_reported_with_its_number() {
        let (bad, end, pauses) = settle(&mut pages(1000, 4), &[0, 3], |_, _| Ok(BLOCK));
        assert_eq!((bad, end), (vec![1000, 1003], None));
        assert_eq!(pauses, PAUSES_MS[1..]);
    }

    #[test]
    fn a_page_cut_off_meanwhile_ends_the_file() {
        let (whole, mut read) = (pages(1000, 6), pages(1000, 6));
        let settled = settle(&mut read, &[1, 3, 5], |at, page| match at / BLOCK {
            1 => {
                page.copy_from_slice(&whole[at..at + BLOCK]);
                Ok(BLOCK)
            }
            3 => Ok(100),
            _ => panic!("what lies behind the end is not read"),
        });
        assert_eq!(settled, (vec![], Some(3 * BLOCK), vec![]));
    }

    #[test]
    fn a_ruined_file_does_not_cost_a_pause_for_each_chunk() {
        let all: Vec<usize> = (0..PATIENCE_PAGES).collect();
        let (bad, _, pauses) = settle(&mut pages(1000, 16), &all, |_, _| Ok(BLOCK));
        assert_eq!((bad.len(), pauses), (PATIENCE_PAGES, vec![]));
    }

    #[test]
    fn a_failing_disk_is_not_a_bad_page() {
        let mut read = pages(1000, 1);
        read[100] ^= 1;
        let mut bad_pages = Vec::new();
        let mut settling = Settling { checks: checks(), first_block: 1000, bad_pages: &mut bad_pages };
        assert!(settling.settle(&mut read, |_, _| Err(io::Error::other("input/output error")), |_| ()).is_err());
    }
}
