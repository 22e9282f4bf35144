// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What trackers with marks beside the pages have in common.

use alloc::sync::Arc;

use crate::page_alloc::{FreeHook, Mm, Pfn, PfnRange};

/// What became of a granule that a tracker has offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Visit {
    /// It is not free. If it is freed again it is marked again.
    Done,
    /// It was held and is reported, or will be, with all of this block.
    Held(PfnRange),
    /// It needs reporting still, in the next pass.
    Keep,
    /// It needs reporting still, once its zone has recovered, which the zone tells the hook.
    Wait,
    /// As [`Visit::Keep`], and the pass ends.
    Stop,
}

impl Visit {
    /// Whether the granule needs reporting still.
    pub(super) fn is_left(self) -> bool {
        match self {
            Self::Done | Self::Held(_) => false,
            Self::Keep | Self::Wait | Self::Stop => true,
        }
    }
}

/// Remembers what has been freed since it was last reported.
///
/// Marked under the zone's lock, by the free path and by a reporter that leaves something
/// ([`Mm::while_online`]), so that nothing of a section is marked once it is offline. Taken without it
/// by the reporter.
pub(in super::super) trait Marks: FreeHook {
    /// Itself, to be installed as the hook of frees.
    fn hook(self: Arc<Self>) -> Arc<dyn FreeHook>;

    /// Offers each granule that may need reporting, its mark cleared first, until there is none or
    /// `visit` says [`Visit::Stop`].
    fn take(&self, mm: &Mm, visit: &mut dyn FnMut(Pfn) -> Visit);

    /// Marks a granule by hand, unless its section is offline.
    fn mark(&self, mm: &Mm, granule: Pfn);

    /// Forgets the marks of pages that are held, which cannot be freed meanwhile.
    fn unmark(&self, held: PfnRange);

    /// Whether anything of a section is marked.
    fn remembers(&self, section: usize) -> bool;

    /// Bytes of bits that it needs for the sections that are there.
    fn bytes(&self, mm: &Mm) -> usize;
}
