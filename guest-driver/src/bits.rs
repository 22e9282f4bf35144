// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A row of bits that many set and one takes.

use alloc::boxed::Box;
use core::ops::Range;

use crate::sync::{AtomicU64, Ordering};

/// Bits in words of 64.
#[derive(Debug)]
pub struct Bits(Box<[AtomicU64]>);

impl Bits {
    /// `len` bits, none of them set.
    pub(crate) fn new(len: usize) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Sets a bit. What was done before is visible to the reader that takes it.
    pub(crate) fn set(&self, bit: usize) {
        let mask = 1 << (bit % 64);
        let word = &self.0[bit / 64];
        // Not looked at first: a mark that is about to be taken may be found set, and be gone when
        // the free that it should stand for is over.
        word.fetch_or(mask, Ordering::SeqCst);
    }

    /// Whether a bit is set.
    ///
    /// For a free path under a lock that the reader takes once between clearing the bit and looking for
    /// freed blocks: the reader that clears a bit found set here sees the free.
    pub(crate) fn is_set_under_lock(&self, bit: usize) -> bool {
        self.0[bit / 64].load(Ordering::Relaxed) & (1 << (bit % 64)) != 0
    }

    /// Clears a bit; whether it was set.
    pub(crate) fn take(&self, bit: usize) -> bool {
        let mask = 1 << (bit % 64);
        self.0[bit / 64].fetch_and(!mask, Ordering::SeqCst) & mask != 0
    }

    /// Clears a range of bits, a word at a time.
    pub(crate) fn clear(&self, bits: Range<usize>) {
        if bits.is_empty() {
            return;
        }
        for word in bits.start / 64..bits.end.div_ceil(64) {
            let first = bits.start.saturating_sub(word * 64);
            let end = (bits.end - word * 64).min(64);
            let mask = (u64::MAX >> (64 - (end - first))) << first;
            self.0[word].fetch_and(!mask, Ordering::SeqCst);
        }
    }

    /// Whether a bit is set now.
    pub(crate) fn is_set(&self, bit: usize) -> bool {
        self.0[bit / 64].load(Ordering::SeqCst) & (1 << (bit % 64)) != 0
    }

    /// The bits of `range` that are set now, each word read once.
    pub(crate) fn ones(&self, range: Range<usize>) -> impl Iterator<Item = usize> + '_ {
        ones(range, |word| self.0[word].load(Ordering::SeqCst))
    }

    /// The same for those that are set in this or in `other`.
    pub(crate) fn ones_of_either<'a>(
        &'a self,
        other: &'a Self,
        range: Range<usize>,
    ) -> impl Iterator<Item = usize> + 'a {
        let load = |bits: &Self, word: usize| bits.0[word].load(Ordering::SeqCst);
        ones(range, move |word| load(self, word) | load(other, word))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() * 64
    }
}

/// The bits of `range` that are set in the words that `load` reads, one after another.
fn ones(range: Range<usize>, load: impl Fn(usize) -> u64) -> impl Iterator<Item = usize> {
    let words = range.start / 64..range.end.div_ceil(64);
    words
        .flat_map(move |word| {
            let mut bits = load(word);
            core::iter::from_fn(move || {
                let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                bits &= bits - 1;
                Some(word * 64 + bit)
            })
        })
        .filter(move |bit| range.contains(bit))
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cleared_and_nothing_beside_it() {
        for (start, end) in
            [(0, 0), (0, 1), (3, 61), (0, 64), (63, 65), (1, 192), (64, 128), (5, 5)]
        {
            let bits = Bits::new(192);
            (0..192).for_each(|bit| bits.set(bit));
            bits.clear(start..end);
            let left: Vec<usize> = bits.ones(0..192).collect();
            let expected: Vec<usize> = (0..192).filter(|bit| !(start..end).contains(bit)).collect();
            assert_eq!(left, expected, "{start}..{end}");
        }
    }
}
