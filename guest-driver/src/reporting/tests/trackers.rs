// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each tracker reports of a freed block, and when it forgets.

use super::*;

/// Pages reported after one block of a pageblock is freed, whose buddy is free and reported.
fn reported_for_one_free(config: Config) -> u64 {
    let (mm, mut reporter) = guest(2, config);
    let mut host = Host::default();
    let both: Vec<Pfn> = (0..2).map(|_| mm.alloc(0, AllocRequest::movable(9)).unwrap()).collect();
    assert_eq!(both[0].buddy(9), both[1]);
    mm.drain_all(ZoneId(0));
    mm.free(0, both[0]);
    mm.drain_all(ZoneId(0));
    settle(&mut reporter, &mut host);
    host.reports.clear();
    mm.free(0, both[1]);
    mm.drain_all(ZoneId(0));
    settle(&mut reporter, &mut host);
    mm.validate().unwrap();
    let freed = both[1];
    assert!(host.reports.iter().flatten().any(|range| range.contains(freed)), "{config:?}");
    host.pages()
}

#[test]
fn one_free_is_reported_with_what_each_tracker_adds() {
    for config in every_config() {
        let expected = match config.tracker {
            // The freed granule alone.
            TrackerKind::SectionBitmapExact => 512,
            // All of the section that is free.
            TrackerKind::SectionBit => 32768,
            // The block that it has merged to.
            TrackerKind::ZoneBitmap
            | TrackerKind::ZoneBitmapRcu
            | TrackerKind::SectionBitmap
            | TrackerKind::SectionBitFlag
            | TrackerKind::ReportedFlag => 1024,
        };
        assert_eq!(reported_for_one_free(config), expected, "{config:?}");
    }
}

#[test]
fn offline_section_is_forgotten() {
    for config in every_config() {
        let (mm, reporter) = guest(4, config);
        let memory = reporter.memory();
        let marked = config.tracker != TrackerKind::ReportedFlag;
        assert_eq!(memory.has_section(2), marked, "{config:?}");
        mm.offline_block(2, &Nobody, &|| false).unwrap();
        assert!(!memory.has_section(2), "{config:?}");
        assert_eq!(memory.has_section(1), marked, "{config:?}");
        mm.online_block(2).unwrap();
        assert_eq!(memory.has_section(2), marked, "{config:?}");
    }
}
