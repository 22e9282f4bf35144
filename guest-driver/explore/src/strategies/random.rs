// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Draws each decision from the schedule's number: uniformly, or with a bias to stay.

use core::ops::Range;

use guest_driver::random::Random as Numbers;
use shuttle::scheduler::{Task, TaskId};

use super::{Scheduling, stay};

pub(super) struct Random {
    numbers: Numbers,
    /// The current actor stays but for one time in so many; none for a uniform choice.
    switches: Option<usize>,
}

impl Random {
    pub(super) fn new() -> Self {
        Self { numbers: Numbers(0), switches: None }
    }
}

impl Scheduling for Random {
    fn warm_up(&self, number: u64) -> Range<u64> {
        number..number
    }

    fn begin(&mut self, number: u64) -> bool {
        self.numbers = Numbers(!number);
        self.switches = (self.numbers.below(2) == 0).then(|| [4, 16, 64][self.numbers.index(3)]);
        true
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        if let (Some(rare), Some(id)) = (self.switches, stay(runnable, current))
            && !is_yielding
            && self.numbers.index(rare) != 0
        {
            return Some(id);
        }
        runnable.get(self.numbers.index(runnable.len())).map(|task| task.id())
    }

    fn next_u64(&mut self) -> u64 {
        self.numbers.number()
    }
}
