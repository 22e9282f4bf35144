// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Direct reclaim that wins nothing.

use guest_driver::page_alloc::{AllocRequest, Mm, NodeMask, Reclaim, ZoneId};

/// Others dirty pages of a node as fast as reclaim frees them, so that it always makes progress there. Of a
/// node that is full all pages stay.
pub(super) struct Endless {
    /// The nodes that are not full.
    pub(super) roomy: NodeMask,
}

impl Reclaim for Endless {
    fn reclaim(&self, _: &Mm, _: usize, _: AllocRequest, allowed: &dyn Fn(u8) -> bool) -> u64 {
        u64::from(self.roomy.iter().any(allowed))
    }

    fn reclaimable(&self, _: ZoneId) -> u64 {
        0
    }
}
