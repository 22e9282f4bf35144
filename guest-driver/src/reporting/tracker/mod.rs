// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The five ways to remember what still needs reporting, behind one trait.

mod section_bit;
mod section_bitmap;
mod zone_bitmap;
mod zone_rcu;

use std::sync::Arc;

use super::schedule::Schedule;
use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};

pub use section_bit::SectionBit;
pub use section_bitmap::SectionBitmap;
pub use zone_bitmap::ZoneBitmap;
pub use zone_rcu::ZoneRcu;

/// Which tracker, and which of the mistakes that are known to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrackerKind {
    /// A: a bitmap a zone, a bit a granule.
    ZoneBitmap,
    /// A, told of a free before the block is on its list: the reporter may take the mark, not see
    /// the block, and forget it. Known to be wrong.
    ZoneBitmapUnordered,
    /// B: a bitmap a zone, swapped as a whole, with a count of its bits in front.
    ZoneRcu,
    /// B without waiting for those who may still set bits in the bitmap that was swapped out.
    /// Known to be wrong.
    ZoneRcuNoGrace,
    /// C: a bitmap a section, and a bit a section that says whether to look.
    SectionBitmap,
    /// C, with the section's bit cleared after the scan. Known to be wrong.
    SectionBitmapClearAfter,
    /// D: one bit a section; all free memory of a marked section is reported.
    SectionBit,
    /// D, with the bit cleared after the scan. Known to be wrong.
    SectionBitClearAfter,
    /// D, told of isolation's own moves as of frees: it never comes to rest. Known to be wrong.
    SectionBitSelfTrigger,
    /// E: a flag on each free block, and the lists rotated past what has it, as in mainline.
    PageReported,
}

impl TrackerKind {
    /// The five that are meant to work.
    pub const GOOD: [Self; 5] = [
        Self::ZoneBitmap,
        Self::ZoneRcu,
        Self::SectionBitmap,
        Self::SectionBit,
        Self::PageReported,
    ];
}

/// What became of a granule that a tracker has offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// It is not free. If it is freed again it is marked again.
    Done,
    /// It was held and is reported, or will be, with all of this block.
    Held(PfnRange),
    /// It needs reporting still.
    Keep,
    /// As [`Visit::Keep`], and nothing more is wanted in this pass.
    Stop,
}

/// Remembers what has been freed since it was last reported.
///
/// Marked under the zone's lock by the free path, taken without it by the reporter.
pub trait Tracker: FreeHook {
    /// Itself, to be installed where frees are told.
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook>;

    /// Offers each granule that may need reporting, its mark cleared first, until there is none or
    /// `visit` says [`Visit::Stop`].
    fn take(&self, mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit);

    /// Marks a granule by hand.
    fn mark(&self, granule: Pfn);

    /// Forgets the marks of pages that are held, which nobody can free meanwhile.
    fn unmark(&self, held: PfnRange);

    /// Whether anything is marked.
    fn has_work(&self) -> bool;

    /// Bytes of bits that it needs for the sections that are there.
    fn bytes(&self, mm: &Mm) -> usize;
}

/// A tracker of this kind for `mm` that asks `passes` for one when it is told of a free; none for
/// E, whose memory are the free lists themselves.
pub(super) fn new(
    kind: TrackerKind,
    mm: &Mm,
    granule_order: u8,
    passes: Arc<Schedule>,
) -> Option<Arc<dyn Tracker>> {
    let granules = Granules::new(mm, granule_order);
    Some(match kind {
        TrackerKind::ZoneBitmap => Arc::new(ZoneBitmap::new(granules, passes, true)),
        TrackerKind::ZoneBitmapUnordered => Arc::new(ZoneBitmap::new(granules, passes, false)),
        TrackerKind::ZoneRcu => Arc::new(ZoneRcu::new(granules, passes, true)),
        TrackerKind::ZoneRcuNoGrace => Arc::new(ZoneRcu::new(granules, passes, false)),
        TrackerKind::SectionBitmap => Arc::new(SectionBitmap::new(granules, passes, true)),
        TrackerKind::SectionBitmapClearAfter => {
            Arc::new(SectionBitmap::new(granules, passes, false))
        }
        TrackerKind::SectionBit => Arc::new(SectionBit::new(mm, granules, passes, true, false)),
        TrackerKind::SectionBitClearAfter => {
            Arc::new(SectionBit::new(mm, granules, passes, false, false))
        }
        TrackerKind::SectionBitSelfTrigger => {
            Arc::new(SectionBit::new(mm, granules, passes, true, true))
        }
        TrackerKind::PageReported => return None,
    })
}

/// How frames, granules and sections lie to each other.
#[derive(Clone, Copy, Debug)]
pub struct Granules {
    order: u8,
    section_order: u8,
    sections: usize,
}

impl Granules {
    /// Granules of `order` over all the address space of `mm`.
    pub fn new(mm: &Mm, order: u8) -> Self {
        Self { order, section_order: mm.geometry().section_order, sections: mm.section_count() }
    }

    fn per_section(self) -> usize {
        1 << (self.section_order - self.order)
    }

    fn index(self, pfn: Pfn) -> usize {
        (pfn.0 >> self.order) as usize
    }

    fn section(self, pfn: Pfn) -> usize {
        (pfn.0 >> self.section_order) as usize
    }

    fn pfn(self, granule: usize) -> Pfn {
        // The address space has 32 bits of frames.
        Pfn(u32::try_from(granule << self.order).unwrap_or(u32::MAX))
    }

    fn of_range(self, range: PfnRange) -> core::ops::Range<usize> {
        self.index(range.start)..self.index(range.end)
    }

    /// The granules of a block.
    fn of_block(self, head: Pfn, order: u8) -> core::ops::Range<usize> {
        let first = self.index(head);
        first..first + (1 << (order - self.order))
    }

    fn first_pfn(self, section: usize) -> Pfn {
        self.pfn(section * self.per_section())
    }

    fn of_section(self, section: usize) -> core::ops::Range<usize> {
        let per = self.per_section();
        section * per..(section + 1) * per
    }
}
