// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::guest_memory::{Backing, RamLayout};
use guest_driver::virtio::layout::RingLayout;
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

fn punch(ram: &Ram, at: u64, len: u64) {
    let segment = ram.segments(range(at, len)).next().unwrap();
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let file = ram.regions()[segment.region].file;
    fallocate(ram.file(file), how, segment.file_offset, len).unwrap();
}

#[test]
fn every_case_can_be_written_and_has_its_own_name() {
    let ram = ram();
    let layout = RingLayout::contiguous(Gpa(0), 128).unwrap();
    let (scratch, reserved) = (range(0x10000, 0x10000), range(0, 0x20000));
    let mut names = BTreeSet::new();
    for case in catalogue() {
        let mut ring = DriverRing::new(ram.clone(), layout, true).unwrap();
        let mut arena = Arena::new(&ram, &mut ring, scratch, reserved, true).unwrap();
        let sentinel = arena.sentinel();
        let expected = case.write(&mut arena).unwrap().expect("the RAM has every shape");
        for lost in expected.must_lose.iter().chain(&expected.may_lose) {
            assert_eq!(lost.intersection(reserved), None, "{}", case.name);
            assert_eq!(lost.intersection(sentinel), None, "{}", case.name);
        }
        assert!(expected.must_lose.iter().all(|range| ram.contains(*range)), "{}", case.name);
        assert!(names.insert(case.name), "{} twice", case.name);
    }
    assert!(names.len() > 30);
}

#[test]
fn the_check_sees_what_was_lost_and_what_was_kept() {
    let ram = ram();
    let reserved = range(0, MIB);
    for range in outside(&ram, reserved) {
        ram.write_pattern(range, 1).unwrap();
    }
    let expected = Expectation {
        must_lose: vec![range(2 * MIB, 4096), range(2 * MIB + 4096, 4097)],
        may_lose: vec![range(3 * MIB + 1, 8192)],
        returns: Return::Chains(1),
    };
    let check = || check(&ram, 1, &expected, reserved);
    let error = check().unwrap_err().to_string();
    assert!(error.contains("0x200000 was reported and is still there"), "{error}");
    punch(&ram, 2 * MIB, 8192);
    check().unwrap();
    // What may be lost, rounded inward.
    punch(&ram, 3 * MIB + 4096, 4096);
    check().unwrap();
    // The page that was reported in part.
    punch(&ram, 2 * MIB + 8192, 4096);
    let error = check().unwrap_err().to_string();
    assert!(error.contains("0x202000 was lost and never reported"), "{error}");
}

#[test]
fn ranges_are_merged_before_they_are_rounded() {
    let ram = ram();
    let halves = vec![range(MIB + 2048, 2048), range(MIB, 2048)];
    assert_eq!(discarded(&ram, halves), [range(MIB, 4096)]);
    let top = vec![GpaRange::new(Gpa(0), u64::MAX).unwrap(), range(MIB, 1)];
    assert_eq!(discarded(&ram, top).len(), ram.regions().len());
}
