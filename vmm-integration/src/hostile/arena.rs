// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a case has to play with.

use super::{Descriptor, DriverRing, Gpa, GpaRange, Ram, outside};
use anyhow::{Context, Result, ensure};

/// The pages of a block, and of the gap behind it that shows when too much was lost.
const BLOCK_PAGES: u64 = 4;
const GAP_PAGES: u64 = 2;
/// How many blocks a case may count on.
const MIN_BLOCKS: u64 = 16;
/// Blocks that no case gets: the first and the last of the playground, as ranges across a region's
/// border reach into them, and the sentinel's.
const SET_ASIDE: u64 = 3;

/// The ring, the RAM and the places in it that a case may use.
pub struct Arena<'a> {
    pub(super) ram: &'a Ram,
    pub(super) ring: &'a mut DriverRing<Ram>,
    scratch: GpaRange,
    playground: GpaRange,
    /// What backs the playground, in bytes.
    pub(super) page: u64,
    pub(super) indirect: bool,
}

impl<'a> Arena<'a> {
    /// The arena around `ring`. `scratch` is room for indirect tables, `reserved` what no case may
    /// report, both in RAM; `indirect` says whether the driver may use indirect tables.
    ///
    /// # Errors
    /// When there is too little RAM to play in.
    pub fn new(
        ram: &'a Ram,
        ring: &'a mut DriverRing<Ram>,
        scratch: GpaRange,
        reserved: GpaRange,
        indirect: bool,
    ) -> Result<Self> {
        let candidates = outside(ram, reserved).into_iter().filter_map(|range| {
            let segment = ram.segments(range).next()?;
            let page = ram.page_bytes(segment.region);
            ram.whole_pages(range).next().map(|whole| (whole.len() / page, page, whole))
        });
        let (_, page, playground) = candidates.max().context("no RAM to play in")?;
        let arena = Self { ram, ring, scratch, playground, page, indirect };
        ensure!(
            arena.blocks() >= MIN_BLOCKS,
            "{playground} is too little RAM for {MIN_BLOCKS} blocks of {BLOCK_PAGES} pages"
        );
        Ok(arena)
    }

    /// How many blocks a case may use.
    fn blocks(&self) -> u64 {
        (self.playground.len() / (self.page * (BLOCK_PAGES + GAP_PAGES))).saturating_sub(SET_ASIDE)
    }

    /// A block of whole pages with a gap behind it; the same one again after all had their turn.
    pub(super) fn block(&self, index: u64) -> GpaRange {
        self.place(2 + index % self.blocks())
    }

    /// A block that no case uses: for a sane report behind it.
    pub fn sentinel(&self) -> GpaRange {
        self.place(1)
    }

    fn place(&self, index: u64) -> GpaRange {
        let start = self.playground.start().0 + index * self.page * (BLOCK_PAGES + GAP_PAGES);
        GpaRange::new(Gpa(start), BLOCK_PAGES * self.page).unwrap_or_default()
    }

    /// `len` bytes, `offset` bytes into a block.
    pub(super) fn part(&self, block: u64, offset: u64, len: u64) -> GpaRange {
        let start = Gpa(self.block(block).start().0 + offset);
        GpaRange::new(start, len).unwrap_or_default()
    }

    /// Where the `index`th of several indirect tables may lie.
    pub(super) fn table(&self, index: u64) -> Gpa {
        Gpa(self.scratch.start().0 + index * 4096)
    }

    /// Writes an indirect table whose entries say themselves how they are chained.
    pub(super) fn write_table(&self, table: Gpa, entries: &[Descriptor]) -> Result<()> {
        for (index, entry) in (0..).zip(entries) {
            self.ring.write_table_entry(table, index, *entry)?;
        }
        Ok(())
    }

    /// Writes an indirect table with its entries chained in order.
    pub(super) fn write_chained_table(&self, table: Gpa, entries: &[Descriptor]) -> Result<()> {
        let last = u16::try_from(entries.len().saturating_sub(1))?;
        let chained = (0..).zip(entries).map(|(index, entry)| match index {
            index if index == last => *entry,
            _ => entry.chained_to(index + 1),
        });
        self.write_table(table, &chained.collect::<Vec<_>>())
    }

    /// Offers `descriptors`, chained in order, as one chain and returns which they became.
    pub(super) fn offer(&mut self, descriptors: &[Descriptor]) -> Result<Vec<u16>> {
        let claimed = self.ring.claim(descriptors.len())?;
        for (turn, descriptor) in descriptors.iter().enumerate() {
            let descriptor = match claimed.get(turn + 1) {
                Some(next) => descriptor.chained_to(*next),
                None => *descriptor,
            };
            self.ring.write_descriptor(claimed[turn], descriptor)?;
        }
        self.ring.offer(claimed[0])?;
        Ok(claimed)
    }

    /// The address behind all RAM.
    pub(super) fn end_of_ram(&self) -> Result<Gpa> {
        let last = self.ram.regions().last().and_then(|region| region.range.end());
        last.context("no RAM")
    }

    /// The first hole between two regions, with the page sizes before and behind it.
    pub(super) fn hole(&self) -> Option<(GpaRange, u64, u64)> {
        self.ram.regions().windows(2).enumerate().find_map(|(index, pair)| {
            let hole = GpaRange::between(pair[0].range.end()?, pair[1].range.start());
            let pages = (self.ram.page_bytes(index), self.ram.page_bytes(index + 1));
            (!hole.is_empty()).then_some((hole, pages.0, pages.1))
        })
    }

    /// Where a region follows another without a hole, and the larger of their page sizes.
    pub(super) fn seam(&self) -> Option<(Gpa, u64)> {
        self.ram.regions().windows(2).enumerate().find_map(|(index, pair)| {
            let page = self.ram.page_bytes(index).max(self.ram.page_bytes(index + 1));
            let seam = pair[1].range.start();
            (pair[0].range.end() == Some(seam)).then_some((seam, page))
        })
    }
}

/// A device-writable descriptor over a range, as free pages are reported.
pub(super) fn report(range: GpaRange) -> Result<Descriptor> {
    let len = u32::try_from(range.len()).context("a range is too long for a descriptor")?;
    Ok(Descriptor::writable(range.start(), len))
}
