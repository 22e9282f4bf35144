// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Free pages that are known to be zero, because a device has discarded them and said so.
//!
//! A bit a page, and not a flag of a free block: what is split off keeps what is known of its pages, and a
//! block that merges is as known as its halves are. A bit is set while its page belongs to the caller that asked
//! the device (a reporter that holds it, a balloon), and stays while nothing can write to the page: until it is
//! allocated or goes offline.

use alloc::boxed::Box;

use super::constraint::Anywhere;
use super::geometry::{Pfn, PfnRange};
use super::{AllocError, AllocRequest, Mm};
use crate::bits::Bits;
use crate::sync::OnceLock;

/// The bits of each section that has had a page known to be zero.
pub(super) struct ZeroPages(Box<[OnceLock<Bits>]>);

impl Mm {
    /// Remembers from now on which pages are zero. Without it [`Mm::mark_zero`] does nothing, and an
    /// allocation pays no more than a look whether this was called.
    pub fn remember_zero_pages(&self) {
        let sections = (0..self.section_count()).map(|_| OnceLock::new()).collect();
        let _ = self.zero_pages.set(ZeroPages(sections));
    }

    /// These pages are zero, and the caller's: it holds them for a report, or has them in a balloon. They
    /// may not be written before they are released or freed.
    pub fn mark_zero(&self, range: PfnRange) {
        let Some(ZeroPages(sections)) = self.zero_pages.get() else { return };
        for pfn in range.step(0) {
            let (section, at) = self.place(pfn);
            let pages = self.geometry.section_pages() as usize;
            let Some(section) = sections.get(section) else { continue };
            if section.get().is_none() {
                // Another may be first.
                let _ = section.set(Bits::new(pages));
            }
            if let Some(bits) = section.get() {
                bits.set(at);
            }
        }
    }

    /// Whether a page is known to be zero; it was a moment ago.
    pub fn is_known_zero(&self, pfn: Pfn) -> bool {
        let (section, at) = self.place(pfn);
        let of = self.zero_pages.get().and_then(|zero| zero.0.get(section));
        of.and_then(OnceLock::get).is_some_and(|bits| bits.is_set(at))
    }

    /// Allocates a block that the caller needs zeroed (`__GFP_ZERO`): calls `clear` with those parts of it
    /// that are not known to be zero.
    ///
    /// # Errors
    /// [`AllocError`].
    pub fn alloc_zeroed(
        &self,
        cpu: usize,
        request: AllocRequest,
        mut clear: impl FnMut(PfnRange),
    ) -> Result<Pfn, AllocError> {
        let head = self.allocate(cpu, request, &mut Anywhere)?;
        let block = PfnRange::block(head, request.order);
        let mut start = head;
        for pfn in block.step(0).filter(|&pfn| self.is_known_zero(pfn)) {
            if start < pfn {
                clear(PfnRange { start, end: pfn });
            }
            start = pfn.plus(1);
        }
        if start < block.end {
            clear(PfnRange { start, end: block.end });
        }
        self.forget_zero(block, false);
        Ok(head)
    }

    /// The pages of `range` get a user, or are no memory any more: nothing is known of them, unless a
    /// kernel by mistake `keeps` it.
    pub(super) fn forget_zero(&self, range: PfnRange, keeps: bool) {
        if let Some(zero) = self.zero_pages.get().filter(|_| !keeps) {
            self.clear_bits(zero, range);
        }
    }

    #[cold]
    fn clear_bits(&self, ZeroPages(sections): &ZeroPages, range: PfnRange) {
        let mut start = range.start;
        while start < range.end {
            let (section, at) = self.place(start);
            let end = self.geometry.section_range(section).end.min(range.end);
            let bits = at..at + (end.0 - start.0) as usize;
            if let Some(of) = sections.get(section).and_then(OnceLock::get)
                && of.ones(bits.clone()).next().is_some()
            {
                of.clear(bits);
            }
            start = end;
        }
    }

    /// The section of a page, and the page's place in it.
    fn place(&self, pfn: Pfn) -> (usize, usize) {
        let at = pfn.0 & (self.geometry.section_pages() - 1);
        (self.sections.index_of(pfn), at as usize)
    }
}
