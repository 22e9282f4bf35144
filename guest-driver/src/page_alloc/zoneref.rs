// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An entry of a zonelist (`struct zoneref`).

use core::sync::atomic::{AtomicUsize, Ordering};

use super::zone::ZoneId;

const END: usize = usize::MAX;
/// What is found in memory that was freed: no zone has this index.
const FREED: usize = usize::MAX - 1;

/// A zone in order of preference, or the end of the list. It can be read while it is written: memory of a
/// list that was freed may be another's.
#[derive(Debug)]
pub struct Zoneref(AtomicUsize);

impl Default for Zoneref {
    fn default() -> Self {
        Self(AtomicUsize::new(END))
    }
}

impl Zoneref {
    /// The zone; none ends the list.
    pub fn zone(&self) -> Option<ZoneId> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&zone| zone != END).map(ZoneId)
    }

    /// Writes it.
    pub fn set(&self, zone: Option<ZoneId>) {
        self.0.store(zone.map_or(END, |zone| zone.0), Ordering::Relaxed);
    }

    /// Its list is freed.
    pub(super) fn poison(&self) {
        self.0.store(FREED, Ordering::Relaxed);
    }
}
