// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that comes and goes.

use super::*;

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
