// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From guest addresses to whole pages of a file, and back.

use std::collections::BTreeMap;

use super::super::regions::Region;
use super::{GuestRange, Space};

/// Whichever byte of which file is behind a guest address, by a list.
fn shown(gpa: GuestRange, offset: u64) -> BTreeMap<u64, u64> {
    (gpa.start()..gpa.end()).zip(offset..).collect()
}

#[test]
fn region_agrees_with_a_byte_list() {
    let mut cases = 0;
    for space in Space::both(6) {
        for region in space.ranges() {
            for offset in (0..9).chain(u64::MAX - 16..=u64::MAX - 8) {
                let bytes = shown(region, offset);
                for page_size in [1, 2, 4] {
                    let tried = Region::of(region, offset, page_size);
                    for range in space.ranges().filter(|range| contains(region, *range)) {
                        check(&tried, &bytes, range, page_size);
                        cases += 1;
                    }
                    for gpa in [space.base, space.base + space.bytes - 1] {
                        assert_eq!(tried.offset_of(gpa), bytes.get(&gpa).copied());
                    }
                }
            }
        }
    }
    assert_eq!(cases, 13_608);
}

fn check(region: &Region, bytes: &BTreeMap<u64, u64>, range: GuestRange, page_size: u64) {
    let offsets: Vec<_> = bytes.range(range.start()..range.end()).map(|(_, at)| *at).collect();
    let file_range = GuestRange::new(offsets[0], range.len()).unwrap();
    assert_eq!(region.file_range(range), Some(file_range));
    assert_eq!(region.guest_range(file_range), Some(range));
    // A page is whole if the range shows all of its bytes.
    let page =
        |at: &&u64| at.is_multiple_of(page_size) && offsets.contains(&(**at + (page_size - 1)));
    let whole: Vec<_> = offsets.iter().filter(page).collect();
    let expected = whole.first().map(|first| (**first, whole.len() as u64 * page_size));
    let whole_pages = region.whole_pages(range).map(|pages| (pages.start(), pages.len()));
    assert_eq!(whole_pages, expected, "{region:?} {range:x?}");
}

/// Any offsets of a file, whether the region shows them or not.
#[test]
fn region_shows_the_offsets_of_a_byte_list() {
    let mut cases = 0;
    for space in Space::both(4) {
        for region in space.ranges() {
            for (start, files) in
                [(0, Space { base: 0, bytes: 9 }), (u64::MAX - 9, Space::both(9)[1])]
            {
                for offset in start..start + 5 {
                    let bytes = shown(region, offset);
                    let tried = Region::of(region, offset, 1);
                    for offsets in files.ranges() {
                        let is_shown = |(_, at): &(&u64, &u64)| {
                            offsets.start() <= **at && **at < offsets.end()
                        };
                        let gpas: Vec<_> =
                            bytes.iter().filter(is_shown).map(|(gpa, _)| *gpa).collect();
                        let expected = gpas.first().map(|first| (*first, gpas.len() as u64));
                        let got =
                            tried.guest_range(offsets).map(|range| (range.start(), range.len()));
                        assert_eq!(got, expected, "{tried:?} {offsets:x?}");
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 9_000);
}

fn contains(region: GuestRange, range: GuestRange) -> bool {
    region.start() <= range.start() && range.end() <= region.end()
}
