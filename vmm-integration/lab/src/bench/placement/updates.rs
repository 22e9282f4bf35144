// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The time of an update: with nobody there, beside a thread that allocates, and with many tasks or nodes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::Settings;
use super::seen::Flip;
use super::subject::{Which, World};
use crate::experiment::Context;
use crate::progress;
use crate::store::Findings;

/// No time that is measured is longer, in nanoseconds.
const HOUR_NS: u64 = 3600 * 1_000_000_000;
/// The fewest updates of a point, however long they take.
const LEAST: u64 = 20;

/// Figures of the time, and its curve.
pub(super) fn run(
    which: Which,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<()> {
    context.progress.say("time of an update");
    let time = Duration::from_secs_f64(settings.seconds);
    let quiet = times(&which.world(Flip::Shrink, which.size())?, time, false)?;
    let beside = times(&which.world(Flip::Shrink, which.size())?, time, true)?;
    for (name, times, when) in [
        ("update", &quiet, "while nothing is allocated"),
        ("update-beside", &beside, "beside a thread that allocates"),
    ] {
        for (quantile, suffix) in [(0.5, "p50"), (0.99, "p99")] {
            let what = match which {
                Which::Cpuset(..) => format!("an update of a cpuset of two tasks, {when}"),
                Which::Zonelist(_) => {
                    format!("to build the lists of a node with two zones, {when}")
                }
            };
            findings.figure(&format!("{name}-{suffix}"), at(times, quantile), "ns", &what);
        }
    }
    let (mut middle, mut slow) = (Vec::new(), Vec::new());
    let (unit, sizes) = which.sizes();
    for &size in sizes {
        let world = which.world(Flip::Shrink, size)?;
        let times = times(&world, time / 4, true)?;
        let x = f64::from(u32::try_from(size)?);
        middle.push((x, at(&times, 0.5)));
        slow.push((x, at(&times, 0.99)));
    }
    let what = format!("median time of an update, by {unit}");
    findings.series("update-p50", (unit, "ns"), &what, middle);
    let what = format!("the 99th percentile of the time of an update, by {unit}");
    findings.series("update-p99", (unit, "ns"), &what, slow);
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // a time for people
fn at(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64
}

/// Nanoseconds of updates without a pause.
fn times(world: &World, time: Duration, beside: bool) -> Result<Histogram<u64>> {
    let subject = &world.subject;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let allocating = beside.then(|| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(page) = subject.allocate(0).page {
                        subject.free(0, page);
                    }
                }
            })
        });
        let update = || {
            let mut times = Histogram::new_with_bounds(1, HOUR_NS, 3)?;
            let end = Instant::now() + time;
            let mut turn = 0;
            while turn < LEAST || Instant::now() < end {
                progress::check()?;
                let start = Instant::now();
                subject.update(turn)?;
                times.saturating_record(
                    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
                );
                turn += 1;
            }
            Ok(times)
        };
        let times = update();
        stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = allocating.map(std::thread::ScopedJoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        times
    })
}
