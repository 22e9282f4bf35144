// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sorting and joining.

use super::super::ranges::merge;
use super::{GuestRange, Space};

fn check(space: Space, given: &[GuestRange]) {
    let masks: Vec<_> = given.iter().map(|range| space.mask(*range)).collect();
    let all = masks.iter().fold(0, |all, mask| all | mask);
    let named: u32 = masks.iter().map(|mask| mask.count_ones()).sum();
    let mut merged = given.to_vec();
    assert_eq!(merge(&mut merged), u64::from(named - all.count_ones()), "{given:x?}");
    assert_eq!(merged, space.runs(all), "{given:x?}");
}

/// Three ranges have six ends: eight bytes hold them in every order, equal, apart or next to another.
#[test]
fn merge_agrees_with_a_byte_oracle() {
    let mut cases = 0;
    for space in Space::both(7) {
        let ranges: Vec<_> = space.ranges().collect();
        for a in &ranges {
            check(space, &[*a]);
            for b in &ranges {
                check(space, &[*a, *b]);
                for c in &ranges {
                    check(space, &[*a, *b, *c]);
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 43_904);
}
