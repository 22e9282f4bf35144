// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs a case under the schedules of a strategy until one breaks an invariant.

use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once, OnceLock};

use shuttle::scheduler::{RandomScheduler, Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::strategies::{Scheduling, Strategy};
use crate::{Case, Violation};

/// Steps after which a schedule is cut off. Only one in which an actor spins while another never runs
/// is as long.
const MAX_STEPS: usize = 50_000;

/// What a search has found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Schedules that were run, the last one included.
    pub schedules: u64,
    /// What broke in the last one, and its number.
    pub violation: Option<(u64, Violation)>,
    /// Of them, cut off before the end because an actor spun: nothing was checked there.
    pub cut_off: u64,
    /// There are no more schedules than these.
    pub complete: bool,
}

/// Runs `case` under the schedules of `numbers` until one breaks an invariant.
pub fn search(case: &Case, strategy: Strategy, numbers: Range<u64>) -> Found {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::ContinueAfter(MAX_STEPS);
    config.silence_warnings = true;
    let progress = Arc::new(Progress::default());
    let scheduling = strategy.start();
    let warm_up = scheduling.warm_up(numbers.start);
    let driver = Driver {
        progress: Arc::clone(&progress),
        scheduling,
        numbers: warm_up.start..numbers.end,
        first: numbers.start,
    };
    let (of_body, body) = (Arc::clone(&progress), case.clone());
    let quiet = Quiet::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        Runner::new(driver, config).run(move || {
            let number = of_body.current.load(Ordering::Relaxed);
            let seed = if strategy.draws_decisions() { number } else { 0 };
            let result = body.run(seed);
            if of_body.warm.load(Ordering::Relaxed) {
                if let Err(violation) = result {
                    let _ = of_body.violation.set((number, violation));
                }
                of_body.ended.fetch_add(1, Ordering::Relaxed);
            }
        });
    }));
    drop(quiet);
    if let Err(panic) = &outcome {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&what| what.to_owned()))
            .unwrap_or_default();
        let number = progress.current.load(Ordering::Relaxed);
        let _ = progress.violation.set((number, case.assertion(what)));
    }
    let schedules = progress.begun.load(Ordering::Relaxed);
    let panicked = u64::from(outcome.is_err());
    let ended = progress.ended.load(Ordering::Relaxed);
    Found {
        schedules,
        cut_off: schedules.saturating_sub(ended + panicked),
        violation: progress.violation.get().cloned(),
        complete: progress.complete.load(Ordering::Relaxed),
    }
}

/// What the driver and the runs that it schedules share.
#[derive(Default)]
struct Progress {
    /// The schedule that is running.
    current: AtomicU64,
    /// It is one of those that were asked for.
    warm: AtomicBool,
    /// Of those that were asked for.
    begun: AtomicU64,
    ended: AtomicU64,
    complete: AtomicBool,
    violation: OnceLock<(u64, Violation)>,
}

/// A strategy as shuttle sees it.
struct Driver {
    progress: Arc<Progress>,
    scheduling: Box<dyn Scheduling + Send>,
    /// Those still to run.
    numbers: Range<u64>,
    /// Those before it only warm the strategy up.
    first: u64,
}

impl Scheduler for Driver {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.progress.violation.get().is_some() {
            return None;
        }
        let number = self.numbers.next()?;
        if !self.scheduling.begin(number) {
            self.progress.complete.store(true, Ordering::Relaxed);
            return None;
        }
        let warm = number >= self.first;
        self.progress.current.store(number, Ordering::Relaxed);
        self.progress.warm.store(warm, Ordering::Relaxed);
        self.progress.begun.fetch_add(u64::from(warm), Ordering::Relaxed);
        Some(Schedule::new(number))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        self.scheduling.next_task(runnable, current, is_yielding)
    }

    fn next_u64(&mut self) -> u64 {
        self.scheduling.next_u64()
    }
}

/// Keeps the panics of this thread from being printed: they are what a search looks for.
struct Quiet;

thread_local! {
    static SEARCHING: Cell<bool> = const { Cell::new(false) };
}

impl Quiet {
    fn new() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            // The first run installs a hook of shuttle's, which prints. This is that run.
            Runner::new(RandomScheduler::new(1), Config::new()).run(|| {});
            std::panic::set_hook(Box::new(move |panic| {
                if !SEARCHING.get() {
                    usual(panic);
                }
            }));
        });
        SEARCHING.set(true);
        Self
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        SEARCHING.set(false);
    }
}
