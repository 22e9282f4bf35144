// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One run: the actors side by side, and what must hold when all is quiet.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use crate::scenarios::reporting::actors::{CpuPlan, Random, World};
use crate::scenarios::reporting::host::{Answers, Host};
use crate::scenarios::reporting::shadow::Shadow;
use crate::{Configuration, Invariant, Violation, thread};
use guest_driver::page_alloc::{
    Geometry, IsolateMode, Layout, MigrateType, Mm, Pfn, PfnRange, ZoneLayout, ZoneType,
};
use guest_driver::reporting::{Config, Holding, Reporter, VirtualClock};
use guest_driver::sync;

/// Passes in which a reporter must come to rest when all is quiet.
const REST: usize = 20;

/// Who takes part.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// By which it is called.
    pub name: &'static str,
    /// Orders and sizes.
    pub geometry: Geometry,
    /// Sections that are online from the start.
    pub sections: usize,
    /// Of them, those of a second zone, for movable pages as all of the first is without one. The
    /// first is a normal one then.
    pub movable: usize,
    /// A pageblock is a reserve for contiguous allocations, and somebody makes some.
    pub cma: bool,
    /// CPUs, and what each of them does.
    pub cpus: usize,
    /// The same for all.
    pub plan: CpuPlan,
    /// How often the reporter looks whether there is work, while the others are at it.
    pub passes: usize,
    /// A memory block goes off- and online.
    pub offline: Option<Patience>,
    /// Some pageblock is allocated as a whole.
    pub contig: bool,
    /// Some pageblock is isolated and let go.
    pub isolate: bool,
    /// A section comes online that was not there.
    pub hot_add: bool,
    /// The most ranges of a report.
    pub batch: usize,
    /// Whether the host acknowledges what it is given.
    pub answers: Answers,
    /// There is always a page to be had, unless reports withhold it.
    pub never_out_of_memory: bool,
}

/// How long an offliner tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until it succeeds, as Linux does.
    Endless,
    /// It is interrupted when it finds its range not free for the second time.
    Short,
}

/// Runs `configuration` once. What its CPUs do follows from `seed`; the order in which actors get
/// to run is the scheduler's.
///
/// # Errors
/// The first [`Violation`].
pub fn run(configuration: &Configuration, seed: u64) -> Result<(), Violation> {
    let scenario = &configuration.scenario;
    let spare = usize::from(scenario.hot_add);
    let cpus = scenario.cpus + 1;
    let mut layout = Layout::flat(scenario.geometry, cpus, scenario.sections);
    layout.sections += spare;
    layout.semantics = configuration.semantics;
    if scenario.movable > 0 {
        let normal = scenario.sections - scenario.movable;
        let zone = |kind, sections: core::ops::Range<usize>| ZoneLayout {
            node: 0,
            kind,
            sections: vec![sections],
        };
        layout.zones = vec![
            zone(ZoneType::Normal, 0..normal),
            zone(ZoneType::Movable, normal..scenario.sections),
        ];
    }
    let mm = Arc::new(Mm::new(&layout));
    if scenario.cma {
        mm.reserve_cma(cma(scenario)).map_err(failed)?;
    }
    // It stands still, so that a pass is due as soon as it is asked for.
    let clock = Arc::new(VirtualClock::new());
    let mut reporter =
        Reporter::with_clock(Arc::clone(&mm), configuration.reporter, clock).map_err(failed)?;
    let world = Arc::new(World::new(mm, scenario.cpus, scenario.never_out_of_memory));
    let Config { holding, batch, .. } = configuration.reporter;
    let mut host = Host::new(Arc::clone(&world), holding, batch, scenario.answers);

    let bodies = actors(scenario, seed);
    world.running.store(bodies.len() + 1, Ordering::Relaxed);
    let mut handles = Vec::new();
    for body in bodies {
        let world = Arc::clone(&world);
        handles.push(thread::spawn(move || {
            body(&world);
            world.running.fetch_sub(1, Ordering::Relaxed);
        }));
    }
    let passes = scenario.passes;
    let reporting = thread::spawn(move || {
        for _ in 0..passes {
            if reporter.schedule().is_due() {
                reporter.pass(&mut host);
            }
            sync::yield_now();
        }
        host.world().running.fetch_sub(1, Ordering::Relaxed);
        (reporter, host)
    });
    handles.into_iter().for_each(thread::Handle::join);
    let (reporter, host) = reporting.join();
    if world.shadow.violation().is_none() {
        come_to_rest(&world, reporter, host, configuration);
    }
    world.shadow.violation().map_or(Ok(()), |violation| Err(violation.clone()))
}

fn failed(error: impl core::fmt::Display) -> Violation {
    Violation { invariant: Invariant::ModelAssertionsHold, what: error.to_string() }
}

/// The reserve: the second half of the first block of the largest order.
fn cma(scenario: &Scenario) -> PfnRange {
    let order = scenario.geometry.pageblock_order;
    PfnRange::block(Pfn(1 << order), order)
}

type Body = Box<dyn FnOnce(&World) + Send>;

fn actors(scenario: &Scenario, seed: u64) -> Vec<Body> {
    let mut random = Random::new(seed);
    let mut bodies: Vec<Body> = Vec::new();
    for cpu in 0..scenario.cpus {
        let (plan, random) = (scenario.plan, Random::new(random.next_u64()));
        bodies.push(Box::new(move |world| world.cpu(cpu, &plan, random)));
    }
    let order = scenario.geometry.pageblock_order;
    let blocks = scenario.sections * scenario.geometry.section_blocks();
    let mut pageblock = || {
        let block = u32::try_from(random.below(blocks)).unwrap_or(0);
        PfnRange::block(Pfn(block << order), order)
    };
    let (taken, isolated) = (pageblock(), pageblock());
    if let Some(patience) = scenario.offline {
        let block = random.below(scenario.sections);
        bodies.push(Box::new(move |world| world.offliner(block, patience)));
    }
    if scenario.contig {
        bodies.push(Box::new(move |world| world.contig(taken, IsolateMode::Other)));
    }
    if scenario.cma {
        let reserve = cma(scenario);
        bodies.push(Box::new(move |world| world.contig(reserve, IsolateMode::CmaAlloc)));
    }
    if scenario.isolate {
        bodies.push(Box::new(move |world| world.isolator(isolated)));
    }
    if scenario.hot_add {
        let block = scenario.sections;
        bodies.push(Box::new(move |world| world.hot_adder(block)));
    }
    bodies
}

/// Nobody else is there any more: the reporter finishes its work, and then all must be in order.
fn come_to_rest(
    world: &World,
    mut reporter: Reporter,
    mut host: Host,
    configuration: &Configuration,
) {
    let &Configuration { nudge, keeps_types, .. } = configuration;
    let validate = |when: &str, reporter: &Reporter| {
        if let Err(error) = world.mm.validate() {
            world.shadow.violate(Invariant::CountersMatchFrames, format!("{when}: {error}"));
        }
        let zones = (0..world.mm.zone_count())
            .map(|zone| world.mm.zone(guest_driver::page_alloc::ZoneId(zone)));
        let left: u64 = zones.map(guest_driver::page_alloc::zone::Zone::isolated_blocks).sum();
        let withheld = match reporter.config().holding {
            Holding::Isolate => reporter.withheld_pages() >> world.mm.geometry().pageblock_order,
            Holding::Pull => 0,
        };
        if left != withheld {
            let what =
                format!("{when}: {left} pageblocks are isolated, {withheld} by the reporter");
            world.shadow.violate(Invariant::OneIsolatorPerPageblock, what);
        }
    };
    validate("when all is quiet", &reporter);
    let scenario = &configuration.scenario;
    let reserve = cma(scenario).start;
    if scenario.cma && world.mm.underlying_migratetype(reserve) != MigrateType::Cma {
        world
            .shadow
            .violate(Invariant::MigratetypeKept, format!("{reserve:?} is of the reserve no more"));
    }
    if nudge {
        world.nudge();
    }
    let mut passes = 0;
    while reporter.schedule().is_due() && world.shadow.violation().is_none() {
        if passes == REST {
            let what = format!("there is work still after {REST} passes on a quiet guest");
            world.shadow.violate(Invariant::QuietGuestRests, what);
        }
        // Whatever changes now, the reporter has changed.
        let before = Shadow::migratetypes(&world.mm);
        reporter.pass(&mut host);
        world.shadow.check_migratetypes(&world.mm, &before, keeps_types);
        passes += 1;
    }
    validate("after all is reported", &reporter);
    world.shadow.check_reported(&world.mm, reporter.config().granule_order);
}
