// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The blocks that CPUs hold, where a mover of their pages finds them.

use core::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::page_alloc::{AllocRequest, Mm, MovePages, Pfn, PfnRange};
use crate::pattern;
use crate::ram::{Gpa, GuestRam};

/// A block in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    pub(super) pfn: Pfn,
    order: u8,
    /// Where it was when it was written: a block that was moved names its old pages.
    written_at: Pfn,
    pub(super) generation: u16,
}

#[derive(Debug, Default)]
struct Slot {
    filled: Option<Filled>,
    generation: u16,
}

/// A word that is not what was written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bad {
    pub(super) pfn: Pfn,
    pub(super) expected: u64,
    pub(super) found: u64,
}

/// The blocks that a workload holds. A slot's lock keeps its user and a mover of its
/// pages from each other, as the page lock does in Linux.
pub struct Slots<'a, R> {
    ram: &'a R,
    slots: Box<[Mutex<Slot>]>,
    each: usize,
    /// The CPU on whose lists a mover of pages allocates and frees.
    moving_cpu: usize,
}

impl<'a, R: GuestRam + Sync> Slots<'a, R> {
    pub(super) fn new(ram: &'a R, cpus: usize, each: usize, moving_cpu: usize) -> Self {
        let slots = (0..cpus * each).map(|_| Mutex::default()).collect();
        Self { ram, slots, each, moving_cpu }
    }

    pub(super) fn of_cpu(&self, cpu: usize) -> Range<usize> {
        cpu * self.each..(cpu + 1) * self.each
    }

    fn lock(&self, slot: usize) -> MutexGuard<'_, Slot> {
        self.slots[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first page of what is in a slot.
    pub fn pfn(&self, slot: usize) -> Option<Pfn> {
        self.lock(slot).filled.map(|filled| filled.pfn)
    }

    /// Allocates a block into an empty slot and writes it.
    pub(super) fn fill(
        &self,
        mm: &Mm,
        cpu: usize,
        index: usize,
        request: AllocRequest,
    ) -> Option<Filled> {
        let mut slot = self.lock(index);
        let pfn = mm.alloc(cpu, request).ok()?;
        slot.generation = slot.generation.wrapping_add(1);
        let generation = slot.generation;
        for page in PfnRange::block(pfn, request.order).step(0) {
            let at = Gpa(page.address());
            // Memory that the allocator gives is memory.
            self.ram.write(at, &pattern::page(at, generation)).ok()?;
        }
        let filled = Filled { pfn, order: request.order, written_at: pfn, generation };
        slot.filled = Some(filled);
        mm.set_owner(pfn, u32::try_from(index).unwrap_or(u32::MAX - 1));
        Some(filled)
    }

    /// Checks every word of what is in a slot and frees it; none if it is empty.
    pub(super) fn check_and_free(
        &self,
        mm: &Mm,
        cpu: usize,
        index: usize,
    ) -> Result<Option<(Pfn, u8)>, Bad> {
        let mut slot = self.lock(index);
        let Some(filled) = slot.filled.take() else { return Ok(None) };
        let mut page = [0; pattern::PAGE_BYTES];
        for (i, pfn) in PfnRange::block(filled.pfn, filled.order).step(0).enumerate() {
            let offset = u32::try_from(i).unwrap_or(0);
            let written = Gpa(filled.written_at.plus(offset).address());
            let expected = pattern::word(written, filled.generation);
            if self.ram.read(Gpa(pfn.address()), &mut page).is_err() {
                return Err(Bad { pfn, expected, found: 0 });
            }
            for word in page.chunks_exact(pattern::WORD_BYTES) {
                let found = word.try_into().map_or(0, u64::from_le_bytes);
                if found != expected {
                    return Err(Bad { pfn, expected, found });
                }
            }
        }
        mm.free(cpu, filled.pfn);
        Ok(Some((filled.pfn, filled.order)))
    }
}

impl<R: GuestRam + Sync> MovePages for Slots<'_, R> {
    fn move_pages(&self, mm: &Mm, from: Pfn, order: u8, owner: Option<u32>) -> bool {
        let Some(slot) = owner.and_then(|owner| self.slots.get(owner as usize)) else {
            return false;
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been freed, and have another user by now.
        let Some(filled) = slot.filled.filter(|f| f.pfn == from && f.order == order) else {
            return false;
        };
        let Ok(to) = mm.alloc(self.moving_cpu, AllocRequest::movable(order)) else { return false };
        let mut page = [0; pattern::PAGE_BYTES];
        let copied = PfnRange::block(from, order)
            .step(0)
            .zip(PfnRange::block(to, order).step(0))
            .all(|(from, to)| {
                self.ram.read(Gpa(from.address()), &mut page).is_ok()
                    && self.ram.write(Gpa(to.address()), &page).is_ok()
            });
        if !copied {
            mm.free(self.moving_cpu, to);
            return false;
        }
        if let Some(owner) = owner {
            mm.set_owner(to, owner);
        }
        slot.filled = Some(Filled { pfn: to, ..filled });
        mm.free(self.moving_cpu, from);
        true
    }
}
