// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The leading part of a range that is treated alike.

use super::super::ranges::{Leading, leading};
use super::{GuestRange, Space, edges, ones};

/// A set of bytes is a list of pins that are sorted and do not touch: each list once.
#[test]
fn leading_agrees_with_a_page_oracle() {
    let mut cases = 0;
    for space in Space::both(11) {
        for mask in 0..=ones(space.bytes) {
            let pins = space.runs(mask);
            for range in space.ranges() {
                for page_size in [1, 2, 4].into_iter().filter(|p| range.len().is_multiple_of(*p)) {
                    let answer = leading(range, page_size, &pins);
                    assert_eq!(
                        answer,
                        expected(space, range, page_size, mask),
                        "{range:?} {pins:?}"
                    );
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 442_368);
}

/// Page by page: as many as are free, or those that the first pin touches.
fn expected(space: Space, range: GuestRange, page_size: u64, mask: u64) -> Leading {
    let start = range.start() - space.base;
    let page = |page: u64| mask >> (start + page * page_size) & ones(page_size);
    let pages = range.len() / page_size;
    let free = (0..pages).take_while(|p| page(*p) == 0).count() as u64;
    if free > 0 {
        return Leading::Free(free * page_size);
    }
    // The pin goes on into the next page if it holds the last byte of this one and the next byte.
    let first = u64::from(page(0).trailing_zeros());
    let end = u64::from((mask >> (start + first)).trailing_ones()) + first;
    Leading::Pinned(end.div_ceil(page_size).min(pages) * page_size)
}

/// One pin, since no other is looked at, and every size of pages.
#[test]
fn leading_every_page_size_agrees_at_its_edges() {
    let mut cases = 0;
    for page_size in (0..63).map(|shift| 1_u64 << shift) {
        let numbers = edges(page_size);
        let range_of = |start, end: u64| GuestRange::new(start, end.checked_sub(start)?).ok();
        let pins = numbers.iter().flat_map(|a| numbers.iter().filter_map(|b| range_of(*a, *b)));
        for pin in pins {
            for start in [0, 1, page_size, u64::MAX - page_size] {
                for pages in [1, 2, 3] {
                    let len = page_size.checked_mul(pages);
                    let Some(Ok(range)) = len.map(|len| GuestRange::new(start, len)) else {
                        continue;
                    };
                    let answer = leading(range, page_size, &[pin]);
                    assert_eq!(answer, wide(range, page_size, pin), "{range:x?} {pin:x?}");
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 493_484);
}

/// At most three pages, each compared with the pin.
fn wide(range: GuestRange, page_size: u64, pin: GuestRange) -> Leading {
    let pages = range.len() / page_size;
    let is_pinned = |page: u64| {
        let first = u128::from(range.start()) + u128::from(page) * u128::from(page_size);
        u128::from(pin.start()) < first + u128::from(page_size) && first < u128::from(pin.end())
    };
    let alike = (0..pages).take_while(|page| is_pinned(*page) == is_pinned(0)).count() as u64;
    match is_pinned(0) {
        true => Leading::Pinned(alike * page_size),
        false => Leading::Free(alike * page_size),
    }
}
