// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The inflate queue and the deflate queue (virtio 1.3, section 5.5.6): each chain is a list of page
//! frame numbers.
//!
//! What is inflated is discarded whatever `poison_val` says. Only what is *reported* has to keep
//! the poison (5.5.6.7.2); of the balloon's pages the device may modify the contents (5.5.6.2), and
//! a driver that negotiated `PAGE_POISON` fills them itself when it uses them again (5.5.6.6.1).
//! Linux does by freeing them, and QEMU discards them all the same (`balloon_inflate_page`).
//!
//! A deflated page comes back when the guest touches it, with or without `MUST_TELL_HOST`, so there
//! is nothing to do for it.

use log::warn;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, GuestAddress};

use super::chain::ChainHead;
use super::config_space::BALLOON_PAGE_SIZE;
use super::log::DeviceLog;
use crate::discard::{GuestMemory, GuestRange, peek};
use crate::metrics::{Counters, Named, SkipReason};

/// The most page frame numbers that are read of one chain: 16 MiB of pages.
///
/// Linux sends at most 256 (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`), Windows a page full of them. The bound
/// is on how long one chain may keep the worker, at a system call for each page in the worst case.
pub(super) const MAX_PFNS: usize = 4096;

/// Bytes of a page frame number.
const PFN_SIZE: usize = size_of::<u32>();
/// Bytes of guest memory that are copied at a time: a whole list of Linux's or Windows'.
const COPY_SIZE: usize = 4096;

/// Walks the lists of a chain: calls `take` with each descriptor that is one and with how many
/// numbers of it count.
fn walk(
    head: ChainHead,
    memory: &GuestMemory,
    counters: &Counters,
    log: &DeviceLog,
    mut take: impl FnMut(Descriptor, usize),
) -> bool {
    let mut room = MAX_PFNS;
    let end = head.walk(memory, |descriptor| {
        let len = u64::from(descriptor.len());
        if descriptor.is_write_only() {
            counters.skip(SkipReason::NotReadable, len);
            return;
        }
        let (pfns, rest) = (len / PFN_SIZE as u64, len % PFN_SIZE as u64);
        if rest > 0 {
            counters.skip(SkipReason::Malformed, rest);
        }
        let taken = usize::try_from(pfns).unwrap_or(usize::MAX).min(room);
        let left_out = pfns - taken as u64;
        if left_out > 0 {
            counters.skip(SkipReason::TooMany, left_out * PFN_SIZE as u64);
            log.too_many_pages
                .run(|| warn!("a chain names more than {MAX_PFNS} pages of the balloon"));
        }
        room -= taken;
        take(descriptor, taken);
    });
    if let Err(error) = &end {
        DeviceLog::broken(&log.broken_list, "a list of pages of the balloon", *error);
    }
    end.is_ok()
}

/// Replaces `ranges` by the pages that the chain gives to the balloon, unchecked against the guest's
/// memory.
///
/// What is no list of pages is skipped and counted with the bytes of the list. Of a chain that
/// breaks nothing is kept.
pub(super) fn inflate(
    head: ChainHead,
    memory: &GuestMemory,
    ranges: &mut Vec<GuestRange>,
    counters: &Counters,
    log: &DeviceLog,
) {
    ranges.clear();
    let whole = walk(head, memory, counters, log, |descriptor, pfns| {
        if let Err((reason, unread)) = read(memory, descriptor.addr(), pfns, ranges) {
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

/// Adds the pages of a list of `pfns` numbers to `ranges`.
///
/// # Errors
/// Why and how many of them could not be read.
fn read(
    memory: &GuestMemory,
    list: GuestAddress,
    pfns: usize,
    ranges: &mut Vec<GuestRange>,
) -> Result<(), (SkipReason, usize)> {
    let mut copy = [0; COPY_SIZE];
    let mut left = pfns;
    while left > 0 {
        let done = ((pfns - left) * PFN_SIZE) as u64;
        let at = list.checked_add(done).ok_or((SkipReason::OutsideMemory, left))?;
        let wanted = left.min(COPY_SIZE / PFN_SIZE);
        // Copied before it is looked at: the guest may change it meanwhile.
        let copied = peek(memory, at, &mut copy[..wanted * PFN_SIZE])
            .map_err(|_| (SkipReason::Unreadable, left))?;
        let taken = copied / PFN_SIZE;
        for pfn in copy[..taken * PFN_SIZE].as_chunks().0 {
            let page = u64::from(u32::from_le_bytes(*pfn)) * BALLOON_PAGE_SIZE;
            add(ranges, page);
        }
        left -= taken;
        if taken < wanted {
            return Err((SkipReason::OutsideMemory, left));
        }
    }
    Ok(())
}

/// Adds a page, to the last range if it lies behind or ahead of that one: most lists are runs.
fn add(ranges: &mut Vec<GuestRange>, page: u64) {
    let run = ranges.last().and_then(|last| {
        let start = match page {
            page if page == last.end() => last.start(),
            page if page + BALLOON_PAGE_SIZE == last.start() => page,
            _ => return None,
        };
        GuestRange::new(start, last.len() + BALLOON_PAGE_SIZE).ok()
    });
    match (run, ranges.last_mut()) {
        (Some(run), Some(last)) => *last = run,
        // 32 bits of pages end below 2^44.
        _ => ranges.extend(GuestRange::new(page, BALLOON_PAGE_SIZE)),
    }
}

/// Counts the pages that the chain takes out of the balloon, list by list.
pub(super) fn deflate(head: ChainHead, memory: &GuestMemory, counters: &Counters, log: &DeviceLog) {
    let (mut lists, mut pages) = (0, 0);
    walk(head, memory, counters, log, |_, pfns| {
        lists += 1;
        pages += pfns as u64;
    });
    counters.named(Named::Deflate, lists, pages * BALLOON_PAGE_SIZE);
}

/// Replaces `ranges` by the pages that the chain takes out of the balloon; says whether these are
/// all that its driver may take for taken out. Counts nothing.
pub(super) fn deflated(
    head: ChainHead,
    memory: &GuestMemory,
    ranges: &mut Vec<GuestRange>,
) -> bool {
    ranges.clear();
    let (mut room, mut all) = (MAX_PFNS, true);
    let whole = head.walk(memory, |descriptor| {
        let len = u64::from(descriptor.len());
        let pfns = usize::try_from(len / PFN_SIZE as u64).unwrap_or(usize::MAX);
        all &= !descriptor.is_write_only() && len % PFN_SIZE as u64 == 0 && pfns <= room;
        if all {
            room -= pfns;
            all = read(memory, descriptor.addr(), pfns, ranges).is_ok();
        }
    });
    all && whole.is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::{NEXT, TABLE, WRITE, memory, write};
    use super::*;
    use proptest::prelude::*;
    use vm_memory::Bytes;

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
        inflate(head, &memory, &mut ranges, &counters, &log);
        deflate(head, &memory, &Counters::default(), &log);
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
    fn page_frame_numbers_are_pages_of_4_kib_up_to_the_last() {
        let (pages, counters) = inflated(&[(LIST, 12, 0, 0)], &[u32::MAX, 0, 7]);
        assert_eq!(pages, [0xfff_ffff_f000, 0, 0x7000]);
        assert_eq!(counters.snapshot().all_skipped_bytes(), 0);
    }

    #[test]
    fn neighbours_in_a_list_are_one_range() {
        let mut ranges = Vec::new();
        for pfn in [5, 6, 4, 9, 8, 8, 7, 10, 0] {
            add(&mut ranges, pfn * BALLOON_PAGE_SIZE);
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
    fn of_a_list_that_runs_out_of_memory_the_read_part_counts() {
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
        deflate(head, &memory, &counters, &DeviceLog::default());
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
