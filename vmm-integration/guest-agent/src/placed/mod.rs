// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tasks that fault memory in while a cpuset and memory policies say where from.
//!
//! | file | content |
//! |---|---|
//! | [`task`] | a task, which is a process of its own |
//! | [`policy`] | its memory policy |
//! | [`progress`] | the counters that it shares with init |
//! | [`stall`] | the time in which it makes no progress |
//! | [`cpuset`] | the cpuset |

mod cpuset;
mod policy;
mod progress;
mod stall;
pub(crate) mod task;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::placement::{DONE, KILLED, PlacementPlan, PlacementReport, TaskReport};

use crate::lock::lock;
use crate::stop::Stop;
use crate::system;
use cpuset::Cpuset;
use progress::Progress;
use stall::Stall;

/// Between two looks at a task.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// More than a guest has CPUs.
const MAX_TASKS: usize = 64;

/// The plan that runs, or ran last.
#[derive(Default)]
pub(crate) struct Placements(Mutex<Option<Placement>>);

struct Placement {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads have in common.
struct Shared {
    plan: PlacementPlan,
    cpuset: Option<Cpuset>,
    started: Instant,
    stop: Stop,
    /// Tasks that may still start again.
    tasks: Vec<Watched>,
    watching: AtomicUsize,
    flips: AtomicU64,
    changes: Mutex<Changes>,
}

/// A task as init sees it.
struct Watched {
    file: String,
    progress: Progress,
    report: Mutex<TaskReport>,
}

/// What came of changes of the cpuset.
#[derive(Default)]
struct Changes {
    failed: std::collections::BTreeMap<String, u64>,
    longest: Duration,
}

impl Placements {
    /// Begins a plan.
    pub(crate) fn start(&self, plan: PlacementPlan) -> Result<()> {
        let mut current = lock(&self.0);
        if current.as_ref().is_some_and(Placement::is_running) {
            bail!("tasks are running: stop them first");
        }
        *current = Some(Placement::start(plan)?);
        Ok(())
    }

    /// Returns the state of the plan. With `stop` its tasks end, once the kernel lets them go.
    pub(crate) fn report(&self, stop: bool) -> Result<PlacementReport> {
        let current = lock(&self.0);
        let placement = current.as_ref().context("there was no task: start some first")?;
        if stop {
            placement.shared.stop.now();
        }
        Ok(placement.shared.report(placement.is_running()))
    }
}

impl Placement {
    fn start(plan: PlacementPlan) -> Result<Self> {
        let count = plan.tasks.len();
        ensure!((1..=MAX_TASKS).contains(&count), "{count} tasks: expected 1 to {MAX_TASKS}");
        let cpuset = match plan.mems.first() {
            None => None,
            Some(first) => {
                let cpuset = Cpuset::new()?;
                cpuset.set_mems(first)?;
                Some(cpuset)
            }
        };
        let watched = |number: usize| {
            let file = format!("/placement.{number}");
            Ok(Watched { progress: Progress::create(&file)?, file, report: Mutex::default() })
        };
        let shared = Arc::new(Shared {
            tasks: (0..count).map(watched).collect::<Result<_>>()?,
            watching: AtomicUsize::new(count),
            plan,
            cpuset,
            started: Instant::now(),
            stop: Stop::default(),
            flips: AtomicU64::new(0),
            changes: Mutex::default(),
        });
        let mut placement = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        for number in 0..count {
            let watch = move |shared: &Shared| {
                shared.watch(number);
                shared.watching.fetch_sub(1, Ordering::Relaxed);
            };
            placement.spawn(format!("placed-{number}"), watch)?;
        }
        if shared.plan.mems.len() > 1 {
            placement.spawn("flipper".to_owned(), Shared::flip)?;
        }
        Ok(placement)
    }

    fn spawn(&mut self, name: String, body: impl FnOnce(&Shared) + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        match thread::Builder::new().name(name).spawn(move || body(&shared)) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => {
                self.shared.stop.now();
                return Err(error).context("starting a thread beside a task");
            }
        }
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.threads.iter().any(|thread| !thread.is_finished())
    }
}

impl Shared {
    /// Runs a task, and again when it is done or killed.
    fn watch(&self, number: usize) {
        let task = &self.tasks[number];
        let mut tries = 0;
        while self.stop.goes_on() {
            tries += 1;
            let how = match self.run_once(number, tries) {
                Ok(Some(status)) => how(status),
                // Stopped, which is no end of its own.
                Ok(None) => return,
                Err(error) => {
                    eprintln!("guest-agent: {error:#}");
                    let name = system::errno_name(&error);
                    format!("not started: {}", name.as_deref().unwrap_or("see the console"))
                }
            };
            *lock(&task.report).ends.entry(how).or_default() += 1;
            if !self.plan.again || !self.stop.wait(LOOK_EVERY) {
                return;
            }
        }
    }

    /// Runs it once, and returns how it ended; nothing if it was stopped.
    fn run_once(&self, number: usize, tries: u64) -> Result<Option<ExitStatus>> {
        let watched = &self.tasks[number];
        let seed = self.plan.seed ^ (u64::try_from(number)? << 32 | tries);
        let joins = self.cpuset.as_ref().map(Cpuset::joins);
        let plan = &self.plan.tasks[number];
        watched.progress.rests.store(false, Ordering::Relaxed);
        let mut child = task::start(plan, seed, &watched.file, joins.as_deref())?;
        let pages = || watched.progress.pages.load(Ordering::Relaxed);
        let mut stall = Stall::new(pages());
        let mut looked = Instant::now();
        loop {
            if let Some(status) = child.try_wait().context("looking at a task")? {
                lock(&watched.report).stalled_ms = 0;
                return Ok(Some(status));
            }
            if !self.stop.goes_on() {
                child.kill().context("ending a task")?;
                child.wait().context("waiting for a task")?;
                return Ok(None);
            }
            let rests = watched.progress.rests.load(Ordering::Relaxed);
            stall.look(pages(), rests, looked.elapsed());
            looked = Instant::now();
            let mut report = lock(&watched.report);
            report.stalled_ms = stall.now_ms();
            report.longest_stall_ms = report.longest_stall_ms.max(stall.longest_ms());
            drop(report);
            self.stop.wait(LOOK_EVERY);
        }
    }

    /// Changes the cpuset, until all changes are made or no task is left.
    fn flip(&self) {
        let Self { plan, cpuset: Some(cpuset), .. } = self else { return };
        let pause = Duration::from_micros(plan.pause_us);
        let begun = |task: &Watched| task.progress.pages.load(Ordering::Relaxed) > 0;
        while !self.tasks.iter().all(begun) && self.stop.wait(LOOK_EVERY) {}
        for mems in plan.mems.iter().cycle().skip(1) {
            if self.watching.load(Ordering::Relaxed) == 0 || !self.stop.wait(pause) {
                return;
            }
            let began = Instant::now();
            let set = cpuset.set_mems(mems);
            let took = began.elapsed();
            let mut changes = lock(&self.changes);
            changes.longest = changes.longest.max(took);
            if let Err(error) = set {
                let name = system::errno_name(&error).unwrap_or_else(|| "unknown".to_owned());
                *changes.failed.entry(name).or_default() += 1;
                continue;
            }
            drop(changes);
            if self.flips.fetch_add(1, Ordering::Relaxed) + 1 == plan.flips {
                self.stop.now();
            }
        }
    }

    fn report(&self, running: bool) -> PlacementReport {
        let of = |watched: &Watched| TaskReport {
            pages: watched.progress.pages.load(Ordering::Relaxed),
            rounds: watched.progress.rounds.load(Ordering::Relaxed),
            ..lock(&watched.report).clone()
        };
        let changes = lock(&self.changes);
        PlacementReport {
            running,
            elapsed_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            hierarchy: self.cpuset.as_ref().map(|cpuset| cpuset.hierarchy),
            flips: self.flips.load(Ordering::Relaxed),
            failed_flips: changes.failed.clone(),
            longest_flip_us: u64::try_from(changes.longest.as_micros()).unwrap_or(u64::MAX),
            tasks: self.tasks.iter().map(of).collect(),
        }
    }
}

/// A task's end by name.
fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => DONE.to_owned(),
        (_, Some(libc::SIGKILL)) => KILLED.to_owned(),
        (_, Some(signal)) => format!("signal {signal}"),
        (code, None) => format!("status {}: see the console", code.unwrap_or(-1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn end_of_a_task_has_a_name() {
        for (raw, name) in
            [(0, DONE), (9, KILLED), (7, "signal 7"), (1 << 8, "status 1: see the console")]
        {
            assert_eq!(how(ExitStatus::from_raw(raw)), name);
        }
    }
}
