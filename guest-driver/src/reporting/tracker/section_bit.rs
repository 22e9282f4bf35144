// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One bit a section. "Only remember that some (large) page was not reported in that section."

use alloc::sync::Arc;

use super::granules::Granules;
use super::kind::TrackerFlaw;
use super::marks::{Marks, Visit};
use crate::bits::Bits;
use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};
use crate::reporting::schedule::Schedule;

/// [`TrackerKind::SectionBit`](super::kind::TrackerKind::SectionBit), the last idea of David
/// Hildenbrand's, and [`TrackerKind::SectionBitFlag`](super::kind::TrackerKind::SectionBitFlag), with
/// mainline's flag beside it.
#[derive(Debug)]
pub(super) struct SectionBit {
    granules: Granules,
    passes: Arc<Schedule>,
    /// Sections in which something was freed. While a bit is set the hook is not called for its section.
    bits: Arc<Bits>,
    /// Sections with something that waits for its zone to recover. Apart from the others, since what is
    /// freed there meanwhile must be heard: a section may hold pages of another zone.
    waiting: Bits,
    /// A free block that is flagged as reported is passed over.
    skip_flagged: bool,
    /// The bit is cleared before its section is looked at, as it must be.
    clear_first: bool,
    /// Isolation's own moves count as frees.
    self_trigger: bool,
    /// Waits for the frees in one of a section's zones only.
    one_zone_lock: bool,
}

impl SectionBit {
    pub(super) fn new(
        mm: &Mm,
        granules: Granules,
        passes: Arc<Schedule>,
        skip_flagged: bool,
        flaw: Option<TrackerFlaw>,
    ) -> Self {
        Self {
            granules,
            passes,
            bits: mm.known_sections(),
            waiting: Bits::new(granules.sections),
            skip_flagged,
            clear_first: flaw != Some(TrackerFlaw::ClearedAfterScan),
            self_trigger: flaw == Some(TrackerFlaw::SelfTrigger),
            one_zone_lock: flaw == Some(TrackerFlaw::OneZoneLock),
        }
    }

    /// Offers the granules of a section, and returns what is left of it.
    fn scan(&self, mm: &Mm, section: usize, visit: &mut dyn FnMut(Pfn) -> Visit) -> Left {
        let mut left = Left::default();
        let mut granules = self.granules.of_section(section);
        while let Some(granule) = granules.next() {
            let pfn = self.granules.pfn(granule);
            let flagged = if self.skip_flagged { mm.reported_block(pfn) } else { None };
            let verdict = flagged.map_or_else(|| visit(pfn), Visit::Held);
            match verdict {
                Visit::Done => {}
                // Freed since, it has set the section's bit again.
                Visit::Held(block) => granules.start = self.granules.index(block.end),
                Visit::Keep => left.marked = true,
                Visit::Wait => left.waiting = true,
                Visit::Stop => {
                    left.marked = true;
                    left.stopped = true;
                    break;
                }
            }
        }
        left
    }
}

/// What a scan has left of a section.
#[derive(Debug, Default)]
struct Left {
    marked: bool,
    waiting: bool,
    stopped: bool,
}

impl FreeHook for SectionBit {
    fn order(&self) -> u8 {
        self.granules.order
    }

    /// Not called while the bit is set: its setter requests a pass, or is one and requests another.
    fn after_insert(&self, head: Pfn, _order: u8, _freed: PfnRange) {
        self.bits.set(self.granules.section(head));
        self.passes.request();
    }

    fn moved(&self, head: Pfn, _order: u8) {
        if self.self_trigger {
            self.bits.set(self.granules.section(head));
            self.passes.request();
        }
    }

    fn merged(&self, head: Pfn, order: u8) {
        self.after_insert(head, order, PfnRange::block(head, order));
    }

    fn zone_recovered(&self) {
        self.passes.request();
    }

    /// A pass before this may have found the section not online, and dropped the marks of its pages.
    fn section_online(&self, section: usize) {
        self.bits.set(section);
        self.passes.request();
    }

    fn section_offline(&self, section: usize) {
        self.bits.take(section);
        self.waiting.take(section);
    }
}

impl Marks for SectionBit {
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook> {
        self
    }

    fn take(&self, mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit) {
        for section in self.bits.ones_of_either(&self.waiting, 0..self.granules.sections) {
            self.waiting.take(section);
            if self.clear_first {
                self.bits.take(section);
                // A free that found the bit set is over, in each zone that the section has pages of.
                match self.one_zone_lock {
                    false => mm.pass_zone_locks(section),
                    true => mm.pass_first_zone_lock(section),
                }
            }
            let left =
                if mm.is_online(section) { self.scan(mm, section, visit) } else { Left::default() };
            if !self.clear_first {
                self.bits.take(section);
            }
            mm.while_online(section, || {
                if left.marked {
                    self.bits.set(section);
                }
                if left.waiting {
                    self.waiting.set(section);
                }
            });
            if left.stopped {
                return;
            }
        }
    }

    fn mark(&self, mm: &Mm, granule: Pfn) {
        let section = self.granules.section(granule);
        mm.while_online(section, || self.bits.set(section));
    }

    /// A bit for all of the section says nothing of a part of it.
    fn unmark(&self, _held: PfnRange) {}

    fn remembers(&self, section: usize) -> bool {
        self.bits.is_set(section) || self.waiting.is_set(section)
    }

    fn bytes(&self, _mm: &Mm) -> usize {
        2 * self.granules.sections.div_ceil(8)
    }
}
