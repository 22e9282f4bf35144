// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lists of one CPU for one zone, and their sizes.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::page_alloc::geometry::{Geometry, MigrateType, Pfn, PfnRange};

/// What part of a zone all its per-CPU lists may hold (`MIN_PERCPU_PAGELIST_HIGH_FRACTION`).
const HIGH_FRACTION: u64 = 8;

/// How full the lists of one CPU for one zone are, and may be, in pages (`pagesets` in
/// `/proc/zoneinfo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PcpSizes {
    /// Pages on them.
    pub count: u32,
    /// At this many, some return to the zone.
    pub high: u32,
    /// The least that `high` may be.
    pub high_min: u32,
    /// The most that `high` may be.
    pub high_max: u32,
    /// Pages that move at once.
    pub batch: u32,
}

/// The lists of one CPU for one zone (`struct per_cpu_pages`).
#[derive(Debug)]
pub(crate) struct Pcp {
    /// By order and migratetype; see [`slot`]. The last of a list is the next to be allocated.
    pub(super) lists: Box<[VecDeque<Pfn>]>,
    /// Pages on them.
    pub(super) count: u32,
    /// At this many, some return to the zone. It follows what the CPU does, between two bounds.
    high: u32,
    /// A share of the zone's low watermark.
    high_min: u32,
    /// A share of an eighth of the zone; as `high_min` in a kernel that does not tune `high`.
    high_max: u32,
    /// So many pages move at once, and more while a CPU only allocates or only frees.
    pub(super) batch: u32,
    /// How often that is doubled for allocations (`alloc_factor`).
    alloc_factor: u8,
    /// Pages freed recently, halved by each allocation between them (`free_count`).
    pub(super) free_count: u32,
    /// Room for what moves: empty between uses.
    pub(super) taken: Vec<PfnRange>,
    pub(super) given: Vec<(Pfn, u8)>,
}

/// The place of a block of `order` among the lists; none if such blocks go to the buddy lists
/// directly.
pub(super) fn slot(geometry: &Geometry, order: u8, mt: MigrateType) -> Option<usize> {
    let row = if order <= geometry.pcp_order {
        order
    } else if order == geometry.pageblock_order {
        geometry.pcp_order + 1
    } else {
        return None;
    };
    // HIGHATOMIC and CMA pages go to the movable list.
    let column = if (mt as usize) < MigrateType::PCP_COUNT { mt } else { MigrateType::Movable };
    Some(usize::from(row) * MigrateType::PCP_COUNT + column as usize)
}

/// The order of the blocks in a list.
pub(super) fn order_of(geometry: &Geometry, slot: usize) -> u8 {
    match u8::try_from(slot / MigrateType::PCP_COUNT) {
        Ok(row) if row <= geometry.pcp_order => row,
        _ => geometry.pageblock_order,
    }
}

/// How many pages the lists of a zone of `managed` pages move at once (`zone_batchsize`): one less
/// than a power of two, so that runs do not resonate.
fn batch_size(geometry: &Geometry, managed: u64) -> u32 {
    let most = geometry.pcp_batch_pages;
    let batch = u32::try_from(managed >> 12).unwrap_or(most).min(most);
    let rounded = (batch + batch / 2).checked_ilog2().map_or(0, |log| (1 << log) - 1);
    rounded.max(1)
}

impl Pcp {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let lists = (usize::from(geometry.pcp_order) + 2) * MigrateType::PCP_COUNT;
        Self {
            lists: (0..lists).map(|_| VecDeque::new()).collect(),
            count: 0,
            high: 0,
            high_min: 0,
            high_max: 0,
            batch: 1,
            alloc_factor: 0,
            free_count: 0,
            taken: Vec::new(),
            given: Vec::new(),
        }
    }

    pub(crate) fn sizes(&self) -> PcpSizes {
        let &Self { count, high, high_min, high_max, batch, .. } = self;
        PcpSizes { count, high, high_min, high_max, batch }
    }

    /// Sets the sizes for one of `cpus` CPUs of a zone of `managed` pages whose low watermark is
    /// `low` (`zone_set_pageset_high_and_batch`).
    pub(crate) fn set_size(
        &mut self,
        kernel: (&Geometry, bool),
        managed: u64,
        low: u64,
        cpus: u64,
    ) {
        let (geometry, tunes) = kernel;
        self.batch = batch_size(geometry, managed);
        let share = |pages: u64| u32::try_from(pages / cpus.max(1)).unwrap_or(u32::MAX);
        self.high_min = share(low).max(4 * self.batch);
        // The model's smallest zones have a low watermark above an eighth of them.
        self.high_max =
            if tunes { share(managed / HIGH_FRACTION).max(self.high_min) } else { self.high_min };
        self.high = self.high.clamp(self.high_min, self.high_max);
    }

    pub(crate) fn pages(&self) -> u32 {
        self.count
    }

    /// How many blocks to take for an empty list (`nr_pcp_alloc`): each time that there was nothing
    /// freed in between twice as many pages, as far as there is room. Longer lists would have
    /// avoided it, so `high` rises by as much, but not in a zone `below_high`.
    pub(super) fn nr_alloc(&mut self, geometry: &Geometry, order: u8, below_high: bool) -> u32 {
        let mut pages = if order == 0 { self.batch << self.alloc_factor } else { self.batch };
        if !below_high {
            self.high = (self.high + pages).min(self.high_max);
        }
        if order == 0 {
            let most = self.high.saturating_sub(self.count + self.batch).max(self.batch);
            if pages <= most && self.alloc_factor < geometry.pcp_batch_scale {
                self.alloc_factor += 1;
            }
            pages = pages.min(most);
        }
        if pages > 1 { (pages >> order).max(2) } else { pages }
    }

    /// Counts a freed block; how many pages to return if there are enough (`nr_pcp_free`): as
    /// many as were freed with no allocation in between, but a batch stays.
    pub(super) fn nr_free(
        &mut self,
        geometry: &Geometry,
        order: u8,
        below_high: bool,
    ) -> Option<u32> {
        self.alloc_factor >>= 1;
        if self.free_count < self.batch << geometry.pcp_batch_scale {
            self.free_count += 1 << order;
        }
        let high = self.tune_high(below_high);
        (self.count >= high)
            .then(|| self.free_count.clamp(self.batch, high.max(2 * self.batch) - self.batch))
    }

    /// Lets `high` follow the frees; how many pages may stay this time (`nr_pcp_high`).
    fn tune_high(&mut self, below_high: bool) -> u32 {
        let high = self.high;
        if self.high_min == self.high_max {
            return high;
        }
        if below_high {
            let freed = self.free_count.max(self.batch);
            self.high = high.saturating_sub(freed).max(self.high_min);
            return self.count.max(self.high_min);
        }
        if self.count >= high {
            // So that what was freed at once fits, next time.
            let needed = (self.free_count + self.batch).min(self.high_max);
            self.high = high.max(needed);
        }
        high
    }

    /// Lowers `high` by an eighth of itself, by less where that many pages would return at once;
    /// how many pages are beyond it then (`decay_pcp_high`).
    pub(super) fn decay_high(&mut self, geometry: &Geometry) -> u32 {
        let most = self.batch << geometry.pcp_batch_scale;
        let eighth = self.high - (self.high >> 3);
        self.high = self.count.saturating_sub(most).max(eighth).max(self.high_min);
        self.count.saturating_sub(self.high)
    }

    /// Whether it would fall if the CPU did nothing.
    pub(super) fn is_above_min(&self) -> bool {
        self.high > self.high_min
    }

    /// Every block on the lists.
    pub(crate) fn blocks(&self, geometry: &Geometry) -> Vec<(Pfn, u8)> {
        let of = |(slot, list): (usize, &VecDeque<Pfn>)| {
            let order = order_of(geometry, slot);
            list.iter().map(move |&pfn| (pfn, order)).collect::<Vec<_>>()
        };
        self.lists.iter().enumerate().flat_map(of).collect()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
