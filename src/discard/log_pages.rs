// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the pages of a region lie in the dirty log. Pure.

use std::io;
use std::ops::RangeInclusive;

use vm_memory::{Address, GuestMemoryRegion};

/// What one bit of the log stands for, in bytes (`VHOST_LOG_PAGE`).
pub(super) const LOG_PAGE: usize = 4096;

/// The bits of a region in the log of all guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogPages {
    /// Guest addresses of the first and of the last byte of the region.
    first: usize,
    last: usize,
}

impl LogPages {
    /// Those of `region`.
    ///
    /// # Errors
    /// If it has no bytes, or passes the end of the address space.
    pub(super) fn of(region: &impl GuestMemoryRegion) -> io::Result<Self> {
        let number = |bytes: u64| usize::try_from(bytes).map_err(io::Error::other);
        Self::new(number(region.start_addr().raw_value())?, number(region.len())?)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Those of a region of `len` bytes at guest address `start`.
    pub(super) fn new(start: usize, len: usize) -> Option<Self> {
        let last = start.checked_add(len.checked_sub(1)?)?;
        Some(Self { first: start, last })
    }

    /// The bits of the pages from byte `from` of the region to byte `to`, both included; none past its
    /// end.
    pub(super) fn bits(self, from: usize, to: usize) -> RangeInclusive<usize> {
        let from = self.first.saturating_add(from);
        if from > self.last {
            return RangeInclusive::new(1, 0);
        }
        let to = self.first.saturating_add(to).min(self.last);
        from / LOG_PAGE..=to / LOG_PAGE
    }
}

/// The byte of the log that holds a bit, and the bit in it.
pub(super) fn place(bit: usize) -> (usize, u8) {
    (bit / 8, 1 << (bit % 8))
}
