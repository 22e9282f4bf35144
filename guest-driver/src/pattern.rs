// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Contents that prove where they were written: every 8-byte word of a page names the page and the
//! generation of its contents.
//!
//! A page that was discarded reads as zero, one that was overwritten names another generation, one
//! that came back from elsewhere names another page. No word of the pattern is zero.

use crate::ram::Gpa;
use core::fmt;

/// Bytes in a page of the pattern.
pub const PAGE_BYTES: usize = 4096;
/// Bytes in a word of the pattern.
pub const WORD_BYTES: usize = 8;

/// Set in every word, so that none is zero.
const MARK: u64 = 1 << 63;
/// Where the generation sits; below it the page's number, of which a 52-bit address has 40 bits.
const GENERATION_SHIFT: u32 = 40;
const PAGE_MASK: u64 = (1 << GENERATION_SHIFT) - 1;

/// The word that fills the page holding `at` in `generation`, to be stored little-endian.
pub const fn word(at: Gpa, generation: u16) -> u64 {
    let page = at.0 / PAGE_BYTES as u64;
    MARK | ((generation as u64) << GENERATION_SHIFT) | (page & PAGE_MASK)
}

/// A page's worth of [`word`]s.
pub fn page(at: Gpa, generation: u16) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[..WORD_BYTES].copy_from_slice(&word(at, generation).to_le_bytes());
    // By doubling: a handful of copies even where the compiler was not asked to be clever.
    let mut done = WORD_BYTES;
    while done < PAGE_BYTES {
        page.copy_within(..done, done);
        done *= 2;
    }
    page
}

/// What a word that was found says about its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zero: the page was discarded or never written.
    Zero,
    /// A word of the pattern.
    Pattern {
        /// The page that it names, by its first byte.
        page: Gpa,
        /// The generation that it names.
        generation: u16,
    },
    /// Anything else.
    Foreign(u64),
}

impl Found {
    /// Reads a word of memory.
    pub fn parse(word: u64) -> Self {
        let page = Gpa((word & PAGE_MASK) * PAGE_BYTES as u64);
        match u16::try_from((word & !MARK) >> GENERATION_SHIFT) {
            Ok(generation) if word & MARK != 0 => Self::Pattern { page, generation },
            _ if word == 0 => Self::Zero,
            _ => Self::Foreign(word),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "zeroes"),
            Self::Pattern { page, generation } => {
                write!(f, "page {page} of generation {generation}")
            }
            Self::Foreign(word) => write!(f, "foreign contents {word:#018x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_page_and_generation() {
        for (at, generation) in [(0, 0), (0x1234_5678_9000, 7), ((1 << 52) - 4096, u16::MAX)] {
            let word = word(Gpa(at), generation);
            assert_ne!(word, 0);
            assert_eq!(Found::parse(word), Found::Pattern { page: Gpa(at), generation });
        }
        for word in page(Gpa(8192), 3).chunks_exact(WORD_BYTES) {
            assert_eq!(word, super::word(Gpa(8192), 3).to_le_bytes());
        }
        assert_eq!(Found::parse(0), Found::Zero);
        assert_eq!(Found::parse(1), Found::Foreign(1));
        assert_eq!(Found::parse(u64::MAX), Found::Foreign(u64::MAX));
    }
}
