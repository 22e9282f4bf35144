// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Frames, granules and sections.

use crate::page_alloc::{Mm, Pfn, PfnRange};

/// How frames, granules and sections lie to each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granules {
    pub(super) order: u8,
    section_order: u8,
    pub(super) sections: usize,
}

impl Granules {
    /// Granules of `order` over all the address space of `mm`.
    pub(super) fn new(mm: &Mm, order: u8) -> Self {
        Self { order, section_order: mm.geometry().section_order, sections: mm.section_count() }
    }

    pub(super) fn per_section(self) -> usize {
        1 << (self.section_order - self.order)
    }

    pub(super) fn index(self, pfn: Pfn) -> usize {
        (pfn.0 >> self.order) as usize
    }

    pub(super) fn section(self, pfn: Pfn) -> usize {
        (pfn.0 >> self.section_order) as usize
    }

    pub(super) fn pfn(self, granule: usize) -> Pfn {
        // The address space has 32 bits of frames.
        Pfn(u32::try_from(granule << self.order).unwrap_or(u32::MAX))
    }

    pub(super) fn of_range(self, range: PfnRange) -> core::ops::Range<usize> {
        self.index(range.start)..self.index(range.end)
    }

    /// The granules of a block.
    pub(super) fn of_block(self, head: Pfn, order: u8) -> core::ops::Range<usize> {
        let first = self.index(head);
        first..first + (1 << (order - self.order))
    }

    /// The granules that `range`, which may be smaller than one, lies in.
    pub(super) fn around(self, range: PfnRange) -> core::ops::Range<usize> {
        let last = Pfn(range.end.0 - 1);
        self.index(range.start)..self.index(last) + 1
    }

    pub(super) fn of_section(self, section: usize) -> core::ops::Range<usize> {
        let per = self.per_section();
        section * per..(section + 1) * per
    }
}
