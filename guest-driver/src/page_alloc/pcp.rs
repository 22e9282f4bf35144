// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Per-CPU page lists: what makes most allocations and frees cheap, and what isolation has to
//! reckon with, since a page on such a list is free to nobody but its CPU.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use super::Mm;
use super::buddy::Origin;
use super::frame::{Frame, FrameState};
use super::geometry::{Geometry, MigrateType, Pfn, PfnRange};
use super::zone::{Zone, ZoneId};

/// The lists of one CPU for one zone (`struct per_cpu_pages`).
#[derive(Debug)]
pub(crate) struct Pcp {
    /// By order and migratetype; see [`slot`]. The last of a list is the next to be allocated.
    lists: Box<[VecDeque<Pfn>]>,
    /// Pages on them.
    count: u32,
    /// At this many some are given back. Linux may move it between two bounds, which are one here,
    /// as with `percpu_pagelist_high_fraction` set.
    high: u32,
    /// So many pages move at once, and more while a CPU only allocates or only frees.
    batch: u32,
    /// How often that is doubled for allocations (`alloc_factor`).
    alloc_factor: u8,
    /// Pages freed of late, allocations between them halving it (`free_count`).
    free_count: u32,
    /// Room for what moves: empty between uses.
    taken: Vec<PfnRange>,
    given: Vec<(Pfn, u8)>,
}

/// The place of a block of `order` among the lists; none if such blocks go to the buddy lists
/// directly.
fn slot(geometry: &Geometry, order: u8, mt: MigrateType) -> Option<usize> {
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
fn order_of(geometry: &Geometry, slot: usize) -> u8 {
    match u8::try_from(slot / MigrateType::PCP_COUNT) {
        Ok(row) if row <= geometry.pcp_order => row,
        _ => geometry.pageblock_order,
    }
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
        let (least, most) = geometry.pcp_batch;
        let batch = u32::try_from(managed >> 12).unwrap_or(most).clamp(least, most);
        // One less than a power of two (`zone_batchsize`), so that runs do not resonate.
        self.batch = ((batch + 1).next_power_of_two() - 1).clamp(least, most);
        self.high = u32::try_from(share).unwrap_or(u32::MAX).max(4 * self.batch);
    }

    pub(crate) fn pages(&self) -> u32 {
        self.count
    }

    /// How many blocks to take for an empty list (`nr_pcp_alloc`): each time that there was nothing
    /// freed in between twice as many pages, as far as there is room.
    fn nr_alloc(&mut self, geometry: &Geometry, order: u8) -> u32 {
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

    /// Books a freed block; how many pages to give back if there are enough (`nr_pcp_free`): as
    /// many as were freed with no allocation in between, but a batch stays.
    fn nr_free(&mut self, geometry: &Geometry, order: u8) -> Option<u32> {
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

impl Mm {
    /// Takes a block off this CPU's lists, filling them first if need be (`rmqueue_pcplist`). None
    /// if such blocks are not on per-CPU lists, or there are none.
    pub(crate) fn pcp_alloc(
        &self,
        zone: &Zone,
        cpu: usize,
        order: u8,
        mt: MigrateType,
    ) -> Option<Pfn> {
        let slot = slot(&self.geometry, order, mt)?;
        if zone.pcp_disabled.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let mut pcp = zone.pcp[cpu].lock();
        if pcp.lists[slot].is_empty() {
            let blocks = pcp.nr_alloc(&self.geometry, order);
            self.rmqueue_bulk(zone, &mut zone.lock(), order, mt, blocks, &mut pcp.taken);
            self.fill(&mut pcp, slot, order);
        }
        pcp.free_count >>= 1;
        let pfn = pcp.lists[slot].pop_back()?;
        pcp.count -= 1 << order;
        Some(pfn)
    }

    /// Makes blocks of `order` of what was taken off the buddy lists, the lowest to be allocated
    /// first. The frames are this CPU's, so it needs no lock but that of its lists.
    fn fill(&self, pcp: &mut Pcp, slot: usize, order: u8) {
        let Pcp { lists, count, taken, .. } = pcp;
        for run in taken.drain(..).rev() {
            for frame in self.sections.frames(run).iter().step_by(1 << order) {
                frame.set_state(FrameState::Pcp { order });
            }
            lists[slot].extend(run.step(order).rev());
            *count += run.pages();
        }
    }

    /// Frees a block to this CPU's lists (`free_unref_page`); false if it does not belong there.
    ///
    /// Its migratetype was read before the lists are locked. In between the pageblock may be
    /// isolated and drained: the block then lands on a list behind the drain. That is Linux's race,
    /// and is here to be explored.
    pub(crate) fn pcp_free(
        &self,
        zone: &Zone,
        cpu: usize,
        pfn: Pfn,
        frame: &Frame,
        order: u8,
        mt: MigrateType,
    ) -> bool {
        if mt == MigrateType::Isolate {
            return false;
        }
        let Some(slot) = slot(&self.geometry, order, mt) else { return false };
        #[cfg(feature = "shuttle")]
        crate::sync::yield_now();
        let mut pcp = zone.pcp[cpu].lock();
        frame.set_state(FrameState::Pcp { order });
        pcp.lists[slot].push_back(pfn);
        pcp.count += 1 << order;
        let surplus = pcp.nr_free(&self.geometry, order);
        if zone.pcp_disabled.load(Ordering::Relaxed) > 0 {
            self.free_pcppages_bulk(zone, &mut pcp, u32::MAX, slot);
        } else if let Some(pages) = surplus {
            self.free_pcppages_bulk(zone, &mut pcp, pages, slot);
        }
        true
    }

    /// Gives at least `pages` pages of the lists back, those of the list `first` first, and the
    /// oldest of each.
    fn free_pcppages_bulk(&self, zone: &Zone, pcp: &mut Pcp, pages: u32, first: usize) {
        let mut left = pages.min(pcp.count);
        for slot in (first..pcp.lists.len()).chain(0..first) {
            let order = order_of(&self.geometry, slot);
            let mut run: Option<PfnRange> = None;
            while left > 0 {
                let Some(pfn) = pcp.lists[slot].pop_front() else { break };
                pcp.count -= 1 << order;
                left = left.saturating_sub(1 << order);
                let block = PfnRange::block(pfn, order);
                match &mut run {
                    Some(run) if run.end == block.start => run.end = block.end,
                    Some(run) if run.start == block.end => run.start = block.start,
                    _ => {
                        if let Some(run) = run.replace(block) {
                            self.merge(run, order, &mut pcp.given);
                        }
                    }
                }
            }
            if let Some(run) = run {
                self.merge(run, order, &mut pcp.given);
            }
        }
        // Whoever else wants the zone need not wait for all of them.
        for blocks in pcp.given.chunks(pcp.batch as usize) {
            let mut area = zone.lock();
            for &(pfn, order) in blocks {
                self.free_one(zone, &mut area, pfn, order, Origin::Freed);
            }
        }
        pcp.given.clear();
    }

    /// Makes as large blocks as a pageblock may hold of blocks of `order` side by side. They are
    /// this CPU's still: what merges here does not merge one by one with the zone's lock held.
    fn merge(&self, run: PfnRange, order: u8, into: &mut Vec<(Pfn, u8)>) {
        for (head, merged) in run.blocks(self.geometry.pageblock_order) {
            if merged > order {
                let mut frames =
                    self.sections.frames(PfnRange::block(head, merged)).iter().step_by(1 << order);
                if let Some(head) = frames.next() {
                    head.set_state(FrameState::Pcp { order: merged });
                }
                frames.for_each(|frame| frame.set_state(FrameState::Tail));
            }
            into.push((head, merged));
        }
    }

    /// Empties one CPU's lists of a zone (`drain_pages_zone`).
    pub fn drain_cpu(&self, zone: ZoneId, cpu: usize) {
        let zone = self.zone(zone);
        let mut pcp = zone.pcp[cpu].lock();
        self.free_pcppages_bulk(zone, &mut pcp, u32::MAX, 0);
    }

    /// Empties every CPU's lists of a zone (`drain_all_pages`).
    pub fn drain_all(&self, zone: ZoneId) {
        self.zone(zone).drains.fetch_add(1, Ordering::Relaxed);
        for cpu in 0..self.zone(zone).pcp.len() {
            self.drain_cpu(zone, cpu);
        }
    }

    /// Turns the per-CPU lists of a zone off and empties them, so that no page can be on one until
    /// [`Mm::pcp_enable`] (`zone_pcp_disable`).
    pub(crate) fn pcp_disable(&self, zone: ZoneId) {
        self.zone(zone).pcp_disabled.fetch_add(1, Ordering::Relaxed);
        self.drain_all(zone);
    }

    pub(crate) fn pcp_enable(&self, zone: ZoneId) {
        self.zone(zone).pcp_disabled.fetch_sub(1, Ordering::Relaxed);
    }
}
