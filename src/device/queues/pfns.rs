// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lists of page frame numbers, which the chains of the inflate and the deflate queue carry
//! (virtio 1.3, section 5.5.6).

use log::warn;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, GuestAddress};

use crate::device::chain::ChainHead;
use crate::device::config_space::BALLOON_PAGE_SIZE;
use crate::device::log::DeviceLog;
use crate::discard::{GuestMemory, GuestRange, peek};
use crate::metrics::{Counters, SkipReason};

/// The most page frame numbers that are read of one chain: 16 MiB of pages.
///
/// Linux sends at most 256 (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`), Windows a page full of them. The bound
/// is on how long one chain may keep the worker, at a system call for each page in the worst case.
pub(super) const MAX_PFNS: usize = 4096;

/// Bytes of a page frame number.
pub(super) const PFN_SIZE: usize = size_of::<u32>();
/// Bytes of guest memory that are copied at a time: a whole list of Linux's or Windows'.
pub(super) const COPY_SIZE: usize = 4096;

/// Walks the lists of a chain: calls `take` with each descriptor that is one and with how many
/// numbers of it count. Device-writable buffers are passed over, and counted unless they may hold a
/// `bitmap` ([`super::claim`]).
pub(super) fn walk(
    head: ChainHead,
    memory: &GuestMemory,
    bitmap: bool,
    counters: &Counters,
    log: &DeviceLog,
    mut take: impl FnMut(Descriptor, usize),
) -> bool {
    let mut room = MAX_PFNS;
    let end = head.walk(memory, |descriptor| {
        let len = u64::from(descriptor.len());
        if descriptor.is_write_only() {
            if !bitmap {
                counters.skip(SkipReason::NotReadable, len);
            }
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

/// Reads a list of `pfns` numbers, and calls `take` with each in its order.
///
/// # Errors
/// Why and how many of them could not be read.
pub(super) fn read(
    memory: &GuestMemory,
    list: GuestAddress,
    pfns: usize,
    mut take: impl FnMut(u32),
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
            take(u32::from_le_bytes(*pfn));
        }
        left -= taken;
        if taken < wanted {
            return Err((SkipReason::OutsideMemory, left));
        }
    }
    Ok(())
}

/// Adds the page of this number, to the last range if it lies behind or ahead of that one: most lists
/// are runs.
pub(super) fn add(ranges: &mut Vec<GuestRange>, pfn: u32) {
    let page = u64::from(pfn) * BALLOON_PAGE_SIZE;
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
