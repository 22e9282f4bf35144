// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Schedulers: random ones, of which a seed is all that it takes to repeat a schedule, and one that
//! takes every schedule up to a number of preemptions.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use shuttle::scheduler::{Schedule, Scheduler, Task, TaskId};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::scenarios::reporting::actors::Random;
use crate::scenarios::reporting::scenario;
use crate::{Configuration, Invariant, Violation};

/// What a search has found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Schedules that were run, the last one included.
    pub schedules: u64,
    /// What went wrong in the last one, and its seed or number.
    pub violation: Option<(u64, Violation)>,
    /// Of them, cut off before the end because somebody spun: nothing was checked there.
    pub cut_off: u64,
    /// There are no more schedules than these.
    pub complete: bool,
}

/// Runs `configuration` under the schedules of `seeds` until one goes wrong or the time is up.
pub fn random(
    configuration: &Configuration,
    seeds: core::ops::Range<u64>,
    time: Option<Duration>,
) -> Found {
    let shared = Arc::new(Shared::new(seeds.start));
    let scheduler = Seeded {
        shared: Arc::clone(&shared),
        end: seeds.end,
        random: Random::new(0),
        style: Style::Uniform,
    };
    search(configuration, shared, scheduler, time, None)
}

/// Runs `configuration` under every schedule that preempts at most `preemptions` times, `most`
/// schedules at the most.
pub fn exhaustive(configuration: &Configuration, preemptions: usize, most: u64) -> Found {
    let shared = Arc::new(Shared::new(0));
    let scheduler = Bounded {
        shared: Arc::clone(&shared),
        preemptions,
        left: 0,
        most,
        choices: Vec::new(),
        depth: 0,
    };
    // What its actors do is the same each time, or it would be no search.
    search(configuration, shared, scheduler, None, Some(0))
}

/// What a scheduler and the runs that it schedules tell each other.
struct Shared {
    /// The next schedule.
    next: AtomicU64,
    ended: AtomicU64,
    complete: AtomicU64,
    violation: OnceLock<(u64, Violation)>,
}

impl Shared {
    fn new(first: u64) -> Self {
        Self {
            next: AtomicU64::new(first),
            ended: AtomicU64::new(0),
            complete: AtomicU64::new(0),
            violation: OnceLock::new(),
        }
    }

    /// The schedule that is running.
    fn current(&self) -> u64 {
        self.next.load(Ordering::Relaxed).wrapping_sub(1)
    }
}

fn search(
    configuration: &Configuration,
    shared: Arc<Shared>,
    scheduler: impl Scheduler + 'static,
    time: Option<Duration>,
    script: Option<u64>,
) -> Found {
    let first = shared.next.load(Ordering::Relaxed);
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    // Only a schedule in which somebody spins while another never gets to run is as long.
    config.max_steps = MaxSteps::ContinueAfter(50_000);
    config.max_time = time;
    config.silence_warnings = true;
    let (body, result) = (Arc::clone(&shared), configuration.clone());
    let quiet = Quiet::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        Runner::new(scheduler, config).run(move || {
            let seed = body.current();
            if let Err(violation) = scenario::run(&result, script.unwrap_or(seed)) {
                let _ = body.violation.set((seed, violation));
            }
            body.ended.fetch_add(1, Ordering::Relaxed);
        })
    }));
    drop(quiet);
    if let Err(panic) = &outcome {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&what| what.to_owned()))
            .unwrap_or_default();
        let violation = Violation { invariant: Invariant::ModelAssertionsHold, what };
        let _ = shared.violation.set((shared.current(), violation));
    }
    let schedules = shared.next.load(Ordering::Relaxed) - first;
    let panicked = u64::from(outcome.is_err());
    Found {
        schedules,
        cut_off: schedules - shared.ended.load(Ordering::Relaxed) - panicked,
        violation: shared.violation.get().cloned(),
        complete: shared.complete.load(Ordering::Relaxed) != 0,
    }
}

/// Keeps panics from being printed: they are what is looked for. One search at a time.
struct Quiet(Option<std::sync::MutexGuard<'static, ()>>);

static SEARCHING: Mutex<()> = Mutex::new(());

impl Quiet {
    fn new() -> Self {
        let one = SEARCHING.lock().unwrap_or_else(PoisonError::into_inner);
        std::panic::set_hook(Box::new(|_| {}));
        Self(Some(one))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = std::panic::take_hook();
        self.0.take();
    }
}

/// Draws each decision from the schedule's seed.
struct Seeded {
    shared: Arc<Shared>,
    end: u64,
    random: Random,
    style: Style,
}

/// How it decides; different mistakes show under different styles.
enum Style {
    /// Anybody who can run is as likely.
    Uniform,
    /// Whoever runs goes on running, all but one time in so many.
    Sticky(usize),
    /// The first of an order goes on running, and the order changes at a few steps: probabilistic
    /// concurrency testing (Burckhardt and others, 2010).
    Priorities { order: Vec<u64>, lowest: u64, changes: Vec<u64>, step: u64 },
}

impl Scheduler for Seeded {
    fn new_execution(&mut self) -> Option<Schedule> {
        let seed = self.shared.next.load(Ordering::Relaxed);
        if seed >= self.end || self.shared.violation.get().is_some() {
            return None;
        }
        self.shared.next.store(seed + 1, Ordering::Relaxed);
        self.random = Random::new(seed);
        self.style = match seed % 3 {
            0 => Style::Uniform,
            1 => Style::Sticky([4, 16, 64][self.random.below(3)]),
            _ => {
                // How many steps there will be is not known, so their magnitude is drawn too.
                let steps = 64 << self.random.below(6);
                let changes = (0..3).map(|_| self.random.next_u64() % steps).collect();
                Style::Priorities { order: Vec::new(), lowest: 0, changes, step: 0 }
            }
        };
        Some(Schedule::new(seed))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let stay = current.filter(|&id| runnable.iter().any(|task| task.id() == id));
        match &mut self.style {
            Style::Uniform => {}
            Style::Sticky(rare) => {
                if let Some(id) = stay.filter(|_| !is_yielding && self.random.below(*rare) != 0) {
                    return Some(id);
                }
            }
            Style::Priorities { order, lowest, changes, step } => {
                for task in runnable {
                    let id = usize::from(task.id());
                    while order.len() <= id {
                        // Above all that were ever lowered.
                        order.push(u64::MAX / 2 + self.random.next_u64() / 4);
                    }
                }
                *step += 1;
                if let Some(id) = stay.filter(|_| is_yielding || changes.contains(step)) {
                    // The later lowered, the lower.
                    *lowest += 1;
                    order[usize::from(id)] = u64::MAX / 4 - *lowest;
                }
                let first = runnable.iter().max_by_key(|task| order[usize::from(task.id())]);
                return first.map(|task| task.id());
            }
        }
        runnable.get(self.random.below(runnable.len())).map(|task| task.id())
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next_u64()
    }
}

/// Takes every schedule with at most so many preemptions, depth first (as CHESS does, Musuvathi and
/// others, 2008). Unbounded, the schedules of even the smallest scenario could not be counted.
struct Bounded {
    shared: Arc<Shared>,
    preemptions: usize,
    /// Of them, in this schedule.
    left: usize,
    most: u64,
    /// What was chosen at each point with a choice, and out of how many.
    choices: Vec<(usize, usize)>,
    depth: usize,
}

impl Scheduler for Bounded {
    fn new_execution(&mut self) -> Option<Schedule> {
        let number = self.shared.next.load(Ordering::Relaxed);
        if self.shared.violation.get().is_some() {
            return None;
        }
        if number > 0 {
            // On to the next: the last choice that has another one left.
            while self.choices.last().is_some_and(|&(chosen, of)| chosen + 1 == of) {
                self.choices.pop();
            }
            match self.choices.last_mut() {
                Some((chosen, _)) => *chosen += 1,
                None => {
                    self.shared.complete.store(1, Ordering::Relaxed);
                    return None;
                }
            }
        }
        if number == self.most {
            return None;
        }
        self.shared.next.store(number + 1, Ordering::Relaxed);
        self.depth = 0;
        self.left = self.preemptions;
        Some(Schedule::new(number))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let stay = current.filter(|&id| runnable.iter().any(|task| task.id() == id));
        let mut options: Vec<TaskId> = runnable.iter().map(|task| task.id()).collect();
        if let Some(id) = stay {
            options.retain(|&other| other != id);
            if is_yielding {
                // To yield is to let somebody else run, if there is anybody.
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
