// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A report, as a device sees it.

use std::time::Instant;

/// A report that the device has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// When.
    pub at: Instant,
    /// Bytes in it.
    pub bytes: u64,
    /// Bytes of each of its chunks.
    pub sizes: Vec<u64>,
    /// Guest physical address of each.
    pub starts: Vec<u64>,
}

impl Chain {
    /// Bytes of it that lie between two guest physical addresses.
    pub fn bytes_within(&self, start: u64, end: u64) -> u64 {
        let chunks = self.starts.iter().zip(&self.sizes);
        chunks.map(|(at, size)| (at + size).min(end).saturating_sub((*at).max(start))).sum()
    }
}
