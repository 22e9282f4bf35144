// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a tracker of free memory sees of the allocator.

use alloc::sync::Arc;

use super::geometry::{Pfn, PfnRange};

/// Sees every free: blocks that a CPU, a failed isolation or onlining has freed, with buddies merged,
/// of at least [`FreeHook::order`].
///
/// It runs with the zone's lock held, and must take no lock of the model.
pub trait FreeHook: Send + Sync {
    /// The smallest order of interest.
    fn order(&self) -> u8;

    /// Whether [`FreeHook::before_insert`] is called.
    fn listens_before(&self) -> bool {
        false
    }

    /// The block is about to be put on its free list. Only a tracker that is meant to go wrong
    /// listens here.
    fn before_insert(&self, _head: Pfn, _order: u8) {}

    /// The block is on its free list. `freed` is the part of it that was in use until now.
    fn after_insert(&self, head: Pfn, order: u8, freed: PfnRange);

    /// A block's pages have been moved by isolation or its undoing: nothing was freed.
    fn moved(&self, _head: Pfn, _order: u8) {}

    /// The end of another's isolation has made a free block of [`FreeHook::order`] out of smaller ones.
    /// Each of them may have been freed meanwhile, and was too small to be seen then. Linux tells nothing
    /// here.
    fn merged(&self, _head: Pfn, _order: u8) {}

    /// A zone can spare what `Mm::await_spare_pages` was asked for.
    fn zone_recovered(&self) {}

    /// A section is about to come online, none of it free yet (`MEM_GOING_ONLINE`): room for its marks is
    /// made now. The caller has the hotplug lock.
    fn section_going_online(&self, _section: usize) {}

    /// A section has come online, with nothing in it reported (`MEM_ONLINE`). It runs without the zone's
    /// lock, after the frees of the section's pages, which were isolated and not online at that time.
    fn section_online(&self, section: usize);

    /// A section has gone offline: nothing of it may be remembered.
    fn section_offline(&self, section: usize);

    /// An offline section is removed with all its metadata (`arch_remove_memory`). Linux calls no notifier
    /// here: what is kept in the section's metadata is freed with it, so it must not be looked at again.
    fn section_removed(&self, section: usize) {
        self.section_offline(section);
    }
}

/// A hook, and whether it wants to be called before as well as after.
pub(crate) struct InstalledHook {
    pub(crate) listens_before: bool,
    pub(crate) hook: Arc<dyn FreeHook>,
}
