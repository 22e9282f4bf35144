// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One bit a granule, in a bitmap that is swapped for an empty one as a whole, with a count of its
//! bits in front.

use alloc::sync::Arc;

use super::granules::Granules;
use super::kind::TrackerFlaw;
use super::marks::{Marks, Visit};
use crate::bits::Bits;
use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};
use crate::reporting::schedule::Schedule;
use crate::sync::{self, AtomicUsize, Ordering};

/// [`TrackerKind::ZoneBitmapRcu`](super::kind::TrackerKind::ZoneBitmapRcu), an idea of Alexander Duyck's.
#[derive(Debug)]
pub(super) struct ZoneBitmapRcu {
    granules: Granules,
    passes: Arc<Schedule>,
    bitmaps: [Counted; 2],
    /// Which of the two frees are marked in.
    current: AtomicUsize,
    /// Frees that have looked which it is and are not through (`rcu_read_lock`).
    readers: AtomicUsize,
    /// Whether the reporter waits for them before it takes what was swapped out.
    grace: bool,
}

#[derive(Debug)]
struct Counted {
    bits: Bits,
    /// Marks since the bitmap was empty: nothing to do while it is zero.
    marks: AtomicUsize,
}

impl Counted {
    fn new(len: usize) -> Self {
        Self { bits: Bits::new(len), marks: AtomicUsize::new(0) }
    }
}

impl ZoneBitmapRcu {
    pub(super) fn new(
        granules: Granules,
        passes: Arc<Schedule>,
        flaw: Option<TrackerFlaw>,
    ) -> Self {
        let len = granules.sections * granules.per_section();
        Self {
            granules,
            passes,
            bitmaps: [Counted::new(len), Counted::new(len)],
            current: AtomicUsize::new(0),
            readers: AtomicUsize::new(0),
            grace: flaw != Some(TrackerFlaw::NoGracePeriod),
        }
    }

    fn mark_all(&self, granules: core::ops::Range<usize>) {
        self.readers.fetch_add(1, Ordering::SeqCst);
        let current = &self.bitmaps[self.current.load(Ordering::SeqCst)];
        for granule in granules {
            current.bits.set(granule);
            current.marks.fetch_add(1, Ordering::SeqCst);
        }
        self.readers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FreeHook for ZoneBitmapRcu {
    fn order(&self) -> u8 {
        self.granules.order
    }

    fn after_insert(&self, head: Pfn, order: u8, _freed: PfnRange) {
        self.mark_all(self.granules.of_block(head, order));
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
        self.mark_all(self.granules.of_section(section));
        self.passes.request();
    }

    fn section_offline(&self, section: usize) {
        for bitmap in &self.bitmaps {
            bitmap.bits.clear(self.granules.of_section(section));
        }
    }
}

impl Marks for ZoneBitmapRcu {
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook> {
        self
    }

    fn take(&self, mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit) {
        let old = self.current.load(Ordering::SeqCst);
        if self.bitmaps[old].marks.load(Ordering::SeqCst) == 0 {
            // Marked after this look, it requests another pass.
            return;
        }
        self.current.store(old ^ 1, Ordering::SeqCst);
        if self.grace {
            // `synchronize_rcu`: frees that still mark in the old one began before the swap.
            while self.readers.load(Ordering::SeqCst) > 0 {
                sync::yield_now();
            }
        }
        let old = &self.bitmaps[old];
        let mut stopped = false;
        for granule in old.bits.ones(0..old.bits.len()) {
            if !old.bits.take(granule) {
                continue;
            }
            let pfn = self.granules.pfn(granule);
            let verdict = if stopped { Visit::Stop } else { visit(pfn) };
            if verdict.is_left() {
                self.mark(mm, pfn);
            }
            stopped = verdict == Visit::Stop;
        }
        // The bitmap is done with, as if it were freed.
        old.bits.clear(0..old.bits.len());
        old.marks.store(0, Ordering::SeqCst);
    }

    fn mark(&self, mm: &Mm, granule: Pfn) {
        let at = self.granules.index(granule);
        mm.while_online(self.granules.section(granule), || self.mark_all(at..at + 1));
    }

    fn unmark(&self, held: PfnRange) {
        for bitmap in &self.bitmaps {
            bitmap.bits.clear(self.granules.of_range(held));
        }
    }

    fn remembers(&self, section: usize) -> bool {
        let marked =
            |bitmap: &Counted| bitmap.bits.ones(self.granules.of_section(section)).next().is_some();
        self.bitmaps.iter().any(marked)
    }

    fn bytes(&self, _mm: &Mm) -> usize {
        self.bitmaps.iter().map(|bitmap| bitmap.bits.len() / 8 + size_of::<AtomicUsize>()).sum()
    }
}
