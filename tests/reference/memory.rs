// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's memory as the reference sees it: pages that are watched, and spans that a guest names.

use std::collections::BTreeSet;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
pub(crate) const REGIONS: usize = 3;
/// Watched pages of each region.
pub(crate) const PAGES_A_REGION: usize = 12;
/// Watched pages in all.
pub(crate) const PAGES: usize = PAGES_A_REGION * REGIONS;
/// Guest addresses of the regions. The first two meet; the first and the last are of one file.
const BORDERS: [(u64, u64); REGIONS] = [(0, 16 * MIB), (16 * MIB, 24 * MIB), (32 * MIB, 48 * MIB)];
/// The first watched page of each region: those of the first region end where the second begins.
const STARTS: [u64; REGIONS] = [16 * MIB - PAGES_A_REGION as u64 * PAGE, 16 * MIB, 32 * MIB];
/// Behind the last region.
pub(crate) const END: u64 = 48 * MIB;
/// What both ends of a span that is cut leave out.
const CUT: u64 = 512;

/// Pages that a guest names at a time, from a watched page on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// The first page, by its number.
    pub(crate) first: usize,
    pub(crate) pages: u8,
    /// Whether it begins and ends within pages.
    pub(crate) cut: bool,
}

impl Span {
    /// Its first address and its bytes.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let (start, len) = (address(self.first), u64::from(self.pages) * PAGE);
        if self.cut { (start + CUT, len - 2 * CUT) } else { (start, len) }
    }

    /// The page frame numbers of the pages that it touches.
    pub(crate) fn pfns(&self) -> impl Iterator<Item = u64> {
        let first = address(self.first) / PAGE;
        first..first + u64::from(self.pages)
    }
}

/// The region and the place in it of a watched page.
fn place(page: usize) -> (usize, u64) {
    // Both are small.
    (page / PAGES_A_REGION, (page % PAGES_A_REGION) as u64)
}

/// The guest address of a watched page.
pub(crate) fn address(page: usize) -> u64 {
    let (region, at) = place(page);
    STARTS[region] + at * PAGE
}

/// The number of the watched page at this address.
pub(crate) fn watched(address: u64) -> Option<usize> {
    (0..PAGES).find(|page| self::address(*page) == address)
}

/// The region that holds this address.
pub(crate) fn region_of(address: u64) -> Option<usize> {
    BORDERS.iter().position(|(start, end)| (*start..*end).contains(&address))
}

/// Bytes of a region.
pub(crate) fn region_bytes(region: usize) -> u64 {
    BORDERS[region].1 - BORDERS[region].0
}

/// What spans name together.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Parts of [`CUT`] bytes, by number.
    parts: BTreeSet<u64>,
    /// Bytes of all spans, those named twice counted twice.
    bytes: u64,
}

impl Named {
    pub(crate) fn of(spans: &[Span]) -> Self {
        let mut named = Self::default();
        for (start, len) in spans.iter().map(Span::bytes) {
            named.parts.extend(start / CUT..(start + len) / CUT);
            named.bytes += len;
        }
        named
    }

    /// The addresses of the pages that are named as a whole, ascending.
    pub(crate) fn whole_pages(&self) -> Vec<u64> {
        let pages: BTreeSet<u64> = self.parts.iter().map(|part| part * CUT / PAGE * PAGE).collect();
        let whole = |page: &u64| (0..PAGE / CUT).all(|at| self.parts.contains(&(page / CUT + at)));
        pages.into_iter().filter(whole).collect()
    }

    /// Bytes of all spans, if none is named twice and each lies in one of these pages.
    pub(crate) fn bytes_if_all_in(&self, pages: &BTreeSet<u64>) -> Option<u64> {
        let inside = |part: &u64| pages.contains(&(part * CUT / PAGE * PAGE));
        let once = self.bytes == self.parts.len() as u64 * CUT;
        (once && self.parts.iter().all(inside)).then_some(self.bytes)
    }
}
