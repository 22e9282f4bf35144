// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Per-CPU page lists. They make most allocations and frees cheap, and isolation must reckon with
//! them: a page on such a list is free to its CPU only.

pub(crate) mod lists;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;

use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use lists::{Pcp, order_of, slot};

use super::Mm;
use super::buddy::Origin;
use super::frame::{Frame, FrameState};
use super::geometry::{MigrateType, Pfn, PfnRange};
use super::zone::{Zone, ZoneId};

/// How often Linux updates a CPU's statistics (`sysctl_stat_interval`).
pub const VMSTAT_INTERVAL: Duration = Duration::from_secs(1);

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
        let mut pcp = zone.pcp[cpu].lock();
        // Under the lock that emptying the lists takes, after they were turned off: nothing is left on one.
        if zone.pcp_disabled.load(Ordering::Relaxed) > 0 {
            return None;
        }
        if pcp.lists[slot].is_empty() {
            let blocks = pcp.nr_alloc(&self.geometry, order, zone.is_below_high());
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
    /// isolated and drained: the block then lands on a list behind the drain. This is Linux's race,
    /// kept for the explorer.
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
        let surplus = pcp.nr_free(&self.geometry, order, zone.is_below_high());
        if zone.pcp_disabled.load(Ordering::Relaxed) > 0 {
            self.free_pcppages_bulk(zone, &mut pcp, u32::MAX, slot);
        } else if let Some(pages) = surplus {
            self.free_pcppages_bulk(zone, &mut pcp, pages, slot);
            zone.leave_below_high();
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
        // Others that need the zone's lock do not wait for all of them.
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

    /// Updates one CPU's statistics, as far as the model has any (`vmstat_update`): it lowers how
    /// many pages the CPU's lists may hold towards their least, and returns those beyond it to their
    /// zones. False once that least is reached and nothing will change until the CPU allocates or
    /// frees.
    ///
    /// Linux does it for each CPU once a second ([`VMSTAT_INTERVAL`]). In the model the owner of the
    /// guest's time must call it. Without, what a CPU freed may stay on its lists, and no reporter
    /// finds it there. Some pages stay in any case, as in Linux, until [`Mm::drain_all`].
    pub fn update_vmstat(&self, cpu: usize) -> bool {
        let mut above = false;
        for zone in &self.zones {
            let mut pcp = zone.pcp[cpu].lock();
            let pages = pcp.decay_high(&self.geometry);
            if pages > 0 {
                self.free_pcppages_bulk(zone, &mut pcp, pages, 0);
            }
            above |= pcp.is_above_min();
        }
        above
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
