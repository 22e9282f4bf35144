// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A ring in one page of guest memory, as a driver sees it.

use super::memory::{FilePage, Files};

const AVAIL: u64 = 0x200;
const USED: u64 = 0x400;
/// Lists of pages, 64 bytes for each chain.
const LISTS: u64 = 0x600;
/// Descriptors of a chain.
const OF_A_CHAIN: u16 = 4;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Where the three parts of a ring begin that lies at `gpa`: table, available and used ring.
pub(super) fn parts(gpa: u64) -> [u64; 3] {
    [gpa, gpa + AVAIL, gpa + USED]
}

/// What a chain says.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    /// Buffers that the device may write, at most three.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Pages in a list.
    pub(super) pfns: Vec<u32>,
}

/// What a ring holds.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) added: Vec<Chain>,
    /// How many came back.
    pub(super) used: usize,
}

impl Ring {
    pub(super) fn new(size: u16) -> Self {
        Self { size, added: Vec::new(), used: 0 }
    }

    fn head(&self, chain: usize) -> u16 {
        let slots = usize::from(self.size / OF_A_CHAIN);
        OF_A_CHAIN * u16::try_from(chain % slots).expect("a slot")
    }

    /// Adds a chain to the ring at `gpa`, which is `page`; not if it is full.
    pub(super) fn add(&mut self, files: &Files, page: FilePage, gpa: u64, chain: Chain) {
        if self.added.len() - self.used >= usize::from(self.size / OF_A_CHAIN) {
            return;
        }
        let number = self.added.len();
        let head = self.head(number);
        let list = LISTS + 16 * u64::from(head);
        let pfns: Vec<u8> = chain.pfns.iter().take(16).flat_map(|pfn| pfn.to_le_bytes()).collect();
        files.write(page, list, &pfns);
        let mut buffers = vec![(gpa + list, pfns.len() as u64, 0)];
        buffers.extend(chain.ranges.iter().take(3).map(|(gpa, len)| (*gpa, *len, WRITE)));
        let mut table = Vec::new();
        for (at, (gpa, len, flags)) in buffers.iter().enumerate() {
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            table.extend_from_slice(&gpa.to_le_bytes());
            table.extend_from_slice(&u32::try_from(*len).expect("a length").to_le_bytes());
            table.extend_from_slice(&(flags | more).to_le_bytes());
            table.extend_from_slice(&(head + u16::try_from(at + 1).unwrap_or(0)).to_le_bytes());
        }
        files.write(page, 16 * u64::from(head), &table);
        let place = number as u64 % u64::from(self.size);
        files.write(page, AVAIL + 4 + 2 * place, &head.to_le_bytes());
        self.added.push(chain);
        let index = u16::try_from(self.added.len()).expect("fewer than an index holds");
        files.write(page, AVAIL + 2, &index.to_le_bytes());
    }

    /// Looks how many chains came back, all told; each must be the next.
    pub(super) fn came_back(&self, files: &Files, page: FilePage) -> usize {
        let index = usize::from(u16::from_le_bytes(files.read(page, USED + 2)));
        assert!((self.used..=self.added.len()).contains(&index), "used index {index} of {self:?}");
        for number in self.used..index {
            let at = USED + 4 + 8 * (number as u64 % u64::from(self.size));
            let id = u32::from_le_bytes(files.read(page, at));
            assert_eq!(id, u32::from(self.head(number)), "another chain came back");
        }
        index
    }
}
