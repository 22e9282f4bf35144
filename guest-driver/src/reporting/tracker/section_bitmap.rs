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
/// Hildenbrand's, and [`TrackerKind::SectionBitmapExact`](super::kind::TrackerKind::SectionBitmapExact).
#[derive(Debug)]
pub(super) struct SectionBitmap {
    granules: Granules,
    passes: Arc<Schedule>,
    /// One behind the other here; a kernel would keep each with its section.
    bits: Bits,
    meta: Bits,
    /// Of a block that has merged, what was freed is marked and not the rest.
    exact: bool,
    /// The section's bit is cleared before its bitmap is looked at, as it must be.
    clear_first: bool,
}

impl SectionBitmap {
    pub(super) fn new(
        granules: Granules,
        passes: Arc<Schedule>,
        exact: bool,
        flaw: Option<TrackerFlaw>,
    ) -> Self {
        let len = granules.sections * granules.per_section();
        Self {
            granules,
            passes,
            bits: Bits::new(len),
            meta: Bits::new(granules.sections),
            exact,
            clear_first: flaw != Some(TrackerFlaw::ClearedAfterScan),
        }
    }
}

impl FreeHook for SectionBitmap {
    fn order(&self) -> u8 {
        self.granules.order
    }

    fn after_insert(&self, head: Pfn, order: u8, freed: PfnRange) {
        let block = self.granules.of_block(head, order);
        for granule in if self.exact { self.granules.around(freed) } else { block } {
            self.bits.set(granule);
        }
        self.meta.set(self.granules.section(head));
        self.passes.request();
    }

    fn merged(&self, head: Pfn, order: u8) {
        self.after_insert(head, order, PfnRange::block(head, order));
    }

    fn zone_recovered(&self) {
        self.passes.request();
    }

    /// A pass before this may have found the section not online, and dropped the marks of its pages.
    fn section_online(&self, section: usize) {
        self.granules.of_section(section).for_each(|granule| self.bits.set(granule));
        self.meta.set(section);
        self.passes.request();
    }

    fn section_offline(&self, section: usize) {
        self.bits.clear(self.granules.of_section(section));
        self.meta.take(section);
    }
}

impl Marks for SectionBitmap {
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook> {
        self
    }

    fn take(&self, mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit) {
        for section in self.meta.ones(0..self.granules.sections) {
            if self.clear_first {
                self.meta.take(section);
            }
            let mut left = None;
            for granule in self.bits.ones(self.granules.of_section(section)) {
                if !self.bits.take(granule) {
                    continue;
                }
                let pfn = self.granules.pfn(granule);
                let verdict = visit(pfn);
                if verdict.is_left() {
                    self.mark(mm, pfn);
                    left = Some(pfn);
                }
                if verdict == Visit::Stop {
                    // Those behind it are marked still, and so is their section now.
                    return;
                }
            }
            if !self.clear_first {
                self.meta.take(section);
                left.into_iter().for_each(|pfn| self.mark(mm, pfn));
            }
        }
    }

    fn mark(&self, mm: &Mm, granule: Pfn) {
        let section = self.granules.section(granule);
        mm.while_online(section, || {
            self.bits.set(self.granules.index(granule));
            self.meta.set(section);
        });
    }

    fn unmark(&self, held: PfnRange) {
        self.bits.clear(self.granules.of_range(held));
    }

    fn remembers(&self, section: usize) -> bool {
        let bits = self.granules.of_section(section);
        self.meta.is_set(section) || self.bits.ones(bits).next().is_some()
    }

    fn bytes(&self, mm: &Mm) -> usize {
        let there = (0..mm.section_count()).filter(|&section| mm.is_online(section)).count();
        there * self.granules.per_section() / 8 + self.granules.sections.div_ceil(8)
    }
}
