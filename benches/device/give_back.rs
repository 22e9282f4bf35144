// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How fast reported memory goes back to the host through the real queue and the daemon's process,
//! beside what the kernel makes of the same memory without them.
//!
//! All ways take turns over the same ranges of the same memory, filled again each time, round after
//! round. Of each chain its best round counts: what disturbs one only ever makes it slower. With
//! several chains outstanding they cannot be told apart, and the best round of all of them counts.
//!
//! Everything is measured twice: while the processor that filled the memory sleeps, and while it is
//! awake, as the processor of a busy guest is. The kernel interrupts a processor that is awake and has
//! the memory mapped once for each call that gives some of it back.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::{Buffer, Used};
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::hugetlb::Pool;
use vmm_integration::vmm::model::Pages;

use crate::support::{MIB, Processors, REPORTING, TIMEOUT, merged, pin, spawn};

const GIB: u64 = 1 << 30;
/// Rings and the like come before the memory that is given back.
const FIRST: u64 = 64 * MIB;
const RANGES_A_CHAIN: u64 = 32;
const HUGE_PAGE: u64 = 2 * MIB;
/// So many that a machine that is disturbed for a second or two does not decide.
const ROUNDS: u32 = 7;

/// How memory is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Reports on the queue, so many outstanding at a time. Linux keeps one. A driver asleep waits
    /// for notifications, and to be woken; a driver awake looks at the used ring.
    Queue(usize),
    /// A punch for each run of adjacent ranges of a chain: no daemon can be faster.
    Merged,
    /// A punch for each range, as QEMU, Firecracker, crosvm and cloud-hypervisor do.
    Ranges,
    /// And `MADV_DONTNEED` after each, as cloud-hypervisor does.
    RangesAdvised,
}

/// The queue first and once more with four chains outstanding, then the yardsticks.
const WAYS: [Way; 5] = [Way::Queue(1), Way::Queue(4), Way::Merged, Way::Ranges, Way::RangesAdvised];

/// What the processor that filled the memory does meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Driver {
    Asleep,
    Awake,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Asleep => "asleep",
            Self::Awake => "awake",
        })
    }
}

/// How the ranges of a chain lie, in the order that Linux reports them: from high to low.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Lie {
    Adjacent,
    /// Each with a gap of its size behind it.
    Scattered,
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Adjacent => "adjacent",
            Self::Scattered => "scattered",
        })
    }
}

/// One kind of chain over one kind of memory. GiB/s, in the order of [`WAYS`].
#[derive(Serialize)]
struct Case {
    pages: Pages,
    range_mib: u64,
    lie: Lie,
    driver: Driver,
    queue: f64,
    queue_depth_4: f64,
    raw_merged: f64,
    raw_ranges: f64,
    raw_ranges_madvise: f64,
}

#[derive(Serialize)]
struct NotMeasured {
    pages: Pages,
    why: String,
}

/// What is asked of the daemon.
#[derive(Serialize)]
struct Goal {
    what: String,
    unit: &'static str,
    required: f64,
    measured: f64,
    met: bool,
}

/// Everything about giving memory back.
#[derive(Serialize)]
pub(crate) struct GiveBack {
    cases: Vec<Case>,
    not_measured: Vec<NotMeasured>,
    goals: Vec<Goal>,
}

/// Measures every backing that this host has, or those of whose name `only` is part.
pub(crate) fn measure(only: Option<&str>) -> Result<GiveBack> {
    let (mut cases, mut not_measured) = (Vec::new(), Vec::new());
    let wanted = |pages: &Pages| only.is_none_or(|name| pages.to_string().contains(name));
    for pages in [Pages::Base, Pages::Transparent, Pages::Hugetlb].into_iter().filter(wanted) {
        match memory(pages) {
            Ok((ram, _pool)) => {
                cases.extend(backing(pages, &ram).with_context(|| pages.to_string())?);
            }
            Err(why) => not_measured.push(NotMeasured { pages, why: format!("{why:#}") }),
        }
    }
    let goals = goals(&cases);
    Ok(GiveBack { cases, not_measured, goals })
}

/// Guest memory of such pages, with what has to be kept for it.
fn memory(pages: Pages) -> Result<(Ram, Option<Pool>)> {
    let bytes = FIRST + span(pages);
    let (backing, pool) = match pages {
        Pages::Base => (Backing::Memfd, None),
        Pages::Transparent => (Backing::Transparent, None),
        Pages::Hugetlb => {
            let pool = Pool::with_free(HUGE_PAGE, bytes)?;
            (Backing::Hugetlb { page_bytes: HUGE_PAGE }, Some(pool))
        }
    };
    Ok((Ram::new(&RamLayout::flat(bytes, backing))?, pool))
}

/// How much memory the ranges lie in. Base pages take their time.
fn span(pages: Pages) -> u64 {
    if pages == Pages::Base { GIB / 2 } else { 2 * GIB }
}

fn backing(pages: Pages, ram: &Ram) -> Result<Vec<Case>> {
    let daemon = spawn(&["--hugetlb"])?;
    let mut guest = Attachment::connect(&daemon.socket(), ram, AttachOptions::default())?;
    let processors = Processors::kept()?;
    let two_cpus = processors.are_two();
    if two_cpus {
        pin(None, 0)?;
        pin(Some(daemon.pid()), 1)?;
    }
    // With one processor, nobody else is awake.
    let drivers: &[Driver] =
        if two_cpus { &[Driver::Asleep, Driver::Awake] } else { &[Driver::Asleep] };
    let mut cases = Vec::new();
    for range_mib in [2, 4] {
        for lie in [Lie::Adjacent, Lie::Scattered] {
            let chains = chains(span(pages), range_mib * MIB, lie);
            for &driver in drivers {
                let speeds = turns(&mut guest, ram, &chains, driver, two_cpus)?;
                let [queue, queue_depth_4, raw_merged, raw_ranges, raw_ranges_madvise] = speeds;
                cases.push(Case {
                    pages,
                    range_mib,
                    lie,
                    driver,
                    queue,
                    queue_depth_4,
                    raw_merged,
                    raw_ranges,
                    raw_ranges_madvise,
                });
            }
        }
    }
    finish(&daemon, guest)?;
    Ok(cases)
}

/// GiB/s of each of [`WAYS`], which take turns.
fn turns(
    guest: &mut Attachment,
    ram: &Ram,
    chains: &[Vec<GpaRange>],
    driver: Driver,
    two_cpus: bool,
) -> Result<[f64; WAYS.len()]> {
    let bytes: u64 = chains.iter().flatten().map(|range| range.len()).sum();
    let mut best: [Option<Vec<Duration>>; WAYS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (way, best) in WAYS.iter().zip(&mut best) {
            for range in chains.iter().flatten() {
                ram.populate(*range)?;
            }
            let before = ram.resident_bytes()?;
            let times = match way {
                Way::Queue(depth) => queued(guest, chains, *depth, driver)?,
                _ => elsewhere(two_cpus, driver, || raw(*way, ram, chains))?,
            };
            *best = Some(match best.take() {
                None => times,
                Some(best) => best.into_iter().zip(times).map(|(a, b)| a.min(b)).collect(),
            });
            let given = before - ram.resident_bytes()?;
            ensure!(given == bytes, "{way:?} gave {given} of {bytes} bytes back");
        }
    }
    Ok(best.map(|times| {
        let time: Duration = times.iter().flatten().sum();
        gib(bytes) / time.as_secs_f64()
    }))
}

/// Runs `punches` on the daemon's processor, since to free what another one has filled costs more
/// than to free one's own, while that one is asleep or awake.
fn elsewhere<T: Send>(
    two_cpus: bool,
    driver: Driver,
    punches: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let punching = scope.spawn(|| {
            let result = if two_cpus { pin(None, 1) } else { Ok(()) }.and_then(|()| punches());
            done.store(true, Ordering::Relaxed);
            result
        });
        while driver == Driver::Awake && !done.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
        punching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Nothing that the daemon was told to give back may have been left.
fn finish(daemon: &DaemonProcess, guest: Attachment) -> Result<()> {
    drop(guest);
    let summary = daemon.session_summary(TIMEOUT)?;
    ensure!(
        summary.bytes_discarded == summary.bytes_reported,
        "of {} bytes {} were given back",
        summary.bytes_reported,
        summary.bytes_discarded
    );
    Ok(())
}

/// The ranges of each chain.
fn chains(span: u64, range: u64, lie: Lie) -> Vec<Vec<GpaRange>> {
    let stride = match lie {
        Lie::Adjacent => range,
        Lie::Scattered => 2 * range,
    };
    let chain = RANGES_A_CHAIN * stride;
    let of_chain = |first: u64| {
        let ranges = (0..RANGES_A_CHAIN).rev().map(|i| first + i * stride);
        ranges.map(|at| GpaRange::between(Gpa(at), Gpa(at + range))).collect()
    };
    (0..span / chain).map(|i| of_chain(FIRST + i * chain)).collect()
}

/// How long each chain took, or all of them if they cannot be told apart.
fn queued(
    guest: &mut Attachment,
    chains: &[Vec<GpaRange>],
    depth: usize,
    driver: Driver,
) -> Result<Vec<Duration>> {
    match driver {
        Driver::Asleep => guest.ring(REPORTING)?.request_used().map(drop)?,
        Driver::Awake => guest.ring(REPORTING)?.suppress_used()?,
    }
    if depth == 1 {
        chains.chunks(1).map(|chain| queue(guest, chain, 1, driver)).collect()
    } else {
        Ok(vec![queue(guest, chains, depth, driver)?])
    }
}

/// How long each chain took.
fn raw(way: Way, ram: &Ram, chains: &[Vec<GpaRange>]) -> Result<Vec<Duration>> {
    let advise = way == Way::RangesAdvised;
    let of_chain = |chain: &Vec<GpaRange>| match way {
        Way::Merged => punch(ram, &merged(chain), advise),
        _ => punch(ram, chain, advise),
    };
    chains.iter().map(of_chain).collect()
}

/// From the first report to the return of the last.
fn queue(
    guest: &mut Attachment,
    chains: &[Vec<GpaRange>],
    depth: usize,
    driver: Driver,
) -> Result<Duration> {
    let buffer = |range: &GpaRange| -> Result<Buffer> {
        Ok(Buffer::writable(range.start(), u32::try_from(range.len())?))
    };
    let reports: Vec<Vec<Buffer>> = chains
        .iter()
        .map(|chain| chain.iter().map(buffer).collect::<Result<_>>())
        .collect::<Result<_>>()?;
    let mut waiting = reports.iter();
    let mut outstanding = 0;
    let start = Instant::now();
    loop {
        let free = depth - outstanding;
        for report in waiting.by_ref().take(free) {
            guest.ring(REPORTING)?.add_chain(report)?;
            outstanding += 1;
        }
        if outstanding == 0 {
            return Ok(start.elapsed());
        }
        guest.publish(REPORTING)?;
        match driver {
            Driver::Asleep => guest.wait_used(REPORTING, TIMEOUT)?,
            Driver::Awake => look(guest)?,
        }
        .context("the daemon does not answer")?;
        outstanding -= 1;
    }
}

/// Looks at the used ring until a chain has come back, or for too long.
fn look(guest: &mut Attachment) -> Result<Option<Used>> {
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        if let Some(used) = guest.ring(REPORTING)?.pop_used()? {
            return Ok(Some(used));
        }
        std::hint::spin_loop();
    }
    Ok(None)
}

fn punch(ram: &Ram, ranges: &[GpaRange], advise: bool) -> Result<Duration> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let file = ram.file(0);
    let start = Instant::now();
    for range in ranges {
        // One region from address 0 on, so addresses are offsets.
        fallocate(file, flags, range.start().0, range.len())?;
        if advise {
            ram.forget(*range)?;
        }
    }
    Ok(start.elapsed())
}

/// With huge pages the daemon is judged by what it does itself. A driver that sleeps with one report
/// outstanding adds its own being woken to each, which takes as long as freeing a good part of it.
fn goals(cases: &[Case]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |what: String, unit, required, measured| {
        goals.push(Goal { what, unit, required, measured, met: measured >= required });
    };
    for case in cases {
        let Case { pages, range_mib, lie, driver, .. } = case;
        let name = format!("{pages}, 32 × {range_mib} MiB {lie}, {driver}");
        match (pages, lie) {
            (Pages::Base, _) => {
                goal(format!("{name}: queue / merged"), "", 0.95, case.queue / case.raw_merged);
            }
            (Pages::Hugetlb, Lie::Adjacent) => {
                let (queue, speed) = match driver {
                    Driver::Asleep => ("queue, 4", case.queue_depth_4),
                    Driver::Awake => ("queue", case.queue),
                };
                goal(format!("{name}: {queue} / ranges"), "", 1.0, speed / case.raw_ranges);
                goal(format!("{name}: {queue}, machine idle"), "GiB/s", 1024.0, speed);
            }
            _ => {}
        }
    }
    goals
}

impl fmt::Display for GiveBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Memory given back in GiB/s, each chain's best round, ways taking turns")?;
        writeln!(
            f,
            "  {:<33} {:<6} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "chains of 32", "driver", "queue", "queue, 4", "merged", "ranges", "+ madvise"
        )?;
        for case in &self.cases {
            let name = format!("{}, {} MiB {}", case.pages, case.range_mib, case.lie);
            write!(f, "  {name:<33} {:<6}", case.driver)?;
            for figure in [
                case.queue,
                case.queue_depth_4,
                case.raw_merged,
                case.raw_ranges,
                case.raw_ranges_madvise,
            ] {
                write!(f, " {figure:>9.1}")?;
            }
            writeln!(f)?;
        }
        for NotMeasured { pages, why } in &self.not_measured {
            writeln!(f, "  {pages} not measured: {why}")?;
        }
        writeln!(
            f,
            "  queue: one report outstanding, as Linux; queue, 4: four; the others: raw fallocate\n  \
             of what a chain merges to, of each range, and with MADV_DONTNEED after each.\n  \
             driver: asleep until it is notified, or its processor awake all the time, which the\n  \
             kernel then interrupts once a call. Asleep, \"queue\" has its being woken in it.\n"
        )?;
        writeln!(f, "  {:<64} {:>8} {:>9}", "", "required", "measured")?;
        for Goal { what, unit, required, measured, met } in &self.goals {
            let met = if *met { "met" } else { "NOT MET" };
            writeln!(f, "  {what:<64} {required:>8.2} {measured:>9.3} {unit:<6} {met}")?;
        }
        Ok(())
    }
}

/// Bytes as GiB.
#[allow(clippy::cast_precision_loss)] // a figure for people
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
