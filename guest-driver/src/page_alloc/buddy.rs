// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Free lists by order and migratetype, splitting and merging. Everything here is under the zone's
//! lock.

pub(crate) mod free_area;
mod rmqueue;

use alloc::vec::Vec;

use free_area::{FreeArea, List};

use super::Mm;
use super::frame::FrameState;
use super::geometry::{MigrateType, Pfn, PfnRange};
use super::hook::InstalledHook;
use super::zone::Zone;

/// Why a block is put on a free list (`fpi_t`, in effect).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was in use and is freed.
    Freed,
    /// It has come online (`FPI_TO_TAIL`).
    Onlined,
    /// Isolation split or moved it (`FPI_NONE` in Linux, which notifies page reporting as well).
    Moved,
    /// The reporter puts it back (`FPI_SKIP_REPORT_NOTIFY | FPI_TO_TAIL`).
    PutBack,
    /// The isolation of another than the reporter ends, and it merges again. In Linux it is put back as
    /// by the reporter.
    Undone,
}

impl Mm {
    /// Puts a free block on its list. The frame's state is set by the caller.
    fn link(&self, area: &mut FreeArea, head: Pfn, order: u8, mt: MigrateType, to_tail: bool) {
        let list = &mut area.lists[usize::from(order)][mt as usize];
        let Some(frame) = self.sections.frame(head) else { return };
        if to_tail {
            frame.set_prev(list.tail);
            frame.set_next(None);
            match list.tail.replace(head).and_then(|old| self.sections.frame(old)) {
                Some(old) => old.set_next(Some(head)),
                None => list.head = Some(head),
            }
        } else {
            frame.set_next(list.head);
            frame.set_prev(None);
            match list.head.replace(head).and_then(|old| self.sections.frame(old)) {
                Some(old) => old.set_prev(Some(head)),
                None => list.tail = Some(head),
            }
        }
        area.nr_free[usize::from(order)] += 1;
    }

    fn unlink(&self, area: &mut FreeArea, head: Pfn, order: u8, mt: MigrateType) {
        let list = &mut area.lists[usize::from(order)][mt as usize];
        let Some(frame) = self.sections.frame(head) else { return };
        let (next, prev) = (frame.next(), frame.prev());
        match prev.and_then(|prev| self.sections.frame(prev)) {
            Some(prev) => prev.set_next(next),
            None => list.head = next,
        }
        match next.and_then(|next| self.sections.frame(next)) {
            Some(next) => next.set_prev(prev),
            None => list.tail = prev,
        }
        area.nr_free[usize::from(order)] -= 1;
    }

    pub(crate) fn set_state(&self, pfn: Pfn, state: FrameState) {
        if let Some(frame) = self.sections.frame(pfn) {
            frame.set_state(state);
        }
    }

    /// Every block of a list, first to last; more than there is memory for if it has become a ring.
    pub(crate) fn list(&self, area: &FreeArea, order: u8, mt: MigrateType) -> Vec<Pfn> {
        let mut at = area.first(order, mt);
        let most = self.section_count() << (self.geometry.section_order - order);
        core::iter::from_fn(|| {
            let pfn = at?;
            at = self.sections.frame(pfn).and_then(super::frame::Frame::next);
            Some(pfn)
        })
        .take(most + 1)
        .collect()
    }

    /// Takes a free block off its list (`__del_page_from_free_list`); the caller sets its
    /// new state.
    pub(crate) fn take(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        head: Pfn,
        order: u8,
    ) -> MigrateType {
        let mt = self.sections.migratetype(head);
        self.unlink(area, head, order, mt);
        zone.account(mt, -(1 << order));
        mt
    }

    /// Frees the block of `order` at `pfn` and merges it with its buddies (`__free_one_page`).
    pub(crate) fn free_one(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        mut pfn: Pfn,
        mut order: u8,
        origin: Origin,
    ) {
        let mt = self.sections.migratetype(pfn);
        let freed = PfnRange::block(pfn, order);
        zone.account(mt, 1 << order);
        while order < self.geometry.max_order {
            let buddy = pfn.buddy(order);
            if self.state(buddy).buddy_order() != Some(order) {
                break;
            }
            if order >= self.geometry.pageblock_order {
                let other = self.sections.migratetype(buddy);
                if other != mt {
                    if !(mt.is_mergeable() && other.is_mergeable()) {
                        break;
                    }
                    // Counted as free either way, so only the list changes.
                    self.unlink(area, buddy, order, other);
                    self.set_blocks(PfnRange::block(buddy, order), mt);
                    self.link(area, buddy, order, mt, false);
                }
            }
            self.unlink(area, buddy, order, mt);
            let head = pfn.min(buddy);
            self.set_state(pfn.max(buddy), FrameState::Tail);
            pfn = head;
            order += 1;
        }
        let hook = self.hook_for(pfn, order);
        if let (Origin::Freed | Origin::Onlined, Some(installed)) =
            (origin, hook.filter(|hook| hook.listens_before))
        {
            installed.hook.before_insert(pfn, order);
        }
        self.set_state(pfn, FrameState::Buddy { order, reported: false });
        let to_tail = match origin {
            Origin::Freed | Origin::Moved => self.merge_is_likely(pfn, order),
            Origin::Onlined | Origin::PutBack | Origin::Undone => true,
        };
        self.link(area, pfn, order, mt, to_tail);
        match (origin, hook) {
            (Origin::Freed | Origin::Onlined, Some(installed)) => {
                installed.hook.after_insert(pfn, order, freed);
            }
            (Origin::Undone, Some(InstalledHook { hook, .. }))
                if freed.pages() < 1 << hook.order() =>
            {
                // What it has merged with beyond that was seen when it was freed.
                hook.merged(freed.start.align_down(hook.order()), hook.order());
            }
            (Origin::Moved, Some(installed)) => installed.hook.moved(pfn, order),
            _ => {}
        }
        self.check_recovery(zone);
    }

    /// Whether the next larger buddy is free: then this block will soon be needed to merge, and is
    /// better handed out last (`buddy_merge_likely`).
    fn merge_is_likely(&self, pfn: Pfn, order: u8) -> bool {
        if order + 1 >= self.geometry.max_order {
            return false;
        }
        let larger = pfn.align_down(order + 1).buddy(order + 1);
        self.state(larger).buddy_order() == Some(order + 1)
    }

    fn set_blocks(&self, range: PfnRange, mt: MigrateType) {
        for block in range.step(self.geometry.pageblock_order) {
            self.sections.set_migratetype(block, mt);
        }
    }

    /// Cuts a block that was taken off its list down to `order` and puts the rest back (`expand`).
    fn expand(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        head: Pfn,
        from: u8,
        order: u8,
        mt: MigrateType,
    ) {
        for high in (order..from).rev() {
            let half = head.plus(1 << high);
            self.set_state(half, FrameState::Buddy { order: high, reported: false });
            self.link(area, half, high, mt, false);
            zone.account(mt, 1 << high);
        }
    }

    /// The free blocks that begin in `range`.
    pub(crate) fn buddies_in(&self, range: PfnRange) -> Vec<(Pfn, u8)> {
        let mut found = Vec::new();
        let mut pfn = range.start;
        while pfn < range.end {
            match self.state(pfn).buddy_order() {
                Some(order) => {
                    found.push((pfn, order));
                    pfn = pfn.plus(1 << order);
                }
                None => pfn = pfn.plus(1),
            }
        }
        found
    }

    /// Moves the free blocks that begin in `block` to the list of the type that `change` gives it
    /// (`move_freepages_block`). A block that was reported stays so. Returns the pages moved.
    pub(crate) fn move_buddies(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        block: PfnRange,
        change: impl FnOnce(&Self),
    ) -> u32 {
        let buddies = self.buddies_in(block);
        for &(head, order) in &buddies {
            self.take(zone, area, head, order);
        }
        change(self);
        for &(head, order) in &buddies {
            let mt = self.sections.migratetype(head);
            self.link(area, head, order, mt, true);
            zone.account(mt, 1 << order);
        }
        buddies.iter().map(|&(_, order)| 1u32 << order).sum()
    }

    /// The free block that holds `pfn`, if there is one and `pfn`'s zone is locked.
    pub(crate) fn buddy_around(&self, pfn: Pfn) -> Option<(Pfn, u8)> {
        (0..=self.geometry.max_order).find_map(|order| {
            let head = pfn.align_down(order);
            let found = self.state(head).buddy_order()?;
            (found >= order).then_some((head, found))
        })
    }

    /// The free block of `pfn` if it is flagged as reported; by a look without a lock.
    pub(crate) fn reported_block(&self, pfn: Pfn) -> Option<PfnRange> {
        let (head, order) = self.buddy_around(pfn)?;
        let flagged = self.state(head) == (FrameState::Buddy { order, reported: true });
        flagged.then(|| PfnRange::block(head, order))
    }

    /// The block behind this one on its list. Under the zone's lock.
    pub(crate) fn next_free(&self, pfn: Pfn) -> Option<Pfn> {
        self.sections.frame(pfn).and_then(super::frame::Frame::next)
    }

    /// Turns a list until `first` is its first (`list_rotate_to_front`).
    pub(crate) fn rotate_to(&self, area: &mut FreeArea, order: u8, mt: MigrateType, first: Pfn) {
        let list = &mut area.lists[usize::from(order)][mt as usize];
        let frame = |pfn: Option<Pfn>| pfn.and_then(|pfn| self.sections.frame(pfn));
        let Some(last) = frame(Some(first)).and_then(super::Frame::prev) else { return };
        let (Some(head), Some(tail)) = (frame(list.head), frame(list.tail)) else { return };
        tail.set_next(list.head);
        head.set_prev(list.tail);
        *list = List { head: Some(first), tail: Some(last) };
        if let (Some(first), Some(last)) = (frame(Some(first)), frame(Some(last))) {
            first.set_prev(None);
            last.set_next(None);
        }
    }
}
