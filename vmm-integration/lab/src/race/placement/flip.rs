// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A cpuset that changes between disjoint nodes under tasks that fault memory in, after LTP's
//! `cpuset01`: with a task policy, a policy of a mapping, and none.

use anyhow::Result;
use guest_agent::placement::{PlacedTask, PlacementPlan, Policy, Scope};

use super::cycles::{Cycles, Looks, ms};
use super::numa::{MIB, NODE, Numa};
use super::settings::Settings;
use crate::experiment::Context;
use crate::store::Findings;

pub(super) const NODES: [u64; 2] = [512 * MIB, 256 * MIB];

/// The tasks, with the names of their policies.
pub(super) fn tasks(bytes: u64) -> Vec<(&'static str, PlacedTask)> {
    use Policy::{Bind, Default as NoPolicy, Interleave};
    use Scope::{Mapping, Task};
    let of = |policy, scope, nodes: &[u32]| PlacedTask {
        policy,
        scope,
        nodes: nodes.to_vec(),
        bytes,
        ..PlacedTask::default()
    };
    let both = &[0, NODE][..];
    vec![
        ("no-policy", of(NoPolicy, Task, &[])),
        ("task-bind", of(Bind, Task, both)),
        ("task-interleave", of(Interleave, Task, both)),
        ("mapping-bind", of(Bind, Mapping, both)),
        ("mapping-interleave", of(Interleave, Mapping, both)),
        ("mapping-bind-static", PlacedTask { fixed: true, ..of(Bind, Mapping, &[NODE]) }),
    ]
}

/// Runs it in a guest whose counts have begun; with `slow` each allocation takes the slow path.
pub(super) fn run(
    numa: &Numa,
    slow: bool,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<Cycles> {
    let (names, tasks): (Vec<_>, Vec<_>) = tasks(settings.bytes).into_iter().unzip();
    let plan = PlacementPlan {
        seed: context.seed,
        tasks,
        mems: vec!["0".to_owned(), NODE.to_string()],
        flips: settings.cycles,
        again: true,
        ..PlacementPlan::default()
    };
    let mut looks = Looks::default();
    if slow {
        numa.raise_watermarks()?;
    }
    numa.agent().start_placement(&plan)?;
    let outcome = numa.outcome(&mut |report| {
        if slow {
            looks.look(numa)?;
        }
        Ok(settings.goes_on(report, report.flips, context))
    })?;
    if slow {
        looks.figures(findings);
    }
    let report = &outcome.placement;
    for (name, task) in names.iter().zip(&report.tasks) {
        findings.count(
            &format!("pages-{name}"),
            task.pages,
            "pages",
            &format!("faulted in by {name}"),
        );
    }
    let longest = ms(report.longest_flip_us);
    findings.figure("longest-flip", longest, "ms", "the longest write of cpuset.mems");
    for (error, times) in &report.failed_flips {
        findings.note(format!("cpuset.mems was refused {times} times: {error}"));
    }
    if let Some(hierarchy) = report.hierarchy {
        findings.note(format!("The cpuset is one of {hierarchy}."));
    }
    Ok(Cycles { done: report.flips, what: "changes of cpuset.mems", outcome })
}
