// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reports while allocations are limited to some nodes, and while zonelists change: which scheme and which
//! watermark guard stands.

use super::super::invariant::Holds;
use super::super::setting::{Scenario, Setting, Tasks};
use super::parts::{Named, reporter, setting, wrong};
use super::scenarios::{BOUND_TASK, LAST_BLOCK, MOVED_TASK, PRESSURE};
use crate::Kind;
use guest_driver::page_alloc::{KernelSemantics, ZonelistUpdate};
use guest_driver::placement::Scheme;
use guest_driver::reporting::{Config, Holding, TrackerKind, WatermarkGuard};

/// Ways to update a cpuset that stand by themselves, where no VMA has a policy.
const SCHEMES: [Scheme; 8] = [
    Scheme::IntersectionCheck,
    Scheme::CheckAtRetry,
    Scheme::CheckAfterReclaim,
    Scheme::NoRebind,
    Scheme::CountedCopy,
    Scheme::EpochCopy,
    Scheme::CountedZonelists,
    Scheme::LockedZonelists,
];

fn section_bit(scenario: &Scenario) -> Config {
    reporter(scenario, TrackerKind::SectionBit, Holding::Isolate)
}

/// A task that is bound to one node, and a reporter that leaves too little of it. No scheme helps the
/// task.
fn unguarded(guard: WatermarkGuard, name: &str, about: &str) -> Named {
    let reporter =
        Config { watermark_guard: guard, batch: PRESSURE.batch, ..section_bit(&BOUND_TASK) };
    let setting = setting(BOUND_TASK, reporter);
    wrong(Kind::KnownBad, name, about, setting, &[Holds::NoOomWhileWithheld])
}

fn last_block(update: ZonelistUpdate) -> Setting {
    let semantics = KernelSemantics { zonelists: update, ..KernelSemantics::V6_19 };
    Setting { semantics, ..setting(LAST_BLOCK, section_bit(&LAST_BLOCK)) }
}

/// What is known to be wrong.
pub(super) fn known_bad() -> Vec<Named> {
    vec![
        unguarded(
            WatermarkGuard::None,
            "bound-task-no-watermark-guard",
            "section-bit, holds as much of the task's node as a batch takes",
        ),
        unguarded(
            WatermarkGuard::Memory,
            "bound-task-guard-of-all-memory",
            "section-bit, leaves enough of all memory, and not of the task's node",
        ),
        wrong(
            Kind::KnownBad,
            "last-block-overwrite",
            "section-bit, and zonelists are overwritten under allocations, as from 4.14 to 6.0",
            last_block(ZonelistUpdate::Overwrite),
            &[Holds::NoOomWhileAZoneCanServe],
        ),
        wrong(
            Kind::KnownBad,
            "last-block-stop-machine",
            "section-bit, and zonelists are overwritten while all stand still, in the middle of an \
             allocation",
            last_block(ZonelistUpdate::StopMachine),
            &[Holds::NoOomWhileAZoneCanServe],
        ),
        wrong(
            Kind::KnownBad,
            "last-block-append-and-terminate",
            "section-bit, and a copy is appended to the zonelist before its front is overwritten",
            last_block(ZonelistUpdate::AppendAndTerminate),
            &[Holds::NoOomWhileAZoneCanServe],
        ),
    ]
}

/// What is meant to work, in scenarios that every tracker does not need to stand.
pub(super) fn good() -> Vec<Named> {
    let stands = |name: String, about: String, setting: Setting| Named {
        name,
        ..wrong(Kind::Good, "", &about, setting, &[])
    };
    let moved = SCHEMES.map(|scheme| {
        let tasks = MOVED_TASK.tasks.map(|tasks| Tasks { scheme, ..tasks });
        let scenario = Scenario { tasks, ..MOVED_TASK };
        let setting = setting(scenario, section_bit(&MOVED_TASK));
        stands(format!("moved-task-{scheme}"), format!("section-bit, {scheme}"), setting)
    });
    let updates = [ZonelistUpdate::SequenceCount, ZonelistUpdate::Rcu].map(|update| {
        stands(format!("last-block-{update}"), format!("section-bit, {update}"), last_block(update))
    });
    moved.into_iter().chain(updates).collect()
}
