// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocations that the first walk serves, with a scheme and without any constraint in turns.
//!
//! What memory lies where matters by itself, so each turn has new memory: the same for both sides, but for
//! zonelists, which a guest has of one kind. Beside an updating thread both
//! sides have one: allocations without a constraint beside updates that nobody reads.

use std::hint::black_box;
use std::panic::resume_unwind;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::time::{ClockId, clock_gettime};

use super::Settings;
use super::seen::{CPUS, Flip, Subject};
use super::subject::Which;
use crate::bench::pairs::{Estimate, orders};
use crate::experiment::Context;
use crate::progress;
use crate::store::Findings;

/// Threads that allocate, and whether another updates.
const LOADS: [(usize, bool); 4] = [(1, false), (CPUS, false), (1, true), (CPUS, true)];

/// Rates, and ratios of times, under each load.
pub(super) fn run(
    which: Which,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<()> {
    for (threads, updating) in LOADS.into_iter().filter(|load| !load.1 || which.updates()) {
        context.progress.say(&format!("{threads} threads, updates: {updating}"));
        let (mut rates, mut ratios) = (Vec::new(), Vec::new());
        for scheme_first in orders(context.seed, settings.turns) {
            progress::check()?;
            let world = which.world(Flip::Shrink, which.size())?;
            let subject = world.subject.as_ref();
            let turn = |allocating: &dyn Subject| {
                let share = (threads, settings.allocations);
                slice(allocating, updating.then_some(subject), share)
            };
            // The lists of the CPUs are filled, and the caches warm.
            turn(&world.anywhere)?;
            let (with, without) = if scheme_first {
                let with = turn(subject)?;
                (with, turn(&world.anywhere)?)
            } else {
                let without = turn(&world.anywhere)?;
                (turn(subject)?, without)
            };
            rates.push(1e9 / with.clock);
            ratios.push(with.cpu / without.cpu);
        }
        let load = format!("{threads}{}", if updating { "-updating" } else { "" });
        figures(findings, &load, (threads, updating), &rates, &ratios);
    }
    findings.note(
        "A thread allocates a page and frees it, over and over. A ratio is the CPU time of that over the time \
         without a constraint (of zonelists: with lists that are overwritten), in turns; low to high is an interval that holds the \
         true median. Rates are by the clock.",
    );
    Ok(())
}

fn figures(
    findings: &mut Findings,
    load: &str,
    (threads, updating): (usize, bool),
    rates: &[f64],
    ratios: &[f64],
) {
    let beside = if updating { ", beside one that updates without a pause" } else { "" };
    let by = match threads {
        1 => format!("by a thread{beside}"),
        more => format!("by each of {more} threads{beside}"),
    };
    if let Some(Estimate { median, .. }) = Estimate::of(rates.iter().copied()) {
        let what = format!("allocations and frees of a page {by}");
        findings.figure(&format!("rate-{load}"), median, "1/s", &what);
    }
    if let Some(Estimate { median, low, high, .. }) = Estimate::of(ratios.iter().copied()) {
        let what = format!("CPU time of an allocation {by}, over the time without a constraint");
        findings.figure(&format!("ratio-{load}"), median, "", &what);
        findings.figure(&format!("ratio-{load}-low"), low, "", "lower end of its interval");
        findings.figure(&format!("ratio-{load}-high"), high, "", "upper end of its interval");
    }
}

/// What a thread took for its share, in nanoseconds of an allocation and free.
#[derive(Clone, Copy, Debug)]
struct Took {
    /// Of the clock.
    clock: f64,
    /// Of the thread's CPU, which other programs do not disturb.
    cpu: f64,
}

impl Took {
    #[allow(clippy::cast_precision_loss)] // two threads, times for people
    fn mean(of: &[Self]) -> Self {
        let mean = |time: fn(&Self) -> f64| of.iter().map(time).sum::<f64>() / of.len() as f64;
        Self { clock: mean(|took| took.clock), cpu: mean(|took| took.cpu) }
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Every thread makes its share of allocations, each freed at once.
fn slice(
    allocating: &dyn Subject,
    updated: Option<&dyn Subject>,
    (threads, share): (usize, u32),
) -> Result<Took> {
    let stop = AtomicBool::new(false);
    let start = Barrier::new(threads + usize::from(updated.is_some()));
    std::thread::scope(|scope| {
        let (start, stop) = (&start, &stop);
        let work = |cpu| {
            move || {
                start.wait();
                let (clock, on_cpu) = (Instant::now(), cpu_time());
                for _ in 0..share {
                    let page = black_box(allocating.allocate(cpu)).page?;
                    allocating.free(cpu, page);
                }
                let each = |time: Duration| time.as_secs_f64() * 1e9 / f64::from(share);
                let cpu = each(cpu_time().saturating_sub(on_cpu));
                Some(Took { clock: each(clock.elapsed()), cpu })
            }
        };
        let workers: Vec<_> = (0..threads).map(|cpu| scope.spawn(work(cpu))).collect();
        let updater = updated.map(|subject| {
            scope.spawn(move || {
                start.wait();
                let mut turn = 0;
                while !stop.load(Ordering::Relaxed) {
                    subject.update(turn)?;
                    turn += 1;
                }
                Ok::<(), anyhow::Error>(())
            })
        });
        let took: Vec<_> = workers.into_iter().map(ScopedJoinHandle::join).collect();
        stop.store(true, Ordering::Relaxed);
        if let Some(updated) = updater {
            updated.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        let took = took.into_iter().map(|of| of.unwrap_or_else(|panic| resume_unwind(panic)));
        let took: Option<Vec<Took>> = took.collect();
        let took = took.context("an allocation failed although every node had memory")?;
        Ok(Took::mean(&took))
    })
}

#[cfg(test)]
mod tests {
    use super::super::subject::Asks;
    use super::*;
    use guest_driver::page_alloc::ZonelistUpdate;
    use guest_driver::placement::Scheme;

    #[test]
    fn every_scheme_allocates_beside_updates() {
        let cpusets = Scheme::ALL.iter().map(|&scheme| Which::Cpuset(scheme, Asks::Bind));
        let zonelists = ZonelistUpdate::ALL.iter().map(|&update| Which::Zonelist(update));
        for which in cpusets.chain(zonelists) {
            let world = which.world(Flip::Shrink, which.size()).unwrap();
            let subject = world.subject.as_ref();
            for threads in [1, CPUS] {
                let took = slice(subject, Some(subject), (threads, 1_000)).unwrap();
                assert!(took.clock > 0.0 && took.cpu > 0.0, "{which}: {took:?}");
            }
            world.mm.validate().unwrap();
        }
    }
}
