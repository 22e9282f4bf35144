// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an allocation and an update cost in atomic operations, by scheme: `cargo explore --cost`.
//!
//! One thread does each once, with nobody beside it, in a guest of two nodes of 16 MiB. A count is exact,
//! and the same in each run. What the allocator itself counts with atomics of `core` is left out; the
//! schemes share it.

use core::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use guest_driver::page_alloc::{
    AllocRequest, Geometry, KernelSemantics, Layout, MigrateType, Mm, NodeMask, Pfn, ZoneId,
    ZoneLayout, ZoneType, ZonelistUpdate,
};
use guest_driver::placement::{
    Ask, CpusetId, Placement, Policy, Scheme, Setup, TaskId, TaskSetup, Vma,
};
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
    /// The policy of the allocation: bind or none.
    pub policy: &'static str,
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
    /// The same where the zone that is first in the list is not allowed.
    FarWalk,
    /// An allocation of a page where every zone is below its low watermark: the second walk gets it.
    SlowWalk,
    /// An update of a cpuset with one task.
    Update,
}

impl What {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::FastWalk => "fast-walk",
            Self::FarWalk => "far-walk",
            Self::SlowWalk => "slow-walk",
            Self::Update => "update",
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
            "policy": self.policy,
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
        let name = ("page-alloc", "anywhere", "none");
        let alloc = |mm: &Mm| mm.alloc(0, PAGE).map_err(|error| error.to_string());
        let mm = guest();
        all.push(counted(name, What::FastWalk, || alloc(&mm))?);
        fill_to_low(&mm)?;
        all.push(counted(name, What::SlowWalk, || alloc(&mm))?);
        for &update in ZonelistUpdate::ALL {
            zonelists(&mut all, update)?;
        }
        for (policy, vma) in [("none", Policy::DEFAULT), ("bind", Policy::bind(both()))] {
            for &scheme in Scheme::ALL {
                placement(&mut all, scheme, (policy, vma))?;
            }
        }
        Ok(all)
    })
}

/// A table of them.
pub fn table(all: &[Counted]) -> String {
    let mut text = format!("{:11} {:20} {:6} {:9}", "model", "scheme", "policy", "what");
    for name in Cost::NAMES {
        // Writing to a string cannot fail.
        let _ = write!(text, " {name:>13}");
    }
    for Counted { model, scheme, policy, what, cost } in all {
        let _ = write!(text, "\n{model:11} {scheme:20} {policy:6} {:9}", what.name());
        for value in cost.values() {
            let _ = write!(text, " {value:>13}");
        }
    }
    text
}

const PAGE: AllocRequest =
    AllocRequest { order: 0, migratetype: MigrateType::Movable, node: NODES[0], atomic: false };
/// Linux's, with sections of 16 MiB, which are soon full.
const GEOMETRY: Geometry = Geometry { section_order: 12, ..Geometry::LINUX };
/// Each in a word of its own of a mask.
const NODES: [u8; 2] = [0, 64];

fn both() -> NodeMask {
    NODES.into_iter().collect()
}

/// Counts what an allocation pays for the way in which zonelists are updated, and an update.
fn zonelists(all: &mut Vec<Counted>, update: ZonelistUpdate) -> Result<(), String> {
    let name = ("zonelists", update.name(), "none");
    let mm = guest_of(KernelSemantics { zonelists: update, ..KernelSemantics::V6_19 });
    let alloc = || mm.alloc(0, PAGE).map_err(|error| error.to_string());
    all.push(counted(name, What::FastWalk, alloc)?);
    fill_to_low(&mm)?;
    all.push(counted(name, What::SlowWalk, alloc)?);
    let rebuild = || {
        mm.rebuild_zonelists();
        Ok(())
    };
    all.push(counted(name, What::Update, rebuild)?);
    Ok(())
}

/// Two nodes with a section each.
fn guest() -> Mm {
    guest_of(KernelSemantics::V6_19)
}

fn guest_of(semantics: KernelSemantics) -> Mm {
    let zone = |(at, node): (usize, u8)| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: std::iter::once(at..at + 1).collect(),
    };
    let zones = NODES.into_iter().enumerate().map(zone).collect();
    Mm::new(&Layout { zones, semantics, ..Layout::flat(GEOMETRY, 1, NODES.len()) })
}

/// How often something is done, of which the cheapest counts: an allocation that finds its CPU's list
/// empty fills it.
const TIMES: usize = 8;

/// Counts what is done once.
fn counted<T>(
    (model, scheme, policy): (&'static str, &str, &'static str),
    what: What,
    once: impl Fn() -> Result<T, String>,
) -> Result<Counted, String> {
    let mut costs = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let (done, cost) = cost_of(&once);
        done?;
        costs.push(cost);
    }
    let cheapest = costs.into_iter().min_by_key(|cost| (cost.locks, cost.stores));
    let cost = cheapest.unwrap_or_default();
    Ok(Counted { model, scheme: scheme.to_owned(), policy, what, cost })
}

/// Counts the allocations of a task, and the updates of its cpuset.
fn placement(
    all: &mut Vec<Counted>,
    scheme: Scheme,
    (policy, vma): (&'static str, Policy),
) -> Result<(), String> {
    let name = ("placement", scheme.name(), policy);
    let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![vma] };
    let setup = Setup { cpusets: vec![both()], tasks: vec![task], ..Setup::default() };
    let new = || {
        let mm = Arc::new(guest());
        Placement::new(mm, scheme, &setup).map_err(|error| error.to_string())
    };
    let alloc = |placement: &Placement| -> Result<Pfn, String> {
        let (task, vma) = (TaskId(0), Some(Vma(0)));
        let ask = Ask { task, vma, cpu: 0, request: PAGE, most_tries: 1_000 };
        placement.ask(&ask).page.map_err(|error| error.to_string())
    };
    let update = |placement: &Placement, mems| {
        placement.set_mems(CpusetId(0), mems).map_err(|error| error.to_string())
    };
    let quiet = new()?;
    all.push(counted(name, What::FastWalk, || alloc(&quiet))?);
    let moved = new()?;
    update(&moved, NodeMask::of(NODES[1]))?;
    all.push(counted(name, What::FarWalk, || alloc(&moved))?);
    fill_to_low(quiet.mm())?;
    all.push(counted(name, What::SlowWalk, || alloc(&quiet))?);
    let turn = core::cell::Cell::new(false);
    let flip = || {
        turn.set(!turn.get());
        update(&moved, NodeMask::of(NODES[usize::from(!turn.get())]))
    };
    all.push(counted(name, What::Update, flip)?);
    Ok(())
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
