// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which free block an allocation takes (`__rmqueue`): of its own type, of the reserve for contiguous
//! allocation, or of another type.

use alloc::vec::Vec;

use super::Mm;
use super::free_area::FreeArea;
use crate::page_alloc::frame::FrameState;
use crate::page_alloc::geometry::{MigrateType, Pfn, PfnRange};
use crate::page_alloc::zone::Zone;

impl Mm {
    /// Takes a block of `order` for an allocation of type `mt` (`__rmqueue`). It is a tail until the
    /// caller sets its state: left as free, a buddy that is freed would merge with it as soon as
    /// the lock is released.
    pub(crate) fn rmqueue(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        order: u8,
        mt: MigrateType,
    ) -> Option<Pfn> {
        let reserve_first = self.takes_reserve_first(zone, mt);
        let first = if reserve_first { MigrateType::Cma } else { mt };
        let second = match (mt, reserve_first) {
            (_, true) => Some(mt),
            // Movable pages may live in the reserve for contiguous allocations.
            (MigrateType::Movable, false) => Some(MigrateType::Cma),
            _ => None,
        };
        self.rmqueue_smallest(zone, area, order, first)
            .or_else(|| self.rmqueue_smallest(zone, area, order, second?))
            .or_else(|| self.rmqueue_claim(zone, area, order, mt))
            .or_else(|| self.rmqueue_steal(zone, area, order, mt))
            .inspect(|&pfn| self.set_state(pfn, FrameState::Tail))
    }

    /// Whether more than half of what is free is the reserve: then movable pages come from there, so
    /// that it is not all that is left for the others.
    fn takes_reserve_first(&self, zone: &Zone, mt: MigrateType) -> bool {
        mt == MigrateType::Movable
            && self.semantics.balance_cma
            && zone.free_cma_pages() > zone.free_pages() / 2
    }

    fn rmqueue_smallest(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        order: u8,
        mt: MigrateType,
    ) -> Option<Pfn> {
        let (from, head) = (order..=self.geometry.max_order)
            .find_map(|from| Some((from, area.first(from, mt)?)))?;
        self.take(zone, area, head, from);
        self.expand(zone, area, head, from, order, mt);
        Some(head)
    }

    /// The list from which [`Mm::rmqueue`] would take the next blocks, and how many until it would
    /// take from another.
    fn bulk_source(&self, zone: &Zone, order: u8, mt: MigrateType) -> (MigrateType, u32) {
        let free_cma = zone.free_cma_pages();
        if mt != MigrateType::Movable || !self.semantics.balance_cma || free_cma == 0 {
            return (mt, u32::MAX);
        }
        let (twice, free) = (2 * free_cma, zone.free_pages());
        let (source, blocks) = if twice > free {
            (MigrateType::Cma, (twice - free).div_ceil(1 << order))
        } else {
            (mt, ((free - twice) >> order) + 1)
        };
        (source, u32::try_from(blocks).unwrap_or(u32::MAX))
    }

    /// Takes up to `want` blocks of `order` for a per-CPU list (`rmqueue_bulk`), and notes in `runs`
    /// where they are, tails all of them. What one by one would come from splitting the same block
    /// again and again is cut out of it at once, and to make blocks of a run is for the caller when
    /// he has let the lock go: it is held that much shorter.
    pub(crate) fn rmqueue_bulk(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        order: u8,
        mt: MigrateType,
        want: u32,
        runs: &mut Vec<PfnRange>,
    ) {
        let mut left = want;
        while left > 0 {
            let (source, most) = self.bulk_source(zone, order, mt);
            let found = (order..=self.geometry.max_order)
                .find_map(|from| Some((from, area.first(from, source)?)));
            let Some((from, head)) = found else {
                let Some(pfn) = self.rmqueue(zone, area, order, mt) else { return };
                runs.push(PfnRange::block(pfn, order));
                left -= 1;
                continue;
            };
            self.take(zone, area, head, from);
            self.set_state(head, FrameState::Tail);
            let taken = left.min(1 << (from - order)).min(most);
            let run = PfnRange { start: head, end: head.plus(taken << order) };
            runs.push(run);
            left -= taken;
            // The rest goes back as the blocks that splitting would have left.
            let rest = PfnRange { start: run.end, end: head.plus(1 << from) };
            for (block, part) in rest.blocks(from) {
                self.set_state(block, FrameState::Buddy { order: part, reported: false });
                self.link(area, block, part, source, false);
                zone.account(source, 1 << part);
            }
        }
    }

    /// Makes a pageblock of another type this one's, that of the largest free block first, and takes
    /// a block of it (`__rmqueue_claim`).
    fn rmqueue_claim(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        order: u8,
        mt: MigrateType,
    ) -> Option<Pfn> {
        // Where small movable pages are among others they do not stay, which others do
        // (`should_try_claim_block`).
        let least = match mt {
            MigrateType::Movable => order.max(self.geometry.pageblock_order / 2),
            _ => order,
        };
        for from in (least..=self.geometry.max_order).rev() {
            let found = fallback(area, from, mt);
            let Some((other, head)) = found else { continue };
            let claimed = self.try_to_claim_block(zone, area, (head, from, other), order, mt);
            if claimed.is_some() {
                return claimed;
            }
            if !self.semantics.steal_smallest {
                return Some(self.split(zone, area, (head, from, other), order));
            }
        }
        None
    }

    /// Makes the free block's pageblocks this type's, and takes a block, if enough of them is free or
    /// used as this type is (`try_to_claim_block`). Linux boosts the zone's watermarks then.
    fn try_to_claim_block(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        (head, from, other): (Pfn, u8, MigrateType),
        order: u8,
        mt: MigrateType,
    ) -> Option<Pfn> {
        let blocks = self.geometry.pageblock_order;
        if from >= blocks {
            self.take(zone, area, head, from);
            self.set_blocks(PfnRange::block(head, from), mt);
            self.expand(zone, area, head, from, order, mt);
            return Some(head);
        }
        let block = PfnRange::block(head.align_down(blocks), blocks);
        let (free, movable) = self.free_and_movable(block);
        let alike = match (mt, other) {
            (MigrateType::Movable, _) => movable,
            (_, MigrateType::Movable) => block.pages() - free - movable,
            // Which of the two types the pages are is not known.
            _ => 0,
        };
        if free + alike < block.pages() / 2 {
            return None;
        }
        self.move_buddies(zone, area, block, |mm| mm.sections.set_migratetype(block.start, mt));
        self.rmqueue_smallest(zone, area, order, mt)
    }

    /// Takes a part of the smallest free block of another type, which keeps its type
    /// (`__rmqueue_steal`).
    fn rmqueue_steal(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        order: u8,
        mt: MigrateType,
    ) -> Option<Pfn> {
        let (from, (other, head)) = (order..=self.geometry.max_order)
            .find_map(|from| Some((from, fallback(area, from, mt)?)))?;
        Some(self.split(zone, area, (head, from, other), order))
    }

    /// Takes the first part of a free block off its list, and puts the rest back.
    fn split(
        &self,
        zone: &Zone,
        area: &mut FreeArea,
        (head, from, mt): (Pfn, u8, MigrateType),
        order: u8,
    ) -> Pfn {
        self.take(zone, area, head, from);
        self.expand(zone, area, head, from, order, mt);
        head
    }

    /// How many pages of a pageblock are free, and how many are used and movable. Others are on
    /// per-CPU lists or unmovable.
    fn free_and_movable(&self, block: PfnRange) -> (u32, u32) {
        let (mut free, mut movable) = (0, 0);
        let mut pfn = block.start;
        while pfn < block.end {
            let (pages, counted) = match self.state(pfn) {
                FrameState::Buddy { order, .. } => (1 << order, Some(&mut free)),
                FrameState::Allocated { order, movable: true } => (1 << order, Some(&mut movable)),
                FrameState::Allocated { order, movable: false } => (1 << order, None),
                _ => (1, None),
            };
            if let Some(counted) = counted {
                *counted += pages;
            }
            pfn = pfn.plus(pages);
        }
        (free, movable)
    }
}

/// The first free block of `order` of the types to which `mt` falls back
/// (`find_suitable_fallback`).
fn fallback(area: &FreeArea, order: u8, mt: MigrateType) -> Option<(MigrateType, Pfn)> {
    mt.fallbacks().iter().find_map(|&other| Some((other, area.first(order, other)?)))
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
