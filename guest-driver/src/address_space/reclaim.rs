// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that an allocation waits for. What it waits for is registered in [`Waits`].

use alloc::sync::Arc;

use crate::sync::{Changed, Lock};
use crate::waits::{Party, Thing, Waits};

/// An allocation fails: nothing is free, and nothing is being reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory")]
pub struct NoMemory;

/// Free memory, and the progress of the one that reclaims.
///
/// An allocation that may reclaim (`__GFP_DIRECT_RECLAIM`) waits until a page is freed, or until the one
/// that reclaims has given up. That one holds the progress of reclaim: if it waits for a lock whose holder
/// waits here, the wait can never end.
#[derive(Debug)]
pub struct Reclaim {
    state: Lock<State>,
    changed: Changed,
    waits: Arc<Waits>,
    progress: Thing,
}

#[derive(Debug, Default)]
struct State {
    free: u64,
    reclaiming: u32,
}

impl Reclaim {
    /// `free` pages, and nothing that reclaims.
    pub fn new(waits: &Arc<Waits>, free: u64) -> Self {
        Self {
            state: Lock::new(State { free, reclaiming: 0 }),
            changed: Changed::default(),
            waits: Arc::clone(waits),
            progress: waits.thing("reclaim"),
        }
    }

    /// `party` reclaims from now on.
    pub fn begin(&self, party: Party) {
        self.state.lock().reclaiming += 1;
        self.waits.hold(party, self.progress);
    }

    /// `party` has given up, or is done.
    pub fn end(&self, party: Party) {
        self.state.lock().reclaiming -= 1;
        self.waits.release(party, self.progress);
        self.changed.announce();
    }

    /// Takes a page. Waits for one while memory is being reclaimed.
    ///
    /// # Errors
    /// [`NoMemory`], if nothing is free and nothing is being reclaimed.
    ///
    /// # Panics
    /// With `deadlock: ` if the wait can never end.
    pub fn alloc(&self, party: Party) -> Result<(), NoMemory> {
        let mut state = self.state.lock();
        while state.free == 0 && state.reclaiming > 0 {
            self.waits.wait(party, self.progress);
            state = self.changed.wait(state, &self.state);
            self.waits.waited(party);
        }
        state.free = state.free.checked_sub(1).ok_or(NoMemory)?;
        Ok(())
    }

    /// A page has become free.
    pub(super) fn freed(&self) {
        self.state.lock().free += 1;
        self.changed.announce();
    }

    /// Pages that are free.
    pub fn free(&self) -> u64 {
        self.state.lock().free
    }
}
