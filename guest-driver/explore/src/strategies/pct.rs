// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Probabilistic concurrency testing (Burckhardt and others, 2010), as shuttle implements it: the
//! first of a random order goes on running, and the order changes at a few steps.
//!
//! Shuttle's scheduler learns from its schedules how many steps there are. So that a number names a
//! schedule, it starts over with every block of numbers; to repeat a schedule, those before it in its
//! block run first.

use core::ops::Range;

use shuttle::scheduler::{PctScheduler, Scheduler, Task, TaskId};

use super::Scheduling;

/// Numbers in a block.
const BLOCK: u64 = 64;
/// Priority changes in a schedule, and one.
const DEPTH: usize = 4;

pub(super) struct Pct(PctScheduler);

impl Pct {
    pub(super) fn new() -> Self {
        Self::of_block(0)
    }

    fn of_block(block: u64) -> Self {
        Self(PctScheduler::new_from_seed(block, DEPTH, usize::MAX))
    }
}

impl Scheduling for Pct {
    fn warm_up(&self, number: u64) -> Range<u64> {
        number - number % BLOCK..number
    }

    fn begin(&mut self, number: u64) -> bool {
        if number.is_multiple_of(BLOCK) {
            *self = Self::of_block(number / BLOCK);
        }
        self.0.new_execution().is_some()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        self.0.next_task(runnable, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}
