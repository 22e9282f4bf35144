// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Granules larger than a pageblock, and others that isolate a part of one.

use super::*;

fn of_two_pageblocks() -> impl Iterator<Item = Config> {
    every_config().map(|config| Config { granule_order: 10, ..config })
}

/// Both pageblocks of a granule are freed while one of them is isolated: neither is as large as a granule,
/// and the hook sees none of it.
#[test]
fn merge_at_end_of_isolation_is_reported() {
    for config in of_two_pageblocks() {
        let (mm, mut reporter) = guest(8, config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        let mut in_use = Vec::new();
        while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(9)) {
            in_use.push(pfn);
        }
        let first = in_use.iter().copied().find(|pfn| in_use.contains(&pfn.buddy(9))).unwrap();
        let isolated = PfnRange::block(first, 9);
        mm.start_isolate_page_range(isolated, IsolateMode::Other).unwrap();
        [first, first.buddy(9)].into_iter().for_each(|pfn| mm.free(0, pfn));
        mm.drain_all(ZoneId(0));
        settle(&mut reporter, &mut host);
        host.reports.clear();
        mm.undo_isolate_page_range(isolated, None);
        assert_eq!(mm.state(first.align_down(10)).buddy_order(), Some(10));
        settle(&mut reporter, &mut host);
        // Mainline tells nothing there, and the flags wait for the next free of a large block.
        let expected = if config.tracker == TrackerKind::ReportedFlag { 0 } else { 1024 };
        assert_eq!(host.pages(), expected, "{config:?}");
        mm.validate().unwrap();
    }
}

#[test]
fn reporters_own_merges_are_not_reported_again() {
    for config in of_two_pageblocks() {
        let (mm, mut reporter) = guest(8, config);
        let mut host = Host::default();
        settle(&mut reporter, &mut host);
        assert_eq!(host.pages(), 8 * 32768, "{config:?}");
        mm.validate().unwrap();
        assert!(!reporter.has_work(), "{config:?}");
    }
}
