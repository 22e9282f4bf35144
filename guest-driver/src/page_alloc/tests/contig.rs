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
