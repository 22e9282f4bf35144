// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use guest_driver::pattern::Found;
use rustix::fs::{FallocateFlags, fallocate};

const MIB: u64 = 1 << 20;

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// Two regions of one file, a neighbour from another file, and a hole.
fn ram() -> Ram {
    let mut layout = RamLayout::default();
    let (first, second) = (layout.file(Backing::Memfd), layout.file(Backing::Memfd));
    let layout = layout
        .region(Gpa(16 * MIB), 2 * MIB, first, MIB)
        .region(Gpa(0), MIB, first, 0)
        .region(Gpa(MIB), MIB, second, 0);
    Ram::new(&layout).unwrap()
}

fn punch(ram: &Ram, file: usize, offset: u64, len: u64) {
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(ram.file(file), how, offset, len).unwrap();
}

#[test]
fn pattern_check_finds_losses_and_fills_no_hole() {
    let ram = ram();
    assert_eq!(ram.resident_bytes().unwrap(), 0);
    let all = range(0, 2 * MIB);
    assert!(ram.is_zero(all).unwrap());
    assert_eq!(ram.resident_bytes().unwrap(), 0, "looking at a hole filled it");
    ram.write_pattern(all, 3).unwrap();
    ram.verify_pattern(all, 3).unwrap();
    assert_eq!(ram.resident_bytes().unwrap(), 2 * MIB);

    punch(&ram, 1, 8192, 4096);
    assert_eq!(ram.resident_bytes().unwrap(), 2 * MIB - 4096);
    let error = ram.verify_pattern(all, 3).unwrap_err();
    let expected = Mismatch { at: Gpa(MIB + 8192), generation: 3, found: Found::Zero };
    assert_eq!(error.downcast_ref(), Some(&expected));
    assert!(ram.is_zero(range(MIB + 8192, 4096)).unwrap());
    assert!(!ram.is_zero(range(MIB + 8191, 4096)).unwrap());

    ram.write(Gpa(4104), &[0; 8]).unwrap();
    let mut states = Vec::new();
    ram.for_each_page(range(0, 12288), 3, |_, state| {
        states.push(state);
        Ok(())
    })
    .unwrap();
    let broken = Mismatch { at: Gpa(4104), generation: 3, found: Found::Zero };
    assert_eq!(states, [PageState::Intact, PageState::Broken(broken), PageState::Intact]);
}

#[test]
fn regions_of_one_file_keep_apart() {
    let ram = ram();
    ram.write_pattern(range(16 * MIB, 2 * MIB), 1).unwrap();
    assert!(ram.is_zero(range(0, MIB)).unwrap());
    punch(&ram, 0, MIB, MIB);
    assert!(ram.is_zero(range(16 * MIB, MIB)).unwrap());
    ram.verify_pattern(range(17 * MIB, MIB), 1).unwrap();
}

#[test]
fn a_hole_is_not_ram() {
    let ram = ram();
    assert!(ram.contains(range(0, 2 * MIB)));
    assert!(!ram.contains(range(0, 2 * MIB + 1)));
    assert!(ram.is_zero(range(2 * MIB, 1)).is_err());
    assert!(ram.write_pattern(range(2 * MIB, 4096), 0).is_err());
    assert!(ram.populate(range(2 * MIB, 4096)).is_err());
    let error = RamError::OutOfRange { at: Gpa(2 * MIB - 4), len: 8 };
    assert_eq!(ram.read(Gpa(2 * MIB - 4), &mut [0; 8]), Err(error));
    assert!(ram.load_u16(Gpa(2 * MIB), Ordering::Relaxed).is_err());
    assert!(matches!(ram.load_u16(Gpa(1), Ordering::Relaxed), Err(RamError::Misaligned { .. })));
}

#[test]
fn range_is_cut_to_whole_pages_within_a_region() {
    let ram = ram();
    let pages = |start, len| ram.whole_pages(range(start, len)).collect::<Vec<_>>();
    assert_eq!(pages(0, MIB + 4096), [range(0, MIB), range(MIB, 4096)]);
    assert_eq!(pages(1, 3 * 4096), [range(4096, 2 * 4096)]);
    assert_eq!(pages(1, 8190), []);
    assert_eq!(pages(MIB - 4095, 4096), []);
    assert_eq!(pages(2 * MIB, MIB), []);
}

#[test]
fn populating_takes_memory_and_leaves_it_zero() {
    let ram = ram();
    ram.advise_huge_pages().unwrap();
    ram.populate(range(MIB, MIB)).unwrap();
    assert!(ram.resident_bytes().unwrap() >= MIB);
    assert!(ram.is_zero(range(0, 2 * MIB)).unwrap());
}

#[test]
fn sparse_ram_may_be_larger_than_the_host() {
    let ram = Ram::new(&RamLayout::x86(1 << 40, 3 << 30, Backing::Memfd)).unwrap();
    let (low, high) = (ram.regions()[0], ram.regions()[1]);
    assert_eq!(
        (low.range.len(), high.range.start(), high.file_offset),
        (3 << 30, Gpa(4 << 30), 3 << 30)
    );
    ram.write_pattern(range((1 << 40) + (1 << 30) - 4096, 4096), 1).unwrap();
    assert_eq!(ram.resident_bytes().unwrap(), 4096);
}

#[test]
fn impossible_layouts_are_refused() {
    for (start, len, file, offset) in [
        (0, 0, 0, 0),
        (0, 4096, 7, 0),
        (1, 4096, 0, 0),
        (0, 4097, 0, 0),
        (0, 4096, 0, 1),
        (u64::MAX - 4095, 8192, 0, 0),
        (0, 4096, 0, u64::MAX - 4095),
    ] {
        let mut layout = RamLayout::default();
        layout.file(Backing::Memfd);
        assert!(Ram::new(&layout.region(Gpa(start), len, file, offset)).is_err());
    }
    let overlapping = RamLayout::flat(8192, Backing::Memfd).region(Gpa(4096), 4096, 0, 8192);
    assert!(Ram::new(&overlapping).is_err());
}
