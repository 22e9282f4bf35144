// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every secondary MMU needs.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::address_space::{PageId, Pages, Reclaim};

/// What every secondary MMU needs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The number that its subscription will have.
    pub subscription: usize,
    /// Virtual page numbers of interest.
    pub interests: Vec<Range<u64>>,
    /// The frames.
    pub pages: Arc<Pages>,
    /// The memory for its own page tables.
    pub reclaim: Arc<Reclaim>,
}

impl Setup {
    /// Whether `range` is of interest.
    pub(super) fn is_interested(&self, range: &Range<u64>) -> bool {
        self.interests.iter().any(|one| one.start < range.end && range.start < one.end)
    }

    /// Drops what is mapped of `range`.
    pub(super) fn unmap(&self, mapped: &mut Vec<(u64, PageId)>, range: &Range<u64>) {
        mapped.retain(|&(at, page)| {
            let stays = !range.contains(&at);
            if !stays {
                self.pages.unmap_secondary(page, self.subscription);
            }
            stays
        });
    }
}
