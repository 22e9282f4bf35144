// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Turns without reporting and with it, in pairs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_agent::faulting::{FaultingPlan, Work};
use vmm_integration::guest::{Faulted, Guest};

use super::super::pairs::orders;
use super::program::MAPPING_BYTES;
use crate::experiment::Context;
use crate::progress;

/// Work behind a change that counts for nothing. Without reporting it has what was given back
/// populated again.
const WARM_UP: Duration = Duration::from_millis(500);
/// Reporting that was turned on makes its first pass within two seconds; more on a busy machine.
const FIRST_PASS: Duration = Duration::from_secs(60);

/// A guest with programs, in which reporting can be turned on and off.
pub(super) struct Side<'a> {
    pub(super) guest: &'a dyn Guest,
    /// Bytes that the device was told so far, by its own count.
    pub(super) reported: &'a dyn Fn() -> Result<u64>,
    /// What its programs do, and how many there are.
    pub(super) work: Work,
    pub(super) tasks: u32,
}

impl Side<'_> {
    /// Lets the programs run for so long.
    fn run(&self, time: Duration) -> Result<Faulted> {
        let Self { work, tasks, .. } = *self;
        let milliseconds = u64::try_from(time.as_millis())?;
        self.guest.fault(FaultingPlan { work, tasks, bytes: MAPPING_BYTES, milliseconds })
    }
}

/// A turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Pages that were faulted in a second.
    pub(super) rate: f64,
    /// The same a second of CPU time.
    pub(super) cpu_rate: f64,
    /// What the device was told meanwhile.
    pub(super) reported_bytes: u64,
    /// What it was told before, while reporting was on.
    pub(super) first_bytes: u64,
}

/// A turn without reporting and one with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    pub(super) off: Turn,
    pub(super) on: Turn,
}

impl Pair {
    pub(super) fn ratio(&self) -> f64 {
        self.on.rate / self.off.rate
    }

    pub(super) fn cpu_ratio(&self) -> f64 {
        self.on.cpu_rate / self.off.cpu_rate
    }
}

/// Lets both sides have their turns.
pub(super) fn compare(
    side: &Side<'_>,
    time: Duration,
    number: usize,
    context: &Context<'_>,
) -> Result<Vec<Pair>> {
    let mut pairs = Vec::with_capacity(number);
    // The first pair warms up: a guest that has just begun gives back all its memory.
    let orders = [false].into_iter().chain(orders(context.seed, number));
    for (nr, on_first) in orders.enumerate() {
        let turn_of = |on| {
            progress::check()?;
            let what = if on { "on" } else { "off" };
            context.progress.say(&format!("pair {nr}, {what}"));
            turn(side, on, time).with_context(|| format!("pair {nr}, reporting {what}"))
        };
        let (first, second) = (turn_of(on_first)?, turn_of(!on_first)?);
        let (off, on) = if on_first { (second, first) } else { (first, second) };
        if nr > 0 {
            pairs.push(Pair { off, on });
        }
        context.progress.at(nr as u64 + 1, number as u64 + 1);
    }
    Ok(pairs)
}

#[allow(clippy::cast_precision_loss)] // rates
fn turn(side: &Side<'_>, on: bool, time: Duration) -> Result<Turn> {
    side.guest.set_reporting(on)?;
    let turned = (side.reported)()?;
    if on {
        // The first pass has all that was freed while it was off, and shows that it is on: a later
        // one finds nothing if it comes when the programs have all in use.
        let start = Instant::now();
        while (side.reported)()? == turned {
            progress::check()?;
            ensure!(
                start.elapsed() < FIRST_PASS,
                "nothing was reported within {FIRST_PASS:?} of work"
            );
            side.run(WARM_UP / 2)?;
        }
    }
    side.run(WARM_UP)?;
    let before = (side.reported)()?;
    let Faulted { pages, time: took, cpu } = side.run(time)?;
    let reported_bytes = (side.reported)()?.saturating_sub(before);
    progress::check()?;
    ensure!(on || reported_bytes == 0, "{reported_bytes} bytes were reported, expected none");
    Ok(Turn {
        rate: pages as f64 / took.as_secs_f64(),
        cpu_rate: pages as f64 / cpu.as_secs_f64(),
        reported_bytes,
        first_bytes: before.saturating_sub(turned),
    })
}
