//! One run: the actors side by side, and what must hold when all is quiet.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use super::actors::{CpuPlan, Host, Random, World};
use super::{Configuration, Invariant, Violation, thread};
use crate::mm::{Geometry, Layout, Mm, Pfn, PfnRange};
use crate::reporting::Reporter;
use crate::sync;

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
    let mm = Arc::new(Mm::new(&layout));
    let mut reporter = Reporter::new(Arc::clone(&mm), configuration.reporter)
        .map_err(|error| Violation { invariant: Invariant::Assertion, what: error.to_string() })?;
    let world = Arc::new(World::new(mm, scenario.cpus, scenario.never_out_of_memory));
    let mut host = Host {
        world: Arc::clone(&world),
        holding: configuration.reporter.holding,
        capacity: configuration.reporter.batch,
    };

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
            if reporter.has_work() {
                reporter.pass(&mut host);
            }
            sync::yield_now();
        }
        host.world.running.fetch_sub(1, Ordering::Relaxed);
        (reporter, host)
    });
    handles.into_iter().for_each(thread::Handle::join);
    let (reporter, host) = reporting.join();
    if world.ghost.violation().is_none() {
        come_to_rest(&world, reporter, host, configuration.nudge);
    }
    world.ghost.violation().map_or(Ok(()), |violation| Err(violation.clone()))
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
        bodies.push(Box::new(move |world| world.contig(taken)));
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
fn come_to_rest(world: &World, mut reporter: Reporter, mut host: Host, nudge: bool) {
    let validate = |when: &str| {
        if let Err(error) = world.mm.validate() {
            world.ghost.violate(Invariant::K3, format!("{when}: {error}"));
        }
        for zone in 0..world.mm.zone_count() {
            let left = world.mm.zone(crate::mm::ZoneId(zone)).isolated_blocks();
            if left != 0 {
                let what = format!("{when}: {left} pageblocks are isolated, and by nobody");
                world.ghost.violate(Invariant::K4, what);
            }
        }
    };
    validate("when all is quiet");
    if nudge {
        world.nudge();
    }
    let mut passes = 0;
    while reporter.has_work() && world.ghost.violation().is_none() {
        if passes == REST {
            let what = format!("there is work still after {REST} passes on a quiet guest");
            world.ghost.violate(Invariant::K9, what);
        }
        reporter.pass(&mut host);
        passes += 1;
    }
    validate("after all is reported");
    world.ghost.check_reported(&world.mm, reporter.config().granule_order);
}
