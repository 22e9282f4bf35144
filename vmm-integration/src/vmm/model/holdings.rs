// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's memory in use, filled with contents that name their page and generation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_driver::page_alloc::geometry::PAGE_BYTES;
use guest_driver::page_alloc::zone::Zone;
use guest_driver::page_alloc::{AllocRequest, Mm, MovePages, Pfn, ZoneId};
use guest_driver::ram::{Gpa, GpaRange};

use crate::guest_memory::{Mismatch, PageState, Ram};

/// The CPU that the holdings are allocated and freed on.
const CPU: usize = 0;
/// How long memory that is held for a report is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a look at the contents has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Bytes that were looked at.
    pub checked_bytes: u64,
    /// Bytes in pages that do not hold what they should.
    pub lost_bytes: u64,
    /// The first place that does not.
    pub first: Option<Mismatch>,
}

/// Memory that was allocated under one name.
#[derive(Debug, Default)]
struct Holding {
    generation: u16,
    /// By first frame: the order.
    blocks: BTreeMap<Pfn, u8>,
}

impl Holding {
    fn pages(&self) -> u64 {
        self.blocks.values().map(|order| 1 << order).sum()
    }
}

/// What the guest has in use, by name, filled with the pattern.
///
/// All of it is movable: [`MovePages`] is implemented, so that memory can be taken offline.
#[derive(Clone)]
pub struct Holdings {
    mm: Arc<Mm>,
    ram: Ram,
    held: Arc<Mutex<BTreeMap<u32, Holding>>>,
}

impl Holdings {
    /// None yet, of this guest.
    pub fn new(mm: &Arc<Mm>, ram: &Ram) -> Self {
        Self { mm: Arc::clone(mm), ram: ram.clone(), held: Arc::default() }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<u32, Holding>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates `bytes` in blocks of `order` and fills them. Where no such block is left it goes
    /// on with smaller ones, as faults do; where nothing is left it waits for what is only held for
    /// a report.
    ///
    /// # Errors
    /// When the name is taken, the guest is out of memory (what there was is freed again), or
    /// memory cannot be written.
    pub fn alloc(&self, name: u32, bytes: u64, order: u8, generation: u16) -> Result<()> {
        let mut held = self.held();
        ensure!(!held.contains_key(&name), "memory {name} is in use already");
        let mut holding = Holding { generation, blocks: BTreeMap::new() };
        let others: u64 = held.values().map(Holding::pages).sum();
        let pages = bytes.div_ceil(PAGE_BYTES);
        let mut left = pages;
        while left > 0 {
            let most = order.min(u8::try_from(left.ilog2())?);
            let Some((pfn, order)) = self.largest_block(most, others + pages - left) else {
                holding.blocks.keys().for_each(|pfn| self.mm.free(CPU, *pfn));
                bail!("the guest is out of memory, {left} pages short of {bytes} bytes");
            };
            holding.blocks.insert(pfn, order);
            self.mm.set_owner(pfn, name);
            self.ram.write_pattern(block(pfn, order)?, generation)?;
            left -= 1 << order;
        }
        held.insert(name, holding);
        Ok(())
    }

    /// A block of `most` or the largest order below that is free, while `used` pages are in
    /// use.
    fn largest_block(&self, most: u8, used: u64) -> Option<(Pfn, u8)> {
        let started = Instant::now();
        loop {
            let of = |order| Some((self.mm.alloc(CPU, AllocRequest::movable(order)).ok()?, order));
            if let Some(found) = (0..=most).rev().find_map(of) {
                return Some(found);
            }
            // Linux would reclaim and look again. There is nothing to reclaim, and no event for
            // the end of an isolation. Nor does it help to ask whether any pageblock is isolated:
            // the last may have been let go since there was no block.
            let zones = (0..self.mm.zone_count()).map(|zone| self.mm.zone(ZoneId(zone)));
            let managed: u64 = zones.map(Zone::managed_pages).sum();
            if managed <= used || started.elapsed() > PATIENCE {
                return None;
            }
            thread::yield_now();
        }
    }

    /// Looks at the contents of what was allocated under this name.
    ///
    /// # Errors
    /// When nothing was, or memory cannot be read.
    pub fn verify(&self, name: u32) -> Result<Verdict> {
        let held = self.held();
        let holding = held.get(&name).with_context(|| format!("there is no memory {name}"))?;
        let mut verdict = Verdict::default();
        for (pfn, order) in &holding.blocks {
            let generation = holding.generation;
            self.ram.for_each_page(block(*pfn, *order)?, generation, |at, state| {
                verdict.checked_bytes += PAGE_BYTES;
                let mismatch = match state {
                    PageState::Intact => return Ok(()),
                    PageState::Broken(mismatch) => mismatch,
                    PageState::Zero => {
                        Mismatch { at, generation, found: guest_driver::pattern::Found::Zero }
                    }
                };
                verdict.lost_bytes += PAGE_BYTES;
                verdict.first.get_or_insert(mismatch);
                Ok(())
            })?;
        }
        Ok(verdict)
    }

    /// Frees what was allocated under this name.
    ///
    /// # Errors
    /// When nothing was.
    pub fn free(&self, name: u32) -> Result<()> {
        let mut held = self.held();
        let holding = held.remove(&name).with_context(|| format!("there is no memory {name}"))?;
        holding.blocks.keys().for_each(|pfn| self.mm.free(CPU, *pfn));
        Ok(())
    }
}

impl MovePages for Holdings {
    fn move_pages(&self, mm: &Mm, from: Pfn, order: u8, owner: Option<u32>) -> bool {
        // An allocation in progress holds the lock until the owner is known.
        let mut held = self.held();
        let Some(holding) = owner.and_then(|name| held.get_mut(&name)) else { return false };
        let generation = holding.generation;
        let (Ok(source), Some(_)) = (block(from, order), holding.blocks.get(&from)) else {
            return false;
        };
        // The contents name their page, so they are rewritten instead of copied. Those that are
        // not whole stay where they are, to be found there.
        if self.ram.verify_pattern(source, generation).is_err() {
            return false;
        }
        let Ok(to) = mm.alloc(CPU, AllocRequest::movable(order)) else { return false };
        let Ok(target) = block(to, order) else { return false };
        if self.ram.write_pattern(target, generation).is_err() {
            mm.free(CPU, to);
            return false;
        }
        if let Some(name) = owner {
            mm.set_owner(to, name);
        }
        holding.blocks.remove(&from);
        holding.blocks.insert(to, order);
        mm.free(CPU, from);
        true
    }
}

/// The bytes of a block.
fn block(pfn: Pfn, order: u8) -> Result<GpaRange> {
    let range = GpaRange::new(Gpa(pfn.address()), PAGE_BYTES << order);
    range.context("a block past 2^64")
}
