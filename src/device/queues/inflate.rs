// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The inflate queue (virtio 1.3, section 5.5.6): each chain lists pages that go into the balloon.
//!
//! Inflated pages are discarded whatever `poison_val` says. Only *reported* pages must keep the
//! poison (5.5.6.7.2); the device may modify the balloon's pages (5.5.6.2), and a driver that
//! negotiated `PAGE_POISON` fills them itself when it uses them again (5.5.6.6.1). Linux does so by
//! freeing them, and QEMU discards them all the same (`balloon_inflate_page`).

use super::contents::Contents;
use super::pfns::{self, PFN_SIZE};
use super::{Action, QueueHandler};
use crate::device::balloon::Balloon;
use crate::device::chain::{ChainHead, Outcome};
use crate::device::features::Feature;
use crate::device::log::DeviceLog;
use crate::discard::{GuestMemory, GuestRange};
use crate::metrics::{Counters, Named, SkipReason};

pub(super) struct Inflate;

impl QueueHandler for Inflate {
    fn collect(
        &self,
        balloon: &Balloon,
        head: ChainHead,
        memory: &GuestMemory,
        contents: &mut Contents,
    ) -> Action {
        let init = balloon.acked().has(Feature::DeviceInitOnInflate);
        collect(head, memory, &mut contents.ranges, init, &balloon.counters, &balloon.log);
        if init {
            contents.claim.read_inflation(head, memory);
        }
        if balloon.must_tell_host() { Action::Hold } else { Action::Discard }
    }

    fn begins(&self, balloon: &Balloon, untouched: bool) {
        balloon.config().set_actual(untouched.then_some(0));
    }

    fn finish(&self, balloon: &Balloon, memory: &GuestMemory, contents: &Contents) -> Outcome {
        let Contents { claim, zeroed, .. } = contents;
        if claim.buffers().is_empty() {
            return Outcome::Return;
        }
        claim.answer_inflation(memory, zeroed, zero_is_initialized(balloon))
    }
}

/// Whether a page that is zero is initialized: the driver fills its free pages with nothing else.
fn zero_is_initialized(balloon: &Balloon) -> bool {
    if !balloon.acked().has(Feature::PagePoison) {
        return true;
    }
    let config = balloon.config();
    config.poison_is_known() && config.poison_val() == 0
}

/// Replaces `ranges` by the pages that the chain gives to the balloon, unchecked against the guest's
/// memory.
///
/// What is no list of pages is skipped and counted with the bytes of the list; a bitmap is none, and is
/// expected where `bitmap` says so. Of a chain that breaks nothing is kept.
fn collect(
    head: ChainHead,
    memory: &GuestMemory,
    ranges: &mut Vec<GuestRange>,
    bitmap: bool,
    counters: &Counters,
    log: &DeviceLog,
) {
    ranges.clear();
    let whole = pfns::walk(head, memory, bitmap, counters, log, |descriptor, pfns| {
        let add = |pfn| pfns::add(ranges, pfn);
        if let Err((reason, unread)) = pfns::read(memory, descriptor.addr(), pfns, add) {
            counters.skip(reason, (unread * PFN_SIZE) as u64);
        }
    });
    let bytes = ranges.iter().map(GuestRange::len).sum();
    counters.named(Named::Inflate, ranges.len() as u64, bytes);
    if !whole {
        counters.skip(SkipReason::BrokenChain, bytes);
        ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::deflate;
    use super::super::pfns::{COPY_SIZE, MAX_PFNS};
    use super::*;
    use crate::device::chain::tests::{NEXT, TABLE, WRITE, memory, write};
    use crate::device::config_space::BALLOON_PAGE_SIZE;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    /// Where the lists of these tests lie, and how much memory there is.
    const LIST: u64 = 0x4000;
    const MEMORY: u64 = 0x1_0000;

    type Raw = (u64, u32, u32, u16);

    /// The pages that a chain with these descriptors inflates, in guest addresses, with `pfns` in
    /// the list.
    fn inflated(descriptors: &[Raw], pfns: &[u32]) -> (Vec<u64>, Counters) {
        let memory = memory();
        write(&memory, TABLE, descriptors);
        let bytes: Vec<u8> = pfns.iter().flat_map(|pfn| pfn.to_le_bytes()).collect();
        memory.write_slice(&bytes, GuestAddress(LIST)).unwrap();
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        let (counters, log) = (Counters::default(), DeviceLog::default());
        let mut ranges = vec![GuestRange::new(1, 1).unwrap()];
        collect(head, &memory, &mut ranges, false, &counters, &log);
        deflate::count(head, &memory, &Counters::default(), &log);
        let pages = |range: &GuestRange| {
            (range.start()..range.end()).step_by(usize::try_from(BALLOON_PAGE_SIZE).unwrap())
        };
        (ranges.iter().flat_map(pages).collect(), counters)
    }

    fn skipped(counters: &Counters, reason: SkipReason) -> u64 {
        let snapshot = counters.snapshot();
        let bytes = snapshot.skipped_bytes(reason);
        assert_eq!(snapshot.all_skipped_bytes(), bytes, "nothing else: {snapshot}");
        bytes
    }

    #[test]
    fn page_frame_numbers_up_to_the_maximum_are_4_kib() {
        let (pages, counters) = inflated(&[(LIST, 12, 0, 0)], &[u32::MAX, 0, 7]);
        assert_eq!(pages, [0xfff_ffff_f000, 0, 0x7000]);
        assert_eq!(counters.snapshot().all_skipped_bytes(), 0);
    }

    #[test]
    fn neighbours_in_a_list_are_one_range() {
        let mut ranges = Vec::new();
        for pfn in [5, 6, 4, 9, 8, 8, 7, 10, 0] {
            pfns::add(&mut ranges, pfn);
        }
        let runs: Vec<(u64, u64)> =
            ranges.iter().map(|r| (r.start() >> 12, r.len() >> 12)).collect();
        // A page that comes twice is the memory room's to count.
        assert_eq!(runs, [(4, 3), (8, 2), (7, 2), (10, 1), (0, 1)]);
    }

    #[test]
    fn several_lists_are_one_request() {
        let descriptors = [(LIST, 4, NEXT, 1), (LIST + 8, 4, 0, 0)];
        assert_eq!(inflated(&descriptors, &[1, 2, 3]).0, [0x1000, 0x3000]);
    }

    #[test]
    fn a_list_that_the_device_may_only_write_is_none() {
        let (pages, counters) = inflated(&[(LIST, 8, WRITE | NEXT, 1), (LIST, 4, 0, 0)], &[5, 6]);
        assert_eq!(pages, [0x5000]);
        assert_eq!(skipped(&counters, SkipReason::NotReadable), 8);
    }

    #[test]
    fn part_of_a_number_is_none() {
        let (pages, counters) = inflated(&[(LIST, 7, NEXT, 1), (LIST, 3, 0, 0)], &[5, 6]);
        assert_eq!(pages, [0x5000]);
        assert_eq!(skipped(&counters, SkipReason::Malformed), 6);
    }

    #[test]
    fn no_more_than_the_most_numbers_of_a_chain_are_read() {
        let most = u32::try_from(MAX_PFNS * PFN_SIZE).unwrap();
        let (pages, counters) =
            inflated(&[(LIST, most - 8, NEXT, 1), (LIST, 16, NEXT, 2), (LIST, 4, 0, 0)], &[]);
        assert_eq!(pages, vec![0; MAX_PFNS]);
        assert_eq!(skipped(&counters, SkipReason::TooMany), 8 + 4);
        let (pages, counters) = inflated(&[(LIST, u32::MAX, 0, 0)], &[]);
        assert_eq!(pages.len(), MAX_PFNS);
        assert!(counters.snapshot().skipped_bytes(SkipReason::TooMany) > 0);
    }

    #[test]
    fn a_list_that_is_not_memory_is_skipped() {
        for list in [MEMORY, MEMORY - 3, u64::MAX - 3, u64::MAX] {
            let (pages, counters) = inflated(&[(list, 16, NEXT, 1), (LIST, 4, 0, 0)], &[9]);
            assert_eq!(pages, [0x9000]);
            assert_eq!(skipped(&counters, SkipReason::OutsideMemory), 16);
        }
    }

    #[test]
    fn list_past_the_memory_end_counts_up_to_the_end() {
        // At the border of a copy, and within one.
        for read in [u32::try_from(COPY_SIZE).unwrap(), 8] {
            let list = MEMORY - u64::from(read);
            let (pages, counters) = inflated(&[(list, read + 4, 0, 0)], &[]);
            assert_eq!(pages.len(), read as usize / PFN_SIZE);
            assert_eq!(skipped(&counters, SkipReason::OutsideMemory), 4);
        }
    }

    #[test]
    fn nothing_of_a_broken_chain_is_kept() {
        let (pages, counters) = inflated(&[(LIST, 8, NEXT, 1), (LIST, 4, NEXT, 0)], &[5, 6]);
        assert_eq!(pages, [0; 0]);
        // The chain loops: three numbers, as often as the queue has descriptors.
        assert_eq!(skipped(&counters, SkipReason::BrokenChain), 3 * 4 * BALLOON_PAGE_SIZE);
    }

    #[test]
    fn what_is_deflated_is_counted_and_not_read() {
        let memory = memory();
        let counters = Counters::default();
        // The list is not even memory.
        write(&memory, TABLE, &[(1 << 40, 9, NEXT, 1), (LIST, 4, WRITE, 0)]);
        let head = ChainHead { table: GuestAddress(TABLE), queue_size: 8, index: 0 };
        deflate::count(head, &memory, &counters, &DeviceLog::default());
        assert_eq!(counters.snapshot().queue(Named::Deflate).bytes, 2 * BALLOON_PAGE_SIZE);
        assert_eq!(counters.snapshot().queue(Named::Inflate).bytes, 0);
    }

    proptest! {
        #[test]
        fn any_chain_is_bounded(
            descriptors in prop::collection::vec((any::<u64>(), any::<u32>(), 0u32..8, 0u16..10), 8),
            near in prop::collection::vec((0..2 * MEMORY, 0u32..70000, 0u32..8, 0u16..10), 8),
            pfns: Vec<u32>,
            far: bool,
        ) {
            let (pages, _) = inflated(if far { &descriptors } else { &near }, &pfns);
            prop_assert!(pages.len() <= MAX_PFNS);
        }
    }
}
