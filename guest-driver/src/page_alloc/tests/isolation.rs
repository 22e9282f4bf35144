// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Isolation, by the rules of old kernels too.

use super::*;

#[test]
fn isolated_half_of_a_buddy_splits_and_merges_again() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let zone = mm.zone(ZoneId(0));
    for odd in [0, 1] {
        let before = zone.free_pages();
        mm.start_isolate_page_range(block(odd), IsolateMode::Report).unwrap();
        mm.validate().unwrap();
        assert_eq!(zone.free_pages(), before - 512);
        assert_eq!(mm.start_isolate_page_range(block(odd), IsolateMode::Other), Err(Busy));
        mm.test_pages_isolated(block(odd)).unwrap();
        assert_eq!(mm.test_pages_isolated(block(odd ^ 1)), Err(Busy));
        mm.undo_isolate_page_range(block(odd), None);
        mm.validate().unwrap();
        assert_eq!(zone.free_pages(), before);
        assert_eq!(mm.state(Pfn(0)).buddy_order(), Some(10));
    }
}

#[test]
fn isolation_test_fails_for_used_pages() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap();
    let of = PfnRange::block(pfn.align_down(9), 9);
    mm.start_isolate_page_range(of, IsolateMode::Other).unwrap();
    assert_eq!(mm.test_pages_isolated(of), Err(Busy));
    let before = mm.zone(ZoneId(0)).free_pages();
    mm.free(0, pfn);
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), before, "isolated pages are not free pages");
    mm.test_pages_isolated(of).unwrap();
    mm.validate().unwrap();
    mm.undo_isolate_page_range(of, None);
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), 32768);
}

#[test]
fn nothing_isolated_is_handed_out() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    mm.start_isolate_page_range(block(3), IsolateMode::Other).unwrap();
    while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(0)) {
        assert!(!block(3).contains(pfn));
    }
}

#[test]
fn page_freed_while_isolated_is_on_no_cpu_list() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let pfn = mm.alloc(0, AllocRequest::movable(0)).unwrap();
    mm.drain_all(ZoneId(0));
    let of = PfnRange::block(pfn.align_down(9), 9);
    mm.start_isolate_page_range(of, IsolateMode::Other).unwrap();
    mm.free(0, pfn);
    mm.test_pages_isolated(of).unwrap();
}

#[test]
fn large_block_is_freed_pageblock_by_pageblock() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let pfn = mm.alloc(0, AllocRequest::movable(10)).unwrap();
    let second = PfnRange::block(pfn.plus(512), 9);
    mm.start_isolate_page_range(second, IsolateMode::Other).unwrap();
    mm.free(0, pfn);
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), 32768 - 512, "the isolated half is not free");
}

/// Before 4.17 a second isolator was let in, and the first to leave let both pages go.
#[test]
fn kernel_4_16_lets_two_isolate_the_same_block() {
    let mm = old(KernelSemantics::V4_16, 1);
    mm.start_isolate_page_range(block(0), IsolateMode::Other).unwrap();
    mm.start_isolate_page_range(block(0), IsolateMode::Other).unwrap();
    mm.undo_isolate_page_range(block(0), Some(MigrateType::Movable));
    assert!(!mm.is_isolated(block(0).start), "the second still believes that it is");
}

/// In 5.4 each isolated pageblock drains all per-CPU lists once; isolating the second half of an
/// order-10 buddy moves nothing, isolating the first moves all of it.
#[test]
fn kernel_5_4_drains_per_pageblock_and_moves_buddies() {
    let mm = old(KernelSemantics::V5_4, 1);
    let zone = mm.zone(ZoneId(0));
    mm.start_isolate_page_range(block(1), IsolateMode::Other).unwrap();
    assert_eq!((zone.drains(), zone.free_pages()), (1, 32768));
    mm.undo_isolate_page_range(block(1), Some(MigrateType::Movable));
    mm.start_isolate_page_range(block(0), IsolateMode::Other).unwrap();
    assert_eq!((zone.drains(), zone.free_pages()), (2, 32768 - 1024));
    let section = PfnRange { start: Pfn(1 << 14), end: Pfn(1 << 15) };
    mm.start_isolate_page_range(section, IsolateMode::Other).unwrap();
    assert_eq!(zone.drains(), 2 + 32);
    // In 6.19 isolating drains nothing.
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    mm.start_isolate_page_range(section, IsolateMode::Other).unwrap();
    assert_eq!(mm.zone(ZoneId(0)).drains(), 0);
}

/// A guest with a normal zone, in which unmovable pages may be.
fn normal() -> Mm {
    let mut layout = Layout::flat(G, 1, 1);
    layout.zones[0].kind = ZoneType::Normal;
    Mm::new(&layout)
}

fn unmovable(order: u8) -> AllocRequest {
    AllocRequest { migratetype: MigrateType::Unmovable, ..AllocRequest::movable(order) }
}

#[test]
fn tail_of_an_unmovable_block_is_not_isolated() {
    let mm = normal();
    let pfn = mm.alloc(0, unmovable(10)).unwrap();
    let tail = PfnRange::block(pfn.plus(512), 9);
    assert_eq!(mm.state(tail.start), FrameState::Tail);
    assert_eq!(mm.start_isolate_page_range(tail, IsolateMode::Other), Err(Busy));
    mm.free(0, pfn);
    mm.start_isolate_page_range(tail, IsolateMode::Other).unwrap();
    mm.validate().unwrap();
}

/// Linux moves what is free in a pageblock to the movable lists when half of it is pulled.
#[test]
fn pulling_half_a_pageblock_moves_the_other_half() {
    let mm = normal();
    let order = G.pageblock_order - 1;
    // A pageblock of which one half is free, and all but a block of 16 pages of the other.
    let first = mm.alloc(0, unmovable(order)).unwrap();
    let second = mm.alloc(0, unmovable(4)).unwrap();
    let of = PfnRange::block(first.align_down(9), 9);
    assert!(of.contains(second));
    mm.free(0, first);
    assert_eq!(mm.underlying_migratetype(first), MigrateType::Unmovable);
    let mut area = mm.zone(ZoneId(0)).lock();
    assert!(mm.isolate_free_page(ZoneId(0), &mut area, first, order));
    assert_eq!(mm.underlying_migratetype(first), MigrateType::Movable);
    drop(area);
    mm.validate().unwrap();
    let mut area = mm.zone(ZoneId(0)).lock();
    mm.putback_isolated_page(ZoneId(0), &mut area, first, order, true);
    drop(area);
    mm.validate().unwrap();
}
