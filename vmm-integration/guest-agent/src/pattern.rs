// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The contents of test memory: every 8-byte word says where it belongs.
//!
//! A word that turns up in the wrong place, survives its generation or was lost then says so by
//! itself. Layout, from the top: 16 bits generation, 8 bits allocation id, 28 bits page index, 12
//! bits offset in the page in which the low three, always zero for a word, are [`MARK`]: no word
//! of the pattern is zero, which is what a discarded page reads as.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Pages of the pattern, independent of the guest's own page size.
pub const PAGE_BYTES: usize = 4096;
/// Words in such a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// The low three bits of every word.
pub const MARK: u64 = 0b101;

const PAGE_BITS: u32 = 28;
const PAGE_MASK: u64 = (1 << PAGE_BITS) - 1;

/// The result of comparing memory with the pattern.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Bytes compared, those that differ included.
    pub checked_bytes: u64,
    /// 8-byte words that differ.
    pub mismatches: u64,
    /// The first word that differs.
    pub first: Option<Mismatch>,
}

/// A word that does not hold what was written to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Index of the page in its allocation.
    pub page: u64,
    /// Offset of the word in its page, in bytes.
    pub offset_bytes: u64,
    /// What was written.
    pub expected: u64,
    /// What is there.
    pub found: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "page {} offset {}: expected {:#018x} ({}), found {:#018x} ({})",
            self.page,
            self.offset_bytes,
            self.expected,
            describe(self.expected),
            self.found,
            describe(self.found),
        )
    }
}

/// The word at `offset_bytes` (a multiple of 8 below [`PAGE_BYTES`]) of page `page`.
///
/// Of the page index the low 28 bits count: 1 TiB of memory. Of the id the low 8.
pub fn word(id: u32, generation: u16, page: u64, offset_bytes: u64) -> u64 {
    page_base(id, generation, page) | offset_bytes
}

/// The first word of a page; the one at `offset_bytes` is this plus `offset_bytes`.
fn page_base(id: u32, generation: u16, page: u64) -> u64 {
    u64::from(generation) << 48 | (u64::from(id) & 0xff) << 40 | (page & PAGE_MASK) << 12 | MARK
}

/// Fills memory, whose first word is the first of page 0.
pub fn fill(words: &mut [u64], id: u32, generation: u16) {
    for (page, words) in (0u64..).zip(words.chunks_mut(PAGE_WORDS)) {
        let base = page_base(id, generation, page);
        for (word, offset) in words.iter_mut().zip((0u64..).step_by(8)) {
            *word = base | offset;
        }
    }
}

/// Compares memory with what [`fill`] writes.
pub fn verify(words: &[u64], id: u32, generation: u16) -> Verified {
    let mut mismatches = 0;
    let mut first = None;
    for (page, words) in (0u64..).zip(words.chunks(PAGE_WORDS)) {
        let base = page_base(id, generation, page);
        // Without a branch in it the loop over a good page is as fast as memory.
        let wrong = words.iter().zip((0u64..).step_by(8));
        let difference =
            wrong.clone().fold(0, |all, (&word, offset)| all | (word ^ (base | offset)));
        if difference == 0 {
            continue;
        }
        for (&found, offset_bytes) in wrong {
            let expected = base | offset_bytes;
            if found != expected {
                mismatches += 1;
                first.get_or_insert(Mismatch { page, offset_bytes, expected, found });
            }
        }
    }
    let checked_bytes = u64::try_from(size_of_val(words)).unwrap_or(u64::MAX);
    Verified { checked_bytes, mismatches, first }
}

/// Reads a word back, for a message: where it belongs, or that it is none of ours.
pub fn describe(word: u64) -> String {
    if word == 0 {
        return "zero, as after a discard".to_owned();
    }
    if word & 0b111 != MARK {
        return "not of the pattern".to_owned();
    }
    let generation = word >> 48;
    let id = word >> 40 & 0xff;
    let page = word >> 12 & PAGE_MASK;
    let offset = word & 0xff8;
    format!("allocation {id} generation {generation} page {page} offset {offset}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_buffer_verifies_and_a_changed_word_fails() {
        let mut words = vec![0; 3 * PAGE_WORDS];
        fill(&mut words, 5, 9);
        assert_eq!(words[PAGE_WORDS + 2], word(5, 9, 1, 16));
        let good = verify(&words, 5, 9);
        assert_eq!((good.checked_bytes, good.mismatches, good.first), (12288, 0, None));

        words[PAGE_WORDS + 2] = 0;
        words[2 * PAGE_WORDS] = word(5, 8, 2, 0);
        let bad = verify(&words, 5, 9);
        assert_eq!(bad.mismatches, 2);
        let first = bad.first.unwrap();
        assert_eq!((first.page, first.offset_bytes, first.found), (1, 16, 0));
        assert!(first.to_string().contains("zero, as after a discard"), "{first}");
    }

    #[test]
    fn another_generation_or_allocation_is_all_wrong() {
        let mut words = vec![0; PAGE_WORDS];
        fill(&mut words, 1, 1);
        assert_eq!(verify(&words, 1, 2).mismatches, 512);
        assert_eq!(verify(&words, 2, 1).mismatches, 512);
    }

    #[test]
    fn a_word_names_its_place() {
        let word = word(3, 70, 12345, 4088);
        assert_eq!(describe(word), "allocation 3 generation 70 page 12345 offset 4088");
        assert_ne!(super::word(0, 0, 0, 0), 0);
    }
}
