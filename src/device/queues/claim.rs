// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the device says of the pages that a chain names: that they are zero now.
//!
//! Two features that are proposed for virtio and not settled. With
//! `VIRTIO_BALLOON_F_DEVICE_INIT_REPORTED` ([issue 244]) the used length of a report is the sum of its
//! buffers if all of them are initialized, else 0. With `VIRTIO_BALLOON_F_DEVICE_INIT_ON_INFLATE`
//! ([issue 242]) the driver adds a device-writable bitmap behind its list of pages, and bit N of it says
//! so of the list's page N. What the proposals leave open is in `docs/design/init-features.md`.
//!
//! The device claims what [`Zeroed`] knows to be zero, and nothing for a chain that it does not
//! understand to the last byte.
//!
//! [issue 244]: https://github.com/oasis-tcs/virtio-spec/issues/244
//! [issue 242]: https://github.com/oasis-tcs/virtio-spec/issues/242

use super::pfns::{self, MAX_PFNS, PFN_SIZE};
use crate::device::chain::{ChainHead, Outcome};
use crate::device::config_space::BALLOON_PAGE_SIZE;
use crate::discard::{GuestMemory, GuestRange, Zeroed, poke};
use vm_memory::GuestAddress;

/// Bytes of the longest bitmap.
const MAX_BITMAP: usize = MAX_PFNS.div_ceil(8);

/// What a chain lets the device say. Keeps its memory from chain to chain.
#[derive(Debug, Default)]
pub(crate) struct Claim {
    /// Sum of the lengths of a report's buffers; none if nothing may be said of it.
    pub(super) report_bytes: Option<u32>,
    /// Page frame numbers of an inflation, in the order of its list.
    pages: Vec<u32>,
    /// Where the bitmap goes: device-writable, in the order of the chain, no longer than it needs.
    bitmap: Vec<GuestRange>,
}

impl Claim {
    pub(super) fn clear(&mut self) {
        self.report_bytes = None;
        self.pages.clear();
        self.bitmap.clear();
    }

    /// Where the device is going to write.
    pub(crate) fn buffers(&self) -> &[GuestRange] {
        &self.bitmap
    }

    /// Reads the list of pages of an inflation once more, in its order, and finds its bitmap. Nothing
    /// is read of a chain that is not plain: whole numbers that can all be read, and the bitmap behind
    /// them.
    ///
    /// The guest may have changed the list since its pages were discarded. Then it is told of the pages
    /// that it names now, and only of those that were.
    pub(super) fn read_inflation(&mut self, head: ChainHead, memory: &GuestMemory) {
        self.clear();
        let (mut plain, mut room) = (true, MAX_BITMAP as u64);
        let whole = head.walk(memory, |descriptor| {
            let (at, len) = (descriptor.addr(), u64::from(descriptor.len()));
            if descriptor.is_write_only() {
                let Ok(buffer) = GuestRange::new(at.0, len) else {
                    plain = false;
                    return;
                };
                if let Ok(used) = GuestRange::new(buffer.start(), len.min(room)) {
                    room -= used.len();
                    self.bitmap.push(used);
                }
                return;
            }
            let pfns = usize::try_from(len / PFN_SIZE as u64).unwrap_or(usize::MAX);
            plain &= self.bitmap.is_empty()
                && len % PFN_SIZE as u64 == 0
                && pfns <= MAX_PFNS - self.pages.len();
            plain = plain && pfns::read(memory, at, pfns, |pfn| self.pages.push(pfn)).is_ok();
        });
        if !plain || whole.is_err() {
            self.clear();
        }
    }

    /// Ends a report whose merged ranges are these.
    pub(super) fn answer_report(&self, ranges: &[GuestRange], zeroed: &Zeroed) -> Outcome {
        match self.report_bytes {
            Some(bytes)
                if ranges.iter().map(GuestRange::len).sum::<u64>() == u64::from(bytes)
                    && ranges.iter().all(|range| zeroed.covers(*range)) =>
            {
                Outcome::Written(bytes)
            }
            _ => Outcome::Return,
        }
    }

    /// Writes the bitmap of an inflation, all bits clear unless zero `is_initialized`, as far as
    /// there is room for it. The used length is what was written.
    pub(super) fn answer_inflation(
        &self,
        memory: &GuestMemory,
        zeroed: &Zeroed,
        is_initialized: bool,
    ) -> Outcome {
        let mut bitmap = [0_u8; MAX_BITMAP];
        for (number, pfn) in self.pages.iter().enumerate().filter(|_| is_initialized) {
            let page = GuestRange::new(u64::from(*pfn) * BALLOON_PAGE_SIZE, BALLOON_PAGE_SIZE);
            if page.is_ok_and(|page| zeroed.covers(page)) {
                bitmap[number / 8] |= 1 << (number % 8);
            }
        }
        let mut left = &bitmap[..self.pages.len().div_ceil(8)];
        let mut written = 0;
        for buffer in &self.bitmap {
            let len = usize::try_from(buffer.len()).unwrap_or(usize::MAX).min(left.len());
            let (now, later) = left.split_at(len);
            if now.is_empty() || !poke(memory, GuestAddress(buffer.start()), now) {
                break;
            }
            written += len;
            left = later;
        }
        // At most 512 bytes.
        u32::try_from(written).map_or(Outcome::Return, Outcome::Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::chain::tests::{NEXT, TABLE, WRITE, memory, write};
    use proptest::prelude::*;
    use vm_memory::Bytes;

    const LIST: u64 = 0x4000;
    const BITMAP: u64 = 0x6000;

    type Raw = (u64, u32, u32, u16);

    /// The used length and 16 bytes of the bitmap, where the pages 4 to 11 are zero.
    fn answer(descriptors: &[Raw], pfns: &[u32]) -> (Outcome, [u8; 16]) {
        let memory = memory();
        write(&memory, TABLE, descriptors);
        let list: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        memory.write_slice(&list, GuestAddress(LIST)).unwrap();
        memory.write_slice(&[0xee; 16], GuestAddress(BITMAP)).unwrap();
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        let mut claim = Claim::default();
        claim.read_inflation(head, &memory);
        let outcome = claim.answer_inflation(&memory, &zeroed(), true);
        (outcome, memory.read_obj(GuestAddress(BITMAP)).unwrap())
    }

    fn zeroed() -> Zeroed {
        Zeroed::of(GuestRange::new(0x4000, 0x8000).unwrap())
    }

    #[test]
    fn each_bit_is_of_the_page_in_its_place() {
        let list = [3, 4, 11, 12, 5, 5, u32::MAX, 0, 9];
        let (outcome, bitmap) = answer(&[(LIST, 36, NEXT, 1), (BITMAP, 16, WRITE, 0)], &list);
        assert_eq!(outcome, Outcome::Written(2));
        assert_eq!(bitmap[..3], [0b0011_0110, 0b1, 0xee]);
        // In pieces on both sides.
        let pieces = [
            (LIST, 4, NEXT, 1),
            (LIST + 4, 32, NEXT, 2),
            (BITMAP, 1, WRITE | NEXT, 3),
            (BITMAP + 8, 8, WRITE, 0),
        ];
        let (outcome, bitmap) = answer(&pieces, &list);
        assert_eq!(outcome, Outcome::Written(2));
        assert_eq!((bitmap[0], bitmap[1], bitmap[8], bitmap[9]), (0b0011_0110, 0xee, 1, 0xee));
    }

    #[test]
    fn short_bitmap_gets_what_fits() {
        let list = [4; 20];
        for (room, written) in [(1, 1), (2, 2), (3, 3), (4, 3)] {
            let (outcome, bitmap) = answer(&[(LIST, 80, NEXT, 1), (BITMAP, room, WRITE, 0)], &list);
            assert_eq!(outcome, Outcome::Written(written));
            let expected = [0xff, 0xff, 0x0f];
            let written = usize::try_from(written).unwrap();
            assert_eq!(bitmap[..written], expected[..written]);
            assert_eq!(bitmap[written], 0xee);
        }
    }

    #[test]
    fn chain_that_is_not_plain_is_not_answered() {
        for descriptors in [
            // No bitmap; an empty one; one that wraps; one ahead of the list or within it.
            &[(LIST, 8, 0, 0)][..],
            &[(LIST, 8, NEXT, 1), (BITMAP, 0, WRITE, 0)],
            &[(LIST, 8, NEXT, 1), (u64::MAX, 8, WRITE, 0)],
            &[(BITMAP, 8, WRITE | NEXT, 1), (LIST, 8, 0, 0)],
            &[(LIST, 8, NEXT, 1), (BITMAP, 8, WRITE | NEXT, 2), (LIST, 8, 0, 0)],
            // Part of a number; no memory; too many pages; a chain that breaks.
            &[(LIST, 9, NEXT, 1), (BITMAP, 8, WRITE, 0)],
            &[(1 << 40, 8, NEXT, 1), (BITMAP, 8, WRITE, 0)],
            &[(LIST, 4 * 4096, NEXT, 2), (BITMAP, 8, WRITE, 0), (LIST, 4, NEXT, 1)],
            &[(LIST, 8, NEXT, 1), (BITMAP, 8, WRITE | NEXT, 9)],
            // No pages; a bitmap that is no memory.
            &[(LIST, 0, NEXT, 1), (BITMAP, 8, WRITE, 0)],
            &[(LIST, 8, NEXT, 1), (1 << 40, 8, WRITE, 0)],
        ] {
            let (outcome, bitmap) = answer(descriptors, &[4, 5]);
            let said = matches!(outcome, Outcome::Written(1..));
            assert!(!said && bitmap == [0xee; 16], "{descriptors:x?}: {outcome:?}");
        }
    }

    #[test]
    fn poisoned_page_is_not_initialized_by_zeros() {
        let memory = memory();
        write(&memory, TABLE, &[(LIST, 4, NEXT, 1), (BITMAP, 8, WRITE, 0)]);
        memory.write_obj(4_u32, GuestAddress(LIST)).unwrap();
        memory.write_obj(0xee_u8, GuestAddress(BITMAP)).unwrap();
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        let mut claim = Claim::default();
        claim.read_inflation(head, &memory);
        assert_eq!(claim.answer_inflation(&memory, &zeroed(), false), Outcome::Written(1));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(BITMAP)).unwrap(), 0);
    }

    #[test]
    fn report_is_claimed_whole_or_not_at_all() {
        let range = |start, len| GuestRange::new(start, len).unwrap();
        let claim = |bytes| Claim { report_bytes: bytes, ..Claim::default() };
        for (bytes, ranges, expected) in [
            (Some(0x3000), &[range(0x4000, 0x1000), range(0x6000, 0x2000)][..], Some(0x3000)),
            // Nothing may be said; a page more; a byte more; the same page twice.
            (None, &[range(0x4000, 0x1000)], None),
            (Some(0x2000), &[range(0x4000, 0x1000), range(0x3000, 0x1000)], None),
            (Some(0x1001), &[range(0xb000, 0x1001)], None),
            (Some(0x2000), &[range(0x4000, 0x1000)], None),
        ] {
            let expected = expected.map_or(Outcome::Return, Outcome::Written);
            assert_eq!(claim(bytes).answer_report(ranges, &zeroed()), expected, "{ranges:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_chain_is_answered_within_its_buffers(
            descriptors in prop::collection::vec((0..0x1_2000_u64, 0u32..0x3000, 0u32..4, 0u16..10), 8),
            pfns: Vec<u32>,
        ) {
            let memory = memory();
            write(&memory, TABLE, &descriptors);
            let list: Vec<u8> = pfns.iter().take(4096).flat_map(|pfn| pfn.to_le_bytes()).collect();
            memory.write_slice(&list, GuestAddress(LIST)).unwrap();
            let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
            let mut claim = Claim::default();
            claim.read_inflation(head, &memory);
            let read = || {
                let mut all = vec![0_u8; 0x1_0000];
                memory.read_slice(&mut all, GuestAddress(0)).unwrap();
                all
            };
            let before = read();
            let outcome = claim.answer_inflation(&memory, &zeroed(), true);
            let inside = |at: u64| claim.buffers().iter().any(|b| b.start() <= at && at < b.end());
            let changed = before.iter().zip(&read()).enumerate()
                .filter(|(at, (old, new))| old != new && !inside(*at as u64))
                .count();
            prop_assert_eq!(changed, 0);
            let most = claim.buffers().iter().map(GuestRange::len).sum::<u64>();
            prop_assert!(matches!(outcome, Outcome::Written(len) if u64::from(len) <= most.min(512)));
        }
    }
}
