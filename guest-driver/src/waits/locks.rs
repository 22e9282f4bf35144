// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Locks that register in [`Waits`] who holds them and who waits for them.
//!
//! They guard no value: a model of a kernel must be able to touch something without the lock that it
//! needs. Without a watch they only block, so that real threads can measure them.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;

use super::{Party, Thing, Waits};
use crate::sync::{Changed, Lock};

/// A mutex, served in the order of arrival.
///
/// ```
/// use guest_driver::waits::{Waits, WatchedMutex};
/// use std::sync::Arc;
///
/// let waits = Arc::new(Waits::new());
/// let (task, other) = (waits.party("the task"), waits.party("the other task"));
/// let lock = WatchedMutex::watched(&waits, "the lock");
/// let held = lock.lock(task);
/// assert!(lock.try_lock(other).is_none());
/// drop(held);
/// assert!(lock.try_lock(other).is_some());
/// ```
#[derive(Debug, Default)]
pub struct WatchedMutex(Rwsem);

impl WatchedMutex {
    /// A mutex that nothing watches.
    pub fn new() -> Self {
        Self(Rwsem::new())
    }

    /// A mutex of this name in `waits`.
    pub fn watched(waits: &Arc<Waits>, name: impl Into<String>) -> Self {
        Self(Rwsem::watched(waits, name))
    }

    /// Waits until `party` has it.
    ///
    /// # Panics
    /// With `deadlock: ` if it is watched and the wait can never end.
    pub fn lock(&self, party: Party) -> Held<'_> {
        self.0.write(party)
    }

    /// Takes it if it is free and no other waits.
    pub fn try_lock(&self, party: Party) -> Option<Held<'_>> {
        self.0.try_write(party)
    }
}

/// A lock that several share or one has alone (`rw_semaphore`).
///
/// It is fair: a reader that comes after a waiting writer waits too. A task that takes it twice as a
/// reader is therefore in a deadlock when a writer comes in between. [`Rwsem::stealing`] makes one that is not fair.
///
/// ```
/// use guest_driver::waits::{Party, Rwsem};
///
/// let lock = Rwsem::new();
/// let shared = (lock.read(Party::UNWATCHED), lock.read(Party::UNWATCHED));
/// assert!(lock.try_write(Party::UNWATCHED).is_none());
/// drop(shared);
/// assert!(lock.try_write(Party::UNWATCHED).is_some());
/// ```
#[derive(Debug, Default)]
pub struct Rwsem {
    state: Lock<State>,
    changed: Changed,
    watch: Option<Watch>,
    steals: bool,
}

/// How often a writer looks whether a lock that can be stolen is free before it sleeps.
const SPINS: u32 = 2_000;
/// How often other tasks pass the first that sleeps, until it must be the next. Linux has a time, of 4 ms.
const MOST_STOLEN: u32 = 1_000;

#[derive(Debug)]
struct Watch {
    waits: Arc<Waits>,
    thing: Thing,
}

#[derive(Debug, Default)]
struct State {
    readers: usize,
    written: bool,
    /// Tickets of those that wait, in the order of arrival.
    queue: VecDeque<u64>,
    next_ticket: u64,
    /// How often other tasks have passed the first of them.
    stolen: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Read,
    Write,
}

impl State {
    fn admits(&self, mode: Mode) -> bool {
        !self.written && (mode == Mode::Read || self.readers == 0)
    }

    fn may_be_stolen(&self, mode: Mode) -> bool {
        self.admits(mode) && (self.queue.is_empty() || self.stolen < MOST_STOLEN)
    }

    fn enter(&mut self, mode: Mode) {
        match mode {
            Mode::Read => self.readers += 1,
            Mode::Write => self.written = true,
        }
    }

    fn leave(&mut self, mode: Mode) {
        match mode {
            Mode::Read => self.readers -= 1,
            Mode::Write => self.written = false,
        }
    }
}

impl Rwsem {
    /// A lock that nothing watches.
    pub fn new() -> Self {
        Self::default()
    }

    /// A lock that is not fair, as Linux's `rw_semaphore`, and that nothing watches. A task that comes may pass
    /// those that sleep, and a writer spins for a while before it sleeps. A task that too many have passed is
    /// the next.
    pub fn stealing() -> Self {
        Self { steals: true, ..Self::default() }
    }

    /// How many times a task has waited in the queue so far.
    pub fn slept(&self) -> u64 {
        self.state.lock().next_ticket
    }

    /// A lock of this name in `waits`.
    pub fn watched(waits: &Arc<Waits>, name: impl Into<String>) -> Self {
        let watch = Watch { waits: Arc::clone(waits), thing: waits.thing(name) };
        Self { watch: Some(watch), ..Self::default() }
    }

    /// Waits until `party` shares it (`down_read`).
    ///
    /// # Panics
    /// With `deadlock: ` if it is watched and the wait can never end.
    pub fn read(&self, party: Party) -> Shared<'_> {
        self.wait(party, Mode::Read);
        Shared { lock: self, party }
    }

    /// Shares it if no writer has it and no other waits (`down_read_trylock`).
    pub fn try_read(&self, party: Party) -> Option<Shared<'_>> {
        self.attempt(party, Mode::Read).then(|| Shared { lock: self, party })
    }

    /// Waits until `party` has it alone (`down_write`).
    ///
    /// # Panics
    /// With `deadlock: ` if it is watched and the wait can never end.
    pub fn write(&self, party: Party) -> Held<'_> {
        self.wait(party, Mode::Write);
        Held { lock: self, party }
    }

    /// Takes it alone if no other has it or waits (`down_write_trylock`).
    pub fn try_write(&self, party: Party) -> Option<Held<'_>> {
        self.attempt(party, Mode::Write).then(|| Held { lock: self, party })
    }

    fn attempt(&self, party: Party, mode: Mode) -> bool {
        let mut state = self.state.lock();
        let free = state.queue.is_empty() && state.admits(mode);
        if free {
            self.enter(&mut state, party, mode);
        }
        free
    }

    fn wait(&self, party: Party, mode: Mode) {
        let mut state = self.state.lock();
        if state.queue.is_empty() && state.admits(mode) {
            self.enter(&mut state, party, mode);
            return;
        }
        if self.steals {
            let looks = if mode == Mode::Write { SPINS } else { 1 };
            for _ in 0..looks {
                if state.may_be_stolen(mode) {
                    state.stolen += u32::from(!state.queue.is_empty());
                    state.enter(mode);
                    return;
                }
                drop(state);
                core::hint::spin_loop();
                state = self.state.lock();
            }
        }
        // It panics if the wait can never end, so before anything is queued.
        if let Some(Watch { waits, thing }) = &self.watch {
            waits.wait(party, *thing);
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(ticket);
        while state.queue.front() != Some(&ticket) || !state.admits(mode) {
            state = self.changed.wait(state, &self.state);
        }
        state.queue.pop_front();
        state.stolen = 0;
        if let Some(Watch { waits, .. }) = &self.watch {
            waits.waited(party);
        }
        self.enter(&mut state, party, mode);
        // The next one may share it.
        self.announce(&state);
    }

    fn enter(&self, state: &mut State, party: Party, mode: Mode) {
        state.enter(mode);
        if let Some(Watch { waits, thing }) = &self.watch {
            waits.hold(party, *thing);
        }
    }

    fn leave(&self, party: Party, mode: Mode) {
        // The schedule ends with the panic; another step of it could not be taken any more.
        #[cfg(feature = "shuttle")]
        if std::thread::panicking() {
            return;
        }
        let mut state = self.state.lock();
        state.leave(mode);
        if let Some(Watch { waits, thing }) = &self.watch {
            waits.release(party, *thing);
        }
        self.announce(&state);
    }

    fn announce(&self, state: &State) {
        if !state.queue.is_empty() {
            self.changed.announce();
        }
    }
}

/// A lock that is shared until this is dropped.
#[derive(Debug)]
#[must_use = "the lock is released at once"]
pub struct Shared<'a> {
    lock: &'a Rwsem,
    party: Party,
}

impl Drop for Shared<'_> {
    fn drop(&mut self) {
        self.lock.leave(self.party, Mode::Read);
    }
}

/// A lock that one has alone until this is dropped.
#[derive(Debug)]
#[must_use = "the lock is released at once"]
pub struct Held<'a> {
    lock: &'a Rwsem,
    party: Party,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lock.leave(self.party, Mode::Write);
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
