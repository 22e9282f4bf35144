// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who waits for whom. A wait that can never end is found as it begins, and named.
//!
//! A thing is what can be waited for: a lock, a sequence count, a CPU, the progress of reclaim. Nothing
//! in [`Waits`] is a scheduling point. [`WatchedMutex`] and [`Rwsem`] are locks that register there who holds
//! them and who waits.

mod locks;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use crate::sync::Plain;

pub use locks::{Held, Rwsem, Shared, WatchedMutex};

/// One that waits and holds: a task, an interrupt handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party(usize);

impl Party {
    /// Any party, where the locks that it takes are not watched.
    pub const UNWATCHED: Self = Self(usize::MAX);
}

/// What parties hold and wait for. Waiting for one that several hold is waiting for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thing(usize);

/// The graph of all waits.
///
/// ```should_panic
/// use guest_driver::waits::Waits;
///
/// let waits = Waits::new();
/// let (reader, writer) = (waits.party("the reader"), waits.party("the writer"));
/// let (count, console) = (waits.thing("the sequence count"), waits.thing("the console"));
/// waits.hold(writer, count);
/// waits.hold(reader, console);
/// waits.wait(reader, count);
/// // deadlock: the writer waits for the console, which the reader holds, who waits for the sequence
/// // count, which the writer holds
/// waits.wait(writer, console);
/// ```
#[derive(Debug)]
pub struct Waits(Plain<Graph>);

#[derive(Debug, Default)]
struct Graph {
    parties: Vec<String>,
    things: Vec<String>,
    held: Vec<(Party, Thing)>,
    awaited: Vec<(Party, Thing)>,
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

impl Waits {
    /// Without anyone.
    pub fn new() -> Self {
        Self(Plain::new(Graph::default()))
    }

    /// A party of this name.
    pub fn party(&self, name: impl Into<String>) -> Party {
        let mut graph = self.0.lock();
        graph.parties.push(name.into());
        Party(graph.parties.len() - 1)
    }

    /// A thing of this name.
    pub fn thing(&self, name: impl Into<String>) -> Thing {
        let mut graph = self.0.lock();
        graph.things.push(name.into());
        Thing(graph.things.len() - 1)
    }

    /// `party` holds `thing` from now on, once more if it does already.
    pub fn hold(&self, party: Party, thing: Thing) {
        self.0.lock().held.push((party, thing));
    }

    /// `party` holds `thing` once less.
    ///
    /// # Panics
    /// If it does not hold it.
    pub fn release(&self, party: Party, thing: Thing) {
        let mut graph = self.0.lock();
        let Some(at) = graph.held.iter().position(|&held| held == (party, thing)) else {
            let (party, thing) = (&graph.parties[party.0], &graph.things[thing.0]);
            panic!("{party} releases {thing} without holding it");
        };
        graph.held.swap_remove(at);
    }

    /// `party` waits for `thing` from now on, until [`Waits::waited`].
    ///
    /// # Panics
    /// With `deadlock: ` and the [`Cycle`] in words, if the wait can never end.
    pub fn wait(&self, party: Party, thing: Thing) {
        let mut graph = self.0.lock();
        graph.awaited.push((party, thing));
        if let Some(cycle) = graph.cycle(party, thing) {
            // Who unwinds may release what it holds.
            drop(graph);
            panic!("deadlock: {cycle}");
        }
    }

    /// `party` no longer waits.
    pub fn waited(&self, party: Party) {
        self.0.lock().awaited.retain(|&(waiting, _)| waiting != party);
    }
}

impl Graph {
    /// The way from `party`, which waits for `thing`, back to itself.
    fn cycle(&self, party: Party, thing: Thing) -> Option<Cycle> {
        // Ways that are still to be followed: each a party that waits, for what.
        let mut ways = vec![vec![(party, thing)]];
        let mut seen = vec![false; self.parties.len()];
        while let Some(way) = ways.pop() {
            let &(_, thing) = way.last()?;
            for &(holder, _) in self.held.iter().filter(|&&(_, held)| held == thing) {
                if holder == party {
                    return Some(self.name(&way, party));
                }
                if core::mem::replace(&mut seen[holder.0], true) {
                    continue;
                }
                let next = self.awaited.iter().filter(|&&(waiting, _)| waiting == holder);
                ways.extend(next.map(|&wait| way.iter().copied().chain([wait]).collect()));
            }
        }
        None
    }

    fn name(&self, way: &[(Party, Thing)], last: Party) -> Cycle {
        let holders = way.iter().skip(1).map(|&(party, _)| party).chain([last]);
        let step = |(&(party, thing), holder): (&(Party, Thing), Party)| Step {
            party: self.parties[party.0].clone(),
            thing: self.things[thing.0].clone(),
            holder: self.parties[holder.0].clone(),
        };
        Cycle(way.iter().zip(holders).map(step).collect())
    }
}

/// Parties that wait for each other in a circle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    party: String,
    thing: String,
    holder: String,
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Step { party, thing, holder }) in self.0.iter().enumerate() {
            match index {
                0 => write!(f, "{party} waits for {thing}, which {holder} holds")?,
                _ => write!(f, ", who waits for {thing}, which {holder} holds")?,
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    /// What the panic of `wait` says.
    fn deadlock(waits: &Waits, party: Party, thing: Thing) -> Option<String> {
        let panic = catch_unwind(AssertUnwindSafe(|| waits.wait(party, thing))).err()?;
        panic.downcast_ref::<String>().cloned()
    }

    #[test]
    fn own_lock_is_a_deadlock() {
        let waits = Waits::new();
        let (task, lock) = (waits.party("the task"), waits.thing("its lock"));
        waits.hold(task, lock);
        let said = "deadlock: the task waits for its lock, which the task holds";
        assert_eq!(deadlock(&waits, task, lock).as_deref(), Some(said));
    }

    #[test]
    fn wait_two_locks_away_is_named() {
        let waits = Waits::new();
        let [reaper, driver, other] =
            ["the reaper", "the driver", "the worker"].map(|name| waits.party(name));
        let [lock, queue, reclaim] =
            ["the lock", "the queue", "reclaim"].map(|name| waits.thing(name));
        waits.hold(reaper, reclaim);
        waits.hold(driver, lock);
        waits.hold(other, queue);
        waits.wait(driver, queue);
        waits.wait(other, reclaim);
        let said = "deadlock: the reaper waits for the lock, which the driver holds, who waits for the queue, \
                    which the worker holds, who waits for reclaim, which the reaper holds";
        assert_eq!(deadlock(&waits, reaper, lock).as_deref(), Some(said));
    }

    #[test]
    fn one_of_several_holders_is_enough() {
        let waits = Waits::new();
        let [writer, first, second] = ["writer", "first", "second"].map(|name| waits.party(name));
        let [shared, own] = ["shared", "own"].map(|name| waits.thing(name));
        waits.hold(first, shared);
        waits.hold(second, shared);
        waits.hold(writer, own);
        waits.wait(second, own);
        assert!(deadlock(&waits, writer, shared).is_some());
    }

    #[test]
    fn wait_that_can_end_is_none() {
        let waits = Waits::new();
        let [reader, writer] = ["reader", "writer"].map(|name| waits.party(name));
        let [first, second] = ["first", "second"].map(|name| waits.thing(name));
        waits.hold(reader, first);
        waits.hold(writer, second);
        waits.wait(writer, first);
        // The writer is waited for, and waits for one that runs.
        waits.release(reader, first);
        waits.wait(reader, second);
        waits.waited(writer);
        waits.release(writer, second);
        waits.hold(reader, second);
        waits.waited(reader);
        waits.wait(writer, second);
    }

    #[test]
    #[should_panic(expected = "reader releases lock without holding it")]
    fn release_of_what_is_not_held_panics() {
        let waits = Waits::new();
        let (reader, lock) = (waits.party("reader"), waits.thing("lock"));
        waits.release(reader, lock);
    }
}
