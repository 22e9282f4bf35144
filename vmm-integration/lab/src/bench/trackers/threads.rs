// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A scheme beside real threads: how often the reporter meets others, and how long they wait for it.
//!
//! A pass follows a millisecond after the one before, instead of two seconds, and the host answers at
//! once: a rate is of what a pass offers, and the more passes the more of these there are.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_driver::page_alloc::{
    AllocRequest, Geometry, IsolateMode, KernelSemantics, Layout, Mm, Pfn, PfnRange,
    VMSTAT_INTERVAL, ZoneId,
};
use guest_driver::random::Random;
use guest_driver::reporting::{PassStats, ReportError, ReportSink, Reporter};
use hdrhistogram::Histogram;

use super::guest::GRANULE_ORDER;
use super::scheme::Scheme;
use super::settings::Settings;
use super::virtual_time::config;
use crate::experiment::Context;
use crate::progress;
use crate::store::Findings;

/// 1 GiB.
const SECTIONS: usize = 8;
/// Between two passes.
const PASS_EVERY: Duration = Duration::from_millis(1);
/// An order that no per-CPU list has, so that each allocation takes the zone's lock.
const PROBE_ORDER: u8 = 4;
/// No time that is measured is longer, in nanoseconds.
const HOUR_NS: u64 = 3600 * 1_000_000_000;
/// Rounds of the measurement of putting back.
const PUT_BACK_ROUNDS: usize = 300;

/// A host that has every page back at once; when it had the last report, and of how many granules.
struct Instantly {
    in_sink: Duration,
    acknowledged: Instant,
    granules: u64,
}

impl Instantly {
    fn new() -> Self {
        Self { in_sink: Duration::ZERO, acknowledged: Instant::now(), granules: 0 }
    }
}

impl ReportSink for Instantly {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        let start = Instant::now();
        let pages: u64 = black_box(ranges).iter().map(|range| u64::from(range.pages())).sum();
        self.granules = pages >> GRANULE_ORDER;
        self.acknowledged = Instant::now();
        self.in_sink += self.acknowledged - start;
        Ok(())
    }

    /// None was ever late.
    fn settle(&mut self) -> bool {
        true
    }

    fn capacity(&self) -> usize {
        32
    }
}

/// What a run with threads has shown.
struct Met {
    stats: PassStats,
    /// In passes.
    busy: Duration,
    operations: u64,
}

/// How many pages a CPU keeps for itself.
#[derive(Clone, Copy)]
enum Lists {
    /// As many as Linux lets it, which follows what it does: more than the programs free at a time.
    Tuned,
    /// Fewer than a block has, so that each free reaches the zone at once.
    Small,
}

impl Lists {
    fn what(self) -> &'static str {
        match self {
            Self::Tuned => "Linux's",
            Self::Small => "small",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Tuned => "",
            Self::Small => "-small-lists",
        }
    }

    fn semantics(self) -> KernelSemantics {
        let tuned = KernelSemantics::default();
        match self {
            Self::Tuned => tuned,
            Self::Small => KernelSemantics { tune_pcp_high: false, ..tuned },
        }
    }
}

/// Measures a scheme.
///
/// # Errors
/// If the run is to end, or memory is not where it was afterwards.
#[allow(clippy::cast_precision_loss)] // rates
pub(super) fn run(scheme: Scheme, settings: &Settings, context: &Context<'_>) -> Result<Findings> {
    let time = Duration::from_secs_f64(settings.thread_seconds);
    let mut findings = Findings::default();

    for lists in [Lists::Tuned, Lists::Small] {
        context.progress.say(&format!("programs, {} per-CPU lists", lists.what()));
        let alone = meet(scheme, settings, lists, context.seed, time, false)?;
        progress::check()?;
        context.progress.say(&format!("programs and an isolator, {} per-CPU lists", lists.what()));
        let isolator = meet(scheme, settings, lists, context.seed, time, true)?;
        progress::check()?;
        met_figures(lists, &alone, &isolator, time, &mut findings);
    }

    context.progress.say("the zone's lock");
    let without = lock_waits(scheme, settings, time, false)?;
    progress::check()?;
    let with = lock_waits(scheme, settings, time, true)?;
    for (name, waits, when) in [
        ("lock-quiet", &without, "with nothing to report"),
        ("lock-reporting", &with, "while batches are freed and reported without a pause"),
    ] {
        for (quantile, suffix) in [(0.5, "p50"), (0.99, "p99"), (0.999, "p999")] {
            let what = format!(
                "an allocation and free that each take the zone's lock, {when}; the difference is \
                 what waiting for the reporter costs"
            );
            let ns = waits.value_at_quantile(quantile) as f64;
            findings.figure(&format!("{name}-{suffix}"), ns, "ns", &what);
        }
        findings.figure(
            &format!("{name}-probes"),
            waits.len() as f64,
            "",
            "times that it was tried",
        );
    }
    context.progress.say("putting back");
    let put_back = put_back(scheme, settings)?;
    findings.figure(
        "put-back-p50",
        put_back.value_at_quantile(0.5) as f64,
        "ns",
        "to let a granule go after its report, one of a full batch",
    );
    findings.note(
        "Real threads on a machine that others may use: rates and percentiles move between runs, and \
         with fewer cores than threads the scheduler may preempt a lock's holder.",
    );
    findings.note(
        "The zone's lock is not instrumented: what is measured is how long others wait for it.",
    );
    Ok(findings)
}

/// Rates of what the reporter met, by the size of the lists.
#[allow(clippy::cast_precision_loss)] // rates
fn met_figures(lists: Lists, alone: &Met, isolator: &Met, time: Duration, findings: &mut Findings) {
    let rate = |count: u64, of: u64| count as f64 / of as f64 * 1e6;
    let mut figure = |name: &str, value: f64, unit: &str, what: &str| {
        let name = format!("{name}{}", lists.suffix());
        let what = format!("{what}; with {} per-CPU lists", lists.what());
        findings.figure(&name, value, unit, &what);
    };
    figure(
        "lost-rate",
        rate(alone.stats.lost_race, alone.stats.offered),
        "of a million",
        "granules offered that were allocated before they were isolated",
    );
    figure("lost", alone.stats.lost_race as f64, "granules", "that the rate is of");
    figure(
        "lost-rate-isolator",
        rate(isolator.stats.lost_race, isolator.stats.offered),
        "of a million",
        "the same, beside a thread that isolates random blocks",
    );
    figure(
        "busy-rate-isolator",
        rate(isolator.stats.busy, isolator.stats.offered),
        "of a million",
        "granules offered that another thread had isolated",
    );
    figure(
        "not-free-rate",
        rate(alone.stats.not_free, alone.stats.offered),
        "of a million",
        "granules offered that were not free by the first look",
    );
    figure("offered", alone.stats.offered as f64, "granules", "looked at, of which the rates are");
    figure(
        "pass-ns-per-granule",
        alone.busy.as_secs_f64() * 1e9 / (alone.stats.pages as f64 / 512.0),
        "ns",
        "of the reporter's time for each granule that was reported, while two threads churn",
    );
    let pairs = alone.operations as f64 / time.as_secs_f64();
    figure("pairs-a-second", pairs, "1/s", "allocations and frees of 2 MiB meanwhile");
}

fn new_guest(
    scheme: Scheme,
    settings: &Settings,
    lists: Lists,
    cpus: usize,
) -> Result<(Arc<Mm>, Reporter)> {
    let semantics = lists.semantics();
    let layout = Layout { semantics, ..Layout::flat(Geometry::LINUX, cpus, SECTIONS) };
    let mm = Arc::new(Mm::new(&layout));
    let reporter = Reporter::new(Arc::clone(&mm), config(scheme, settings))?;
    Ok((mm, reporter))
}

/// Two threads replace blocks at random while the reporter makes passes, and perhaps a third
/// isolates blocks.
fn meet(
    scheme: Scheme,
    settings: &Settings,
    lists: Lists,
    seed: u64,
    time: Duration,
    isolator: bool,
) -> Result<Met> {
    let (mm, mut reporter) = new_guest(scheme, settings, lists, 2)?;
    let pages = mm.zone(ZoneId(0)).managed_pages();
    let stop = AtomicBool::new(false);
    let operations = AtomicU64::new(0);
    let mut met = Met { stats: PassStats::default(), busy: Duration::ZERO, operations: 0 };
    let sink = std::thread::scope(|scope| {
        for cpu in 0..2_usize {
            let (mm, stop, operations) = (&mm, &stop, &operations);
            scope.spawn(move || churn(mm, cpu, seed ^ cpu as u64, stop, operations));
        }
        if isolator {
            scope.spawn(|| isolate(&mm, seed, &stop));
        }
        let mut sink = Instantly::new();
        let end = Instant::now() + time;
        let mut vmstat = Instant::now() + VMSTAT_INTERVAL;
        while Instant::now() < end && !progress::interrupted() {
            if Instant::now() >= vmstat {
                for cpu in 0..2 {
                    mm.update_vmstat(cpu);
                }
                vmstat += VMSTAT_INTERVAL;
            }
            if reporter.has_work() {
                let start = Instant::now();
                met.stats += reporter.pass(&mut sink);
                met.busy += start.elapsed();
            }
            std::thread::park_timeout(PASS_EVERY);
        }
        stop.store(true, Ordering::Relaxed);
        sink
    });
    met.busy = met.busy.saturating_sub(sink.in_sink);
    met.operations = operations.load(Ordering::Relaxed);
    // Whatever met whom, nothing may be missing, and what is free is reported in the end.
    mm.drain_all(ZoneId(0));
    mm.validate().context("after the run")?;
    let free = mm.zone(ZoneId(0)).free_pages();
    ensure!(free == pages, "{free} of {pages} pages are free after everything was freed");
    Ok(met)
}

/// Holds half of its share of memory in pageblocks and replaces them at random.
fn churn(mm: &Mm, cpu: usize, seed: u64, stop: &AtomicBool, operations: &AtomicU64) {
    let mut random = Random(seed);
    let mut blocks: Vec<Pfn> = Vec::new();
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        // A few at a time, so that they go past a small per-CPU list.
        for _ in 0..16 {
            if let Ok(pfn) = mm.alloc(cpu, AllocRequest::movable(GRANULE_ORDER)) {
                blocks.push(pfn);
                done += 1;
            }
        }
        while blocks.len() > SECTIONS * 16 {
            let pick = random.index(blocks.len());
            mm.free(cpu, blocks.swap_remove(pick));
        }
    }
    blocks.iter().for_each(|&pfn| mm.free(cpu, pfn));
    operations.fetch_add(done, Ordering::Relaxed);
}

/// Isolates a block, as offlining and contiguous allocation do, and lets it go again.
fn isolate(mm: &Mm, seed: u64, stop: &AtomicBool) {
    let mut random = Random(!seed);
    let granules = SECTIONS * mm.geometry().section_blocks();
    while !stop.load(Ordering::Relaxed) {
        let granule = u32::try_from(random.index(granules)).unwrap_or(0);
        let block = PfnRange::block(Pfn(granule << GRANULE_ORDER), GRANULE_ORDER);
        if mm.start_isolate_page_range(block, IsolateMode::Other).is_ok() {
            std::thread::yield_now();
            mm.undo_isolate_page_range(block, None);
        }
    }
}

/// How long an allocation and free take that both need the zone's lock, in nanoseconds.
fn lock_waits(
    scheme: Scheme,
    settings: &Settings,
    time: Duration,
    reporting: bool,
) -> Result<Histogram<u64>> {
    let (mm, mut reporter) = new_guest(scheme, settings, Lists::Tuned, 2)?;
    let mut sink = Instantly::new();
    while reporter.has_work() {
        reporter.pass(&mut sink);
    }
    let stop = AtomicBool::new(false);
    let probed = std::thread::scope(|scope| {
        let prober = scope.spawn(|| probe(&mm, &stop));
        let end = Instant::now() + time;
        let mut random = Random(1);
        while Instant::now() < end && !progress::interrupted() {
            if !reporting {
                std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
                continue;
            }
            // Something to report: a batch of blocks is taken and freed, which is not the reporter's
            // own work but is the same for every scheme.
            let mut blocks: Vec<Pfn> = (0..32)
                .map_while(|_| mm.alloc(0, AllocRequest::movable(GRANULE_ORDER)).ok())
                .collect();
            while !blocks.is_empty() {
                let pick = random.index(blocks.len());
                mm.free(0, blocks.swap_remove(pick));
            }
            mm.drain_all(ZoneId(0));
            reporter.pass(&mut sink);
        }
        stop.store(true, Ordering::Relaxed);
        prober.join()
    });
    match probed {
        Ok(histogram) => histogram,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn probe(mm: &Mm, stop: &AtomicBool) -> Result<Histogram<u64>> {
    let mut waits = Histogram::new_with_bounds(1, HOUR_NS, 3)?;
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        if let Ok(pfn) = mm.alloc(1, AllocRequest::movable(PROBE_ORDER)) {
            mm.free(1, pfn);
        }
        waits.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(waits)
}

/// How long letting go takes for each granule of a full batch, in nanoseconds: from the
/// acknowledgement to the end of the pass, which finds nothing else.
fn put_back(scheme: Scheme, settings: &Settings) -> Result<Histogram<u64>> {
    let mm = Arc::new(Mm::new(&Layout::flat(Geometry::LINUX, 1, 2)));
    let mut reporter = Reporter::new(Arc::clone(&mm), config(scheme, settings))?;
    let mut sink = Instantly::new();
    while reporter.has_work() {
        reporter.pass(&mut sink);
    }
    // Free memory that is too small to be reported, so that the zone can spare a batch.
    let small: Vec<Pfn> =
        (0..16).map_while(|_| mm.alloc(0, AllocRequest::movable(GRANULE_ORDER - 1)).ok()).collect();
    let mut all = Vec::new();
    while let Ok(pfn) = mm.alloc(0, AllocRequest::movable(GRANULE_ORDER)) {
        all.push(pfn);
    }
    small.iter().step_by(2).for_each(|&pfn| mm.free(0, pfn));
    all.sort_unstable();
    // Every other block at the end, so that a scan of the section ends with the batch.
    let last = all.split_off(all.len() - 64);
    let mut freed: Vec<Pfn> = last.iter().copied().skip(1).step_by(2).collect();
    let mut times = Histogram::new_with_bounds(1, HOUR_NS, 3)?;
    for _ in 0..PUT_BACK_ROUNDS {
        freed.iter().for_each(|&pfn| mm.free(0, pfn));
        mm.drain_all(ZoneId(0));
        sink.granules = 0;
        reporter.pass(&mut sink);
        let took = sink.acknowledged.elapsed();
        let ns = u64::try_from(took.as_nanos())?;
        if let Some(of_one) = ns.checked_div(sink.granules) {
            times.saturating_record(of_one);
        }
        // Mostly the same: the watermark leaves another one free as well.
        for pfn in &mut freed {
            *pfn = mm.alloc(0, AllocRequest::movable(GRANULE_ORDER))?;
        }
    }
    ensure!(!times.is_empty(), "nothing was reported");
    Ok(times)
}
