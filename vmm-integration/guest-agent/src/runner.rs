// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The threads of a race.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_agent::pattern;
use guest_agent::race::{
    HUGE_PAGES, HugePages, LOAD, OFFLINE, ONLINE, REPORTING_ORDER, RacePlan, RaceReport, UNLOAD,
    USE,
};
use guest_driver::random::Random;

use crate::memory::Mapping;
use crate::reports::Reports;
use crate::stats::Stats;
use crate::stop::Stop;
use crate::system;

/// How many mappings a thread that uses memory has at most.
const MAPPINGS: u64 = 4;
const PAGE_BYTES: u64 = 4096;
/// How often the kernel's trace is read. It holds thousands of reports.
const READ_TRACE_MS: u64 = 100;
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";

/// The race that runs, or ran last.
#[derive(Default)]
pub(crate) struct Races(Mutex<Option<Race>>);

struct Race {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    migrated_before: u64,
}

/// What the threads of a race have in common.
struct Shared {
    plan: RacePlan,
    stats: Stats,
    stop: Stop,
    /// Cycles that have been begun.
    begun: AtomicU64,
}

impl Races {
    /// Begins a race.
    pub(crate) fn start(&self, plan: RacePlan) -> Result<()> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(Race::is_running) {
            bail!("a race is running: stop it first");
        }
        *current = Some(Race::start(plan)?);
        Ok(())
    }

    /// Returns the state of the race. With `stop` its threads end, once the kernel lets them go.
    pub(crate) fn report(&self, stop: bool) -> Result<RaceReport> {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let race = current.as_ref().context("there was no race: start one first")?;
        if stop {
            race.shared.stop();
        }
        let migrated = migrated()?.saturating_sub(race.migrated_before);
        Ok(race.shared.stats.report(race.is_running(), migrated))
    }
}

fn migrated() -> Result<u64> {
    system::vmstat("pgmigrate_success")
}

impl Race {
    fn start(plan: RacePlan) -> Result<Self> {
        let cyclers = usize::try_from(plan.cyclers)?;
        ensure!(
            cyclers == 0 || plan.blocks.len() >= cyclers,
            "cyclers is {cyclers}: expected at most one for each of the {} blocks",
            plan.blocks.len()
        );
        let mut bodies: Vec<(String, Body)> = Vec::new();
        for cycler in 0..cyclers {
            let blocks = plan.blocks.iter().skip(cycler).step_by(cyclers);
            let blocks = blocks.map(|&id| Block::open(id)).collect::<Result<Vec<_>>>()?;
            let random = choices(plan.seed, cycler);
            bodies.push((
                format!("cycler-{cycler}"),
                Box::new(move |shared| cycle(shared, &blocks, random)),
            ));
        }
        for user in 0..plan.users {
            let random = choices(plan.seed, 1000 + usize::try_from(user)?);
            bodies.push((
                format!("user-{user}"),
                Box::new(move |shared| use_memory(shared, user, random)),
            ));
        }
        for &pool in &plan.huge_pages {
            bodies.push(("huge-pages".into(), Box::new(move |shared| resize(shared, pool))));
        }
        if !plan.reporting_orders.is_empty() {
            bodies.push(("orders".into(), Box::new(change_orders)));
        }
        if let Some(module) = plan.reload.clone() {
            bodies.push(("reload".into(), Box::new(move |shared| reload(shared, &module))));
        }
        ensure!(!bodies.is_empty(), "nothing takes part in the race");
        if plan.trace_reports {
            let reports = Reports::trace()?;
            bodies.push(("reports".into(), Box::new(move |shared| count(shared, reports))));
        }

        let shared = Arc::new(Shared {
            plan,
            stats: Stats::new()?,
            stop: Stop::default(),
            begun: AtomicU64::new(0),
        });
        let migrated_before = migrated()?;
        let mut race = Self { shared: Arc::clone(&shared), threads: Vec::new(), migrated_before };
        for (name, body) in bodies {
            let shared = Arc::clone(&shared);
            match thread::Builder::new().name(name).spawn(move || body(&shared)) {
                Ok(thread) => race.threads.push(thread),
                Err(error) => {
                    race.shared.stop();
                    return Err(error).context("starting a thread of the race");
                }
            }
        }
        Ok(race)
    }

    fn is_running(&self) -> bool {
        self.threads.iter().any(|thread| !thread.is_finished())
    }
}

type Body = Box<dyn FnOnce(&Shared) + Send>;

impl Shared {
    fn stop(&self) {
        self.stop.now();
    }

    fn goes_on(&self) -> bool {
        self.stop.goes_on()
    }

    /// See [`RacePlan::pause_ms`].
    fn pause(&self) -> bool {
        self.wait(self.plan.pause_ms)
    }

    /// See [`RacePlan::rest_ms`].
    fn rest(&self) -> bool {
        self.wait(self.plan.rest_ms)
    }

    /// Waits for as long as that, or until it is over; says whether it goes on.
    fn wait(&self, ms: u64) -> bool {
        self.stop.wait(Duration::from_millis(ms))
    }
}

/// A memory block's `state`, open: to open it takes longer than some cycles.
struct Block {
    id: u32,
    state: File,
}

impl Block {
    fn open(id: u32) -> Result<Self> {
        let path = format!("{}/memory{id}/state", system::MEMORY);
        let state = OpenOptions::new().write(true).open(&path);
        Ok(Self { id, state: state.with_context(|| format!("opening {path}"))? })
    }

    fn set(&self, state: &str) -> Result<()> {
        self.state.write_all_at(state.as_bytes(), 0)?;
        Ok(())
    }
}

/// Takes blocks offline and online, in an order that follows from the seed, until as many cycles
/// have been begun as were asked for.
fn cycle(shared: &Shared, blocks: &[Block], mut random: Random) {
    let RacePlan { cycles, online_as, .. } = &shared.plan;
    while shared.goes_on() {
        if *cycles > 0 && shared.begun.fetch_add(1, Ordering::Relaxed) >= *cycles {
            shared.stop();
            break;
        }
        let block = &blocks[random.index(blocks.len())];
        let on = || format!("memory{}", block.id);
        let offline = shared.stats.time(OFFLINE, on, || block.set("offline"));
        if offline.is_err() {
            // It does not count as a cycle.
            shared.begun.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        // A block that stays offline takes no part any more: it is tried until it is back.
        while shared.stats.time(ONLINE, on, || block.set(online_as)).is_err() && shared.goes_on() {}
    }
}

/// Has memory in use, of all sizes, whose contents say where they belong.
fn use_memory(shared: &Shared, user: u32, mut random: Random) {
    let most_pages = (shared.plan.user_bytes / MAPPINGS / PAGE_BYTES).max(1);
    let mut held: VecDeque<(Mapping, u16)> = VecDeque::new();
    let mut generation: u16 = 0;
    let check = |mapping: &Mapping, generation| {
        shared.stats.verified(pattern::verify(mapping.words(), user, generation));
    };
    // A race of a few cycles may be over before this thread runs.
    let mut had_its_turn = false;
    while shared.rest() || !had_its_turn {
        had_its_turn = true;
        generation = generation.wrapping_add(1);
        let pages = 1 + random.below(most_pages);
        let on = || format!("{pages} pages");
        let mapping = shared.stats.time(USE, on, || {
            let mut mapping = Mapping::new(pages * PAGE_BYTES)?;
            pattern::fill(mapping.words_mut(), user, generation);
            Ok(mapping)
        });
        let Ok(mapping) = mapping else { continue };
        held.push_back((mapping, generation));
        // Some of what is in use stays where it is while blocks come and go.
        let looked_at = random.index(held.len());
        check(&held[looked_at].0, held[looked_at].1);
        if held.len() >= usize::try_from(MAPPINGS).unwrap_or(1) {
            let gone = random.index(held.len());
            if let Some((mapping, generation)) = held.remove(gone) {
                check(&mapping, generation);
            }
        }
    }
    held.iter().for_each(|(mapping, generation)| check(mapping, *generation));
}

/// Fills and empties a pool of huge pages.
fn resize(shared: &Shared, pool: HugePages) {
    let HugePages { page_kib, count } = pool;
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB/nr_hugepages");
    while shared.rest() {
        for wanted in [count, 0] {
            let on = || format!("{wanted} of {page_kib} KiB");
            // A pool that comes out smaller than it was asked for is no error of the write.
            let resized = shared.stats.time(HUGE_PAGES, on, || {
                system::write_file(&path, &wanted.to_string())?;
                let there: u64 = system::read_file(&path)?.trim().parse()?;
                ensure!(there > 0 || wanted == 0, "none to be had");
                Ok(())
            });
            if resized.is_err() {
                break;
            }
        }
    }
    if let Err(error) = system::write_file(&path, "0") {
        eprintln!("guest-agent: {error:#}");
    }
}

/// Sets the order of what is reported to one value after the other, and back.
fn change_orders(shared: &Shared) {
    let before = system::read_file(ORDER);
    for order in shared.plan.reporting_orders.iter().cycle() {
        let on = || order.to_string();
        // Counted; what came of it is for the report to say.
        let _ = shared
            .stats
            .time(REPORTING_ORDER, on, || system::write_file(ORDER, &order.to_string()));
        if !shared.pause() {
            break;
        }
    }
    let restored = before.and_then(|before| system::write_file(ORDER, before.trim()));
    if let Err(error) = restored {
        eprintln!("guest-agent: {error:#}");
    }
}

/// Unloads a module and loads it again, and leaves it loaded.
fn reload(shared: &Shared, module: &str) {
    let on = || module.to_owned();
    while shared.pause() {
        let unloaded = shared.stats.time(UNLOAD, on, || system::unload_module(module));
        if unloaded.is_ok() {
            while shared
                .stats
                .time(LOAD, on, || system::load_module(module, &shared.plan.reload_params))
                .is_err()
                && shared.pause()
            {}
        }
    }
}

/// Counts the driver's reports, as the kernel traces them.
fn count(shared: &Shared, mut reports: Reports) {
    loop {
        let goes_on = shared.wait(READ_TRACE_MS);
        if let Err(error) = reports.read(|begin, end| shared.stats.reported(begin, end)) {
            eprintln!("guest-agent: {error:#}");
            return;
        }
        if !goes_on {
            return;
        }
    }
}

/// The choices of one thread, which follow from the plan's seed.
fn choices(seed: u64, thread: usize) -> Random {
    let thread = u64::try_from(thread).unwrap_or(u64::MAX);
    Random(seed ^ thread.wrapping_mul(0xa076_1d64_78bd_642f))
}
