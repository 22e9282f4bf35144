// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `cargo xtask bench guest`: what the guest's allocator costs in the model, with and without
//! a reporter of its free pages.
//!
//! Off and on take turns in one run and in the same memory, beside an uncontended lock and unlock:
//! whatever drifts in the machine meets both alike. What memory lies where matters by itself, so
//! every turn has new memory. A ratio is the median of the turns' own.
//!
//! `--all` measures every tracker and holding; `--only TEXT` (`cargo bench --bench guest -- --only
//! "order 0, 2"`) those comparisons with the text in their name and nothing else. It fails if the
//! default misses a goal.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use guest_driver::page_alloc::{AllocRequest, Geometry, Layout, Mm, Pfn, PfnRange};
use guest_driver::reporting::{Config, Holding, ReportError, ReportSink, Reporter, TrackerKind};
use serde::Serialize;
use vmm_integration::vmm::model::{EndToEnd, LargeStart, Pages, end_to_end, large_start};

/// 8 GiB.
const SECTIONS: usize = 64;
/// How often the two sides are compared, each time with new memory.
const TURNS: usize = 7;
/// How long one side works before the other does, in a turn.
const SLICE: Duration = Duration::from_millis(40);
/// Slices of each side in a turn. In one of them the reporter makes a pass.
const SLICES: u32 = 20;
/// So the side that reports has one pass in this time, much more often than Linux's two seconds.
const PASS_EVERY: Duration = SLICE.saturating_mul(SLICES);
/// What reporting must leave of the speed.
const ON_OVER_OFF: f64 = 0.99;

/// What each thread does over and over.
#[derive(Clone, Copy, Debug, Serialize)]
enum Use {
    /// Allocates many blocks, then frees them all.
    Bulk,
    /// Allocates a block and frees it at once.
    Repeat,
}

/// What is compared.
#[derive(Clone, Copy)]
struct Work {
    config: Config,
    order: u8,
    threads: usize,
    what: Use,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { config, order, threads, what } = self;
        let (tracker, holding) = (config.tracker.name(), config.holding);
        write!(f, "{tracker} {holding:?}, order {order}, {threads} threads, {what:?}")
    }
}

#[derive(Serialize)]
struct Figure {
    order: u8,
    threads: usize,
    what: Use,
    tracker: &'static str,
    holding: &'static str,
    /// A thread's, the median of the turns.
    off_ns_a_pair: f64,
    on_ns_a_pair: f64,
    /// Pairs a second with reporting over pairs a second without: of each turn, in order of size.
    on_over_off: [f64; TURNS],
    /// What is asked of the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    required: Option<Required>,
}

#[derive(Clone, Copy, Serialize)]
struct Required {
    on_over_off: f64,
    on_ns_a_pair: Option<f64>,
}

impl Figure {
    fn ratio(&self) -> f64 {
        self.on_over_off[TURNS / 2]
    }

    /// None if nothing is asked.
    fn is_met(&self) -> Option<bool> {
        self.required.map(|required| {
            self.ratio() >= required.on_over_off
                && required.on_ns_a_pair.is_none_or(|most| self.on_ns_a_pair <= most)
        })
    }
}

#[derive(Serialize)]
struct Figures {
    #[serde(skip_serializing_if = "Option::is_none")]
    large_start: Option<LargeStart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_to_end: Option<EndToEnd>,
    lock_unlock_ns: f64,
    pairs: Vec<Figure>,
}

/// A host that has every page back at once.
struct Instantly;

impl ReportSink for Instantly {
    fn report(&mut self, ranges: &[PfnRange], _: Option<Duration>) -> Result<(), ReportError> {
        black_box(ranges);
        Ok(())
    }

    fn settle(&mut self) -> bool {
        true
    }

    fn capacity(&self) -> usize {
        32
    }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let only = args.iter().skip_while(|arg| *arg != "--only").nth(1);
    let mut figures =
        Figures { large_start: None, end_to_end: None, lock_unlock_ns: 0.0, pairs: Vec::new() };
    if only.is_none() {
        let daemon = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
        figures.large_start = Some(large_start(daemon)?);
        figures.end_to_end = Some(end_to_end(daemon, &Pages::ALL, 1 << 30, 5)?);
    }
    figures.lock_unlock_ns = lock_unlock();
    for work in works(flag("--all")) {
        let name = work.to_string();
        if only.is_none_or(|text| name.contains(text)) {
            eprintln!("{name}");
            figures.pairs.push(pairs(work));
        }
    }
    if flag("--json") {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print(&figures);
    }
    let missed = figures.pairs.iter().filter(|figure| figure.is_met() == Some(false)).count();
    ensure!(missed == 0, "{missed} of the default's requirements are missed");
    Ok(())
}

/// The default, or every good tracker with both ways to hold.
fn works(all: bool) -> Vec<Work> {
    let configs: Vec<Config> = if all {
        TrackerKind::ALL
            .iter()
            .flat_map(|&tracker| {
                Holding::ALL.iter().map(move |&holding| Config {
                    tracker,
                    holding,
                    ..Config::DEFAULT
                })
            })
            .collect()
    } else {
        vec![Config::DEFAULT]
    };
    let mut works = Vec::new();
    for config in configs {
        for order in [0, 9] {
            for threads in [1, 2] {
                works.extend([Use::Bulk, Use::Repeat].map(|what| Work {
                    config,
                    order,
                    threads,
                    what,
                }));
            }
        }
    }
    works
}

fn print(figures: &Figures) {
    if let Some(end_to_end) = &figures.end_to_end {
        println!("{end_to_end}  goal: 500 GiB/s with hugetlb\n");
    }
    if let Some(large) = &figures.large_start {
        println!(
            "A guest of {} GiB of address space with {} GiB of memory starts in {:.0} ms (goal: \
             under 1000); {:.1} bytes of metadata a page that is there (goal: at most 24)\n",
            large.address_bytes >> 30,
            large.populated_bytes >> 30,
            large.seconds * 1e3,
            large.metadata_bytes_per_page
        );
    }
    println!("An uncontended lock and unlock: {:.1} ns\n", figures.lock_unlock_ns);
    println!(
        "Allocate/free pairs in ns, reporting off and on: medians of {TURNS} turns of {SLICES} \
         slices of {SLICE:?} on each side, one pass a turn, so every {PASS_EVERY:?} (Linux's \
         default: 2 s)"
    );
    println!(
        "tracker  holding  order  threads  use        off       on   of a lock pair   on/off  \
         (least, most)    required"
    );
    for f in &figures.pairs {
        let required = f.required.map_or_else(String::new, |required| {
            let at_most = required.on_ns_a_pair.map(|ns| format!(", {ns:.0} ns"));
            let met = if f.is_met() == Some(true) { "met" } else { "MISSED" };
            format!("{:.2}{}: {met}", required.on_over_off, at_most.unwrap_or_default())
        });
        println!(
            "{:<8} {:<8} {:>5}  {:>7}  {:<6} {:>7.1}  {:>7.1}   {:>14.2}   {:>6.3}  ({:.3}, \
             {:.3})   {required}",
            f.tracker,
            f.holding,
            f.order,
            f.threads,
            format!("{:?}", f.what),
            f.off_ns_a_pair,
            f.on_ns_a_pair,
            f.on_ns_a_pair / figures.lock_unlock_ns,
            f.ratio(),
            f.on_over_off[0],
            f.on_over_off[TURNS - 1],
        );
    }
    println!(
        "\nRequired of the default, D with isolate: on/off, and with order 0 and 2 threads no slower \
         than LLFree (59 ns bulk, 110 ns repeat, on another machine)."
    );
}

fn lock_unlock() -> f64 {
    const TIMES: u32 = 5_000_000;
    let lock = Mutex::new(0_u64);
    let start = Instant::now();
    for _ in 0..TIMES {
        if let Ok(mut value) = black_box(&lock).lock() {
            *value += 1;
        }
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)
}

/// How much the threads have done on one side, with reporting off or on, and in which time.
#[derive(Default)]
struct Side {
    pairs: u64,
    thread_time: Duration,
}

impl Side {
    #[allow(clippy::cast_precision_loss)] // far fewer than 2^52
    fn ns_a_pair(&self) -> f64 {
        self.thread_time.as_secs_f64() * 1e9 / self.pairs as f64
    }
}

fn pairs(work: Work) -> Figure {
    let Work { config, order, threads, what } = work;
    let turns: [[f64; 2]; TURNS] = std::array::from_fn(|turn| self::turn(work, turn % 2 == 0));
    let sorted = |of: fn([f64; 2]) -> f64| {
        let mut values = turns.map(of);
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let required = (config == Config::DEFAULT).then_some(Required {
        on_over_off: ON_OVER_OFF,
        on_ns_a_pair: match (order, threads, what) {
            (0, 2, Use::Bulk) => Some(59.0),
            (0, 2, Use::Repeat) => Some(110.0),
            _ => None,
        },
    });
    Figure {
        order,
        threads,
        what,
        tracker: config.tracker.name(),
        holding: config.holding.name(),
        off_ns_a_pair: sorted(|[off, _]| off)[TURNS / 2],
        on_ns_a_pair: sorted(|[_, on]| on)[TURNS / 2],
        on_over_off: sorted(|[off, on]| off / on),
        required,
    }
}

/// Nanoseconds a pair with reporting off and on, in the same memory: which of its pages share a
/// cache set would matter more than the reporter does.
fn turn(work: Work, off_first: bool) -> [f64; 2] {
    let mm = Arc::new(Mm::new(&Layout::flat(Geometry::LINUX, work.threads, SECTIONS)));
    let reporter = Reporter::new(Arc::clone(&mm), work.config);
    let Ok(mut reporter) = reporter else { unreachable!("the memory is new") };
    let (mut off, mut on) = (Side::default(), Side::default());
    for slice in 0..=SLICES {
        let off_first = off_first == (slice % 2 == 0);
        for is_off in [off_first, !off_first] {
            // Both begin with all free memory reported, and so with the same free lists.
            reporter.resume();
            while reporter.has_work() {
                reporter.pass(&mut Instantly);
            }
            if is_off {
                reporter.suspend();
                run(&mm, &mut off, work, None);
            } else {
                let pass = (slice == SLICES / 2).then_some(&mut reporter);
                run(&mm, &mut on, work, pass);
            }
        }
        if slice == 0 {
            // To warm up.
            (off, on) = (Side::default(), Side::default());
        }
    }
    [off.ns_a_pair(), on.ns_a_pair()]
}

/// Lets every thread of a side work for one slice, with a pass of the reporter in it or without.
fn run(mm: &Mm, side: &mut Side, work: Work, reporter: Option<&mut Reporter>) {
    let passing = AtomicBool::new(reporter.is_some());
    let start = Instant::now();
    let worker = |cpu| {
        let start = Instant::now();
        let mut done = 0;
        // All of the pass is paid by this side.
        while start.elapsed() < SLICE || passing.load(Ordering::Relaxed) {
            done += match work.what {
                Use::Bulk => bulk(mm, cpu, work.order),
                Use::Repeat => repeat(mm, cpu, work.order),
            };
        }
        (done, start.elapsed())
    };
    let done: Vec<(u64, Duration)> = std::thread::scope(|scope| {
        if let Some(reporter) = reporter {
            let passing = &passing;
            scope.spawn(move || {
                std::thread::sleep((SLICE / 2).saturating_sub(start.elapsed()));
                reporter.pass(&mut Instantly);
                passing.store(false, Ordering::Relaxed);
            });
        }
        let workers: Vec<_> =
            (0..work.threads).map(|cpu| scope.spawn(move || worker(cpu))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    for (pairs, time) in done {
        side.pairs += pairs;
        side.thread_time += time;
    }
}

fn bulk(mm: &Mm, cpu: usize, order: u8) -> u64 {
    // A quarter of memory with two threads.
    let blocks = ((SECTIONS << 15) >> order) / 8;
    let mut taken: Vec<Pfn> = Vec::with_capacity(blocks);
    taken.extend((0..blocks).map_while(|_| mm.alloc(cpu, AllocRequest::movable(order)).ok()));
    taken.iter().for_each(|&pfn| mm.free(cpu, pfn));
    taken.len() as u64
}

fn repeat(mm: &Mm, cpu: usize, order: u8) -> u64 {
    const TIMES: u64 = 1000;
    for _ in 0..TIMES {
        if let Ok(pfn) = mm.alloc(cpu, AllocRequest::movable(order)) {
            mm.free(cpu, black_box(pfn));
        }
    }
    TIMES
}
