// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use proptest::prelude::*;

const G: Geometry = Geometry::LINUX;

/// Frees nothing and moves nothing.
struct Nobody;

impl MovePages for Nobody {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

/// Moves a page by allocating another and freeing the old one; no pointer to it exists.
struct Anywhere;

impl MovePages for Anywhere {
    fn move_pages(&self, mm: &Mm, from: Pfn, order: u8, _: Option<u32>) -> bool {
        let moved = mm.alloc(0, AllocRequest::movable(order)).is_ok();
        if moved {
            mm.free(0, from);
        }
        moved
    }
}

fn never() -> bool {
    false
}

fn block(index: u32) -> PfnRange {
    PfnRange::block(Pfn(index << G.pageblock_order), G.pageblock_order)
}

fn old(semantics: KernelSemantics, sections: usize) -> Mm {
    Mm::new(&Layout { semantics, ..Layout::flat(G, 2, sections) })
}

#[test]
fn new_memory_is_free_and_in_the_largest_blocks() {
    let mm = Mm::new(&Layout::flat(G, 2, 4));
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), 4 * 32768);
    assert_eq!(mm.state(Pfn(1024)), FrameState::Buddy { order: 10, reported: false });
    assert_eq!(mm.state(Pfn(1025)), FrameState::Tail);
}

#[test]
fn what_is_freed_merges_again() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let mut taken = Vec::new();
    while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(0)) {
        taken.push(pfn);
    }
    mm.validate().unwrap();
    let min = mm.zone(ZoneId(0)).watermarks().min;
    assert_eq!(taken.len() as u64, 32768 - min);
    for pfn in taken {
        mm.free(0, pfn);
    }
    mm.drain_all(ZoneId(0));
    mm.validate().unwrap();
    assert!(
        PfnRange { start: Pfn(0), end: Pfn(32768) }
            .step(10)
            .all(|pfn| mm.state(pfn).buddy_order() == Some(10))
    );
}

#[test]
fn a_range_is_made_of_its_largest_aligned_blocks() {
    let range = |start, end| PfnRange { start: Pfn(start), end: Pfn(end) };
    let blocks = |range: PfnRange, most| range.blocks(most).collect::<Vec<_>>();
    assert_eq!(blocks(range(0, 8), 9), [(Pfn(0), 3)]);
    assert_eq!(blocks(range(0, 8), 2), [(Pfn(0), 2), (Pfn(4), 2)]);
    assert_eq!(blocks(range(3, 11), 9), [(Pfn(3), 0), (Pfn(4), 2), (Pfn(8), 1), (Pfn(10), 0)]);
    assert_eq!(blocks(range(5, 5), 9), []);
}

/// Whatever order the pages of a pageblock are freed in, and with a page among them in use.
#[test]
fn pcp_merge_equals_zone_merge() {
    for (step, used) in [(1, None), (511, None), (37, None), (1, Some(77)), (511, Some(300))] {
        let mm = Mm::new(&Layout::flat(G, 1, 1));
        let big = mm.alloc(0, AllocRequest::movable(10)).unwrap();
        mm.free(0, big);
        let mut pages: Vec<Pfn> =
            (0..32768 - 200).map(|_| mm.alloc(0, AllocRequest::movable(0)).unwrap()).collect();
        pages.sort_unstable();
        let start = pages.iter().position(|pfn| pfn.is_aligned(9)).unwrap();
        let of = PfnRange::block(pages[start], 9);
        assert_eq!(pages[start + 511], Pfn(of.end.0 - 1));
        for i in (0..512).map(|i| i * step % 512) {
            if used != Some(i) {
                mm.free(0, pages[start + i]);
            }
        }
        mm.drain_all(ZoneId(0));
        mm.validate().unwrap();
        let found: Vec<_> = mm.buddies_in(of);
        let expected = match used {
            None => vec![(of.start, 9)],
            Some(i) => {
                let at = of.start.plus(u32::try_from(i).unwrap());
                let [before, after] = [
                    PfnRange { start: of.start, end: at },
                    PfnRange { start: at.plus(1), end: of.end },
                ];
                before.blocks(9).chain(after.blocks(9)).collect()
            }
        };
        assert_eq!(found, expected, "every {step}th, {used:?} in use");
    }
}

#[test]
fn allocation_prefers_own_node_and_movable_zone() {
    let zone = |node, kind, section: usize| ZoneLayout {
        node,
        kind,
        sections: core::iter::once(section..section + 1).collect(),
    };
    let zones = vec![
        zone(0, ZoneType::Normal, 0),
        zone(0, ZoneType::Movable, 1),
        zone(1, ZoneType::Normal, 2),
        zone(1, ZoneType::Movable, 3),
    ];
    let mm = Mm::new(&Layout { zones, ..Layout::flat(G, 1, 4) });
    let in_turn = |node, migratetype| {
        let mut seen = Vec::new();
        let request = AllocRequest { order: 10, migratetype, node };
        while let Ok(pfn) = mm.alloc(0, request) {
            seen.push(pfn);
        }
        let mut zones: Vec<_> = seen.iter().filter_map(|&pfn| mm.zone_of(pfn)).collect();
        zones.dedup();
        seen.into_iter().for_each(|pfn| mm.free(0, pfn));
        // What is between the low and the min watermarks is taken in a second round.
        let mut first = Vec::new();
        zones.into_iter().map(|zone| zone.0).for_each(|zone| {
            if !first.contains(&zone) {
                first.push(zone);
            }
        });
        first
    };
    assert_eq!(in_turn(0, MigrateType::Movable), [1, 0, 3, 2]);
    assert_eq!(in_turn(1, MigrateType::Movable), [3, 2, 1, 0]);
    assert_eq!(in_turn(1, MigrateType::Unmovable), [2, 0]);
    // A node without memory has no zone of its own.
    assert_eq!(in_turn(7, MigrateType::Movable), [1, 3, 0, 2]);
}

#[test]
#[should_panic(expected = "bad page state")]
fn a_double_free_is_noticed() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let pfn = mm.alloc(0, AllocRequest::movable(0)).unwrap();
    mm.free(0, pfn);
    mm.free(0, pfn);
}

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
fn used_memory_block_goes_offline_and_online() {
    let mm = Mm::new(&Layout::flat(G, 2, 4));
    for _ in 0..100 {
        mm.alloc(0, AllocRequest::movable(0)).unwrap();
    }
    let pfn = mm.alloc(0, AllocRequest::movable(5)).unwrap();
    let of = (pfn.0 >> G.section_order) as usize;
    mm.offline_block(of, &Anywhere, &never).unwrap();
    mm.validate().unwrap();
    assert!(!mm.is_online(of));
    assert_eq!(mm.zone(ZoneId(0)).managed_pages(), 3 * 32768);
    assert_eq!(mm.offline_block(of, &Anywhere, &never), Err(OfflineError::Invalid));
    mm.online_block(of).unwrap();
    assert_eq!(mm.online_block(of), Err(OfflineError::Invalid));
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).managed_pages(), 4 * 32768);
}

#[test]
fn offlining_answers_as_linux_does() {
    let mm = Mm::new(&Layout::flat(G, 1, 2));
    assert_eq!(mm.offline_block(7, &Nobody, &never), Err(OfflineError::Invalid));
    mm.start_isolate_page_range(block(0), IsolateMode::Report).unwrap();
    assert_eq!(mm.offline_block(0, &Nobody, &never), Err(OfflineError::Busy));
    mm.undo_isolate_page_range(block(0), None);
    // In use, and not moved: until a signal comes.
    let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap();
    let of = (pfn.0 >> G.section_order) as usize;
    let calls = core::cell::Cell::new(0);
    let signal = || calls.replace(calls.get() + 1) == 3;
    assert_eq!(mm.offline_block(of, &Nobody, &signal), Err(OfflineError::Interrupted));
    mm.validate().unwrap();
    mm.free(0, pfn);
    mm.offline_block(of, &Nobody, &never).unwrap();
}

#[test]
fn memory_can_be_added_later() {
    let layout = Layout { sections: 8, ..Layout::flat(G, 1, 1) };
    let mm = Mm::new(&layout);
    assert_eq!(mm.online_block(5), Err(OfflineError::Invalid));
    mm.add_section(5, ZoneId(0));
    mm.online_block(5).unwrap();
    mm.validate().unwrap();
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), 2 * 32768);
    assert_eq!(mm.state(Pfn(2 * 32768)), FrameState::Absent);
}

#[test]
fn a_contiguous_range_is_taken_from_under_its_users() {
    let mm = Mm::new(&Layout::flat(G, 1, 2));
    let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap();
    // Allocated from the end of memory, and not aligned to the largest buddy.
    let range =
        PfnRange { start: Pfn(pfn.align_down(9).0 - 512), end: pfn.align_down(9).plus(512) };
    assert_eq!(mm.alloc_contig_range(range, IsolateMode::Other, &Nobody), Err(Busy));
    mm.validate().unwrap();
    mm.alloc_contig_range(range, IsolateMode::Other, &Anywhere).unwrap();
    mm.validate().unwrap();
    assert!(
        range.contains(pfn)
            && range.step(9).all(|pfn| matches!(mm.state(pfn), FrameState::Allocated { .. }))
    );
    mm.free_contig_range(0, range);
    mm.drain_all(ZoneId(0));
    mm.validate().unwrap();
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

#[test]
fn metadata_is_small_and_holes_have_none() {
    let mut layout = Layout::flat(G, 2, 64);
    layout.sections = 8192; // 1 TiB
    let mm = Mm::new(&layout);
    let pages = 64 * 32768;
    let table = 8192 * 128;
    assert!(mm.metadata_bytes() <= pages * 24 + table, "{} bytes", mm.metadata_bytes());
}

#[derive(Clone, Debug)]
enum Op {
    Alloc { cpu: usize, order: u8, mt: usize },
    Free { cpu: usize, which: usize },
    Isolate { block: u32 },
    Undo { block: u32 },
    Drain,
    Offline { block: usize },
    Online { block: usize },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..2_usize, 0..=10_u8, 0..3_usize).prop_map(|(cpu, order, mt)| Op::Alloc { cpu, order, mt }),
        6 => (0..2_usize, any::<usize>()).prop_map(|(cpu, which)| Op::Free { cpu, which }),
        1 => (0..192_u32).prop_map(|block| Op::Isolate { block }),
        1 => (0..192_u32).prop_map(|block| Op::Undo { block }),
        1 => Just(Op::Drain),
        1 => (0..3_usize).prop_map(|block| Op::Offline { block }),
        1 => (0..3_usize).prop_map(|block| Op::Online { block }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is done in whatever order, the books agree and nothing is handed out twice.
    #[test]
    fn the_books_agree_after_any_operations(
        ops in prop::collection::vec(op(), 1..120),
        kind in prop_oneof![Just(ZoneType::Movable), Just(ZoneType::Normal)],
    ) {
        let mut layout = Layout::flat(G, 2, 3);
        layout.zones[0].kind = kind;
        let mm = Mm::new(&layout);
        let mut taken: Vec<(Pfn, u8)> = Vec::new();
        let mut isolated = std::collections::BTreeSet::new();
        for op in ops {
            match op {
                Op::Alloc { cpu, order, mt } => {
                    let migratetype = MigrateType::ALL[mt];
                    let request = AllocRequest { order, migratetype, node: 0 };
                    if let Ok(pfn) = mm.alloc(cpu, request) {
                        let new = PfnRange::block(pfn, order);
                        let apart = taken.iter().all(|&(other, order)| {
                            let other = PfnRange::block(other, order);
                            other.end <= new.start || new.end <= other.start
                        });
                        prop_assert!(apart);
                        prop_assert!(!mm.is_isolated(pfn));
                        taken.push((pfn, order));
                    }
                }
                Op::Free { cpu, which } if !taken.is_empty() => {
                    let (pfn, _) = taken.swap_remove(which % taken.len());
                    mm.free(cpu, pfn);
                }
                Op::Free { .. } => {}
                Op::Isolate { block: index } => {
                    if mm.start_isolate_page_range(block(index), IsolateMode::Other).is_ok() {
                        prop_assert!(isolated.insert(index));
                        // A page on a per-CPU list can be allocated still.
                        mm.drain_all(ZoneId(0));
                    }
                }
                Op::Undo { block: index } => {
                    if isolated.remove(&index) {
                        mm.undo_isolate_page_range(block(index), None);
                    }
                }
                Op::Drain => mm.drain_all(ZoneId(0)),
                Op::Offline { block } => {
                    let tries = core::cell::Cell::new(0);
                    let _ = mm.offline_block(block, &Nobody, &|| tries.replace(tries.get() + 1) > 1);
                }
                Op::Online { block } => {
                    let _ = mm.online_block(block);
                }
            }
            mm.validate()?;
        }
    }
}
