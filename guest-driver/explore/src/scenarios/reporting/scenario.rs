// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model: the world and actors of a scenario, and what must hold when all is quiet.

use std::sync::{Arc, Mutex, PoisonError};

use super::host::Host;
use super::invariant::Holds;
use super::pages::Pages;
use super::setting::{Scenario, Setting};
use super::world::World;
use super::{actors, catalogue};
use crate::{Actor, Configuration, Model, Notes, Run};
use guest_driver::page_alloc::{
    IsolateMode, Layout, MigrateType, Mm, Pfn, PfnRange, SharedSection, ZoneId, ZoneLayout,
    ZoneType,
};
use guest_driver::random::Random;
use guest_driver::reporting::{Holding, Reporter, VirtualClock};
use guest_driver::sync;

/// Passes in which a reporter must come to rest when all is quiet.
const REST: usize = 20;

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

    /// The actor that reports: looks for work so many times.
    fn report(&self, passes: usize) {
        let Some((mut reporter, mut host)) = self.reporter() else { return };
        for _ in 0..passes {
            if reporter.schedule().is_due() {
                reporter.pass(&mut host.of(&self.world));
            }
            sync::yield_now();
        }
        let mut slot = self.reporter.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some((reporter, host));
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
        let spare = usize::from(scenario.hot_add);
        let mut layout = Layout::flat(scenario.geometry, scenario.cpus + 1, scenario.sections);
        layout.sections += spare;
        layout.semantics = setting.semantics;
        let zone = |kind, sections: core::ops::Range<usize>| ZoneLayout {
            node: 0,
            kind,
            sections: vec![sections],
        };
        if scenario.movable > 0 {
            let normal = scenario.sections - scenario.movable;
            layout.zones = vec![
                zone(ZoneType::Normal, 0..normal),
                zone(ZoneType::Movable, normal..scenario.sections),
            ];
        }
        if scenario.shared {
            let last = scenario.sections - 1;
            layout.zones = vec![
                ZoneLayout { node: 1, ..zone(ZoneType::Movable, 0..last) },
                zone(ZoneType::Movable, 0..0),
            ];
            layout.shared = vec![SharedSection {
                section: last,
                first: ZoneId(0),
                second: ZoneId(1),
                boundary_block: scenario.geometry.section_blocks() / 2,
            }];
        }
        let mm = Arc::new(Mm::new(&layout));
        if scenario.cma {
            mm.reserve_cma(scenario.reserve()).map_err(|error| error.to_string())?;
        }
        // It stands still, so that a pass is due as soon as it is requested.
        let clock = Arc::new(VirtualClock::new());
        let reporter = Reporter::with_clock(Arc::clone(&mm), setting.reporter, clock)
            .map_err(|error| error.to_string())?;
        let host = Host::new(setting.reporter.holding, setting.reporter.batch, scenario.answers);
        let world = World::new(mm, run, scenario.cpus, scenario.never_out_of_memory);
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
        let order = scenario.geometry.pageblock_order;
        let blocks = scenario.sections * scenario.geometry.section_blocks();
        let mut pageblock = || {
            let block = u32::try_from(random.index(blocks)).unwrap_or(0);
            PfnRange::block(Pfn(block << order), order)
        };
        let (taken, isolated) = (pageblock(), pageblock());
        if let Some(patience) = scenario.offline {
            let block = random.index(scenario.sections);
            add(Box::new(move |world| actors::offliner(world, block, patience)));
        }
        if scenario.contig {
            add(Box::new(move |world| actors::contig(world, taken, IsolateMode::Other)));
        }
        if scenario.cma {
            let reserve = scenario.reserve();
            add(Box::new(move |world| actors::contig(world, reserve, IsolateMode::CmaAlloc)));
        }
        if scenario.isolate {
            add(Box::new(move |world| actors::isolator(world, isolated)));
        }
        if scenario.hot_add {
            let block = scenario.sections;
            add(Box::new(move |world| actors::hot_adder(world, block)));
        }
        let passes = scenario.passes;
        all.push(Box::new(move |stage| stage.report(passes)));
        all
    }

    /// The reporter is alone: it finishes its work, and then all must be in order.
    fn at_rest(setting: &Setting, stage: &Stage) {
        let Some((mut reporter, mut host)) = stage.reporter() else { return };
        let world = &stage.world;
        validate(world, &reporter, "when all is quiet");
        check_reserve(world, &setting.scenario);
        if setting.nudge {
            actors::nudge(world);
        }
        let mut passes = 0;
        while reporter.schedule().is_due() && !world.run.is_over() {
            if passes == REST {
                let what = format!("there is work still after {REST} passes on a quiet guest");
                world.run.violate(Holds::QuietGuestRests, what);
            }
            // Whatever changes now, the reporter has changed.
            let before = Pages::migratetypes(&world.mm);
            let failed = reporter.pass(&mut host.of(world)).failed;
            world.pages.check_migratetypes(&world.mm, &before, setting.keeps_types);
            if failed && setting.nudge && !reporter.has_work() {
                actors::nudge(world);
            }
            passes += 1;
        }
        validate(world, &reporter, "after all is reported");
        world.pages.check_reported(&world.mm, reporter.config().granule_order);
    }
}

/// Checks the allocator's counters, and that no isolation is left over.
fn validate(world: &World, reporter: &Reporter, when: &str) {
    if let Err(error) = world.mm.validate() {
        world.run.violate(Holds::CountersMatchFrames, format!("{when}: {error}"));
    }
    let zones = (0..world.mm.zone_count()).map(|zone| world.mm.zone(ZoneId(zone)));
    let left: u64 = zones.map(|zone| zone.isolated_blocks()).sum();
    let withheld = match reporter.config().holding {
        Holding::Isolate => reporter.withheld_pages() >> world.mm.geometry().pageblock_order,
        Holding::Pull => 0,
    };
    if left != withheld {
        let what = format!("{when}: {left} pageblocks are isolated, {withheld} by the reporter");
        world.run.violate(Holds::OneIsolatorPerPageblock, what);
    }
}

fn check_reserve(world: &World, scenario: &Scenario) {
    let reserve = scenario.reserve().start;
    if scenario.cma && world.mm.underlying_migratetype(reserve) != MigrateType::Cma {
        let what = format!("{reserve:?} is no longer of the reserve");
        world.run.violate(Holds::MigratetypeKept, what);
    }
}
