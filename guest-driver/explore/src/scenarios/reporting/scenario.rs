// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: the world and actors of a scenario.

use core::iter;
use std::sync::{Arc, Mutex, PoisonError};

use super::host::Host;
use super::invariant::Holds;
use super::rest::Rest;
use super::setting::{Other, Patience, Scenario, Setting, Tasks};
use super::world::World;
use super::{actors, catalogue};
use crate::{Actor, Configuration, Model, Notes, Run};
use guest_driver::page_alloc::{
    AllocRequest, IsolateMode, KernelSemantics, Layout, MigrateType, Mm, Pfn, PfnRange,
    SharedSection, ZoneId, ZoneLayout, ZoneType,
};
use guest_driver::placement::{CpusetId, Placement, Policy, Setup, TaskSetup};
use guest_driver::random::Random;
use guest_driver::reporting::{Reporter, VirtualClock};
use guest_driver::sync;

/// Steps of others, at least, for which a reporter is suspended.
const SUSPENDED: usize = 8;

/// Free page reporting and what it can collide with.
#[derive(Debug)]
pub struct Reporting;

/// A world with its reporter.
pub struct Stage {
    world: World,
    /// Taken by the actor that reports, and back when that is done.
    reporter: Mutex<Option<(Reporter, Host)>>,
}

impl Stage {
    fn reporter(&self) -> Option<(Reporter, Host)> {
        self.reporter.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The actor that reports: looks for work so many times, and is suspended half-way.
    fn report(&self, passes: usize, suspend: bool) {
        let Some((mut reporter, mut host)) = self.reporter() else { return };
        for pass in 0..passes {
            if suspend && pass == passes / 2 {
                self.suspend(&mut reporter);
            }
            if reporter.schedule().is_due() {
                reporter.pass(&mut host.of(&self.world));
            }
            sync::yield_now();
        }
        let mut slot = self.reporter.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some((reporter, host));
    }

    /// Suspends the reporter and resumes it. Nothing asks for a pass in between.
    fn suspend(&self, reporter: &mut Reporter) {
        reporter.suspend();
        let due = reporter.schedule().is_due();
        for _ in 0..SUSPENDED {
            sync::yield_now();
        }
        if !due && reporter.schedule().is_due() {
            let what = "a free has asked for a pass of a suspended reporter".to_owned();
            self.world.run.violate(Holds::SilentWhileSuspended, what);
        }
        reporter.resume();
    }
}

impl Model for Reporting {
    const NAME: &'static str = "reporting";
    const ABOUT: &'static str = "free page reporting, and what it can collide with";
    const NOTES: Notes = catalogue::NOTES;

    type Invariant = Holds;
    type Setting = Setting;
    type World = Stage;

    fn configurations() -> Vec<Configuration<Setting, Holds>> {
        catalogue::configurations()
    }

    fn world(setting: &Setting, run: Arc<Run<Holds>>) -> Result<Stage, String> {
        let scenario = &setting.scenario;
        let hogs = scenario.others.iter().filter(|other| matches!(other, Other::Hog(_))).count();
        let users = scenario.cpus + hogs;
        let layout = layout(scenario, setting.semantics, users + 1);
        let mm = Arc::new(Mm::new(&layout));
        if scenario.cma {
            mm.reserve_cma(scenario.reserve()).map_err(|error| error.to_string())?;
        }
        for _ in 0..scenario.kernel_pages {
            let request =
                AllocRequest { migratetype: MigrateType::Unmovable, ..AllocRequest::movable(0) };
            mm.alloc(users, request).map_err(|error| error.to_string())?;
        }
        // It stands still, so that a pass is due as soon as it is requested.
        let clock = Arc::new(VirtualClock::new());
        let reporter = Reporter::with_clock(Arc::clone(&mm), setting.reporter, clock)
            .map_err(|error| error.to_string())?;
        let host = Host::new(setting.reporter.holding, setting.reporter.batch, scenario.answers)
            .skipping(scenario.plan.zeroed);
        let tasks = scenario.tasks.map(|tasks| placement(&mm, tasks, scenario.cpus)).transpose()?;
        let limits = (tasks, scenario.out_of_memory);
        let world = World::new(mm, reporter.memory(), run, users, limits);
        Ok(Stage { world, reporter: Mutex::new(Some((reporter, host))) })
    }

    fn actors(setting: &Setting, seed: u64) -> Vec<Actor<Stage>> {
        let scenario = &setting.scenario;
        let mut random = Random(seed);
        let mut all: Vec<Actor<Stage>> = Vec::new();
        let mut add = |body: Box<dyn FnOnce(&World) + Send>| {
            all.push(Box::new(move |stage: &Stage| body(&stage.world)));
        };
        for cpu in 0..scenario.cpus {
            let (plan, random) = (scenario.plan, Random(random.number()));
            add(Box::new(move |world| actors::cpu(world, cpu, &plan, random)));
        }
        for &other in scenario.others {
            add(actor(scenario, other, &mut random));
        }
        if let Some(Tasks { mems: [_, updates @ ..], .. }) = scenario.tasks {
            add(Box::new(|world| actors::update_cpuset(world, updates)));
        }
        let (passes, suspend) = (scenario.passes, scenario.suspend);
        all.push(Box::new(move |stage| stage.report(passes, suspend)));
        all
    }

    fn at_rest(setting: &Setting, stage: &Stage) {
        if let Some((reporter, host)) = stage.reporter() {
            Rest { setting, world: &stage.world, reporter, host }.check();
        }
    }
}

/// Tasks of one cpuset, without policies.
fn placement(mm: &Arc<Mm>, tasks: Tasks, count: usize) -> Result<Placement, String> {
    let first = tasks.mems.first().copied().unwrap_or_default();
    let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: Vec::new() };
    let setup = Setup {
        cpusets: vec![first.iter().copied().collect()],
        tasks: vec![task; count],
        flaw: None,
    };
    Placement::new(Arc::clone(mm), tasks.scheme, &setup).map_err(|error| error.to_string())
}

/// The memory of a scenario, with a CPU for each that allocates.
fn layout(scenario: &Scenario, semantics: KernelSemantics, cpus: usize) -> Layout {
    let spare = usize::from(scenario.has(|other| other == Other::HotAdder));
    let mut zones = Vec::new();
    let mut first = 0;
    let all = scenario.zones.into_iter().zip(scenario.nodes);
    for ((kind, sections), node) in all.filter(|&((_, sections), _)| sections > 0) {
        zones.push(ZoneLayout {
            node,
            kind,
            sections: iter::once(first..first + sections).collect(),
        });
        first += sections;
    }
    let mut shared = Vec::new();
    if scenario.shared {
        let last = first - 1;
        let zone = |node, sections: core::ops::Range<usize>| ZoneLayout {
            node,
            kind: ZoneType::Movable,
            sections: iter::once(sections).collect(),
        };
        zones = vec![zone(1, 0..last), zone(0, 0..0)];
        shared.push(SharedSection {
            section: last,
            first: ZoneId(0),
            second: ZoneId(1),
            boundary_block: scenario.geometry.section_blocks() / 2,
        });
    }
    let (geometry, sections) = (scenario.geometry, first + spare);
    let watch_zonelists = scenario.watch_zonelists;
    Layout { geometry, semantics, cpus, zones, shared, sections, watch_zonelists }
}

type Body = Box<dyn FnOnce(&World) + Send>;

/// What an actor does beside CPUs and reporter; where, is drawn.
fn actor(scenario: &Scenario, other: Other, random: &mut Random) -> Body {
    let order = scenario.geometry.pageblock_order;
    let blocks = scenario.pageblocks();
    let mut pageblocks = |count: u32| {
        let first = random.index(blocks + 1 - count as usize);
        let start = Pfn(u32::try_from(first).unwrap_or(0) << order);
        PfnRange { start, end: start.plus(count << order) }
    };
    match other {
        Other::Offliner(patience) => {
            let block = random.index(scenario.offlinable());
            Box::new(move |world| actors::offliner(world, block, patience, false))
        }
        Other::Remover => {
            let block = random.index(scenario.sections());
            Box::new(move |world| actors::offliner(world, block, Patience::Endless, true))
        }
        Other::Contig(count) => {
            let range = pageblocks(count);
            Box::new(move |world| actors::contig(world, range, IsolateMode::Other))
        }
        Other::ReserveUser => {
            let reserve = scenario.reserve();
            Box::new(move |world| actors::contig(world, reserve, IsolateMode::CmaAlloc))
        }
        Other::Isolator(count) => {
            let range = pageblocks(count);
            Box::new(move |world| actors::isolator(world, range))
        }
        Other::BackwardIsolator => {
            let range = pageblocks(2);
            Box::new(move |world| actors::backward_isolator(world, range))
        }
        Other::HotAdder => {
            let block = scenario.sections();
            Box::new(move |world| actors::hot_adder(world, block))
        }
        Other::Balloon => Box::new(actors::balloon),
        Other::Hog(pages) => {
            let cpu = scenario.cpus;
            Box::new(move |world| actors::hog(world, cpu, pages))
        }
    }
}
