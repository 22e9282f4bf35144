//! How fast reported memory goes back to the host through the real queue and the daemon's process,
//! beside what the kernel makes of the same memory without them.
//!
//! All ways take turns over the same ranges of the same memory, filled anew each time, round after
//! round. Of each chain its best round counts: what disturbs one only ever makes it slower. With
//! several chains outstanding they cannot be told apart, and the best round of all of them counts.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use rustix::fs::{FallocateFlags, fallocate};
use serde::Serialize;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::hugetlb::Pool;
use vmm_integration::model::Pages;
use vmm_integration::ram::{Backing, Ram, RamLayout};

use super::{MIB, REPORTING, TIMEOUT, pin, spawn};

const GIB: u64 = 1 << 30;
/// Rings and the like come before the memory that is given back.
const FIRST: u64 = 64 * MIB;
const RANGES_A_CHAIN: u64 = 32;
const HUGE_PAGE: u64 = 2 * MIB;

/// How memory is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Reports on the queue, so many outstanding at a time. Linux keeps one.
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

fn rounds(pages: Pages) -> u32 {
    if pages == Pages::Base { 3 } else { 7 }
}

fn backing(pages: Pages, ram: &Ram) -> Result<Vec<Case>> {
    let daemon = spawn(&["--hugetlb"])?;
    let mut guest = Attachment::connect(&daemon.socket(), ram, AttachOptions::default())?;
    let two_cpus = std::thread::available_parallelism()?.get() > 1;
    if two_cpus {
        pin(None, 0)?;
        pin(Some(daemon.pid()), 1)?;
    }
    let mut cases = Vec::new();
    for range_mib in [2, 4] {
        for lie in [Lie::Adjacent, Lie::Scattered] {
            let chains = chains(span(pages), range_mib * MIB, lie);
            let bytes: u64 = chains.iter().flatten().map(|range| range.len()).sum();
            let mut best: [Option<Vec<Duration>>; WAYS.len()] = Default::default();
            for _ in 0..rounds(pages) {
                for (way, best) in WAYS.iter().zip(&mut best) {
                    for range in chains.iter().flatten() {
                        ram.populate(*range)?;
                    }
                    let before = ram.resident_bytes()?;
                    // Raw punches on the daemon's CPU: to free pages that another CPU has filled
                    // costs more than to free one's own.
                    let elsewhere = two_cpus && !matches!(way, Way::Queue(_));
                    if elsewhere {
                        pin(None, 1)?;
                    }
                    let times = run(*way, &mut guest, ram, &chains)?;
                    if elsewhere {
                        pin(None, 0)?;
                    }
                    *best = Some(match best.take() {
                        None => times,
                        Some(best) => best.into_iter().zip(times).map(|(a, b)| a.min(b)).collect(),
                    });
                    let given = before - ram.resident_bytes()?;
                    ensure!(given == bytes, "{way:?} gave {given} of {bytes} bytes back");
                }
            }
            let [queue, queue_depth_4, raw_merged, raw_ranges, raw_ranges_madvise] =
                best.map(|times| {
                    let time: Duration = times.iter().flatten().sum();
                    gib(bytes) / time.as_secs_f64()
                });
            cases.push(Case {
                pages,
                range_mib,
                lie,
                queue,
                queue_depth_4,
                raw_merged,
                raw_ranges,
                raw_ranges_madvise,
            });
        }
    }
    finish(&daemon, guest)?;
    Ok(cases)
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
fn run(
    way: Way,
    guest: &mut Attachment,
    ram: &Ram,
    chains: &[Vec<GpaRange>],
) -> Result<Vec<Duration>> {
    match way {
        Way::Queue(1) => chains.chunks(1).map(|chain| queue(guest, chain, 1)).collect(),
        Way::Queue(depth) => Ok(vec![queue(guest, chains, depth)?]),
        Way::Merged => chains.iter().map(|chain| punch(ram, &merged(chain), false)).collect(),
        Way::Ranges => chains.iter().map(|chain| punch(ram, chain, false)).collect(),
        Way::RangesAdvised => chains.iter().map(|chain| punch(ram, chain, true)).collect(),
    }
}

/// From the first report to the return of the last, waiting as the driver does, for notifications.
fn queue(guest: &mut Attachment, chains: &[Vec<GpaRange>], depth: usize) -> Result<Duration> {
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
        guest.wait_used(REPORTING, TIMEOUT)?.context("the daemon does not answer")?;
        outstanding -= 1;
    }
}

/// The same memory in as few ranges as the chain can be put into.
fn merged(chain: &[GpaRange]) -> Vec<GpaRange> {
    let mut ranges = chain.to_vec();
    ranges.sort_by_key(|range| range.start());
    let runs = ranges.chunk_by(|a, b| a.end() == Some(b.start()));
    runs.filter_map(|run| {
        let (first, last) = (run.first()?, run.last()?);
        Some(GpaRange::between(first.start(), last.end()?))
    })
    .collect()
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

fn goals(cases: &[Case]) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |what: String, unit, required, measured| {
        goals.push(Goal { what, unit, required, measured, met: measured >= required });
    };
    for case in cases {
        let Case { pages, range_mib, lie, .. } = case;
        let name = format!("{pages}, 32 × {range_mib} MiB {lie}");
        match (pages, lie) {
            (Pages::Base, _) => {
                goal(format!("{name}: queue / raw merged"), "", 0.95, case.queue / case.raw_merged);
            }
            (Pages::Hugetlb, Lie::Adjacent) => {
                let ratio = case.queue / case.raw_ranges;
                goal(format!("{name}: queue / raw range by range"), "", 1.0, ratio);
                goal(format!("{name}: queue, machine idle"), "GiB/s", 1024.0, case.queue);
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
            "  {:<26} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "chains of 32", "queue", "queue, 4", "merged", "ranges", "+ madvise"
        )?;
        for case in &self.cases {
            let name = format!("{}, {} MiB {}", case.pages, case.range_mib, case.lie);
            write!(f, "  {name:<26}")?;
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
             of what a chain merges to, of each range, and with MADV_DONTNEED after each\n"
        )?;
        writeln!(f, "  {:<58} {:>8} {:>9}", "", "required", "measured")?;
        for Goal { what, unit, required, measured, met } in &self.goals {
            let met = if *met { "met" } else { "NOT MET" };
            writeln!(f, "  {what:<58} {required:>8.2} {measured:>9.3} {unit:<6} {met}")?;
        }
        Ok(())
    }
}

/// Bytes as GiB.
#[allow(clippy::cast_precision_loss)] // a figure for people
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}
