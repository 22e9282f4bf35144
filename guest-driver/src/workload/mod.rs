// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads that act as a guest's CPUs: they allocate pages, write what names page and generation,
//! check it, and free them.
//!
//! Contents are the proof. Whatever else goes on in the guest, reporting, offlining, contiguous
//! allocation, a page in use holds what was written into it; one word that differs fails the run,
//! with the recent events of that page.

mod blocks;
mod compile;
mod history;
mod replay;
mod slots;
pub mod trace;

use std::sync::atomic::{AtomicBool, Ordering};

use crate::page_alloc::{AllocRequest, Mm};
use crate::ram::GuestRam;
use crate::random::Random;
use blocks::Blocks;
pub use blocks::{Done, LostBytes};
pub use compile::{Build, compile_like};
pub use history::Event;
pub use replay::{Pace, Replay};
pub use slots::Slots;
pub use trace::Trace;

/// What the CPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Each holds about as much as it may, and replaces single blocks: frees one, allocates one.
    Churn,
    /// Each fills all it may, checks it, and frees all of it, over and over (memhog).
    Memhog,
    /// Single pages, allocated one after the other and freed together (page_fault1).
    PageFault,
    /// As churn, with every order, so that free memory falls apart.
    Fragment,
}

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many threads, each a CPU of its own.
    pub cpus: usize,
    /// What they do.
    pub behaviour: Behaviour,
    /// The order of the blocks, and for [`Behaviour::Fragment`] the largest.
    pub order: u8,
    /// Pages that each CPU holds at the most.
    pub pages_a_cpu: u64,
    /// What the random numbers begin with.
    pub seed: u64,
}

/// A workload on the memory of one guest. Offliners move its pages through [`Workload::slots`].
pub struct Workload<'a, R> {
    config: Config,
    blocks: Blocks<'a, R>,
}

impl<'a, R: GuestRam + Sync> Workload<'a, R> {
    /// A workload that has not begun. `mm` has one CPU more than the workload, for a mover of its
    /// pages.
    pub fn new(mm: &'a Mm, ram: &'a R, config: Config) -> Self {
        let blocks = config.pages_a_cpu >> config.order.min(mm.geometry().max_order);
        // With smaller blocks among them there are more.
        let spread = if config.behaviour == Behaviour::Fragment { blocks * 8 } else { blocks };
        let each = usize::try_from(spread.max(1)).unwrap_or(usize::MAX);
        let slots = Slots::new(ram, config.cpus, each, config.cpus);
        Self { config, blocks: Blocks::new(mm, slots) }
    }

    /// Moves the workload's pages, for offlining and contiguous allocation.
    pub fn slots(&self) -> &Slots<'a, R> {
        self.blocks.slots()
    }

    /// Runs until `stop`, then checks and frees everything.
    ///
    /// # Errors
    /// [`LostBytes`], the first that was found.
    pub fn run(&self, stop: &AtomicBool) -> Result<Done, LostBytes> {
        let lost = std::thread::scope(|scope| {
            let cpus: Vec<_> = (0..self.config.cpus)
                .map(|cpu| scope.spawn(move || self.run_cpu(cpu, stop)))
                .collect();
            cpus.into_iter()
                .filter_map(|cpu| match cpu.join() {
                    Ok(result) => result.err(),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .next()
        });
        match lost {
            Some(lost) => Err(lost),
            None => Ok(self.blocks.done()),
        }
    }

    fn run_cpu(&self, cpu: usize, stop: &AtomicBool) -> Result<(), LostBytes> {
        let mut random = Random(self.config.seed ^ (cpu as u64) << 32);
        let mine = self.slots().of_cpu(cpu);
        while !stop.load(Ordering::Relaxed) {
            let result = match self.config.behaviour {
                Behaviour::Churn => self.replace_one(cpu, &mut random, self.config.order),
                Behaviour::Fragment => {
                    let order = random.below(u64::from(self.config.order) + 1);
                    self.replace_one(cpu, &mut random, u8::try_from(order).unwrap_or(0))
                }
                Behaviour::Memhog | Behaviour::PageFault => {
                    for slot in mine.clone() {
                        if !self.blocks.fill(cpu, slot, AllocRequest::movable(self.config.order)) {
                            break;
                        }
                    }
                    mine.clone().try_for_each(|slot| self.blocks.check_and_free(cpu, slot))
                }
            };
            // The others stop, too.
            result.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        }
        mine.clone().try_for_each(|slot| self.blocks.check_and_free(cpu, slot))
    }

    fn replace_one(&self, cpu: usize, random: &mut Random, order: u8) -> Result<(), LostBytes> {
        let mine = self.slots().of_cpu(cpu);
        let slot = mine.start + random.index(mine.len());
        self.blocks.check_and_free(cpu, slot)?;
        self.blocks.fill(cpu, slot, AllocRequest::movable(order));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
