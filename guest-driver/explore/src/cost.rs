// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an allocation and an update cost in atomic operations, by scheme: `cargo explore --cost`.
//!
//! One thread does each once, with nobody beside it, in a guest of two nodes of 128 MiB. A count is exact,
//! and the same in each run. What the allocator itself counts with atomics of `core` is left out; the
//! schemes share it.

use core::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use guest_driver::page_alloc::{AllocRequest, Geometry, Layout, Mm, ZoneId, ZoneLayout, ZoneType};
use guest_driver::sync::cost::{Cost, cost_of};
use shuttle::scheduler::RoundRobinScheduler;
use shuttle::{Config, MaxSteps, Runner};

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The model that has the scheme.
    pub model: &'static str,
    /// The scheme.
    pub scheme: String,
    /// What was done.
    pub what: What,
    /// Its atomic operations.
    pub cost: Cost,
}

/// What is done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An allocation of a page, which the first walk gets from a list of its CPU.
    FastWalk,
    /// An allocation of a page where every zone is below its low watermark: the second walk gets it.
    SlowWalk,
}

impl What {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::FastWalk => "fast-walk",
            Self::SlowWalk => "slow-walk",
        }
    }
}

impl Counted {
    /// The same for programs, as a JSON object; `cargo explore --help` documents its members.
    pub fn json(&self) -> serde_json::Value {
        let costs =
            Cost::NAMES.into_iter().zip(self.cost.values()).map(|(n, v)| (n.to_owned(), v.into()));
        serde_json::json!({
            "model": self.model,
            "scheme": self.scheme,
            "what": self.what.name(),
            "cost": costs.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Counts everything.
///
/// # Errors
/// A sentence, if something could not be done.
pub fn count_all() -> Result<Vec<Counted>, String> {
    on_one_thread(|| {
        let mut all = Vec::new();
        walks(&mut all, ("page-alloc", "anywhere"), &guest(), |mm| {
            mm.alloc(0, PAGE).map_err(|error| error.to_string()).map(drop)
        })?;
        Ok(all)
    })
}

/// A table of them.
pub fn table(all: &[Counted]) -> String {
    let mut text = format!("{:12} {:24} {:10}", "model", "scheme", "what");
    for name in Cost::NAMES {
        // Writing to a string cannot fail.
        let _ = write!(text, " {name:>13}");
    }
    for Counted { model, scheme, what, cost } in all {
        let _ = write!(text, "\n{model:12} {scheme:24} {:10}", what.name());
        for value in cost.values() {
            let _ = write!(text, " {value:>13}");
        }
    }
    text
}

const PAGE: AllocRequest =
    AllocRequest { order: 0, migratetype: guest_driver::page_alloc::MigrateType::Movable, node: 0 };

/// Two nodes with a section each.
fn guest() -> Mm {
    let zone = |node: u8| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: std::iter::once(usize::from(node)..usize::from(node) + 1).collect(),
    };
    let zones = vec![zone(0), zone(1)];
    Mm::new(&Layout { zones, ..Layout::flat(Geometry::LINUX, 1, 2) })
}

/// Counts an allocation that the first walk serves, and one that it does not.
fn walks(
    all: &mut Vec<Counted>,
    (model, scheme): (&'static str, &str),
    mm: &Mm,
    alloc: impl Fn(&Mm) -> Result<(), String>,
) -> Result<(), String> {
    let mut count = |what| {
        let once = || {
            let (done, cost) = cost_of(|| alloc(mm));
            done.map(|()| cost)
        };
        // An allocation that finds its CPU's list empty fills it, and the next one need not.
        let (first, second) = (once()?, once()?);
        let cost = if first.locks < second.locks { first } else { second };
        all.push(Counted { model, scheme: scheme.to_owned(), what, cost });
        Ok::<(), String>(())
    };
    count(What::FastWalk)?;
    fill_to_low(mm)?;
    count(What::SlowWalk)
}

/// Allocates until no zone has a page above its low watermark.
fn fill_to_low(mm: &Mm) -> Result<(), String> {
    for order in [9, 0] {
        let request = AllocRequest { order, ..PAGE };
        let spare = |zone| {
            let zone = mm.zone(ZoneId(zone));
            zone.watermark_ok(order, zone.watermarks().low, true)
        };
        while (0..mm.zone_count()).any(spare) {
            mm.alloc(0, request).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// Runs `body` where the primitives of `sync` are shuttle's.
fn on_one_thread<R: Send + 'static>(
    body: impl Fn() -> Result<R, String> + Send + Sync + 'static,
) -> Result<R, String> {
    let mut config = Config::new();
    config.max_steps = MaxSteps::None;
    config.silence_warnings = true;
    let result = Arc::new(Mutex::new(Err("it has not run".to_owned())));
    let into = Arc::clone(&result);
    Runner::new(RoundRobinScheduler::new(1), config)
        .run(move || *into.lock().unwrap_or_else(PoisonError::into_inner) = body());
    let mut result = result.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::replace(&mut *result, Err("it was taken".to_owned()))
}
