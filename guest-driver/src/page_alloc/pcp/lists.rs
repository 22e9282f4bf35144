// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lists of one CPU for one zone, and their sizes.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::page_alloc::geometry::{Geometry, MigrateType, Pfn, PfnRange};

/// The lists of one CPU for one zone (`struct per_cpu_pages`).
#[derive(Debug)]
pub(crate) struct Pcp {
    /// By order and migratetype; see [`slot`]. The last of a list is the next to be allocated.
    pub(super) lists: Box<[VecDeque<Pfn>]>,
    /// Pages on them.
    pub(super) count: u32,
    /// At this many, some return to the zone. Linux may move it between two bounds, which are one here,
    /// as with `percpu_pagelist_high_fraction` set.
    high: u32,
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
            batch: 1,
            alloc_factor: 0,
            free_count: 0,
            taken: Vec::new(),
            given: Vec::new(),
        }
    }

    /// For a zone of `managed` pages, `share` of whose low watermark is this CPU's.
    pub(crate) fn set_size(&mut self, geometry: &Geometry, managed: u64, share: u64) {
        self.batch = batch_size(geometry, managed);
        self.high = u32::try_from(share).unwrap_or(u32::MAX).max(4 * self.batch);
    }

    pub(crate) fn pages(&self) -> u32 {
        self.count
    }

    /// How many blocks to take for an empty list (`nr_pcp_alloc`): each time that there was nothing
    /// freed in between twice as many pages, as far as there is room.
    pub(super) fn nr_alloc(&mut self, geometry: &Geometry, order: u8) -> u32 {
        let mut pages = self.batch;
        if order == 0 {
            pages <<= self.alloc_factor;
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
    pub(super) fn nr_free(&mut self, geometry: &Geometry, order: u8) -> Option<u32> {
        self.alloc_factor >>= 1;
        if self.free_count < self.batch << geometry.pcp_batch_scale {
            self.free_count += 1 << order;
        }
        (self.count >= self.high)
            .then(|| self.free_count.clamp(self.batch, self.high.max(2 * self.batch) - self.batch))
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
mod tests {
    use super::*;

    #[test]
    fn batch_is_one_less_than_a_power_of_two() {
        let batch = |mib: u64| batch_size(&Geometry::LINUX, mib << 8);
        assert_eq!([16, 32, 48, 64].map(batch), [1, 1, 3, 3]);
        assert_eq!([128, 256, 512, 1024, 4096].map(batch), [7, 15, 31, 63, 63]);
        assert_eq!(batch_size(&Geometry::TINY, 1 << 20), 1);
    }
}
