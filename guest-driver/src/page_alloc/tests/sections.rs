// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sections, and the zones that their frames are of.

use super::*;

/// Section 0 is of a normal zone, and so are the first pageblocks of section 1; the rest is movable.
fn shared(boundary_block: usize) -> Layout {
    let zone = |kind, sections: core::ops::Range<usize>| ZoneLayout {
        node: 0,
        kind,
        sections: vec![sections],
    };
    Layout {
        zones: vec![zone(ZoneType::Normal, 0..1), zone(ZoneType::Movable, 2..3)],
        shared: vec![SharedSection {
            section: 1,
            first: ZoneId(0),
            second: ZoneId(1),
            boundary_block,
        }],
        ..Layout::flat(G, 1, 3)
    }
}

#[test]
fn frames_of_a_shared_section_are_of_two_zones() {
    let mm = Mm::new(&shared(8));
    mm.validate().unwrap();
    let boundary = Pfn(32768 + 8 * 512);
    assert_eq!(mm.zone_of(Pfn(boundary.0 - 1)), Some(ZoneId(0)));
    assert_eq!(mm.zone_of(boundary), Some(ZoneId(1)));
    let managed = [0, 1].map(|zone| mm.zone(ZoneId(zone)).managed_pages());
    assert_eq!(managed, [32768 + 8 * 512, 2 * 32768 - 8 * 512]);
}

#[test]
fn pages_of_a_shared_section_return_to_their_zone() {
    let mm = Mm::new(&shared(32));
    let before = [0, 1].map(|zone| mm.zone(ZoneId(zone)).free_pages());
    let mut taken = Vec::new();
    while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(9)) {
        taken.push(pfn);
    }
    let shared =
        |zone| taken.iter().any(|&pfn| mm.zone_of(pfn) == Some(ZoneId(zone)) && pfn.0 >> 15 == 1);
    assert!(shared(0) && shared(1));
    mm.validate().unwrap();
    taken.into_iter().for_each(|pfn| mm.free(0, pfn));
    (0..2).for_each(|zone| mm.drain_all(ZoneId(zone)));
    mm.validate().unwrap();
    assert_eq!([0, 1].map(|zone| mm.zone(ZoneId(zone)).free_pages()), before);
}

#[test]
fn range_of_two_zones_is_not_isolated() {
    let mm = Mm::new(&shared(8));
    let of_both = PfnRange { start: Pfn(32768 + 7 * 512), end: Pfn(32768 + 9 * 512) };
    assert_eq!(mm.start_isolate_page_range(of_both, IsolateMode::Other), Err(Busy));
    assert_eq!(mm.zone(ZoneId(0)).isolated_blocks(), 0);
    assert_eq!(mm.alloc_contig_range(of_both, IsolateMode::Other, &Anywhere), Err(Busy));
    let second = PfnRange { start: Pfn(32768 + 8 * 512), ..of_both };
    mm.start_isolate_page_range(second, IsolateMode::Other).unwrap();
    mm.test_pages_isolated(second).unwrap();
    assert_eq!([0, 1].map(|zone| mm.zone(ZoneId(zone)).isolated_blocks()), [0, 1]);
    mm.validate().unwrap();
}

#[test]
fn memory_block_of_two_zones_stays_online() {
    let mm = Mm::new(&shared(8));
    assert_eq!(mm.offline_block(1, &Nobody, &never), Err(OfflineError::Invalid));
    mm.offline_block(2, &Nobody, &never).unwrap();
    mm.validate().unwrap();
}

#[test]
#[should_panic(expected = "within a block of the largest order")]
fn zones_that_meet_within_a_block_are_refused() {
    Mm::new(&shared(7));
}

/// What a lookup finds of a section: a zone, a pageblock that is not isolated, whether it is online.
fn found(mm: &Mm, section: usize) -> (Option<ZoneId>, bool, bool) {
    let first = G.section_range(section).start;
    assert_eq!(mm.state(first) == FrameState::Absent, !mm.is_online(section));
    (mm.zone_of(first), !mm.is_isolated(first), mm.is_online(section))
}

#[test]
fn removed_section_is_as_if_never_added() {
    let mm = Mm::new(&Layout { sections: 4, ..shared(8) });
    assert_eq!(found(&mm, 3), (None, false, false));
    let bytes = mm.metadata_bytes();
    assert_eq!(mm.remove_section(3), Err(OfflineError::Invalid));
    assert_eq!(mm.remove_section(2), Err(OfflineError::Busy));
    mm.offline_block(2, &Nobody, &never).unwrap();
    assert_eq!(found(&mm, 2), (Some(ZoneId(1)), true, false));
    mm.remove_section(2).unwrap();
    assert_eq!(found(&mm, 2), (None, false, false));
    assert!(mm.metadata_bytes() < bytes);
    assert_eq!(mm.online_block(2), Err(OfflineError::Invalid));
    assert_eq!(mm.remove_section(2), Err(OfflineError::Invalid));
    mm.validate().unwrap();
}

#[test]
fn removed_section_is_added_to_another_zone() {
    let mm = Mm::new(&shared(8));
    mm.offline_block(2, &Nobody, &never).unwrap();
    mm.add_section(2, ZoneId(0));
    assert_eq!(
        mm.zone_of(G.section_range(2).start),
        Some(ZoneId(1)),
        "one that is present keeps it"
    );
    mm.remove_section(2).unwrap();
    mm.add_section(2, ZoneId(0));
    let before = mm.zone(ZoneId(0)).free_pages();
    mm.online_block(2).unwrap();
    assert_eq!(found(&mm, 2), (Some(ZoneId(0)), true, true));
    assert_eq!(mm.zone(ZoneId(0)).free_pages(), before + 32768);
    mm.validate().unwrap();
}
