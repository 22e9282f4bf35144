// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the model's pages hold.

use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::{Pfn, PfnRange};
use guest_driver::pattern;
use guest_driver::ram::Gpa;

const WORD_BYTES: u64 = 8;

/// Accesses every word of a page, or one in `stride`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contents {
    /// Words from one access to the next, 1 or more.
    pub(crate) stride: usize,
}

impl Contents {
    fn words(self, pfn: Pfn) -> impl Iterator<Item = *mut u64> {
        let step = self.stride.saturating_mul(WORD_BYTES as usize);
        (pfn.address()..pfn.address() + PAGE_BYTES).step_by(step).map(|at| at as *mut u64)
    }

    /// Fills the block of `order` at `head` with the pattern of `generation`.
    pub(crate) fn fill(self, head: Pfn, order: u8, generation: u16) {
        for pfn in PfnRange::block(head, order).step(0) {
            let word = pattern::word(Gpa(pfn.address()), generation);
            for at in self.words(pfn) {
                // SAFETY: a page of the model's, which is RAM that nothing but the model's owner uses.
                unsafe { at.write_volatile(word) };
            }
        }
    }

    /// Writes the first word of each page of a block, which makes the host provide them.
    pub(crate) fn touch(self, head: Pfn, order: u8, generation: u16) {
        Self { stride: PAGE_BYTES as usize }.fill(head, order, generation);
    }

    /// Clears these pages.
    pub(crate) fn clear(self, range: PfnRange) {
        for at in range.step(0).flat_map(|pfn| self.words(pfn)) {
            // SAFETY: see `fill`.
            unsafe { at.write_volatile(0) };
        }
    }

    /// Pages of the block that hold the pattern of `generation`.
    pub(crate) fn intact(self, head: Pfn, order: u8, generation: u16) -> u64 {
        self.count(head, order, |pfn| pattern::word(Gpa(pfn.address()), generation))
    }

    /// Pages of the block that hold zeroes.
    pub(crate) fn zero(self, head: Pfn, order: u8) -> u64 {
        self.count(head, order, |_| 0)
    }

    /// The first word of these pages that is not zero: its address and value.
    pub(crate) fn first_not_zero(self, range: PfnRange) -> Option<(u64, u64)> {
        let words = range.step(0).flat_map(|pfn| self.words(pfn));
        // SAFETY: see `fill`.
        let read = words.map(|at| (at as u64, unsafe { at.read_volatile() }));
        read.into_iter().find(|&(_, word)| word != 0)
    }

    fn count(self, head: Pfn, order: u8, word: impl Fn(Pfn) -> u64) -> u64 {
        let holds = |pfn: &Pfn| {
            let word = word(*pfn);
            // SAFETY: see `fill`.
            self.words(*pfn).all(|at| unsafe { at.read_volatile() } == word)
        };
        PfnRange::block(head, order).step(0).filter(holds).count() as u64
    }
}
