// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Contiguous allocation.

use super::*;

#[test]
fn a_contiguous_range_is_taken_from_under_its_users() {
    let mm = Mm::new(&Layout::flat(G, 1, 2));
    for _ in 0..2 {
        mm.alloc(0, AllocRequest::movable(8)).unwrap();
    }
    // In the second half of the first block, so that the range is not aligned to the largest buddy.
    let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap();
    let range = PfnRange { start: pfn.align_down(9), end: pfn.align_down(9).plus(1024) };
    assert_eq!(range.start, Pfn(512));
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

/// Moves a page only at one of the requests, and counts them.
struct Reluctant {
    moves_at: usize,
    asked: core::sync::atomic::AtomicUsize,
}

impl MovePages for Reluctant {
    fn move_pages(&self, mm: &Mm, from: Pfn, order: u8, owner: Option<u32>) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1 == self.moves_at
            && Anywhere.move_pages(mm, from, order, owner)
    }
}

#[test]
fn a_block_in_use_is_moved_in_five_tries() {
    for (moves_at, expected) in [(1, Ok(())), (5, Ok(())), (6, Err(Busy))] {
        let mm = Mm::new(&Layout::flat(G, 1, 1));
        let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap();
        let movers = Reluctant { moves_at, asked: Default::default() };
        let range = PfnRange::block(pfn.align_down(9), 9);
        assert_eq!(mm.alloc_contig_range(range, IsolateMode::Other, &movers), expected);
        assert_eq!(movers.asked.load(Ordering::Relaxed), moves_at.min(5));
        assert_eq!(mm.zone(ZoneId(0)).drains(), 1);
        mm.validate().unwrap();
    }
}

/// Says that it has moved a page, which stays where it is; counts the requests.
#[derive(Default)]
struct Pretender(core::sync::atomic::AtomicUsize);

impl MovePages for Pretender {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

#[test]
fn contig_looks_once_whether_its_range_is_free() {
    let mm = Mm::new(&Layout::flat(G, 1, 1));
    let pfn = mm.alloc(0, AllocRequest::movable(4)).unwrap();
    let (range, movers) = (PfnRange::block(pfn.align_down(9), 9), Pretender::default());
    assert_eq!(mm.alloc_contig_range(range, IsolateMode::Other, &movers), Err(Busy));
    assert_eq!(movers.0.load(Ordering::Relaxed), 1);
    mm.validate().unwrap();
}
