// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages of the balloon, collected until they fill a page of what backs the memory.
//!
//! A balloon's pages are 4 KiB, and Linux names 256 of them a chain at most: on pages that are larger
//! no single chain would free one. A page is in the balloon from its inflation until it is deflated,
//! if the driver must tell the device before it uses it again. That makes it safe to add chains up,
//! which it never is for reports: their pages may be used again once the chain is returned.

use std::collections::HashMap;

use super::ranges::GuestRange;
use super::regions::Region;

/// Size in bytes of a page of the balloon (virtio 1.3, 5.5.6).
const BALLOON_PAGE: u64 = 4096;

/// Which pages of the balloon are in it, for each page of a memory file that is larger.
///
/// Known is only what was inflated in this daemon's life, with this memory table and these rings;
/// what is not known is not discarded. Takes a bit for each 4 KiB of a page that is touched.
#[derive(Debug, Default)]
pub(super) struct Collected {
    rings: Option<u64>,
    /// By index of the file and offset in it.
    pages: HashMap<(usize, u64), Bits>,
    /// Bytes of the balloon in pages that are not full.
    waiting_bytes: u64,
}

#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    set: u64,
}

impl Collected {
    /// Forgets everything if the rings have changed since the last time: another driver may have
    /// come, that has an empty balloon.
    pub(super) fn follow(&mut self, rings: u64) {
        if self.rings.replace(rings) != Some(rings) {
            self.forget();
        }
    }

    pub(super) fn forget(&mut self) {
        self.pages.clear();
        self.waiting_bytes = 0;
    }

    /// Bytes of the balloon that are kept, since the rest of their pages is not in it.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Whether pages of this region have to be collected.
    pub(super) fn concerns(region: &Region) -> bool {
        region.page_size() > BALLOON_PAGE && region.kept().is_none()
    }

    /// The pages of `range`, in `region`, went into the balloon. Adds each page of the file that is
    /// full by now to `full`, in guest addresses, and returns how many bytes of `range` lie in
    /// others.
    pub(super) fn inflate(
        &mut self,
        region: &Region,
        range: GuestRange,
        full: &mut Vec<GuestRange>,
    ) -> u64 {
        let (size, mut waiting) = (region.page_size(), 0);
        for (page, gpa, part) in parts(region, range) {
            let bits = self.pages.entry((region.file_index(), page)).or_default();
            self.waiting_bytes -= bits.waiting_bytes(size);
            part.clone().for_each(|bit| bits.insert(bit, size / BALLOON_PAGE));
            self.waiting_bytes += bits.waiting_bytes(size);
            match (bits.set == size / BALLOON_PAGE).then(|| GuestRange::new(gpa, size)) {
                Some(Ok(page)) => full.push(page),
                _ => waiting += (part.end - part.start) * BALLOON_PAGE,
            }
        }
        waiting
    }

    /// The driver takes the pages of `range`, in `region`, out of the balloon.
    pub(super) fn deflate(&mut self, region: &Region, range: GuestRange) {
        for (page, _, part) in parts(region, range) {
            let key = (region.file_index(), page);
            let Some(bits) = self.pages.get_mut(&key) else { continue };
            self.waiting_bytes -= bits.waiting_bytes(region.page_size());
            part.for_each(|bit| bits.remove(bit));
            self.waiting_bytes += bits.waiting_bytes(region.page_size());
            if bits.set == 0 {
                self.pages.remove(&key);
            }
        }
    }
}

/// For each page of the file that `range` touches: its offset in the file, its guest address, and
/// which pages of the balloon in it the range holds.
fn parts(
    region: &Region,
    range: GuestRange,
) -> impl Iterator<Item = (u64, u64, std::ops::Range<u64>)> {
    let size = region.page_size();
    let start = region.offset_of(range.start()).unwrap_or(0);
    let mut at = start;
    let end = start.saturating_add(range.len());
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at & !(size - 1);
        let until = end.min(page.saturating_add(size));
        let part = (at - page) / BALLOON_PAGE..(until - page) / BALLOON_PAGE;
        // Of a page that begins before the region the address is none of its, and of no use.
        let gpa = range.start().wrapping_add(page.wrapping_sub(start));
        at = until;
        Some((page, gpa, part))
    })
}

impl Bits {
    /// Bytes that are set, of a page of `size` bytes that is not full.
    fn waiting_bytes(&self, size: u64) -> u64 {
        if self.set * BALLOON_PAGE == size { 0 } else { self.set * BALLOON_PAGE }
    }

    fn place(bit: u64) -> (usize, u64) {
        (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1 << (bit % 64))
    }

    fn insert(&mut self, bit: u64, of: u64) {
        let (word, mask) = Self::place(bit);
        if self.words.is_empty() {
            self.words = vec![0; usize::try_from(of.div_ceil(64)).unwrap_or(0)];
        }
        if let Some(word) = self.words.get_mut(word).filter(|word| **word & mask == 0) {
            *word |= mask;
            self.set += 1;
        }
    }

    fn remove(&mut self, bit: u64) {
        let (word, mask) = Self::place(bit);
        if let Some(word) = self.words.get_mut(word).filter(|word| **word & mask != 0) {
            *word &= !mask;
            self.set -= 1;
        }
    }
}
