// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ranges that the operator has pinned, and why a range cannot be.

use super::ranges::GuestRange;

/// The most different ranges that can be pinned.
pub(crate) const MOST_PINS: usize = 1024;

/// A range that may not be discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// Guest physical addresses.
    pub range: GuestRange,
    /// How often it was pinned and not unpinned.
    pub count: u32,
}

/// Why a range cannot be pinned or unpinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PinError {
    /// There are as many pins as there can be.
    #[error("{MOST_PINS} ranges are pinned, which is the most; unpin one, or pin a larger range")]
    TooMany,
    /// The range was pinned as often as can be counted.
    #[error("the range was pinned {} times, which is the most", u32::MAX)]
    TooOften,
    /// No pin has exactly this address and length.
    #[error(
        "nothing is pinned at {start:#x} with a length of {len:#x} bytes; to unpin takes the \
         address and length of a pin"
    )]
    NotPinned {
        /// Guest physical address.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
}
