// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocations beside updates without a pause: retries, and OOMs with memory to spare.
//!
//! Every node has memory at all times, and every update leaves a node: no allocation need fail. Nor need one
//! whose zone stays in the list.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_driver::page_alloc::{Mm, ZoneId};

use super::Settings;
use super::seen::{CPUS, Flip, Subject};
use super::subject::{Which, World};
use crate::experiment::Context;
use crate::progress;
use crate::store::Findings;

/// What became of allocations beside updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Met {
    updates: u64,
    allocations: u64,
    /// Allocations that failed.
    failed: u64,
    restarts: u64,
    /// The most restarts of one allocation.
    most_restarts: u32,
    /// Allocations that were in an endless loop.
    abandoned: u64,
}

impl Met {
    fn add(&mut self, other: &Self) {
        self.allocations += other.allocations;
        self.failed += other.failed;
        self.restarts += other.restarts;
        self.most_restarts = self.most_restarts.max(other.most_restarts);
        self.abandoned += other.abandoned;
    }
}

/// Figures of what was met.
#[allow(clippy::cast_precision_loss)] // rates
pub(super) fn run(
    which: Which,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<()> {
    context.progress.say("allocations beside updates");
    let time = Duration::from_secs_f64(settings.race);
    let met = meet(&which.world(Flip::Move, which.size())?, time)?;
    let a_million = |count: u64, of: u64| count as f64 / of as f64 * 1e6;
    findings.figure(
        "false-ooms",
        a_million(met.failed, met.updates),
        "of a million updates",
        match which {
            Which::Cpuset(..) => {
                "allocations that failed although every node had memory, while updates move the cpuset \
                 from node to node"
            }
            Which::Zonelist(_) => {
                "allocations that failed although their zone had memory, while the zone before it in the \
                 list goes offline and comes online"
            }
        },
    );
    findings.count("false-ooms-seen", met.failed, "", "that the rate is of");
    findings.figure(
        "retries",
        a_million(met.restarts, met.allocations),
        "of a million allocations",
        "restarts of the slow path meanwhile",
    );
    findings.count(
        "most-retries",
        u64::from(met.most_restarts),
        "",
        "the most restarts of one allocation",
    );
    findings.count(
        "endless",
        met.abandoned,
        "",
        "allocations that were given up after 1,000 tries",
    );
    findings.count("updates", met.updates, "", "meanwhile");
    findings.count("allocations", met.allocations, "", "meanwhile, by two threads");
    Ok(())
}

/// Two threads allocate while a third updates.
fn meet(world: &World, time: Duration) -> Result<Met> {
    let World { mm, subject, .. } = world;
    let subject = subject.as_ref();
    let free = |mm: &Mm| {
        (0..mm.zone_count()).for_each(|zone| mm.drain_all(ZoneId(zone)));
        (0..mm.zone_count()).map(|zone| mm.zone(ZoneId(zone)).free_pages()).sum::<u64>()
    };
    let before = free(mm);
    let stop = AtomicBool::new(false);
    let mut met = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CPUS)
            .map(|cpu| {
                let stop = &stop;
                scope.spawn(move || allocate(mm, subject, cpu, stop))
            })
            .collect();
        let update = || {
            let end = Instant::now() + time;
            let mut met = Met::default();
            while Instant::now() < end {
                progress::check()?;
                subject.update(met.updates)?;
                met.updates += 1;
            }
            if !met.updates.is_multiple_of(2) {
                // As it was.
                subject.update(met.updates)?;
                met.updates += 1;
            }
            Ok(met)
        };
        let met: Result<Met> = update();
        stop.store(true, Ordering::Relaxed);
        let mut met = met?;
        for worker in workers {
            match worker.join() {
                Ok(of) => met.add(&of),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<Met, anyhow::Error>(met)
    })?;
    mm.validate().context("after the run")?;
    let after = free(mm);
    ensure!(after == before, "{after} of {before} pages are free after everything was freed");
    // Of one that was given up nothing says that it would have failed.
    met.failed = met.failed.saturating_sub(met.abandoned);
    Ok(met)
}

fn allocate(mm: &Mm, subject: &dyn Subject, cpu: usize, stop: &AtomicBool) -> Met {
    let mut met = Met::default();
    while !stop.load(Ordering::Relaxed) {
        let got = subject.allocate(cpu);
        met.allocations += 1;
        met.restarts += u64::from(got.restarts);
        met.most_restarts = met.most_restarts.max(got.restarts);
        met.abandoned += u64::from(got.abandoned);
        match got.page {
            Some(page) => mm.free(cpu, page),
            None => met.failed += 1,
        }
    }
    met
}

#[cfg(test)]
mod tests {
    use super::super::subject::Asks;
    use super::*;
    use guest_driver::placement::Scheme;

    #[test]
    fn scheme_that_looks_again_fails_no_allocation() {
        for asks in [Asks::Default, Asks::Bind] {
            let which = Which::Cpuset(Scheme::CheckAtRetry, asks);
            let met =
                meet(&which.world(Flip::Move, CPUS).unwrap(), Duration::from_millis(50)).unwrap();
            assert!(met.updates > 0 && met.allocations > 0, "{met:?}");
            assert_eq!((met.failed, met.abandoned), (0, 0), "{met:?}");
        }
    }
}
