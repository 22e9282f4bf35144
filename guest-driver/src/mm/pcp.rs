//! Per-CPU page lists: what makes most allocations and frees cheap, and what isolation has to
//! reckon with, since a page on such a list is free to nobody but its CPU.

use core::sync::atomic::Ordering;
use std::collections::VecDeque;

use super::Mm;
use super::buddy::Origin;
use super::frame::FrameState;
use super::geometry::{Geometry, MigrateType, Pfn};
use super::zone::{Zone, ZoneId};

/// The lists of one CPU for one zone (`struct per_cpu_pages`).
#[derive(Debug)]
pub(crate) struct Pcp {
    /// By order and migratetype; see [`slot`].
    lists: Box<[VecDeque<Pfn>]>,
    /// Pages on them.
    count: u32,
    /// More than this are given back.
    high: u32,
    /// So many pages move at once.
    batch: u32,
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
        Self { lists: (0..lists).map(|_| VecDeque::new()).collect(), count: 0, high: 0, batch: 1 }
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
            let blocks = (pcp.batch >> order).max(1);
            let Pcp { lists, count, .. } = &mut *pcp;
            self.rmqueue_bulk(zone, &mut zone.lock(), order, mt, blocks, |pfn| {
                self.set_state(pfn, FrameState::Pcp { order });
                lists[slot].push_back(pfn);
                *count += 1 << order;
            });
        }
        let pfn = pcp.lists[slot].pop_back()?;
        pcp.count -= 1 << order;
        Some(pfn)
    }

    /// Frees a block to this CPU's lists (`free_unref_page`); false if it does not belong there.
    ///
    /// The migratetype is read before the lists are locked. In between the pageblock may be
    /// isolated and drained: the block then lands on a list behind the drain. That is Linux's race,
    /// and is here to be explored.
    pub(crate) fn pcp_free(&self, zone: &Zone, cpu: usize, pfn: Pfn, order: u8) -> bool {
        let mt = self.sections.migratetype(pfn);
        if mt == MigrateType::Isolate {
            return false;
        }
        let Some(slot) = slot(&self.geometry, order, mt) else { return false };
        #[cfg(feature = "shuttle")]
        crate::sync::yield_now();
        let mut pcp = zone.pcp[cpu].lock();
        self.set_state(pfn, FrameState::Pcp { order });
        pcp.lists[slot].push_back(pfn);
        pcp.count += 1 << order;
        let disabled = zone.pcp_disabled.load(Ordering::Relaxed) > 0;
        if disabled || pcp.count >= pcp.high {
            let pages = if disabled { pcp.count } else { pcp.batch };
            self.free_pcppages_bulk(zone, &mut pcp, pages);
        }
        true
    }

    /// Gives at least `pages` pages of the lists back, the oldest of each list first.
    fn free_pcppages_bulk(&self, zone: &Zone, pcp: &mut Pcp, pages: u32) {
        let mut area = zone.lock();
        let mut left = i64::from(pages.min(pcp.count));
        while left > 0 {
            for slot in 0..pcp.lists.len() {
                let Some(pfn) = pcp.lists[slot].pop_front() else { continue };
                let order = order_of(&self.geometry, slot);
                pcp.count -= 1 << order;
                left -= 1 << order;
                self.free_one(zone, &mut area, pfn, order, Origin::Freed);
            }
        }
    }

    /// Empties one CPU's lists of a zone (`drain_pages_zone`).
    pub fn drain_cpu(&self, zone: ZoneId, cpu: usize) {
        let zone = self.zone(zone);
        let mut pcp = zone.pcp[cpu].lock();
        let pages = pcp.count;
        self.free_pcppages_bulk(zone, &mut pcp, pages);
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
