// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to choose a schedule. A number names a schedule, and names the same one each time.
//!
//! Different mistakes show under different strategies, so a search takes several in turn.

mod bounded_preemptions;
mod mixed;
mod pct;
mod random;

use shuttle::scheduler::{Task, TaskId};

/// Which schedules a search takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Random ones and those of PCT in turn.
    #[default]
    Mixed,
    /// Any actor is as likely to run next, or the current one is likely to stay.
    Random,
    /// Probabilistic concurrency testing: priorities that change at a few steps.
    Pct,
    /// Every schedule with at most so many preemptions.
    BoundedPreemptions(usize),
}

impl Strategy {
    pub(crate) fn start(self) -> Box<dyn Scheduling + Send> {
        match self {
            Self::Mixed => Box::new(mixed::Mixed::new()),
            Self::Random => Box::new(random::Random::new()),
            Self::Pct => Box::new(pct::Pct::new()),
            Self::BoundedPreemptions(most) => {
                Box::new(bounded_preemptions::BoundedPreemptions::new(most))
            }
        }
    }

    /// Whether the decisions of actors follow from the schedule's number, too. Where every schedule
    /// is taken, the decisions are the same each time.
    pub(crate) fn draws_decisions(self) -> bool {
        !matches!(self, Self::BoundedPreemptions(_))
    }
}

/// Chooses the actor that runs next.
pub(crate) trait Scheduling {
    /// Numbers of schedules that have to run before that of `number` can: those from which the
    /// strategy has learned by then.
    fn warm_up(&self, number: u64) -> core::ops::Range<u64>;

    /// Begins the schedule of `number`; false if there is none.
    fn begin(&mut self, number: u64) -> bool;

    /// The next to run of those that can.
    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId>;

    /// A number for actors that ask the scheduler for one.
    fn next_u64(&mut self) -> u64;
}

/// The current task, if it can go on.
fn stay(runnable: &[&Task], current: Option<TaskId>) -> Option<TaskId> {
    current.filter(|&id| runnable.iter().any(|task| task.id() == id))
}
