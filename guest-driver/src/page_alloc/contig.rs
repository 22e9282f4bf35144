// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Contiguous allocation (`alloc_contig_range`).

use super::Mm;
use super::buddy::Origin;
use super::frame::FrameState;
use super::geometry::{MigrateType, PfnRange};
use super::hotplug::MovePages;
use super::isolation::{Busy, IsolateMode};

/// How often a block in use is moved before it is given up.
const TRIES: usize = 5;

impl Mm {
    /// Allocates exactly the pages of `range`, which is made of whole pageblocks, with the contents
    /// of those in use moved by `movers`.
    ///
    /// # Errors
    /// [`Busy`] if another isolator holds part of it, or part of it is not free after what is in use was
    /// moved; everything is as before then. Linux looks once, and callers try later or elsewhere.
    pub fn alloc_contig_range(
        &self,
        range: PfnRange,
        mode: IsolateMode,
        movers: &dyn MovePages,
    ) -> Result<(), Busy> {
        let zone = self.zone_of(range.start).ok_or(Busy)?;
        self.start_isolate_page_range(range, mode)?;
        self.drain_all(zone);
        self.migrate_for_contig(range, movers);
        let result = self.test_pages_isolated(range).and_then(|()| self.take_range(range));
        self.undo_isolate_page_range(range, Some(mode.migratetype()));
        result
    }

    /// Has the blocks in use in `range` moved, and ends at the first that no try has moved
    /// (`__alloc_contig_migrate_range`). Whether that was enough is for the test to say.
    fn migrate_for_contig(&self, range: PfnRange, movers: &dyn MovePages) {
        let mut pfn = range.start;
        while pfn < range.end {
            let state = self.state(pfn);
            let pages = match state {
                FrameState::Allocated { order, movable: true } => {
                    let owner = self.sections.frame(pfn).and_then(super::Frame::owner);
                    let mut tries = 0..TRIES;
                    // It may be freed by its user meanwhile, too.
                    if !tries.any(|_| {
                        movers.move_pages(self, pfn, order, owner) || self.state(pfn) != state
                    }) {
                        return;
                    }
                    1 << order
                }
                FrameState::Buddy { order, .. } => 1 << order,
                _ => 1,
            };
            pfn = pfn.plus(pages);
        }
    }

    /// Makes the pageblocks of `range` a reserve for contiguous allocations, in which others may
    /// have no more than movable pages (`cma_init_reserved_areas`).
    ///
    /// # Errors
    /// [`Busy`] if they are not free.
    pub fn reserve_cma(&self, range: PfnRange) -> Result<(), Busy> {
        let zone = self.zone_of(range.start).ok_or(Busy)?;
        self.start_isolate_page_range(range, IsolateMode::Other)?;
        let free = self.test_pages_isolated(range);
        if free.is_ok() {
            let _area = self.zone(zone).lock();
            for block in range.step(self.geometry.pageblock_order) {
                // Beneath the isolate bit: no list changes before that is cleared.
                self.sections.set_migratetype(block, MigrateType::Cma);
            }
        }
        let migratetype = if free.is_ok() { MigrateType::Cma } else { MigrateType::Movable };
        self.undo_isolate_page_range(range, Some(migratetype));
        free
    }

    /// Takes the free pages of an isolated range. A free block may reach beyond it, into what
    /// another isolator holds; that part is put back.
    fn take_range(&self, range: PfnRange) -> Result<(), Busy> {
        let zone = self.zone(self.zone_of(range.start).ok_or(Busy)?);
        let mut area = zone.lock();
        let blocks = self.geometry.pageblock_order;
        let mut pfn = range.start;
        while pfn < range.end {
            let Some((head, order)) = self.buddy_around(pfn) else {
                // Isolated and tested: it cannot have been taken.
                unreachable!("an isolated free page is gone at {pfn:?}");
            };
            self.take(zone, &mut area, head, order);
            self.set_state(head, FrameState::Tail);
            for outside in PfnRange::block(head, order).step(blocks.min(order)) {
                if !range.contains(outside) {
                    self.free_one(zone, &mut area, outside, blocks.min(order), Origin::Moved);
                }
            }
            pfn = head.plus(1 << order);
        }
        self.forget_zero(range, false);
        for block in range.step(blocks) {
            let state = FrameState::Allocated { order: blocks, movable: false };
            self.set_state(block, state);
        }
        Ok(())
    }

    /// Frees what [`Mm::alloc_contig_range`] has allocated (`free_contig_range`).
    pub fn free_contig_range(&self, cpu: usize, range: PfnRange) {
        for block in range.step(self.geometry.pageblock_order) {
            self.free(cpu, block);
        }
    }
}
