// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![expect(clippy::unwrap_used, reason = "these are tests")]

use super::*;
use crate::page_alloc::buddy::Origin;
use crate::page_alloc::{Geometry, KernelSemantics, Layout, ZoneId};

const G: Geometry = Geometry::LINUX;
const PAGES: u32 = 512;
const ALLOC: MigrateType = MigrateType::Unmovable;

/// What a pageblock consists of: a free block of this order at its beginning, so many movable pages
/// behind it, and unmovable pages.
#[derive(Clone, Copy)]
struct Block {
    mt: MigrateType,
    free: Option<u8>,
    movable: u32,
}

const FULL: Block = Block { mt: MigrateType::Movable, free: None, movable: PAGES };

/// A section whose first pageblocks are these, and the others full.
fn memory(semantics: KernelSemantics, blocks: &[Block]) -> Mm {
    let mm = Mm::new(&Layout { semantics, ..Layout::flat(G, 1, 1) });
    let zone = mm.zone(ZoneId(0));
    let mut area = zone.lock();
    while let Some(head) = mm.rmqueue(zone, &mut area, 9, MigrateType::Movable) {
        let index = (head.0 >> 9) as usize;
        let Block { mt, free, movable } = blocks.get(index).copied().unwrap_or(FULL);
        mm.set_blocks(PfnRange::block(head, 9), mt);
        let first_used = free.map_or(0, |order| 1 << order);
        for page in first_used..PAGES {
            let movable = page < first_used + movable;
            mm.set_state(head.plus(page), FrameState::Allocated { order: 0, movable });
        }
        if let Some(order) = free {
            mm.free_one(zone, &mut area, head, order, Origin::Freed);
        }
    }
    drop(area);
    mm
}

/// The pageblock that a page for `mt` comes from, and the type that this one has then.
fn taken(mm: &Mm, mt: MigrateType) -> (u32, MigrateType) {
    let zone = mm.zone(ZoneId(0));
    let pfn = mm.rmqueue(zone, &mut zone.lock(), 0, mt).unwrap();
    mm.set_state(pfn, FrameState::Allocated { order: 0, movable: mt == MigrateType::Movable });
    mm.validate().unwrap();
    (pfn.0 >> 9, mm.sections.migratetype(pfn))
}

fn today(blocks: &[Block]) -> Mm {
    memory(KernelSemantics::V6_19, blocks)
}

#[test]
fn movable_page_takes_of_the_smallest_other_block() {
    let other = |free| Block { mt: ALLOC, free: Some(free), movable: PAGES };
    let mm = today(&[other(3), other(1), other(2)]);
    assert_eq!(taken(&mm, MigrateType::Movable), (1, ALLOC));
    assert_eq!(mm.state(Pfn(PAGES + 1)).buddy_order(), Some(0), "the rest stays free");
}

/// 16 pages are half of a pageblock's order.
#[test]
fn movable_page_claims_from_half_the_order_on() {
    let other = |free, movable| Block { mt: ALLOC, free: Some(free), movable };
    let mm = today(&[other(0, PAGES), other(4, 256 - 16)]);
    assert_eq!(taken(&mm, MigrateType::Movable), (1, MigrateType::Movable));
    let mm = today(&[other(0, PAGES), other(4, 256 - 17)]);
    assert_eq!(taken(&mm, MigrateType::Movable), (0, ALLOC), "too few are free or movable");
}

#[test]
fn unmovable_page_claims_block_of_its_own_kind() {
    let movable = |free, movable| Block { mt: MigrateType::Movable, free: Some(free), movable };
    let mm = today(&[movable(0, PAGES), movable(3, 256)]);
    assert_eq!(taken(&mm, ALLOC), (1, ALLOC));
    // With one movable page more it stays movable, and so does the other.
    let mm = today(&[movable(0, PAGES), movable(3, 257)]);
    assert_eq!(taken(&mm, ALLOC), (0, MigrateType::Movable));
    // Whether used pages are reclaimable or unmovable is not known.
    let reclaimable = Block { mt: MigrateType::Reclaimable, free: Some(3), movable: 0 };
    assert_eq!(taken(&today(&[reclaimable]), ALLOC), (0, MigrateType::Reclaimable));
}

#[test]
fn largest_blocks_are_claimed_first_and_whole() {
    let mm = today(&[Block { mt: MigrateType::Reclaimable, free: Some(8), movable: 0 }]);
    let whole = Pfn(62 << 9);
    let zone = mm.zone(ZoneId(0));
    PfnRange::block(whole, 10).step(0).for_each(|pfn| mm.set_state(pfn, FrameState::Tail));
    mm.free_one(zone, &mut zone.lock(), whole, 10, Origin::Freed);
    assert_eq!(taken(&mm, ALLOC), (62, ALLOC));
    assert_eq!(mm.sections.migratetype(whole.plus(PAGES)), ALLOC);
    assert_eq!(taken(&mm, ALLOC), (62, ALLOC), "of its own list now");
}

/// What no kernel since 6.15 does.
#[test]
fn older_kernel_takes_of_the_largest_block() {
    let movable = |free| Block { mt: MigrateType::Movable, free: Some(free), movable: PAGES };
    let semantics = KernelSemantics { steal_smallest: false, ..KernelSemantics::V6_19 };
    let blocks = [movable(0), movable(3)];
    assert_eq!(taken(&memory(semantics, &blocks), ALLOC), (1, MigrateType::Movable));
    assert_eq!(taken(&today(&blocks), ALLOC), (0, MigrateType::Movable));
}

/// A section of which so many pageblocks are a reserve.
fn with_reserve(semantics: KernelSemantics, blocks: u32) -> Mm {
    let mm = Mm::new(&Layout { semantics, ..Layout::flat(G, 1, 1) });
    mm.reserve_cma(PfnRange { start: Pfn(0), end: Pfn(blocks << 9) }).unwrap();
    mm
}

#[test]
fn movable_pages_take_a_reserve_above_half_first() {
    let type_of = |mm: &Mm, mt| taken(mm, mt).1;
    let (cma, movable) = (MigrateType::Cma, MigrateType::Movable);
    let mm = with_reserve(KernelSemantics::V6_19, 32);
    // Half is not more than half.
    assert_eq!([(); 4].map(|()| type_of(&mm, movable)), [movable, cma, movable, cma]);
    let mm = with_reserve(KernelSemantics::V6_19, 40);
    assert_eq!((type_of(&mm, movable), type_of(&mm, ALLOC)), (cma, ALLOC));
    let mm = with_reserve(KernelSemantics::V5_4, 40);
    assert_eq!(type_of(&mm, movable), movable);
}

/// Many at once are the same as one after the other.
#[test]
fn bulk_takes_from_the_same_lists_as_single_pages() {
    for (reserve, order) in [(0, 0), (2, 0), (31, 3), (32, 0), (32, 2), (33, 0), (40, 1), (62, 0)] {
        let want = 9000 >> order;
        let cma_left = |bulk: bool| {
            let mm = with_reserve(KernelSemantics::V6_19, reserve);
            let zone = mm.zone(ZoneId(0));
            let mut area = zone.lock();
            let mut runs = Vec::new();
            if bulk {
                mm.rmqueue_bulk(zone, &mut area, order, MigrateType::Movable, want, &mut runs);
                assert_eq!(runs.iter().map(|run| run.pages()).sum::<u32>(), want << order);
            } else {
                for _ in 0..want {
                    mm.rmqueue(zone, &mut area, order, MigrateType::Movable).unwrap();
                }
            }
            (zone.free_cma_pages(), zone.free_pages())
        };
        assert_eq!(cma_left(true), cma_left(false), "{reserve} pageblocks, order {order}");
    }
}
