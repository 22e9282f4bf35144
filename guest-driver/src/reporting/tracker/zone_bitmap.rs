// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One bit a granule, over all of the address space that a zone spans.

use alloc::sync::Arc;

use super::granules::Granules;
use super::kind::TrackerFlaw;
use super::marks::{Marks, Visit};
use crate::bits::Bits;
use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};
use crate::reporting::schedule::Schedule;

/// [`TrackerKind::ZoneBitmap`](super::kind::TrackerKind::ZoneBitmap), from Nitesh Lal's series of 2019.
#[derive(Debug)]
pub(super) struct ZoneBitmap {
    granules: Granules,
    passes: Arc<Schedule>,
    bits: Bits,
    /// Marked once the block is on its free list, as it must be.
    ordered: bool,
}

impl ZoneBitmap {
    pub(super) fn new(
        granules: Granules,
        passes: Arc<Schedule>,
        flaw: Option<TrackerFlaw>,
    ) -> Self {
        let len = granules.sections * granules.per_section();
        let ordered = flaw != Some(TrackerFlaw::MarkedBeforeFree);
        Self { granules, passes, bits: Bits::new(len), ordered }
    }

    fn mark_block(&self, head: Pfn, order: u8) {
        for granule in self.granules.of_block(head, order) {
            self.bits.set(granule);
        }
        self.passes.request();
    }
}

impl FreeHook for ZoneBitmap {
    fn order(&self) -> u8 {
        self.granules.order
    }

    fn listens_before(&self) -> bool {
        !self.ordered
    }

    fn before_insert(&self, head: Pfn, order: u8) {
        self.mark_block(head, order);
    }

    fn after_insert(&self, head: Pfn, order: u8, _freed: PfnRange) {
        if self.ordered {
            self.mark_block(head, order);
        }
    }

    fn merged(&self, head: Pfn, order: u8) {
        self.mark_block(head, order);
    }

    fn zone_recovered(&self) {
        self.passes.request();
    }

    /// A pass before this may have found the section not online, and dropped the marks of its pages.
    fn section_online(&self, section: usize) {
        self.granules.of_section(section).for_each(|granule| self.bits.set(granule));
        self.passes.request();
    }

    fn section_offline(&self, section: usize) {
        self.bits.clear(self.granules.of_section(section));
    }
}

impl Marks for ZoneBitmap {
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook> {
        self
    }

    fn take(&self, mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit) {
        for granule in self.bits.ones(0..self.bits.len()) {
            if !self.bits.take(granule) {
                continue;
            }
            let pfn = self.granules.pfn(granule);
            let verdict = visit(pfn);
            if verdict.is_left() {
                self.mark(mm, pfn);
            }
            if verdict == Visit::Stop {
                return;
            }
        }
    }

    fn mark(&self, mm: &Mm, granule: Pfn) {
        let set = || self.bits.set(self.granules.index(granule));
        mm.while_online(self.granules.section(granule), set);
    }

    fn unmark(&self, held: PfnRange) {
        self.bits.clear(self.granules.of_range(held));
    }

    fn remembers(&self, section: usize) -> bool {
        self.bits.ones(self.granules.of_section(section)).next().is_some()
    }

    fn bytes(&self, _mm: &Mm) -> usize {
        self.bits.len() / 8
    }
}
