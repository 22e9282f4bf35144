// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to remember what still needs reporting, behind one trait.

pub(super) mod reported_flag;
mod section_bit;
mod section_bitmap;
mod zone_bitmap;
mod zone_bitmap_rcu;

use std::sync::Arc;

use super::schedule::Schedule;
use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};

pub use section_bit::SectionBit;
pub use section_bitmap::SectionBitmap;
pub use zone_bitmap::ZoneBitmap;
pub use zone_bitmap_rcu::ZoneBitmapRcu;

/// How a reporter remembers what needs reporting.
///
/// The one list of trackers: names, the lab's choices and the explorer's configurations follow from
/// it. A new one is a variant, a file of its name beside this one, and a row of the table in
/// `docs/design/model.md`.
///
/// ```
/// use guest_driver::reporting::TrackerKind;
///
/// assert_eq!(TrackerKind::SectionBit.name(), "section-bit");
/// assert_eq!("reported-flag".parse(), Ok(TrackerKind::ReportedFlag));
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
    strum::VariantNames,
)]
#[strum(serialize_all = "kebab-case")]
pub enum TrackerKind {
    /// A bit a granule, over all of the address space that a zone spans.
    ZoneBitmap,
    /// The same bitmap, swapped for an empty one as a whole, with a count of its bits in front.
    ZoneBitmapRcu,
    /// A bitmap a section, and a bit a section that says where to look.
    SectionBitmap,
    /// One bit a section; all free memory of a marked section is reported.
    SectionBit,
    /// A flag on each free block, and the lists rotated past what has it, as in mainline.
    ReportedFlag,
}

impl TrackerKind {
    /// All of them, in the order of their declaration.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;
    /// Their names, in the same order.
    pub const NAMES: &[&str] = <Self as strum::VariantNames>::VARIANTS;

    /// Its name on command lines and in tables, which [`str::parse`] reads.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// A mistake that a tracker can make. Each is known to be wrong: it is there for the explorer to find.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    strum::Display,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[strum(serialize_all = "kebab-case")]
pub enum TrackerFlaw {
    /// Marks a block before it is on its free list: the reporter may take the mark, not see the
    /// block, and forget it.
    MarkedBeforeFree,
    /// Does not wait for frees that still set bits in the bitmap that was swapped out.
    NoGracePeriod,
    /// Clears a section's bit after the scan of that section.
    ClearedAfterScan,
    /// Counts the moves that isolation itself makes as frees, and never comes to rest.
    SelfTrigger,
}

impl TrackerFlaw {
    /// All of them.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;

    /// Its name on command lines and in tables.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The trackers that can make this mistake; the others ignore it.
    pub fn trackers(self) -> &'static [TrackerKind] {
        match self {
            Self::MarkedBeforeFree => &[TrackerKind::ZoneBitmap],
            Self::NoGracePeriod => &[TrackerKind::ZoneBitmapRcu],
            Self::ClearedAfterScan => &[TrackerKind::SectionBitmap, TrackerKind::SectionBit],
            Self::SelfTrigger => &[TrackerKind::SectionBit],
        }
    }
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

/// A tracker for `mm` that asks `passes` for a pass when something is freed; none for
/// [`TrackerKind::ReportedFlag`], which keeps its flags on the free lists.
pub(super) fn new(
    kind: TrackerKind,
    flaw: Option<TrackerFlaw>,
    mm: &Mm,
    granule_order: u8,
    passes: Arc<Schedule>,
) -> Option<Arc<dyn Tracker>> {
    let granules = Granules::new(mm, granule_order);
    Some(match kind {
        TrackerKind::ZoneBitmap => Arc::new(ZoneBitmap::new(granules, passes, flaw)),
        TrackerKind::ZoneBitmapRcu => Arc::new(ZoneBitmapRcu::new(granules, passes, flaw)),
        TrackerKind::SectionBitmap => Arc::new(SectionBitmap::new(granules, passes, flaw)),
        TrackerKind::SectionBit => Arc::new(SectionBit::new(mm, granules, passes, flaw)),
        TrackerKind::ReportedFlag => return None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tracker_is_parsed_by_name_and_documented() {
        let page = include_str!("../../../../docs/design/model.md");
        for &kind in TrackerKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert!(page.contains(&format!("\n| `{kind}` |")), "{kind} has no row in model.md");
        }
        assert_eq!(TrackerKind::NAMES.len(), TrackerKind::ALL.len());
    }
}
