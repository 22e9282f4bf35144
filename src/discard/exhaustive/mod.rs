// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Range arithmetic, tried on everything in a space of a few bytes, and at the ends of 64 bits.
//!
//! Each check asks a reference that looks at one byte or one page at a time, and counts what it has
//! tried. Why a few bytes speak for all is argued in `docs/research/proofs.md`.

mod collected;
mod log_pages;
mod merge;
mod pinned;
mod region;
mod rounding;
mod split;
mod zeroed;

use super::GuestRange;

/// Up to 64 bytes of addresses that begin at `base`, each a bit of a mask.
#[derive(Clone, Copy, Debug)]
struct Space {
    base: u64,
    bytes: u64,
}

impl Space {
    /// One at the beginning of the address space and one at its end.
    fn both(bytes: u64) -> [Self; 2] {
        [0, u64::MAX - bytes].map(|base| Self { base, bytes })
    }

    /// Every range in it.
    fn ranges(self) -> impl Iterator<Item = GuestRange> {
        (0..self.bytes)
            .flat_map(move |start| (1..=self.bytes - start).map(move |len| self.range(start, len)))
    }

    fn range(self, start: u64, len: u64) -> GuestRange {
        GuestRange::new(self.base + start, len).unwrap()
    }

    /// The bytes of a range.
    fn mask(self, range: GuestRange) -> u64 {
        ones(range.len()) << (range.start() - self.base)
    }

    /// The bytes of `mask` in as few ranges as possible.
    fn runs(self, mask: u64) -> Vec<GuestRange> {
        let (mut runs, mut at) = (Vec::new(), 0);
        while at < self.bytes {
            let len = u64::from((mask >> at).trailing_ones());
            if len > 0 {
                runs.push(self.range(at, len));
            }
            at += len + 1;
        }
        runs
    }
}

/// As many bits, fewer than 64.
fn ones(bits: u64) -> u64 {
    (1 << bits) - 1
}

/// Numbers around which a sum, a remainder or a comparison with pages of this size may change.
fn edges(page_size: u64) -> Vec<u64> {
    let (page, end) = (u128::from(page_size), u128::from(u64::MAX));
    let marks =
        [0, page / 2, page, 2 * page, 3 * page, end / 2, end - 2 * (page - 1), end - page, end];
    let around = marks
        .into_iter()
        .flat_map(|mark| (0..=2).flat_map(move |by| [mark.saturating_sub(by), mark + by]));
    let mut edges: Vec<_> = around.filter_map(|number| u64::try_from(number).ok()).collect();
    edges.sort_unstable();
    edges.dedup();
    edges
}
