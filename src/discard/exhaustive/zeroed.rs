// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What reads as zero, under each address of a part of a file.

use super::super::regions::{Region, RegionTable};
use super::super::zeroed::Zeroed;
use super::{GuestRange, Space, ones};

/// Eight bytes of a file at 0, and four of them, from the third on, at 16.
const LOW: Space = Space { base: 0, bytes: 8 };
const HIGH: Space = Space { base: 16, bytes: 4 };
const HIGH_OFFSET: u64 = 2;

#[test]
fn zeroed_every_write_agrees_with_a_byte_oracle() {
    let regions = [(LOW, 0), (HIGH, HIGH_OFFSET)]
        .map(|(space, offset)| Region::of(space.range(0, space.bytes), offset, 1));
    let table = RegionTable::of(regions.into());
    let guest = Space { base: 0, bytes: HIGH.base + HIGH.bytes };
    let mut cases = 0;
    for zero in 0..=ones(LOW.bytes) {
        for written in guest.ranges() {
            let mut zeroed = discarded(zero);
            zeroed.remove(written, &table);
            let bits = guest.mask(written);
            let through_high = bits >> HIGH.base << HIGH_OFFSET;
            let left = zero & !(bits | through_high);
            for space in [LOW, HIGH] {
                let seen =
                    left >> if space.base == 0 { 0 } else { HIGH_OFFSET } & ones(space.bytes);
                for byte in 0..space.bytes {
                    let covered = zeroed.covers(space.range(byte, 1));
                    assert_eq!(covered, seen >> byte & 1 != 0, "{zero:b} {written:?} {byte}");
                }
                for run in space.runs(seen) {
                    assert!(zeroed.covers(run), "{zero:b} {written:?} {run:?}");
                }
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 53_760);
}

/// As the calls of a chain leave it that discard these bytes of the file.
fn discarded(zero: u64) -> Zeroed {
    let mut zeroed = Zeroed::default();
    let high = zero >> HIGH_OFFSET & ones(HIGH.bytes);
    let calls: Vec<GuestRange> = [LOW.runs(zero), HIGH.runs(high)].concat();
    calls.into_iter().for_each(|call| zeroed.add(call));
    zeroed
}

/// Calls byte by byte, side by side or apart, and every question.
#[test]
fn zeroed_every_question_agrees_with_a_byte_oracle() {
    let mut cases = 0;
    for space in Space::both(9) {
        for zero in 0..=ones(space.bytes) {
            let mut zeroed = Zeroed::default();
            for byte in (0..space.bytes).filter(|byte| zero >> byte & 1 != 0) {
                zeroed.add(space.range(byte, 1));
            }
            for asked in space.ranges() {
                let mask = space.mask(asked);
                assert_eq!(zeroed.covers(asked), zero & mask == mask, "{zero:b} {asked:x?}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 46_080);
}
