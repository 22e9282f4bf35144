// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A task bound to a node uses nearly all of it, drops it, and uses it again, while reports withhold
//! what it has dropped.

use anyhow::{Result, ensure};
use guest_agent::placement::{KILLED, PlacedTask, PlacementPlan, PlacementReport, Policy};

use super::cycles::Cycles;
use super::numa::{MIB, NODE, Numa, report};
use super::settings::Settings;
use crate::experiment::Context;
use crate::race::reporter::Reporter;
use crate::store::Findings;

pub(super) const NODES: [u64; 2] = [512 * MIB, 256 * MIB];
/// What the task leaves of the node above the min watermark: page tables, per-CPU lists, and others.
const LEFT: u64 = 16 * MIB;
/// Rounds without reports before the others: in none of them is the task killed.
const ROUNDS_BEFORE: u64 = 3;
/// The task rests up to so many delays between two rounds.
const DELAYS: u64 = 3;

fn cycles(report: &PlacementReport) -> u64 {
    report.rounds() + report.ends(KILLED)
}

/// Runs it in a guest whose counts have begun and that does not report yet.
pub(super) fn run(
    numa: &mut Numa,
    reporter: Reporter,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<Cycles> {
    numa.settle(findings);
    let spare: u64 = numa
        .zones()?
        .iter()
        .map(|zone| zone.pages("free").saturating_sub(zone.pages("min")) * 4096)
        .sum();
    let bytes = spare.saturating_sub(LEFT) / MIB * MIB;
    ensure!(bytes > 64 * MIB, "node {NODE} has only {spare} bytes to spare");
    let task = PlacedTask {
        policy: Policy::Bind,
        nodes: vec![NODE],
        bytes,
        rounds: ROUNDS_BEFORE,
        ..PlacedTask::default()
    };
    let plan =
        PlacementPlan { seed: context.seed, tasks: vec![task], again: false, ..Default::default() };
    numa.agent().start_placement(&plan)?;
    let before = numa.outcome(&mut |_| Ok(true))?;
    ensure!(
        before.oom_kills == 0 && before.placement.rounds() == ROUNDS_BEFORE,
        "without a report a task of {} MiB did {} of {ROUNDS_BEFORE} rounds with {} OOM kills, \
         expected none: {:?}",
        bytes / MIB,
        before.placement.rounds(),
        before.oom_kills,
        before.complaints.lines
    );
    findings.count("asked", bytes / MIB, "MiB", "the task's memory, of its node");
    findings.note(format!(
        "Before: {ROUNDS_BEFORE} rounds of the task without a report, and no OOM kill."
    ));
    numa.begin()?;
    let delay = report(numa, reporter, settings, findings)?;
    let late = if reporter == Reporter::Late { settings.late } else { 0 };
    let mut plan = PlacementPlan { again: true, ..plan };
    for task in &mut plan.tasks {
        task.rounds = 0;
        task.rest_ms = DELAYS * delay.max(late);
    }
    numa.agent().start_placement(&plan)?;
    let outcome = numa.outcome(&mut |report| {
        let done = cycles(report);
        let enough = settings.cycles > 0 && done >= settings.cycles;
        Ok(settings.goes_on(report, done, context) && !enough)
    })?;
    let done = cycles(&outcome.placement);
    Ok(Cycles { done, what: "uses of the node by the bound task", outcome })
}
