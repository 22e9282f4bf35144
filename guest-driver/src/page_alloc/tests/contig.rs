// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Contiguous allocation.

use super::*;

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
