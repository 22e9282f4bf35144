//! `cargo xtask bench guest`: what the guest's allocator costs in the model, with and without
//! somebody who reports its free pages.
//!
//! Off and on take turns in one run, beside an uncontended lock and unlock.

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use guest_driver::mm::{AllocRequest, Geometry, Layout, Mm, Pfn, PfnRange};
use guest_driver::reporting::{Config, Holding, ReportError, ReportSink, Reporter, TrackerKind};
use serde::Serialize;
use vmm_integration::model::{EndToEnd, LargeStart, Pages, end_to_end, large_start};

/// 8 GiB.
const SECTIONS: usize = 64;
/// How long one side runs before the other has its turn, and how often.
const TURN: Duration = Duration::from_millis(300);
const TURNS: u32 = 5;
/// Between two passes of the reporter: much more often than Linux's two seconds.
const PASS_EVERY: Duration = Duration::from_millis(100);

/// What each thread does over and over.
#[derive(Clone, Copy, Debug, Serialize)]
enum Use {
    /// Allocates many blocks, then frees them all.
    Bulk,
    /// Allocates a block and frees it at once.
    Repeat,
}

#[derive(Serialize)]
struct Figure {
    order: u8,
    threads: usize,
    what: Use,
    tracker: &'static str,
    holding: &'static str,
    off_ns_a_pair: f64,
    on_ns_a_pair: f64,
    /// Pairs a second with reporting over pairs a second without.
    on_over_off: f64,
}

#[derive(Serialize)]
struct Figures {
    large_start: LargeStart,
    end_to_end: EndToEnd,
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
    let every = args.iter().any(|arg| arg == "--all");
    let daemon = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let mut figures = Figures {
        large_start: large_start(daemon)?,
        end_to_end: end_to_end(daemon, &Pages::ALL, 1 << 30, 5)?,
        lock_unlock_ns: lock_unlock(),
        pairs: Vec::new(),
    };
    let configs: Vec<Config> = if every {
        TrackerKind::GOOD
            .into_iter()
            .flat_map(|tracker| {
                [Holding::Isolate, Holding::Pull].map(|holding| Config {
                    tracker,
                    holding,
                    ..Config::DEFAULT
                })
            })
            .collect()
    } else {
        vec![
            Config::DEFAULT,
            Config {
                tracker: TrackerKind::PageReported,
                holding: Holding::Pull,
                ..Config::DEFAULT
            },
        ]
    };
    for config in configs {
        for order in [0, 9] {
            for threads in [1, 2] {
                for what in [Use::Bulk, Use::Repeat] {
                    eprintln!(
                        "{:?} {:?}: order {order}, {threads} threads, {what:?}",
                        config.tracker, config.holding
                    );
                    figures.pairs.push(pairs(config, order, threads, what));
                }
            }
        }
    }
    if args.iter().any(|arg| arg == "--json") {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        print(&figures);
    }
    Ok(())
}

fn print(figures: &Figures) {
    println!("{}  goal: 500 GiB/s with hugetlb\n", figures.end_to_end);
    let large = &figures.large_start;
    println!(
        "A guest of {} GiB of address space with {} GiB of memory starts in {:.0} ms (goal: under \
         1000); {:.1} bytes of metadata a page that is there (goal: at most 24)\n",
        large.address_bytes >> 30,
        large.populated_bytes >> 30,
        large.seconds * 1e3,
        large.metadata_bytes_per_page
    );
    println!("An uncontended lock and unlock: {:.1} ns\n", figures.lock_unlock_ns);
    println!("Allocate/free pairs in ns, reporting off and on (a pass every {PASS_EVERY:?})");
    println!("tracker  holding  order  threads  use        off       on   on/off   of a lock pair");
    for f in &figures.pairs {
        println!(
            "{:<8} {:<8} {:>5}  {:>7}  {:<6} {:>7.1}  {:>7.1}   {:>6.3}   {:>6.2}",
            f.tracker,
            f.holding,
            f.order,
            f.threads,
            format!("{:?}", f.what),
            f.off_ns_a_pair,
            f.on_ns_a_pair,
            f.on_over_off,
            f.on_ns_a_pair / figures.lock_unlock_ns
        );
    }
    println!(
        "\nGoals for the default, D with isolate: on/off at least 0.99; order 0 with 2 threads at \
         most 59 ns bulk and 110 ns repeat (LLFree's, on another machine)."
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

/// One side: a guest whose threads work while they may, and perhaps a reporter.
struct Side {
    mm: Arc<Mm>,
    pairs: AtomicU64,
}

#[allow(clippy::cast_precision_loss)] // means
fn pairs(config: Config, order: u8, threads: usize, what: Use) -> Figure {
    let side = || {
        let mm = Arc::new(Mm::new(&Layout::flat(Geometry::LINUX, threads, SECTIONS)));
        Side { mm, pairs: AtomicU64::new(0) }
    };
    let (off, on) = (side(), side());
    let mut seconds = [0.0, 0.0];
    let reporter = Reporter::new(Arc::clone(&on.mm), config);
    let Ok(mut reporter) = reporter else { unreachable!("the memory is new") };
    // What is free at the start is reported before anything is measured.
    while reporter.has_work() {
        reporter.pass(&mut Instantly);
    }
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reporting = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if reporter.has_work() {
                    reporter.pass(&mut Instantly);
                }
                std::thread::park_timeout(PASS_EVERY);
            }
        });
        // The first turn of each warms up.
        for turn in 0..=TURNS {
            for (side, seconds) in [&off, &on].into_iter().zip(&mut seconds) {
                let took = run(side, order, threads, what);
                if turn == 0 {
                    side.pairs.store(0, Ordering::Relaxed);
                } else {
                    *seconds += took.as_secs_f64();
                }
            }
        }
        ended.store(true, Ordering::Relaxed);
        reporting.thread().unpark();
    });
    let ns = |side: &Side, seconds: f64| {
        seconds * 1e9 * threads as f64 / side.pairs.load(Ordering::Relaxed) as f64
    };
    let (off_ns_a_pair, on_ns_a_pair) = (ns(&off, seconds[0]), ns(&on, seconds[1]));
    Figure {
        order,
        threads,
        what,
        tracker: config.tracker.name(),
        holding: match config.holding {
            Holding::Isolate => "isolate",
            Holding::Pull => "pull",
        },
        off_ns_a_pair,
        on_ns_a_pair,
        on_over_off: off_ns_a_pair / on_ns_a_pair,
    }
}

/// Lets every thread of a side work for one turn.
fn run(side: &Side, order: u8, threads: usize, what: Use) -> Duration {
    let start = Instant::now();
    let end = start + TURN;
    std::thread::scope(|scope| {
        for cpu in 0..threads {
            scope.spawn(move || {
                let mut done = 0;
                while Instant::now() < end {
                    done += match what {
                        Use::Bulk => bulk(&side.mm, cpu, order),
                        Use::Repeat => repeat(&side.mm, cpu, order),
                    };
                }
                side.pairs.fetch_add(done, Ordering::Relaxed);
            });
        }
    });
    start.elapsed()
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
