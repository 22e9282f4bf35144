// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The deflate queue (virtio 1.3, section 5.5.6): each chain lists pages that leave the balloon.
//!
//! A deflated page comes back when the guest touches it, with or without `MUST_TELL_HOST`, so its
//! contents need nothing. Only the memory that is held for the rest of its huge page is released.

use super::contents::Contents;
use super::pfns::{self, MAX_PFNS, PFN_SIZE};
use super::{Action, QueueHandler};
use crate::device::balloon::Balloon;
use crate::device::chain::ChainHead;
use crate::device::config_space::BALLOON_PAGE_SIZE;
use crate::device::log::DeviceLog;
use crate::discard::{GuestMemory, GuestRange};
use crate::metrics::{Counters, Named};

pub(super) struct Deflate;

impl QueueHandler for Deflate {
    fn collect(
        &self,
        balloon: &Balloon,
        head: ChainHead,
        memory: &GuestMemory,
        contents: &mut Contents,
    ) -> Action {
        count(head, memory, &balloon.counters, &balloon.log);
        if !balloon.must_tell_host() {
            return Action::Nothing;
        }
        match deflated(head, memory, &mut contents.ranges) {
            true if !contents.ranges.is_empty() => Action::Release,
            _ => Action::ReleaseAll,
        }
    }
}

/// Counts the pages that the chain takes out of the balloon, list by list.
pub(super) fn count(head: ChainHead, memory: &GuestMemory, counters: &Counters, log: &DeviceLog) {
    let (mut lists, mut pages) = (0, 0);
    pfns::walk(head, memory, false, counters, log, |_, pfns| {
        lists += 1;
        pages += pfns as u64;
    });
    counters.named(Named::Deflate, lists, pages * BALLOON_PAGE_SIZE);
}

/// Replaces `ranges` by the pages that the chain takes out of the balloon; says whether these are
/// all that its driver may take for taken out. Counts nothing.
fn deflated(head: ChainHead, memory: &GuestMemory, ranges: &mut Vec<GuestRange>) -> bool {
    ranges.clear();
    let (mut room, mut all) = (MAX_PFNS, true);
    let whole = head.walk(memory, |descriptor| {
        let len = u64::from(descriptor.len());
        let pfns = usize::try_from(len / PFN_SIZE as u64).unwrap_or(usize::MAX);
        all &= !descriptor.is_write_only() && len % PFN_SIZE as u64 == 0 && pfns <= room;
        if all {
            room -= pfns;
            let add = |pfn| pfns::add(ranges, pfn);
            all = pfns::read(memory, descriptor.addr(), pfns, add).is_ok();
        }
    });
    all && whole.is_ok()
}
