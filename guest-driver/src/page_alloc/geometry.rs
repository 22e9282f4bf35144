// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Orders and sizes, as a value: the same code runs at Linux's and at tiny ones.

use core::ops::Range;

/// Bytes of a page, whatever the geometry.
pub const PAGE_BYTES: u64 = 4096;

/// A page frame number: a guest physical address over the page size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(pub u32);

impl Pfn {
    /// The guest physical address in bytes.
    pub fn address(self) -> u64 {
        u64::from(self.0) * PAGE_BYTES
    }

    /// The first frame of the aligned block of `order` that holds this one.
    pub fn align_down(self, order: u8) -> Self {
        Self(self.0 >> order << order)
    }

    /// Whether a block of `order` may begin here.
    pub fn is_aligned(self, order: u8) -> bool {
        self.align_down(order) == self
    }

    /// The other half of the block that is one order larger (`__find_buddy_pfn`).
    pub fn buddy(self, order: u8) -> Self {
        Self(self.0 ^ (1 << order))
    }

    /// The frame `pages` further on.
    #[must_use]
    pub fn plus(self, pages: u32) -> Self {
        Self(self.0 + pages)
    }
}

/// Page frames from `start` up to but not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PfnRange {
    /// The first.
    pub start: Pfn,
    /// One past the last.
    pub end: Pfn,
}

impl PfnRange {
    /// The block of `order` at `head`.
    pub fn block(head: Pfn, order: u8) -> Self {
        Self { start: head, end: head.plus(1 << order) }
    }

    /// How many pages.
    pub fn pages(self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether a frame is in it.
    pub fn contains(self, pfn: Pfn) -> bool {
        (self.start..self.end).contains(&pfn)
    }

    /// Every frame, `1 << order` pages apart.
    pub fn step(self, order: u8) -> impl DoubleEndedIterator<Item = Pfn> {
        (self.start.0..self.end.0).step_by(1 << order).map(Pfn)
    }

    /// The largest aligned blocks of at most `most` that make it up, first to last.
    pub(crate) fn blocks(self, most: u8) -> impl Iterator<Item = (Pfn, u8)> {
        let mut at = self.start;
        core::iter::from_fn(move || {
            let fits = (self.end.0 - at.0).checked_ilog2()?;
            let order = at.0.trailing_zeros().min(fits).min(u32::from(most));
            let head = at;
            at = at.plus(1 << order);
            Some((head, u8::try_from(order).unwrap_or(most)))
        })
    }
}

/// The orders and sizes of a kernel's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The largest buddy (`MAX_PAGE_ORDER`).
    pub max_order: u8,
    /// Pages of a pageblock, as an order (`pageblock_order`).
    pub pageblock_order: u8,
    /// Pages of a section, as an order (`PFN_SECTION_SHIFT`).
    pub section_order: u8,
    /// Sections of a memory block, the unit of on- and offlining in sysfs.
    pub sections_per_block: usize,
    /// Per-CPU lists hold orders up to this one (`PAGE_ALLOC_COSTLY_ORDER`) and pageblocks.
    pub pcp_order: u8,
    /// The least and the most that the min watermark of a movable zone may be, in pages.
    pub min_watermark: (u64, u64),
    /// The most pages of which `pcp->batch` is made: 256 KiB. How many a per-CPU list moves at once
    /// is one less than a power of two near it.
    pub pcp_batch_pages: u32,
    /// How often that doubles while a CPU only allocates (`CONFIG_PCP_BATCH_SCALE_MAX`).
    pub pcp_batch_scale: u8,
}

impl Geometry {
    /// x86-64 with 4 KiB pages and transparent huge pages.
    pub const LINUX: Self = Self {
        max_order: 10,
        pageblock_order: 9,
        section_order: 15,
        sections_per_block: 1,
        pcp_order: 3,
        min_watermark: (32, 128),
        pcp_batch_pages: 64,
        pcp_batch_scale: 5,
    };

    /// Four pages a pageblock, two pageblocks the largest buddy and a section: what an exhaustive
    /// exploration can finish.
    pub const TINY: Self = Self {
        max_order: 3,
        pageblock_order: 2,
        section_order: 3,
        sections_per_block: 1,
        pcp_order: 0,
        min_watermark: (0, 0),
        pcp_batch_pages: 1,
        pcp_batch_scale: 0,
    };

    /// Pages of a section.
    pub const fn section_pages(&self) -> u32 {
        1 << self.section_order
    }

    /// Pageblocks of a section.
    pub const fn section_blocks(&self) -> usize {
        1 << (self.section_order - self.pageblock_order)
    }

    /// Pages of a pageblock.
    pub const fn pageblock_pages(&self) -> u32 {
        1 << self.pageblock_order
    }

    /// Pages of so many pageblocks of a section.
    pub(crate) fn pageblocks(&self, blocks: usize) -> u32 {
        u32::try_from(blocks << self.pageblock_order).unwrap_or(u32::MAX)
    }

    /// The frames of a section.
    pub fn section_range(&self, section: usize) -> PfnRange {
        let pages = self.section_pages();
        // Sections are counted in 32 bits of frames, so the product fits.
        let start = Pfn(u32::try_from(section).unwrap_or(u32::MAX).saturating_mul(pages));
        PfnRange { start, end: start.plus(pages) }
    }

    /// The sections of a memory block.
    pub fn memory_block(&self, block: usize) -> Range<usize> {
        block * self.sections_per_block..(block + 1) * self.sections_per_block
    }
}

/// What a pageblock's pages are for (`enum migratetype`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::VariantArray)]
#[repr(u8)]
pub enum MigrateType {
    /// Cannot be moved.
    Unmovable = 0,
    /// Can be moved elsewhere.
    Movable = 1,
    /// Can be freed by reclaim.
    Reclaimable = 2,
    /// Reserve for atomic allocations.
    HighAtomic = 3,
    /// Reserve for contiguous allocations.
    Cma = 4,
    /// Withheld from allocation.
    Isolate = 5,
}

impl MigrateType {
    /// All of them, in the order of their values.
    pub const ALL: &[Self] = <Self as strum::VariantArray>::VARIANTS;
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
    /// Those that per-CPU lists know (`MIGRATE_PCPTYPES`).
    pub const PCP_COUNT: usize = 3;

    pub(crate) fn from_bits(bits: u8) -> Self {
        Self::ALL[usize::from(bits)]
    }

    /// Whether blocks of the type may merge with blocks of another mergeable type
    /// (`migratetype_is_mergeable`).
    pub fn is_mergeable(self) -> bool {
        (self as usize) < Self::PCP_COUNT
    }

    /// Where an allocation of this type looks next (`fallbacks`).
    pub(crate) fn fallbacks(self) -> &'static [Self] {
        match self {
            Self::Unmovable => &[Self::Reclaimable, Self::Movable],
            Self::Movable => &[Self::Reclaimable, Self::Unmovable],
            Self::Reclaimable => &[Self::Unmovable, Self::Movable],
            Self::HighAtomic | Self::Cma | Self::Isolate => &[],
        }
    }
}
