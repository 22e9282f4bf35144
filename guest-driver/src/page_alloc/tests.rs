// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

mod books;
mod contig;
mod hotplug;
mod isolation;
mod own_zonelist;
mod sections;
mod zero_pages;

use super::*;

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
        let request = AllocRequest { order: 10, migratetype, node, atomic: false };
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
    assert_eq!(in_turn(7, MigrateType::Movable), [1, 0, 3, 2]);
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
fn metadata_is_small_and_holes_have_none() {
    let mut layout = Layout::flat(G, 2, 64);
    layout.sections = 8192; // 1 TiB
    let mm = Mm::new(&layout);
    let pages = 64 * 32768;
    let table = 8192 * 128;
    assert!(mm.metadata_bytes() <= pages * 24 + table, "{} bytes", mm.metadata_bytes());
}
