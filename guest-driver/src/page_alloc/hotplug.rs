// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory blocks on- and offline (`mm/memory_hotplug.c`).

use core::ops::Range;
use core::sync::atomic::Ordering;

use super::Mm;
use super::buddy::Origin;
use super::frame::FrameState;
use super::geometry::{MigrateType, Pfn, PfnRange};
use super::isolation::IsolateMode;
use super::section::Zones;
use super::zone::ZoneId;
use crate::sync;

/// Moves the contents of pages in use out of the way. Whoever allocates movable pages implements
/// it, since only the user of a page knows what points to it.
pub trait MovePages: Sync {
    /// Moves the block of `order` at `from` elsewhere: allocates another, copies, makes the user
    /// use that one, and frees `from`. False if that was not possible now.
    fn move_pages(&self, mm: &Mm, from: Pfn, order: u8, owner: Option<u32>) -> bool;
}

/// Why memory was not taken offline; Linux's error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfflineError {
    /// `-EINVAL`: not a memory block that is online and of one zone.
    #[error("not an online memory block of one zone")]
    Invalid,
    /// `-EBUSY`: another isolator holds part of it, or something in it cannot be moved.
    #[error("device or resource busy")]
    Busy,
    /// `-EINTR`: the caller gave up. Without that it is tried until it succeeds.
    #[error("interrupted")]
    Interrupted,
}

impl Mm {
    /// Gives a section that is not present to a zone (`arch_add_memory`); it is offline. One that is
    /// present keeps its zone.
    pub fn add_section(&self, section: usize, zone: ZoneId) {
        let _hotplug = self.lock_hotplug();
        self.sections.add(section, self.one_zone(zone));
    }

    pub(super) fn one_zone(&self, zone: ZoneId) -> Zones {
        Zones { first: zone, second: zone, boundary: self.geometry.section_pages() }
    }

    /// Removes an offline section (`arch_remove_memory`): it is as if it had never been added, and may
    /// be added again, to any zone.
    ///
    /// # Errors
    /// [`OfflineError::Invalid`] if it is not present, [`OfflineError::Busy`] if it is online.
    pub fn remove_section(&self, index: usize) -> Result<(), OfflineError> {
        let _hotplug = self.lock_hotplug();
        let section = self.sections.get(index).ok_or(OfflineError::Invalid)?;
        if section.is_online() {
            return Err(OfflineError::Busy);
        }
        if let Some(zone) = section.first_zone() {
            // A reader that holds the lock of a frame's zone may rely on it.
            let _area = self.zone(zone).lock();
            self.sections.remove(section);
        }
        if let Some(hook) = self.hook() {
            hook.section_removed(index);
        }
        Ok(())
    }

    /// The sections of a memory block, their frames and their zone, if it has one and each section is
    /// present and on- or offline, as `online` says.
    fn of_one_zone(&self, block: usize, online: bool) -> Option<(Range<usize>, PfnRange, ZoneId)> {
        let sections = self.geometry.memory_block(block);
        let zone = self.sections.only_zone(sections.start)?;
        let fits =
            |index| self.sections.only_zone(index) == Some(zone) && self.is_online(index) == online;
        let range = PfnRange {
            start: self.geometry.section_range(sections.start).start,
            end: self.geometry.section_range(sections.end - 1).end,
        };
        sections.clone().all(fits).then_some((sections, range, zone))
    }

    /// Takes a memory block online (`online_pages`). All of it is free then, and nothing of it
    /// reported.
    ///
    /// Its pages are isolated while they are freed, and only afterwards left to the allocator. Others may
    /// come in between, and find pageblocks of another isolator.
    ///
    /// # Errors
    /// [`OfflineError::Invalid`] if a section of it is missing or online already, or they are of two
    /// zones.
    pub fn online_block(&self, block: usize) -> Result<(), OfflineError> {
        let _hotplug = self.lock_hotplug();
        let (sections, range, zone) =
            self.of_one_zone(block, false).ok_or(OfflineError::Invalid)?;
        let isolated = self.semantics.isolate_on_online;
        let first = self.zone(zone).managed_pages() == 0;
        self.move_range_to_zone(zone, range, isolated);
        // Also while it is turned off: what is online when it is turned on is marked.
        if let Some(hook) = self.hook() {
            sections.clone().for_each(|section| hook.section_going_online(section));
        }
        self.online_pages_range(zone, range);
        self.set_online(sections.clone(), true);
        if first {
            // Before a page of the zone can be allocated.
            self.rebuild_zonelists();
        }
        if isolated {
            self.undo_isolate_page_range(range, Some(MigrateType::Movable));
        }
        self.set_watermarks();
        // A reporter that turns the hook on looks for online sections afterwards.
        if let Some(hook) = self.hook().filter(|_| self.is_hook_on()) {
            sections.for_each(|section| hook.section_online(section));
        }
        Ok(())
    }

    /// Frees all pages of a section that is there when the guest boots: none of its pageblocks is
    /// isolated.
    pub(crate) fn online_at_boot(&self, index: usize) {
        for (zone, range) in self.sections.by_zone(index) {
            self.move_range_to_zone(zone, range, false);
            self.online_pages_range(zone, range);
        }
        self.set_online(index..index + 1, true);
    }

    fn set_online(&self, sections: Range<usize>, online: bool) {
        let all = sections.filter_map(|index| self.sections.get(index));
        all.for_each(|section| section.set_online(online));
    }

    /// Makes the pageblocks of `range` movable ones, `isolated` or not (`move_pfn_range_to_zone`). The
    /// frames stay absent.
    fn move_range_to_zone(&self, zone: ZoneId, range: PfnRange, isolated: bool) {
        let zone = self.zone(zone);
        let _area = zone.lock();
        for block in range.step(self.geometry.pageblock_order) {
            self.sections.set_migratetype(block, MigrateType::Movable);
            if isolated {
                self.mark_isolated(zone, block, true);
            }
        }
    }

    /// Frees the absent pages of `range`, a block of the largest order at a time
    /// (`online_pages_range`, `__free_pages_core`).
    fn online_pages_range(&self, zone: ZoneId, range: PfnRange) {
        let zone = self.zone(zone);
        let order = self.geometry.max_order;
        // By pageblocks, as everything larger is freed (`split_large_buddy`).
        let part = order.min(self.geometry.pageblock_order);
        let tail = self.semantics.isolate_on_online;
        let origin = if tail { Origin::Onlined } else { Origin::Freed };
        for head in range.step(order) {
            zone.managed.fetch_add(1 << order, Ordering::Relaxed);
            // A CPU that has looked at the section before it went offline must find its frames absent or
            // free, and not isolate what is neither.
            let mut area = zone.lock();
            let block = PfnRange::block(head, order);
            block.step(0).for_each(|pfn| self.set_state(pfn, FrameState::Tail));
            for pfn in block.step(part) {
                self.free_one(zone, &mut area, pfn, part, origin);
            }
        }
    }

    /// Takes a memory block offline (`offline_pages`), with the contents of its pages in use moved
    /// by `movers`. Tries until it succeeds, as Linux does, or `give_up` says so.
    ///
    /// # Errors
    /// [`OfflineError`]; everything is as before then.
    pub fn offline_block(
        &self,
        block: usize,
        movers: &dyn MovePages,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(), OfflineError> {
        let _hotplug = self.lock_hotplug();
        let (sections, range, zone) = self.of_one_zone(block, true).ok_or(OfflineError::Invalid)?;
        if self.semantics.disable_pcp_for_offline {
            self.pcp_disable(zone);
        }
        let result = self
            .start_isolate_page_range(range, IsolateMode::MemOffline)
            .map_err(|_| OfflineError::Busy)
            .and_then(|()| {
                let emptied = self.empty_range(zone, range, movers, give_up);
                if emptied.is_err() {
                    self.undo_isolate_page_range(range, Some(MigrateType::Movable));
                }
                emptied
            });
        if result.is_ok() {
            self.remove_offline(zone, sections, range);
        }
        if self.semantics.disable_pcp_for_offline {
            self.pcp_enable(zone);
        }
        if result.is_ok() {
            self.set_watermarks();
            if self.zone(zone).managed_pages() == 0 {
                self.rebuild_zonelists();
            }
        }
        result
    }

    /// Moves what is in use out of an isolated range until all of it is free.
    fn empty_range(
        &self,
        zone: ZoneId,
        range: PfnRange,
        movers: &dyn MovePages,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(), OfflineError> {
        loop {
            if give_up() {
                return Err(OfflineError::Interrupted);
            }
            if !self.migrate_range(range, movers) {
                return Err(OfflineError::Busy);
            }
            if self.test_pages_isolated(range).is_ok() {
                return Ok(());
            }
            if self.semantics.drain_on_offline_retry {
                self.drain_all(zone);
            }
            sync::yield_now();
        }
    }

    /// Has every block in use in `range` moved, as far as that is possible now
    /// (`do_migrate_range`); false if one is there that can never be moved.
    fn migrate_range(&self, range: PfnRange, movers: &dyn MovePages) -> bool {
        let mut pfn = range.start;
        while pfn < range.end {
            match self.state(pfn) {
                FrameState::Allocated { movable: false, .. } => return false,
                FrameState::Allocated { order, movable: true } => {
                    let owner = self.sections.frame(pfn).and_then(super::Frame::owner);
                    movers.move_pages(self, pfn, order, owner);
                    pfn = pfn.plus(1 << order);
                }
                FrameState::Buddy { order, .. } => pfn = pfn.plus(1 << order),
                _ => pfn = pfn.plus(1),
            }
        }
        true
    }

    /// Takes the free pages of an isolated range away from the allocator
    /// (`__offline_isolated_pages`), and ends its sections for all that remember something of them.
    fn remove_offline(&self, zone: ZoneId, sections: Range<usize>, range: PfnRange) {
        let zone = self.zone(zone);
        let mut area = zone.lock();
        for (head, order) in self.buddies_in(range) {
            self.take(zone, &mut area, head, order);
        }
        for pfn in range.step(0) {
            self.set_state(pfn, FrameState::Absent);
        }
        self.forget_zero(range, false);
        for block in range.step(self.geometry.pageblock_order) {
            self.sections.set_isolated(block, false);
            zone.isolated_blocks.fetch_sub(1, Ordering::Relaxed);
        }
        zone.managed.fetch_sub(u64::from(range.pages()), Ordering::Relaxed);
        // Still under the lock, under which marks are set: none can follow.
        self.set_online(sections.clone(), false);
        if let Some(hook) = self.hook() {
            sections.for_each(|section| hook.section_offline(section));
        }
    }
}
