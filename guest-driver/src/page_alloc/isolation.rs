// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page isolation: pageblocks whose free pages are withheld from allocation (`mm/page_isolation.c`).

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::Mm;
use super::buddy::Origin;
use super::buddy::free_area::FreeArea;
use super::frame::FrameState;
use super::geometry::{MigrateType, Pfn, PfnRange};
use super::zone::{Zone, ZoneId, ZoneType};

/// Another holder has the pages, or they cannot be isolated (`-EBUSY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device or resource busy")]
pub struct Busy;

/// What a range is isolated for (`enum pb_isolate_mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IsolateMode {
    /// To take it offline.
    MemOffline,
    /// For a contiguous allocation from the CMA reserve.
    CmaAlloc,
    /// Anything else.
    Other,
    /// To report it. Free pages of the CMA reserve may be reported, for which Linux has no mode.
    Report,
}

impl IsolateMode {
    /// What the isolated pageblocks are taken for by kernels that forget what they were.
    pub(super) fn migratetype(self) -> MigrateType {
        match self {
            Self::CmaAlloc => MigrateType::Cma,
            Self::MemOffline | Self::Other | Self::Report => MigrateType::Movable,
        }
    }
}

impl Mm {
    /// Isolates every pageblock of `range`, or none (`start_isolate_page_range`).
    ///
    /// # Errors
    /// [`Busy`] if one of them is isolated already or holds a page that cannot be moved, or if they are
    /// not all of one zone.
    pub fn start_isolate_page_range(&self, range: PfnRange, mode: IsolateMode) -> Result<(), Busy> {
        let zone = self.zone_of(range.start);
        if range.step(self.geometry.pageblock_order).any(|block| self.zone_of(block) != zone) {
            return Err(Busy);
        }
        for block in range.step(self.geometry.pageblock_order) {
            if let Err(busy) = self.isolate_pageblock(block, mode) {
                let done = PfnRange { start: range.start, end: block };
                self.undo_isolate_page_range(done, Some(mode.migratetype()));
                return Err(busy);
            }
        }
        Ok(())
    }

    /// Ends the isolation of every pageblock of `range` (`undo_isolate_page_range`), each under the zone's
    /// lock by itself. Kernels without a standalone isolate bit have forgotten what the blocks were, and
    /// make them `migratetype`.
    pub fn undo_isolate_page_range(&self, range: PfnRange, migratetype: Option<MigrateType>) {
        for block in range.step(self.geometry.pageblock_order) {
            if let Some((id, mut area)) = self.lock_zone_of(block) {
                let zone = self.zone(id);
                self.unisolate_pageblock(zone, &mut area, block, migratetype, Origin::Undone);
            }
        }
    }

    /// Ends the isolation of `range`, all of it free and reported; nothing in it needs reporting now. With
    /// `flag` the free blocks that lie whole within it are flagged as reported.
    ///
    /// All of it is under the lock at once. Between two pageblocks a CPU could take one and free it again,
    /// too small to be seen by the [`FreeHook`](super::FreeHook), and it would merge with the other here.
    pub(crate) fn undo_reported(&self, range: PfnRange, flag: bool) {
        let Some((id, mut area)) = self.lock_zone_of(range.start) else { return };
        let (zone, movable) = (self.zone(id), Some(MigrateType::Movable));
        for block in range.step(self.geometry.pageblock_order) {
            self.unisolate_pageblock(zone, &mut area, block, movable, Origin::PutBack);
        }
        for (head, order) in if flag { self.buddies_in(range) } else { Vec::new() } {
            if head.plus(1 << order) <= range.end {
                self.set_state(head, FrameState::Buddy { order, reported: true });
            }
        }
    }

    /// Whether every page of `range` is free and isolated (`test_pages_isolated`). Nothing can
    /// leave the free lists then.
    ///
    /// # Errors
    /// [`Busy`] if one is not.
    pub fn test_pages_isolated(&self, range: PfnRange) -> Result<(), Busy> {
        let blocks = self.geometry.pageblock_order;
        if range.step(blocks).any(|block| !self.is_isolated(block)) {
            return Err(Busy);
        }
        let (_, _area) = self.lock_zone_of(range.start).ok_or(Busy)?;
        let mut pfn = range.start;
        while pfn < range.end {
            // The first may lie within a block that begins before the range.
            let (head, order) = match self.state(pfn).buddy_order() {
                Some(order) => (pfn, order),
                None if pfn == range.start => self.buddy_around(pfn).ok_or(Busy)?,
                None => return Err(Busy),
            };
            pfn = head.plus(1 << order);
        }
        Ok(())
    }

    /// Whether the pageblock of this frame is isolated; it was true a moment ago.
    pub fn is_isolated(&self, pfn: Pfn) -> bool {
        self.sections.migratetype(pfn) == MigrateType::Isolate
    }

    /// `set_migratetype_isolate`.
    fn isolate_pageblock(&self, block: Pfn, mode: IsolateMode) -> Result<(), Busy> {
        let zone = {
            let (id, mut area) = self.lock_zone_of(block).ok_or(Busy)?;
            let zone = self.zone(id);
            if self.semantics.refuse_double_isolation && self.is_isolated(block) {
                return Err(Busy);
            }
            let range = PfnRange::block(block, self.geometry.pageblock_order);
            if self.has_unmovable_pages(zone, range, mode) {
                return Err(Busy);
            }
            self.split_straddling(zone, &mut area, block, true);
            if !self.is_isolated(block) {
                self.move_buddies(zone, &mut area, range, |mm| mm.mark_isolated(zone, block, true));
            }
            id
        };
        if self.semantics.drain_on_isolate {
            self.drain_all(zone);
        }
        Ok(())
    }

    /// Sets or clears the isolate bit of a block and books it.
    pub(super) fn mark_isolated(&self, zone: &Zone, block: Pfn, isolated: bool) {
        self.sections.set_isolated(block, isolated);
        let delta = if isolated { 1 } else { -1 };
        let blocks = zone.isolated_blocks.load(Ordering::Relaxed).wrapping_add_signed(delta);
        zone.isolated_blocks.store(blocks, Ordering::Relaxed);
    }

    /// If `block` lies within a free block larger than a pageblock, takes that apart, sets or
    /// clears the isolate bit of `block`, and frees the parts again, each to its own list
    /// (`pageblock_isolate_and_move_free_pages`, `split_large_buddy`).
    fn split_straddling(&self, zone: &Zone, area: &mut FreeArea, block: Pfn, isolate: bool) {
        if !self.semantics.split_straddling_buddy {
            return;
        }
        let Some((head, order)) =
            self.buddy_around(block).filter(|&(_, order)| order > self.geometry.pageblock_order)
        else {
            return;
        };
        self.take(zone, area, head, order);
        self.set_state(head, FrameState::Tail);
        self.mark_isolated(zone, block, isolate);
        let part = self.geometry.pageblock_order;
        for pfn in PfnRange::block(head, order).step(part) {
            self.free_one(zone, area, pfn, part, Origin::Moved);
        }
    }

    /// `unset_migratetype_isolate`.
    fn unisolate_pageblock(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        block: Pfn,
        migratetype: Option<MigrateType>,
        origin: Origin,
    ) {
        if !self.is_isolated(block) {
            return;
        }
        let order = self.geometry.pageblock_order;
        if let (false, Some(mt)) = (self.semantics.standalone_isolate_bit, migratetype) {
            // Beneath the isolate bit, so that no list changes yet.
            self.sections.set_migratetype(block, mt);
        }
        // A whole free pageblock whose buddy is free and not isolated merges with it again.
        let buddy = block.buddy(order);
        let merges = order < self.geometry.max_order
            && self.state(block).buddy_order() == Some(order)
            && self.state(buddy).buddy_order() == Some(order)
            && !self.is_isolated(buddy);
        if merges {
            self.take(zone, area, block, order);
            self.mark_isolated(zone, block, false);
            self.free_one(zone, area, block, order, origin);
            return;
        }
        self.split_straddling(zone, area, block, false);
        if self.is_isolated(block) {
            let range = PfnRange::block(block, order);
            self.move_buddies(zone, area, range, |mm| mm.mark_isolated(zone, block, false));
            self.check_recovery(zone);
        }
    }

    /// Whether something in a pageblock stands in the way for good (`has_unmovable_pages`). A page
    /// that is neither free nor in use, on a per-CPU list or held by the reporter, does not: its
    /// reference count is zero.
    fn has_unmovable_pages(&self, zone: &Zone, range: PfnRange, mode: IsolateMode) -> bool {
        let cma = self.sections.underlying_migratetype(range.start) == MigrateType::Cma;
        if cma && !matches!(mode, IsolateMode::CmaAlloc | IsolateMode::Report) {
            return true;
        }
        let mut pfn = range.start;
        // The first page may be a tail of a larger block in use: Linux looks at the folio's head.
        if let Some((head, order, movable)) = self.in_use_around(pfn) {
            if !movable && zone.kind == ZoneType::Normal {
                return true;
            }
            pfn = head.plus(1 << order);
        }
        while pfn < range.end {
            let pages = match self.state(pfn) {
                FrameState::Absent => return true,
                FrameState::Allocated { movable: false, .. } if zone.kind == ZoneType::Normal => {
                    return true;
                }
                FrameState::Tail => 1,
                FrameState::Buddy { order, .. }
                | FrameState::Pcp { order }
                | FrameState::Held { order }
                | FrameState::Allocated { order, .. } => 1 << order,
            };
            pfn = pfn.plus(pages);
        }
        false
    }

    /// The block in use of which `pfn` is a tail: its head, its order, and whether it can be moved.
    fn in_use_around(&self, pfn: Pfn) -> Option<(Pfn, u8, bool)> {
        if self.state(pfn) != FrameState::Tail {
            return None;
        }
        let heads = (1..=self.geometry.max_order).map(|order| (pfn.align_down(order), order));
        heads.filter(|&(head, _)| head != pfn).find_map(|(head, least)| match self.state(head) {
            FrameState::Allocated { order, movable } if order >= least => {
                Some((head, order, movable))
            }
            _ => None,
        })
    }

    /// Takes a free block off its list for the reporter, if the zone can spare it
    /// (`__isolate_free_page`): the other way to hold pages, mainline's.
    pub(crate) fn isolate_free_page(
        &self,
        zone: ZoneId,
        area: &mut FreeArea,
        head: Pfn,
        order: u8,
    ) -> bool {
        let zone = self.zone(zone);
        if self.sections.migratetype(head) == MigrateType::Isolate
            || !zone.watermark_ok(0, zone.watermarks().min + (1 << order), true)
        {
            return false;
        }
        self.take(zone, area, head, order);
        self.set_state(head, FrameState::Held { order });
        if order >= self.geometry.pageblock_order.saturating_sub(1) {
            // As in Linux, whose pulled blocks come back as movable ones, what else is free in their
            // pageblocks included. That looks at each frame, whether or not there is something to move.
            let pageblock = self.geometry.pageblock_order;
            for part in PfnRange::block(head, order).step(pageblock) {
                let block = PfnRange::block(part.align_down(pageblock), pageblock);
                if self.sections.underlying_migratetype(block.start).is_mergeable() {
                    self.move_buddies(zone, area, block, |mm| {
                        mm.sections.set_migratetype(block.start, MigrateType::Movable);
                    });
                }
            }
        }
        true
    }

    /// The same for the part of `order` at `part` alone of a block, given by its head and order. The rest
    /// stays free.
    pub(crate) fn isolate_free_part(
        &self,
        zone: ZoneId,
        area: &mut FreeArea,
        (head, of): (Pfn, u8),
        part: Pfn,
        order: u8,
    ) -> bool {
        if !self.isolate_free_page(zone, area, head, of) {
            return false;
        }
        // It is held before the rest is freed, which cannot merge with it then.
        self.set_state(head, FrameState::Tail);
        self.set_state(part, FrameState::Held { order });
        for rest in PfnRange::block(head, of).step(order).filter(|&rest| rest != part) {
            self.free_one(self.zone(zone), area, rest, order, Origin::PutBack);
        }
        true
    }

    /// Puts a held block back (`__putback_isolated_page`), and marks it reported if it was and has
    /// not merged.
    pub(crate) fn putback_isolated_page(
        &self,
        zone: ZoneId,
        area: &mut FreeArea,
        head: Pfn,
        order: u8,
        reported: bool,
    ) {
        let part = match self.semantics.putback_by_pageblock {
            true => order.min(self.geometry.pageblock_order),
            false => order,
        };
        for pfn in PfnRange::block(head, order).step(part) {
            self.free_one(self.zone(zone), area, pfn, part, Origin::PutBack);
        }
        if reported && self.state(head).buddy_order() == Some(order) {
            self.set_state(head, FrameState::Buddy { order, reported: true });
        }
    }
}
