// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the discarding calls of one chain have left zero, and nothing that they have not.
//!
//! A device that calls a page zero which is not makes its guest hand the contents of one process to
//! another. So this is written down where a call has succeeded, for the bytes of that call. It is
//! never derived from the absence of an error.

use super::ranges::{GuestRange, Piece, split};
use super::regions::RegionTable;

/// Guest memory that reads as zero since a call discarded it for the chain that is being served.
#[derive(Debug, Default)]
pub(crate) struct Zeroed {
    /// Ascending; none touches the next.
    ranges: Vec<GuestRange>,
}

impl Zeroed {
    /// As if a call had discarded `range`.
    #[cfg(test)]
    pub(crate) fn of(range: GuestRange) -> Self {
        Self { ranges: vec![range] }
    }

    /// Forgets everything: another chain is served. Keeps its memory, so that a chain costs no
    /// allocation.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    /// A call has discarded `range`. The calls of a chain come in ascending order; a range that does
    /// not is left out, and so is called zero by nobody.
    pub(super) fn add(&mut self, range: GuestRange) {
        match self.ranges.last_mut() {
            Some(last) if range.start() < last.end() => {}
            Some(last) if range.start() == last.end() => {
                if let Ok(both) = GuestRange::new(last.start(), last.len() + range.len()) {
                    *last = both;
                }
            }
            _ => self.ranges.push(range),
        }
    }

    /// Whether every byte of `range` is zero.
    pub(crate) fn covers(&self, range: GuestRange) -> bool {
        let next = self.ranges.partition_point(|zero| zero.end() <= range.start());
        let zero = self.ranges.get(next);
        zero.is_some_and(|zero| zero.start() <= range.start() && range.end() <= zero.end())
    }

    /// The device is about to write to `range`, which is zero no longer, under whatever other address
    /// the guest sees the same part of a file.
    pub(super) fn remove(&mut self, range: GuestRange, table: &RegionTable) {
        let regions = table.regions();
        for piece in split(range, regions) {
            let Piece::Inside { region, range } = piece else { continue };
            let Some(written) = regions[region].file_range(range) else { continue };
            let same_file = regions
                .iter()
                .filter(|other| other.file_index() == regions[region].file_index())
                .filter_map(|other| other.guest_range(written));
            same_file.for_each(|alias| self.cut(alias));
        }
    }

    fn cut(&mut self, range: GuestRange) {
        let kept = self.ranges.iter().flat_map(|zero| {
            let part =
                |start: u64, end: u64| GuestRange::new(start, end.saturating_sub(start)).ok();
            let before = part(zero.start(), zero.end().min(range.start()));
            let behind = part(zero.start().max(range.end()), zero.end());
            [before, behind]
        });
        self.ranges = kept.flatten().collect();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GuestMemory, GuestRegion, MemoryOptions};
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use vm_memory::{FileOffset, GuestAddress, MmapRegion};

    fn range(start: u64, len: u64) -> GuestRange {
        GuestRange::new(start, len).unwrap()
    }

    #[test]
    fn range_of_two_calls_is_covered_by_both() {
        let mut zeroed = Zeroed::default();
        zeroed.add(range(10, 10));
        zeroed.add(range(20, 5));
        zeroed.add(range(30, 5));
        assert!(zeroed.covers(range(10, 15)) && zeroed.covers(range(34, 1)));
        for not_all in [range(9, 2), range(24, 2), range(25, 5), range(20, 15), range(34, 2)] {
            assert!(!zeroed.covers(not_all), "{not_all:?}");
        }
        // Out of order: never called zero.
        zeroed.add(range(0, 5));
        assert!(!zeroed.covers(range(0, 5)));
        zeroed.clear();
        assert!(!zeroed.covers(range(10, 1)));
    }

    /// The same 16 pages at address 0 and, from the fifth page on, at 1 MiB.
    #[test]
    fn written_page_is_zero_at_no_address() {
        const PAGE: u64 = 4096;
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(16 * PAGE).unwrap();
        let region = |gpa, offset, pages: usize| {
            let backing = FileOffset::new(file.try_clone().unwrap(), offset);
            let mapped = MmapRegion::from_file(backing, pages * 4096).unwrap();
            GuestRegion::new(mapped, GuestAddress(gpa)).unwrap()
        };
        let regions = vec![region(0, 0, 16), region(1 << 20, 4 * PAGE, 8)];
        let memory = GuestMemory::from_regions(regions).unwrap();
        let table = RegionTable::new(&memory, MemoryOptions::default()).unwrap();
        let whole = || {
            let mut zeroed = Zeroed::default();
            zeroed.add(range(0, 16 * PAGE));
            zeroed.add(range(1 << 20, 8 * PAGE));
            zeroed
        };
        let at = |page: u64| range(page * PAGE, PAGE);
        let alias = |page: u64| range((1 << 20) + (page - 4) * PAGE, PAGE);
        // One byte of page 6 through the alias, and of page 2, which has none.
        let mut zeroed = whole();
        zeroed.remove(range((1 << 20) + 2 * PAGE + 7, 1), &table);
        zeroed.remove(range(2 * PAGE, 1), &table);
        for page in 0..16 {
            assert_eq!(zeroed.covers(at(page)), ![2, 6].contains(&page), "{page}");
        }
        for page in 4..12 {
            assert_eq!(zeroed.covers(alias(page)), page != 6, "{page}");
        }
        // What is no memory takes nothing away.
        let mut zeroed = whole();
        zeroed.remove(range(1 << 40, PAGE), &table);
        assert!((0..16).all(|page| zeroed.covers(at(page))));
    }

    proptest! {
        #[test]
        fn zeroed_agrees_with_a_byte_by_byte_reference(
            calls in prop::collection::vec((0u64..6, 1u64..12), 0..8),
            cuts in prop::collection::vec((0u64..120, 1u64..12), 0..4),
            (start, len) in (0u64..120, 1u64..12),
        ) {
            let (mut zeroed, mut bytes, mut at) = (Zeroed::default(), BTreeSet::new(), 0);
            for (gap, len) in calls {
                zeroed.add(range(at + gap, len));
                bytes.extend(at + gap..at + gap + len);
                at += gap + len;
            }
            for (start, len) in cuts {
                zeroed.cut(range(start, len));
                bytes.retain(|byte| !(start..start + len).contains(byte));
            }
            let all = (start..start + len).all(|byte| bytes.contains(&byte));
            prop_assert_eq!(zeroed.covers(range(start, len)), all);
        }
    }
}
