// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two random schedules, and one of PCT, in turn.

use core::ops::Range;

use shuttle::scheduler::{Task, TaskId};

use super::Scheduling;
use super::pct::Pct;
use super::random::Random;

/// One schedule in so many is PCT's.
const TURN: u64 = 3;

pub(super) struct Mixed {
    random: Random,
    pct: Pct,
    pct_turn: bool,
}

impl Mixed {
    pub(super) fn new() -> Self {
        Self { random: Random::new(), pct: Pct::new(), pct_turn: false }
    }

    fn current(&mut self) -> &mut dyn Scheduling {
        if self.pct_turn { &mut self.pct } else { &mut self.random }
    }
}

impl Scheduling for Mixed {
    fn warm_up(&self, number: u64) -> Range<u64> {
        self.pct.warm_up(number / TURN).start * TURN..number
    }

    fn begin(&mut self, number: u64) -> bool {
        self.pct_turn = number % TURN == TURN - 1;
        let of = if self.pct_turn { number / TURN } else { number };
        self.current().begin(of)
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        self.current().next_task(runnable, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.current().next_u64()
    }
}
