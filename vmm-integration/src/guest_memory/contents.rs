// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What RAM holds: writing the pattern as a guest would, and looking at it without touching it.

use super::Ram;
use anyhow::{Context, Result, ensure};
use guest_driver::{
    pattern::{self, Found, PAGE_BYTES, WORD_BYTES},
    ram::{Gpa, GpaRange, GuestRam},
};
use std::os::unix::fs::FileExt;

const PAGE: u64 = PAGE_BYTES as u64;
/// How much is read at once.
const CHUNK_BYTES: usize = 64 * PAGE_BYTES;

/// A place that does not hold what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at} should hold generation {generation} of its page and holds {found}")]
pub struct Mismatch {
    /// The word's address.
    pub at: Gpa,
    /// The generation that should be there.
    pub generation: u16,
    /// What is there.
    pub found: Found,
}

/// A page of 4096 bytes, held against the pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Every word is right.
    Intact,
    /// Every byte is zero: it was discarded, or never written.
    Zero,
    /// Anything else, with the first word that is wrong.
    Broken(Mismatch),
}

impl Ram {
    /// Fills `range` with the pattern of `generation`, as the guest's own CPUs would.
    ///
    /// # Errors
    /// When `range` is not made of whole pages of 4096 bytes of RAM.
    pub fn write_pattern(&self, range: GpaRange, generation: u16) -> Result<()> {
        for_each_page_start(range, |at| {
            self.write(at, &pattern::page(at, generation))?;
            Ok(())
        })
    }

    /// Checks that `range` holds the pattern of `generation`.
    ///
    /// # Errors
    /// [`Mismatch`] for the first word that is wrong; another error where `range` cannot be read
    /// or is not made of whole pages of 4096 bytes of RAM.
    pub fn verify_pattern(&self, range: GpaRange, generation: u16) -> Result<()> {
        self.for_each_page(range, generation, |at, state| match state {
            PageState::Intact => Ok(()),
            PageState::Broken(mismatch) => Err(mismatch.into()),
            PageState::Zero => Err(Mismatch { at, generation, found: Found::Zero }.into()),
        })
    }

    /// Calls `look` for every page of 4096 bytes in `range` with its first byte's address and
    /// what it holds, against the pattern of `generation`.
    ///
    /// # Errors
    /// What `look` returns, or where `range` cannot be read or is not made of whole pages of RAM.
    pub fn for_each_page(
        &self,
        range: GpaRange,
        generation: u16,
        mut look: impl FnMut(Gpa, PageState) -> Result<()>,
    ) -> Result<()> {
        check_pages(range)?;
        self.for_each_chunk(range, |start, bytes| {
            let mut at = start;
            for page in bytes.chunks_exact(PAGE_BYTES) {
                look(at, state_of(at, page, generation))?;
                at = Gpa(at.0 + PAGE);
            }
            Ok(())
        })
    }

    /// Whether every byte of `range` is zero.
    ///
    /// # Errors
    /// When `range` is not all RAM or cannot be read.
    pub fn is_zero(&self, range: GpaRange) -> Result<bool> {
        let mut zero = true;
        self.for_each_chunk(range, |_, bytes| {
            zero &= bytes.iter().all(|byte| *byte == 0);
            Ok(())
        })?;
        Ok(zero)
    }

    /// Reads `range` out of the files, which leaves holes as they are.
    fn for_each_chunk(
        &self,
        range: GpaRange,
        mut look: impl FnMut(Gpa, &[u8]) -> Result<()>,
    ) -> Result<()> {
        ensure!(self.contains(range), "{range} is not all RAM");
        let mut buffer = vec![0; CHUNK_BYTES];
        for segment in self.segments(range) {
            let file = &self.0.files[self.0.regions[segment.region].file];
            let (mut done, len) = (0, segment.range.len());
            while done < len {
                let part = CHUNK_BYTES.min(usize::try_from(len - done)?);
                let chunk = &mut buffer[..part];
                file.read_exact_at(chunk, segment.file_offset + done)
                    .with_context(|| format!("cannot read {} of guest RAM", segment.range))?;
                look(Gpa(segment.range.start().0 + done), chunk)?;
                done += part as u64;
            }
        }
        Ok(())
    }
}

fn state_of(at: Gpa, page: &[u8], generation: u16) -> PageState {
    let right = pattern::page(at, generation);
    if page == right {
        return PageState::Intact;
    }
    if page.iter().all(|byte| *byte == 0) {
        return PageState::Zero;
    }
    let words = page.chunks_exact(WORD_BYTES).zip(right.chunks_exact(WORD_BYTES));
    let offset = words.take_while(|(word, right)| word == right).count() * WORD_BYTES;
    let word = page[offset..offset + WORD_BYTES].iter().rev();
    let word = word.fold(0, |word, byte| word << 8 | u64::from(*byte));
    let at = Gpa(at.0 + offset as u64);
    PageState::Broken(Mismatch { at, generation, found: Found::parse(word) })
}

fn check_pages(range: GpaRange) -> Result<()> {
    ensure!(
        range.start().0.is_multiple_of(PAGE) && range.len().is_multiple_of(PAGE),
        "{range} is not made of whole pages of {PAGE} bytes"
    );
    Ok(())
}

fn for_each_page_start(range: GpaRange, mut call: impl FnMut(Gpa) -> Result<()>) -> Result<()> {
    check_pages(range)?;
    (0..range.len() / PAGE).try_for_each(|page| call(Gpa(range.start().0 + page * PAGE)))
}
