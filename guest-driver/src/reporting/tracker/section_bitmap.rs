// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A bitmap a section, and a bit a section that says where to look.

use alloc::sync::Arc;

use super::granules::Granules;
use super::kind::TrackerFlaw;
use super::marks::{Marks, Visit};
use crate::bits::Bits;
use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};
use crate::reporting::schedule::Schedule;

/// [`TrackerKind::SectionBitmap`](super::kind::TrackerKind::SectionBitmap), the first idea of David
/// Hildenbrand's.
#[derive(Debug)]
pub(super) struct SectionBitmap {
    granules: Granules,
    passes: Arc<Schedule>,
    /// One behind the other here; a kernel would keep each with its section.
    bits: Bits,
    meta: Bits,
    /// The section's bit is cleared before its bitmap is looked at, as it must be.
    clear_first: bool,
}

impl SectionBitmap {
    pub(super) fn new(
        granules: Granules,
        passes: Arc<Schedule>,
        flaw: Option<TrackerFlaw>,
    ) -> Self {
        let len = granules.sections * granules.per_section();
        Self {
            granules,
            passes,
            bits: Bits::new(len),
            meta: Bits::new(granules.sections),
            clear_first: flaw != Some(TrackerFlaw::ClearedAfterScan),
        }
    }
}

impl FreeHook for SectionBitmap {
    fn order(&self) -> u8 {
        self.granules.order
    }

    fn after_insert(&self, head: Pfn, order: u8) {
        for granule in self.granules.of_block(head, order) {
            self.bits.set(granule);
        }
        self.meta.set(self.granules.section(head));
        self.passes.request();
    }

    fn section_online(&self, _section: usize) {}

    fn section_offline(&self, section: usize) {
        self.bits.clear(self.granules.of_section(section));
        self.meta.take(section);
    }
}

impl Marks for SectionBitmap {
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook> {
        self
    }

    fn take(&self, _mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit) {
        for section in self.meta.ones(0..self.granules.sections) {
            if self.clear_first {
                self.meta.take(section);
            }
            let mut left = false;
            for granule in self.bits.ones(self.granules.of_section(section)) {
                if !self.bits.take(granule) {
                    continue;
                }
                let verdict = visit(self.granules.pfn(granule));
                if matches!(verdict, Visit::Keep | Visit::Stop) {
                    self.bits.set(granule);
                    left = true;
                }
                if verdict == Visit::Stop {
                    self.meta.set(section);
                    return;
                }
            }
            if !self.clear_first {
                self.meta.take(section);
            }
            if left {
                self.meta.set(section);
            }
        }
    }

    fn mark(&self, granule: Pfn) {
        self.bits.set(self.granules.index(granule));
        self.meta.set(self.granules.section(granule));
    }

    fn unmark(&self, held: PfnRange) {
        self.bits.clear(self.granules.of_range(held));
    }

    fn has_work(&self) -> bool {
        self.meta.any()
    }

    fn bytes(&self, mm: &Mm) -> usize {
        let there = (0..mm.section_count()).filter(|&section| mm.is_online(section)).count();
        there * self.granules.per_section() / 8 + self.granules.sections.div_ceil(8)
    }
}
