// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The only block of node 1's `ZONE_MOVABLE` goes offline and online, so that the zone is empty and
//! populated in turn and the zonelists are rebuilt each time, under tasks that allocate from the node.

use anyhow::{Context as _, Result, ensure};
use guest_agent::placement::{PlacedTask, PlacementPlan, Policy, Scope};
use guest_agent::race::{OFFLINE, ONLINE, RacePlan};

use super::cycles::{Cycles, Looks, ms};
use super::numa::{MIB, MOVABLE, NODE, Numa};
use super::settings::Settings;
use crate::experiment::Context;
use crate::race::linux::set_block;
use crate::store::Findings;

pub(super) const NODES: [u64; 2] = [768 * MIB, 384 * MIB];
/// Of what each task maps; a sparse one touches little of it.
const DENSE: u64 = 4 * MIB;
const SPARSE: u64 = 128 * MIB;

fn tasks() -> Vec<PlacedTask> {
    let of = |policy, scope, bytes, sparse| PlacedTask {
        policy,
        scope,
        nodes: if policy == Policy::Default { Vec::new() } else { vec![NODE] },
        bytes,
        sparse,
        ..PlacedTask::default()
    };
    vec![
        of(Policy::Bind, Scope::Task, DENSE, false),
        of(Policy::Bind, Scope::Mapping, DENSE, false),
        // Page tables: allocations that ZONE_MOVABLE cannot serve, so that the preferred zone is
        // not the first of the zonelist.
        of(Policy::Bind, Scope::Task, SPARSE, true),
        of(Policy::Preferred, Scope::Task, DENSE, false),
        of(Policy::Default, Scope::Task, DENSE, false),
    ]
}

/// Puts the last block of the node that goes offline into `ZONE_MOVABLE`, alone.
pub(super) fn prepare(numa: &Numa) -> Result<u32> {
    let blocks = numa.agent().memory_blocks()?;
    let first = u32::try_from(NODES[0] / blocks.block_bytes)?;
    let of_node = blocks.blocks.iter().rev().filter(|block| block.id >= first);
    let mut ids = of_node.map(|block| block.id);
    let last = ids.find(|&id| set_block(&numa.guest, id, "offline").is_ok());
    let last = last.with_context(|| format!("no block of node {NODE} goes offline"))?;
    set_block(&numa.guest, last, "online_movable")?;
    let zones = numa.zones()?;
    let movable = zones.iter().find(|zone| zone.name == MOVABLE);
    let pages = movable.map_or(0, |zone| zone.pages("managed"));
    ensure!(
        pages == blocks.block_bytes / 4096,
        "node {NODE}'s ZONE_MOVABLE has {pages} pages: expected those of one block"
    );
    Ok(last)
}

/// Runs it in a guest whose counts have begun.
pub(super) fn run(
    numa: &Numa,
    block: u32,
    settings: &Settings,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Result<Cycles> {
    numa.raise_watermarks()?;
    let agent = numa.agent();
    let plan = PlacementPlan {
        seed: context.seed,
        tasks: tasks(),
        again: true,
        ..PlacementPlan::default()
    };
    let race = RacePlan {
        seed: context.seed,
        blocks: vec![block],
        online_as: "online_movable".to_owned(),
        cycles: settings.cycles,
        cyclers: 1,
        ..RacePlan::default()
    };
    agent.start_placement(&plan)?;
    agent.start_race(&race)?;
    let mut looks = Looks::default();
    let outcome = numa.outcome(&mut |report| {
        let race = agent.race(false)?;
        looks.look(numa)?;
        Ok(settings.goes_on(report, race.cycles(), context) && race.running)
    })?;
    let race = agent.race(true)?;
    for (name, what) in [(OFFLINE, "an offline"), (ONLINE, "an online")] {
        let operation = race.operation(name);
        for (how, times) in &operation.outcomes {
            findings.count(&format!("{name}-{how}"), *times, "", &format!("{name}: {how}"));
        }
        let longest = ms(operation.longest_us);
        findings.figure(
            &format!("longest-{name}"),
            longest,
            "ms",
            &format!("the longest of {what}"),
        );
    }
    looks.figures(findings);
    Ok(Cycles { done: race.cycles(), what: "cycles of the zone's only block", outcome })
}
