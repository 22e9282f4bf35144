// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One bit a section. "Only remember that some (large) page was not reported in that section."

use alloc::sync::Arc;

use super::granules::Granules;
use super::kind::TrackerFlaw;
use super::marks::{Marks, Visit};
use crate::bits::Bits;
use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};
use crate::reporting::schedule::Schedule;

/// [`TrackerKind::SectionBit`](super::kind::TrackerKind::SectionBit), the last idea of David Hildenbrand's.
#[derive(Debug)]
pub(super) struct SectionBit {
    granules: Granules,
    passes: Arc<Schedule>,
    bits: Arc<Bits>,
    /// The bit is cleared before its section is looked at, as it must be.
    clear_first: bool,
    /// Isolation's own moves count as frees.
    self_trigger: bool,
}

impl SectionBit {
    pub(super) fn new(
        mm: &Mm,
        granules: Granules,
        passes: Arc<Schedule>,
        flaw: Option<TrackerFlaw>,
    ) -> Self {
        Self {
            granules,
            passes,
            bits: mm.known_sections(),
            clear_first: flaw != Some(TrackerFlaw::ClearedAfterScan),
            self_trigger: flaw == Some(TrackerFlaw::SelfTrigger),
        }
    }
}

impl FreeHook for SectionBit {
    fn order(&self) -> u8 {
        self.granules.order
    }

    /// Not called while the bit is set: its setter requests a pass, or is one and requests another.
    fn after_insert(&self, head: Pfn, _order: u8) {
        self.bits.set(self.granules.section(head));
        self.passes.request();
    }

    fn moved(&self, head: Pfn, _order: u8) {
        if self.self_trigger {
            self.bits.set(self.granules.section(head));
            self.passes.request();
        }
    }

    fn section_online(&self, _section: usize) {}

    fn section_offline(&self, section: usize) {
        self.bits.take(section);
    }
}

impl Marks for SectionBit {
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook> {
        self
    }

    fn take(&self, mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit) {
        for section in self.bits.ones(0..self.granules.sections) {
            if self.clear_first {
                self.bits.take(section);
                // A free that found the bit set is over.
                mm.pass_zone_lock(self.granules.first_pfn(section));
            }
            let mut left = false;
            if mm.is_online(section) {
                let mut granules = self.granules.of_section(section);
                while let Some(granule) = granules.next() {
                    match visit(self.granules.pfn(granule)) {
                        Visit::Done => {}
                        // Freed since, it has set the section's bit again.
                        Visit::Held(block) => granules.start = self.granules.index(block.end),
                        Visit::Keep => left = true,
                        Visit::Stop => {
                            self.bits.set(section);
                            return;
                        }
                    }
                }
            }
            if !self.clear_first {
                self.bits.take(section);
            }
            if left {
                self.bits.set(section);
            }
        }
    }

    fn mark(&self, granule: Pfn) {
        self.bits.set(self.granules.section(granule));
    }

    /// A bit for all of the section says nothing of a part of it.
    fn unmark(&self, _held: PfnRange) {}

    fn has_work(&self) -> bool {
        self.bits.any()
    }

    fn bytes(&self, _mm: &Mm) -> usize {
        self.granules.sections.div_ceil(8)
    }
}
