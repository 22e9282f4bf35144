// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: the world and actors of a scenario.

use std::sync::{Arc, Mutex};

use super::catalogue;
use super::history::History;
use super::invariant::Holds;
use super::reclaim::{Allocating, Endless};
use super::setting::{Asked, Scenario, Setting, set};
use super::world::{Only, World};
use crate::{Actor, Configuration, Model, Notes, Run};
use guest_driver::page_alloc::{
    AllocRequest, KernelSemantics, Layout, Mm, Reclaim, ZoneLayout, ZoneType,
};
use guest_driver::placement::{CpusetId, Placement, Setup, TaskSetup};
use guest_driver::random::Random;
use guest_driver::swapped::Supply;

/// Cpusets and policies that change under allocations.
#[derive(Debug)]
pub struct Places;

impl Model for Places {
    const NAME: &'static str = "placement";
    const ABOUT: &'static str = "cpusets and memory policies that change under allocations";
    const NOTES: Notes = catalogue::NOTES;

    type Invariant = Holds;
    type Setting = Setting;
    type World = World;

    fn configurations() -> Vec<Configuration<Setting, Holds>> {
        catalogue::configurations()
    }

    fn world(setting: &Setting, run: Arc<Run<Holds>>) -> Result<World, String> {
        let scenario = &setting.scenario;
        if !scenario.is_possible() {
            return Err("a node has fewer pages than the tasks take".to_owned());
        }
        let mm = Arc::new(Mm::new(&layout(scenario)));
        fill(&mm, scenario)?;
        if scenario.reclaims {
            let endless = Arc::new(Endless { roomy: scenario.roomy() });
            mm.set_reclaim(endless).map_err(|_| "there is something to reclaim already")?;
        }
        let allocating = Arc::new(Allocating::default());
        if scenario.reclaim_allocates {
            let reclaim = Arc::clone(&allocating) as Arc<dyn Reclaim>;
            mm.set_reclaim(reclaim).map_err(|_| "there is something to reclaim already")?;
        }
        let task = TaskSetup {
            cpuset: CpusetId(0),
            policy: scenario.policy.policy(),
            vmas: scenario.vma.iter().map(|vma| vma.policy()).collect(),
        };
        let setup = Setup {
            cpusets: vec![set(scenario.mems)],
            tasks: vec![task; scenario.tasks],
            flaw: setting.flaw,
        };
        let supply = Arc::new(Supply::new());
        let placement = Placement::with_supply(mm, setting.scheme, &setup, Arc::clone(&supply))
            .map_err(|error| error.to_string())?;
        let placement = Arc::new(placement);
        let _ = allocating.tasks.set(Arc::downgrade(&placement));
        let history = History::new(scenario).ok_or("a policy has no node of the cpuset's")?;
        Ok(World {
            placement,
            supply,
            setting: setting.clone(),
            run,
            history,
            kept: Mutex::default(),
        })
    }

    fn actors(setting: &Setting, seed: u64) -> Vec<Actor<World>> {
        let random = Random(seed);
        let mut all: Vec<Actor<World>> = vec![Box::new(move |world: &World| world.update(random))];
        for task in 0..setting.scenario.tasks {
            all.push(Box::new(move |world: &World| world.allocate(task)));
        }
        let policies: &'static [Asked] = setting.scenario.mbind;
        if !policies.is_empty() {
            all.push(Box::new(move |world: &World| world.mbind(policies)));
        }
        all
    }

    fn at_rest(_: &Setting, world: &World) {
        world.at_rest();
    }
}

/// Sections of a node. While a block is split its pages are in no counter, so that a node of one block looks
/// full for a moment.
const SECTIONS: usize = 2;

/// A zone for each node.
fn layout(scenario: &Scenario) -> Layout {
    let zone = |(at, &node): (usize, &u8)| ZoneLayout {
        node,
        kind: ZoneType::Movable,
        sections: std::iter::once(at * SECTIONS..(at + 1) * SECTIONS).collect(),
    };
    Layout {
        geometry: Scenario::GEOMETRY,
        semantics: KernelSemantics::V6_19,
        // One a task, and one of others.
        cpus: scenario.tasks + 1,
        zones: scenario.nodes.iter().enumerate().map(zone).collect(),
        shared: Vec::new(),
        sections: scenario.nodes.len() * SECTIONS,
        watch_zonelists: false,
    }
}

/// Takes all memory of the nodes that are full.
fn fill(mm: &Mm, scenario: &Scenario) -> Result<(), String> {
    let request = AllocRequest::movable(mm.geometry().max_order);
    for &node in scenario.full {
        let request = AllocRequest { node, ..request };
        for _ in 0..SECTIONS {
            mm.alloc_constrained(0, request, &mut Only(node)).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
