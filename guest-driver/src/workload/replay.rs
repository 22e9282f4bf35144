// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Replays a [`Trace`]: its CPUs are threads, or take turns in virtual time.

use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::blocks::{Blocks, Done, LostBytes};
use super::slots::Slots;
use super::trace::{Action, Trace, TraceEvent};
use crate::page_alloc::{AllocRequest, MigrateType, Mm, VMSTAT_INTERVAL};
use crate::ram::GuestRam;

/// How fast a trace is replayed with threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as possible. What one CPU allocates and another frees is waited for.
    Fast,
    /// Nothing comes sooner than it is recorded.
    Recorded,
}

/// One event of one CPU.
#[derive(Clone, Copy, Debug)]
struct Step {
    event: TraceEvent,
    slot: usize,
    /// The CPU that had the name last, and how many of its events have to be over: none if that is
    /// this one.
    behind: Option<(usize, usize)>,
    /// Another CPU waits for it.
    awaited: bool,
}

/// A trace on the memory of one guest. Offliners move its pages through [`Replay::slots`].
pub struct Replay<'a, R> {
    blocks: Blocks<'a, R>,
    /// All of them in the order of the trace, each with its CPU.
    steps: Vec<Step>,
    cpus: usize,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug)]
struct Progress {
    /// Events of each CPU that are over.
    done: Vec<usize>,
    /// A byte is lost: every CPU stops.
    stopped: bool,
}

impl<'a, R: GuestRam + Sync> Replay<'a, R> {
    /// A replay that has not begun. `mm` has one CPU more than the trace, for a mover of its
    /// pages.
    pub fn new(mm: &'a Mm, ram: &'a R, trace: &Trace) -> Self {
        let cpus = trace.cpus();
        let mut slots = HashMap::new();
        let mut last = HashMap::new();
        let mut count = vec![0; cpus];
        let mut steps = Vec::with_capacity(trace.events().len());
        for &event in trace.events() {
            let unused = slots.len();
            let slot = *slots.entry(event.id).or_insert(unused);
            count[event.cpu] += 1;
            let behind = last
                .insert(event.id, (event.cpu, count[event.cpu], steps.len()))
                .filter(|&(cpu, ..)| cpu != event.cpu);
            if let Some(before) = behind.and_then(|(.., index)| steps.get_mut(index)) {
                let before: &mut Step = before;
                before.awaited = true;
            }
            let behind = behind.map(|(cpu, events, _)| (cpu, events));
            steps.push(Step { event, slot, behind, awaited: false });
        }
        let slots = Slots::new(ram, 1, slots.len(), cpus);
        let progress = Mutex::new(Progress { done: vec![0; cpus], stopped: false });
        Self { blocks: Blocks::new(mm, slots), steps, cpus, progress, changed: Condvar::new() }
    }

    /// Moves the trace's pages, for offlining and contiguous allocation.
    pub fn slots(&self) -> &Slots<'a, R> {
        self.blocks.slots()
    }

    /// Replays it once, each CPU on a thread of its own. What it leaves allocated is checked and
    /// freed at its end.
    ///
    /// # Errors
    /// [`LostBytes`], the first that was found.
    pub fn run(self, pace: Pace) -> Result<Done, LostBytes> {
        let started = Instant::now();
        let this = &self;
        let results: Vec<_> = std::thread::scope(|scope| {
            let cpus: Vec<_> = (0..this.cpus)
                .map(|cpu| scope.spawn(move || this.run_cpu(cpu, pace, started)))
                .collect();
            cpus.into_iter().map(|cpu| cpu.join()).collect()
        });
        for result in results {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        self.finish()
    }

    /// Replays it once in the order of the trace and in virtual time, the same each time. Ahead of
    /// each event and each second `until` gets its time, to run what is due until then. The CPUs' statistics are
    /// updated once a second of that time ([`Mm::update_vmstat`]).
    ///
    /// # Errors
    /// [`LostBytes`], the first that was found.
    pub fn run_in_steps(self, mut until: impl FnMut(Duration)) -> Result<Done, LostBytes> {
        let mut second = VMSTAT_INTERVAL;
        for step in &self.steps {
            while second <= step.event.at {
                until(second);
                for cpu in 0..self.cpus {
                    self.blocks.mm().update_vmstat(cpu);
                }
                second += VMSTAT_INTERVAL;
            }
            until(step.event.at);
            self.step(step)?;
        }
        self.finish()
    }

    fn finish(self) -> Result<Done, LostBytes> {
        let mut slots = self.slots().of_cpu(0);
        slots.try_for_each(|slot| self.blocks.check_and_free(0, slot))?;
        Ok(self.blocks.done())
    }

    fn step(&self, step: &Step) -> Result<(), LostBytes> {
        let Step { event: TraceEvent { cpu, action, .. }, slot, .. } = *step;
        match action {
            Action::Alloc { order, movable } => {
                let mut request = AllocRequest::movable(order);
                if !movable {
                    request.migratetype = MigrateType::Unmovable;
                }
                // Without memory the block is not there, and its free does nothing.
                self.blocks.fill(cpu, slot, request);
                Ok(())
            }
            Action::Free => self.blocks.check_and_free(cpu, slot),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_cpu(&self, cpu: usize, pace: Pace, started: Instant) -> Result<(), LostBytes> {
        for step in self.steps.iter().filter(|step| step.event.cpu == cpu) {
            if pace == Pace::Recorded {
                self.wait_until(started, step.event.at);
            }
            if !self.wait_for(step.behind) {
                return Ok(());
            }
            let result = self.step(step);
            let mut progress = self.progress();
            progress.done[cpu] += 1;
            progress.stopped |= result.is_err();
            let wake = step.awaited || progress.stopped;
            drop(progress);
            if wake {
                self.changed.notify_all();
            }
            result?;
        }
        Ok(())
    }

    /// Waits for another CPU's event; false if the replay was stopped.
    fn wait_for(&self, behind: Option<(usize, usize)>) -> bool {
        let mut progress = self.progress();
        while !progress.stopped {
            match behind {
                Some((cpu, events)) if progress.done[cpu] < events => {
                    progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
                }
                _ => return true,
            }
        }
        false
    }

    /// Waits for the time of an event, or until the replay was stopped.
    fn wait_until(&self, started: Instant, at: Duration) {
        let mut progress = self.progress();
        while !progress.stopped {
            let left = at.saturating_sub(started.elapsed());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(progress, left);
            progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
