// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device whose driver holds its lock over what may wait for reclaim.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::setup::Setup;
use crate::address_space::{AddressSpace, Again, Grace, Invalidation, Notifier, PageId, Step};
use crate::sync::{self, Lock};
use crate::waits::{Party, Waits, WatchedMutex};

/// What the driver holds its lock over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// An allocation that may reclaim.
    Allocation,
    /// A flush, which waits until the driver's worker is idle. The worker allocates, and uses what the
    /// device maps.
    Flush,
    /// The same, but the worker uses nothing that the device maps: an invalidation needs the lock only.
    Wait,
}

/// A mistake of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFlaw {
    /// It maps a page without a look at the sequence.
    MapsWithoutLook,
    /// It tries its lock, and then waits for its worker.
    TriesFirstLockOnly,
    /// It tries its lock, and does not ask its worker.
    ForgetsWorker,
    /// A start that fails is counted as in progress.
    CountsFailedStart,
    /// It marks a range, and lets its pages be freed at once.
    FreesBeforeGrace,
    /// It looks whether the device is in use, and marks the range later.
    MarksTooLate,
}

/// The number that a running job of a device maps its pages under, beside that of the subscription.
const JOB: usize = usize::MAX;

/// How often a fault is tried.
const TRIES: u32 = 3;

/// A device with page tables of its own under a mutex, and with a worker.
///
/// Its driver maps a page as `hmm_range_fault` describes: it reads the sequence, looks the page up, takes
/// its lock, and starts again if an invalidation has come in between.
#[derive(Debug)]
pub struct Device {
    setup: Setup,
    over: Over,
    flaw: Option<DeviceFlaw>,
    lock: WatchedMutex,
    /// Held by the worker while it has a job.
    queue: WatchedMutex,
    /// Never held over anything that waits.
    state: Lock<State>,
}

#[derive(Debug, Default)]
struct State {
    in_progress: u32,
    sequence: u64,
    mapped: Vec<(u64, PageId)>,
    /// Those that hold the lock or have a job.
    users: u32,
    /// What the last user drops as it leaves.
    marks: Vec<(Range<u64>, Arc<Grace>)>,
}

impl Device {
    /// A device that maps nothing yet.
    pub fn new(waits: &Arc<Waits>, setup: Setup, over: Over, flaw: Option<DeviceFlaw>) -> Self {
        Self {
            setup,
            over,
            flaw,
            lock: WatchedMutex::watched(waits, "the driver's lock"),
            queue: WatchedMutex::watched(waits, "the driver's queue"),
            state: Lock::default(),
        }
    }

    /// Maps a page of `mm`, unless there is none or no memory for it.
    pub fn fault(&self, party: Party, mm: &AddressSpace, at: u64) {
        for _ in 0..TRIES {
            let Some(sequence) = self.read_begin() else {
                sync::yield_now();
                continue;
            };
            let Some(page) = mm.get_page(party, at) else { return };
            let held = self.lock.lock(party);
            let _ = self.enter();
            let goes_on = match self.over {
                Over::Allocation => self.setup.reclaim.alloc(party).is_ok(),
                Over::Flush | Over::Wait => {
                    drop(self.queue.lock(party));
                    true
                }
            };
            let is_done = !goes_on || self.map(sequence, at, page);
            self.leave();
            drop(held);
            self.setup.pages.put(page);
            if is_done {
                return;
            }
        }
    }

    /// A job of the worker, which uses what the device maps.
    pub fn work(&self, party: Party) {
        let busy = self.queue.lock(party);
        let used = self.enter();
        // It works without the memory, if need be.
        let _ = self.setup.reclaim.alloc(party);
        used.iter().for_each(|&page| self.setup.pages.unmap_secondary(page, JOB));
        self.leave();
        drop(busy);
    }

    /// Whether the device is idle: no invalidation is in progress, and no mark is left.
    pub fn is_at_rest(&self) -> bool {
        let state = self.state.lock();
        state.in_progress == 0 && state.marks.is_empty()
    }

    fn read_begin(&self) -> Option<u64> {
        let state = self.state.lock();
        (state.in_progress == 0).then_some(state.sequence)
    }

    fn map(&self, sequence: u64, at: u64, page: PageId) -> bool {
        let mut state = self.state.lock();
        let is_current = state.in_progress == 0 && state.sequence == sequence;
        if !is_current && self.flaw != Some(DeviceFlaw::MapsWithoutLook) {
            return false;
        }
        state.mapped.push((at, page));
        self.setup.pages.map_secondary(page, self.setup.subscription);
        true
    }

    /// Another uses the device. Returns the pages that it maps, for a job.
    fn enter(&self) -> Vec<PageId> {
        let mut state = self.state.lock();
        state.users += 1;
        let used: Vec<PageId> = state.mapped.iter().map(|&(_, page)| page).collect();
        if self.over == Over::Flush {
            used.iter().for_each(|&page| self.setup.pages.map_secondary(page, JOB));
        }
        used
    }

    /// The last one that leaves drops what is marked.
    fn leave(&self) {
        let mut state = self.state.lock();
        state.users -= 1;
        if state.users > 0 {
            return;
        }
        let marks = core::mem::take(&mut state.marks);
        marks.iter().for_each(|(range, _)| self.setup.unmap(&mut state.mapped, range));
        drop(state);
        marks.iter().for_each(|(_, grace)| {
            grace.pass();
        });
    }

    /// Drops the range. With the lock and an idle worker, or with the mark's knowledge that there is no user.
    fn begin(&self, state: &mut State, range: &Range<u64>) {
        state.in_progress += 1;
        self.setup.unmap(&mut state.mapped, range);
    }

    fn block(&self, invalidation: &Invalidation<'_>) {
        let held = self.lock.lock(invalidation.party);
        let idle = (self.over == Over::Flush).then(|| self.queue.lock(invalidation.party));
        self.begin(&mut self.state.lock(), &invalidation.range);
        drop((idle, held));
    }

    fn attempt(&self, invalidation: &Invalidation<'_>) -> Result<(), Again> {
        let party = invalidation.party;
        let _held = self.lock.try_lock(party).ok_or(Again)?;
        let _idle = match (self.over, self.flaw) {
            (Over::Allocation | Over::Wait, _) | (_, Some(DeviceFlaw::ForgetsWorker)) => None,
            (_, Some(DeviceFlaw::TriesFirstLockOnly)) => Some(self.queue.lock(party)),
            _ => Some(self.queue.try_lock(party).ok_or(Again)?),
        };
        self.begin(&mut self.state.lock(), &invalidation.range);
        Ok(())
    }

    /// Drops the range at once if the device is not in use. Otherwise the last user does.
    fn defer(&self, invalidation: &Invalidation<'_>) {
        let Invalidation { range, grace, .. } = invalidation;
        let mut state = self.state.lock();
        if state.users == 0 {
            self.begin(&mut state, range);
            return;
        }
        state.in_progress += 1;
        if self.flaw == Some(DeviceFlaw::MarksTooLate) {
            drop(state);
            state = self.state.lock();
        }
        if self.flaw == Some(DeviceFlaw::FreesBeforeGrace) {
            let own = Grace::new(&self.setup.pages);
            state.marks.push((range.clone(), own));
            return;
        }
        grace.defer();
        state.marks.push((range.clone(), Arc::clone(grace)));
    }
}

impl Notifier for Device {
    fn start(&self, invalidation: &Invalidation<'_>) -> Result<(), Again> {
        if invalidation.tests_range && !self.setup.is_interested(&invalidation.range) {
            return Ok(());
        }
        match invalidation.step {
            Step::Block => self.block(invalidation),
            Step::Bail => return Err(Again),
            Step::Try => {
                let tried = self.attempt(invalidation);
                if tried.is_err() && self.flaw == Some(DeviceFlaw::CountsFailedStart) {
                    self.state.lock().in_progress += 1;
                }
                return tried;
            }
            Step::Defer => self.defer(invalidation),
        }
        Ok(())
    }

    fn end(&self, invalidation: &Invalidation<'_>) {
        if invalidation.tests_range && !self.setup.is_interested(&invalidation.range) {
            return;
        }
        let mut state = self.state.lock();
        state.in_progress = state.in_progress.saturating_sub(1);
        state.sequence += 1;
    }
}
