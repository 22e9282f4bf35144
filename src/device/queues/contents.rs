// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a chain says, as its handler has collected it.

use super::claim::Claim;
use crate::discard::{GuestRange, Zeroed};

/// What one chain says, and what became of it. The memory is kept for the next chain, so that a
/// chain costs no allocation.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// The ranges that the chain names, as they came and not checked against guest memory.
    pub ranges: Vec<GuestRange>,
    /// What of guest memory is zero since the action was done.
    pub zeroed: Zeroed,
    /// What the driver may be told of that.
    pub claim: Claim,
}

impl Contents {
    pub(super) fn clear(&mut self) {
        self.ranges.clear();
        self.zeroed.clear();
        self.claim.clear();
    }
}
