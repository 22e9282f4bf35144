// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Blocks that are allocated and written, and checked and freed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::history::{Event, History};
use super::slots::Slots;
use crate::page_alloc::{AllocRequest, Mm, Pfn, PfnRange};
use crate::ram::GuestRam;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Blocks allocated and written.
    pub allocated: u64,
    /// Blocks checked and freed.
    pub freed: u64,
    /// Bytes that were checked.
    pub verified_bytes: u64,
    /// Allocations that found no memory.
    pub failed: u64,
}

/// Memory in use that does not hold what was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pfn:?} holds {found:#x} where {expected:#x} was written; recent events: {history:?}")]
pub struct LostBytes {
    /// The page.
    pub pfn: Pfn,
    /// The word that was written.
    pub expected: u64,
    /// The word that is there.
    pub found: u64,
    /// Recent events of the page, oldest first.
    pub history: Vec<Event>,
}

/// Counters that the threads share.
#[derive(Default)]
struct Counters {
    allocated: AtomicU64,
    freed: AtomicU64,
    verified_bytes: AtomicU64,
    failed: AtomicU64,
}

/// The blocks that a workload has, in slots, and what became of them.
pub(super) struct Blocks<'a, R> {
    mm: &'a Mm,
    slots: Slots<'a, R>,
    history: History,
    counters: Counters,
}

impl<'a, R: GuestRam + Sync> Blocks<'a, R> {
    pub(super) fn mm(&self) -> &Mm {
        self.mm
    }

    /// None yet.
    pub(super) fn new(mm: &'a Mm, slots: Slots<'a, R>) -> Self {
        Self { mm, slots, history: History::default(), counters: Counters::default() }
    }

    pub(super) fn slots(&self) -> &Slots<'a, R> {
        &self.slots
    }

    /// What was done so far.
    pub(super) fn done(&self) -> Done {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Done {
            allocated: read(&self.counters.allocated),
            freed: read(&self.counters.freed),
            verified_bytes: read(&self.counters.verified_bytes),
            failed: read(&self.counters.failed),
        }
    }

    /// Allocates into a slot and writes; false if there is no memory.
    pub(super) fn fill(&self, cpu: usize, slot: usize, request: AllocRequest) -> bool {
        let Some(filled) = self.slots.fill(self.mm, cpu, slot, request) else {
            self.counters.failed.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        self.history.add(Event::Allocated {
            cpu,
            pfn: filled.pfn,
            order: request.order,
            generation: filled.generation,
        });
        self.counters.allocated.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Checks what is in a slot, if anything is, and frees it.
    pub(super) fn check_and_free(&self, cpu: usize, slot: usize) -> Result<(), LostBytes> {
        let Some((pfn, order)) = self.slots.check_and_free(self.mm, cpu, slot).map_err(|bad| {
            let history = self.history.of(PfnRange::block(bad.pfn, 0));
            LostBytes { pfn: bad.pfn, expected: bad.expected, found: bad.found, history }
        })?
        else {
            return Ok(());
        };
        self.history.add(Event::Freed { cpu, pfn, order });
        self.counters.freed.fetch_add(1, Ordering::Relaxed);
        let bytes = crate::page_alloc::geometry::PAGE_BYTES << order;
        self.counters.verified_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}
