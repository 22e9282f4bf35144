// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known to be zero, and when that ends.

use std::cell::RefCell;

use crate::page_alloc::{AllocRequest, Geometry, Layout, Mm, MovePages, Pfn, PfnRange, ZoneId};

/// Two sections, all of it free.
fn guest() -> Mm {
    let mm = Mm::new(&Layout::flat(Geometry::LINUX, 1, 2));
    mm.remember_zero_pages();
    mm
}

fn range(start: u32, end: u32) -> PfnRange {
    PfnRange { start: Pfn(start), end: Pfn(end) }
}

/// The block that was allocated as zero, and what of it had to be cleared.
fn zeroed(mm: &Mm, order: u8) -> (Pfn, Vec<PfnRange>) {
    let cleared = RefCell::new(Vec::new());
    let clear = |range| cleared.borrow_mut().push(range);
    let pfn = mm.alloc_zeroed(0, AllocRequest::movable(order), clear).expect("a free block");
    (pfn, cleared.into_inner())
}

#[test]
fn only_unknown_pages_are_cleared_and_known_once() {
    let mm = guest();
    let (block, cleared) = zeroed(&mm, 10);
    assert_eq!(cleared, [PfnRange::block(block, 10)]);
    let part = |from: u32, to: u32| PfnRange { start: block.plus(from), end: block.plus(to) };
    // Its user has it in a balloon, and frees it.
    mm.mark_zero(part(3, 700));
    mm.mark_zero(part(1023, 1024));
    mm.free(0, block);
    let (again, cleared) = zeroed(&mm, 10);
    assert_eq!(again, block);
    assert_eq!(cleared, [part(0, 3), part(700, 1023)]);
    mm.free(0, block);
    assert_eq!(zeroed(&mm, 10), (block, vec![part(0, 1024)]));
}

#[test]
fn use_ends_what_is_known() {
    let mm = guest();
    let all = range(0, 2 << 15);
    mm.mark_zero(all);
    assert!(all.step(0).all(|pfn| mm.is_known_zero(pfn)));
    for order in [0, 3, 9, 10] {
        let pfn = mm.alloc(0, AllocRequest::movable(order)).unwrap();
        let block = PfnRange::block(pfn, order);
        assert!(block.step(0).all(|pfn| !mm.is_known_zero(pfn)), "order {order}");
        mm.free(0, pfn);
        // What was beside it in a larger block is as known as before.
        let known = all.step(0).filter(|&pfn| mm.is_known_zero(pfn)).count();
        assert_eq!(known, all.step(0).count() - (1 << order), "order {order}");
        mm.mark_zero(block);
    }
}

struct Nothing;

impl MovePages for Nothing {
    fn move_pages(&self, _: &Mm, _: Pfn, _: u8, _: Option<u32>) -> bool {
        false
    }
}

#[test]
fn offline_memory_is_not_known_to_be_zero() {
    let mm = guest();
    mm.mark_zero(range(0, 2 << 15));
    mm.offline_block(1, &Nothing, &|| false).unwrap();
    mm.online_block(1).unwrap();
    let known = |section: usize| {
        let pages = mm.geometry().section_range(section);
        pages.step(0).filter(|&pfn| mm.is_known_zero(pfn)).count()
    };
    assert_eq!((known(0), known(1)), (1 << 15, 0));
    mm.drain_all(ZoneId(0));
    mm.validate().unwrap();
}

#[test]
fn contiguous_range_in_use_is_not_known() {
    let mm = guest();
    mm.mark_zero(range(0, 1 << 15));
    let taken = range(512, 1024);
    mm.alloc_contig_range(taken, crate::page_alloc::IsolateMode::Other, &Nothing).unwrap();
    let known = |pfn: u32| mm.is_known_zero(Pfn(pfn));
    assert!(known(511) && !known(512) && !known(1023) && known(1024));
}

#[test]
fn nothing_is_known_where_nothing_is_remembered() {
    let mm = Mm::new(&Layout::flat(Geometry::LINUX, 1, 1));
    mm.mark_zero(range(0, 1 << 15));
    assert!(!mm.is_known_zero(Pfn(0)));
    let (block, cleared) = zeroed(&mm, 0);
    assert_eq!(cleared, [PfnRange::block(block, 0)]);
}
