// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Takes every schedule with at most so many preemptions, depth first (as CHESS does, Musuvathi and
//! others, 2008). Unbounded, the schedules of even the smallest scenario cannot be counted.

use core::ops::Range;

use shuttle::scheduler::{Task, TaskId};

use super::{Scheduling, stay};

pub(super) struct BoundedPreemptions {
    most: usize,
    /// Of them, in this schedule.
    left: usize,
    /// What was chosen at each point with a choice, and out of how many.
    choices: Vec<(usize, usize)>,
    depth: usize,
    begun: bool,
}

impl BoundedPreemptions {
    pub(super) fn new(most: usize) -> Self {
        Self { most, left: 0, choices: Vec::new(), depth: 0, begun: false }
    }

    /// Goes on to the last choice that has another one left; false if none has.
    fn advance(&mut self) -> bool {
        while self.choices.last().is_some_and(|&(chosen, of)| chosen + 1 == of) {
            self.choices.pop();
        }
        match self.choices.last_mut() {
            Some((chosen, _)) => *chosen += 1,
            None => return false,
        }
        true
    }
}

impl Scheduling for BoundedPreemptions {
    /// Each schedule follows from the one before.
    fn warm_up(&self, number: u64) -> Range<u64> {
        0..number
    }

    fn begin(&mut self, _number: u64) -> bool {
        (self.depth, self.left) = (0, self.most);
        !core::mem::replace(&mut self.begun, true) || self.advance()
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let stay = stay(runnable, current);
        let mut options: Vec<TaskId> = runnable.iter().map(|task| task.id()).collect();
        if let Some(id) = stay {
            options.retain(|&other| other != id);
            if is_yielding {
                // To yield is to let another run, if there is one.
                if options.is_empty() {
                    options.push(id);
                }
            } else if self.left == 0 {
                options = vec![id];
            } else {
                options.insert(0, id);
            }
        }
        let mut pick = 0;
        if options.len() > 1 {
            match self.choices.get(self.depth) {
                Some(&(chosen, _)) => pick = chosen,
                None => self.choices.push((0, options.len())),
            }
            self.depth += 1;
        }
        let next = options.get(pick).copied();
        if !is_yielding && stay.is_some() && next != stay {
            self.left -= 1;
        }
        next
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}
