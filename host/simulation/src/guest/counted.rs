// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory of a guest as counters, for fleets.

use std::time::Duration;

use super::{Memory, Use};

/// One part of free memory in so many is in blocks too small to be reported, or not reported yet.
const UNREPORTED: u64 = 64;
/// One part of memory in so many lies below the watermarks.
const WATERMARKS: u64 = 128;

/// How many bytes are used for what.
#[derive(Debug)]
pub struct Counted {
    bytes: u64,
    used: [u64; Use::ALL.len()],
}

impl Memory for Counted {
    fn new(bytes: u64) -> Self {
        Self { bytes, used: [0; Use::ALL.len()] }
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn used(&self, by: Use) -> u64 {
        self.used[by as usize]
    }

    fn free(&self) -> u64 {
        let used: u64 = self.used.iter().sum();
        (self.bytes - self.bytes / WATERMARKS).saturating_sub(used)
    }

    fn take(&mut self, by: Use, bytes: u64) -> u64 {
        let taken = bytes.min(self.free());
        self.used[by as usize] += taken;
        taken
    }

    fn give(&mut self, by: Use, bytes: u64) {
        let used = &mut self.used[by as usize];
        *used = used.saturating_sub(bytes);
    }

    fn report(&mut self, _: Duration) {}

    fn resident(&self) -> u64 {
        let ours = Use::ALL.iter().filter(|by| **by != Use::Balloon);
        ours.map(|by| self.used(*by)).sum::<u64>() + self.free() / UNREPORTED
    }
}
