// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two CPUs that use memory, an offliner, a contiguous allocator and a reporter, all at once, with
//! the daemon discarding real memory behind them: not a byte and not a report may be lost.
//!
//! Runs for `SOAK_SECONDS` seconds, 12 unless that is set.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guest_driver::page_alloc::{Geometry, IsolateMode, Layout, Mm, PfnRange, ZoneId};
use guest_driver::random::Random;
use guest_driver::reporting::{Config, Reporter};
use guest_driver::workload::{Behaviour, Config as Work, Slots, Workload};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::guest_memory::Ram;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ModelVm, ReporterThread};

const CPUS: usize = 2;
const SECTIONS: usize = 8;
/// Much more often than Linux, so that reports meet everything else.
const DELAY: Duration = Duration::from_millis(20);
const PHASE: Duration = Duration::from_secs(2);
/// An offliner does not wait longer for pages that are busy.
const OFFLINE_PATIENCE: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Beside {
    offlined: AtomicU64,
    contiguous: AtomicU64,
}

#[test]
fn nothing_is_lost_while_everything_happens_at_once() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(12, |s| s.parse().unwrap());
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn(binary, &DaemonOptions::default()).unwrap();
    // One more, for whoever moves the pages of the others.
    let memory = GuestMemory::new(Layout::flat(Geometry::LINUX, CPUS + 1, SECTIONS));
    let mut vm = ModelVm::start(&daemon.socket(), ModelConfig::new(memory)).unwrap();
    let config = Config { delay: DELAY, ..Config::default() };
    let reporter = Reporter::new(Arc::clone(vm.mm()), config).unwrap();
    let reporter = ReporterThread::start(reporter, vm.take_reporting().unwrap()).unwrap();

    let end = Instant::now() + Duration::from_secs(seconds);
    let beside = Beside::default();
    let behaviours =
        [Behaviour::Churn, Behaviour::Memhog, Behaviour::Fragment, Behaviour::PageFault];
    let (mut phases, mut verified_bytes) = (0, 0);
    // Longer where this machine gave somebody no turn.
    let met =
        || [&beside.offlined, &beside.contiguous].iter().all(|met| met.load(Ordering::Relaxed) > 0);
    while Instant::now() < end || (!met() && Instant::now() < end + TIMEOUT) {
        let behaviour = behaviours[phases % behaviours.len()];
        let order = [0, 9, 3, 0][phases % behaviours.len()];
        let config =
            Work { cpus: CPUS, behaviour, order, pages_a_cpu: 60_000, seed: phases as u64 };
        verified_bytes += phase(&vm, config, &beside);
        phases += 1;
        quiet(&vm);
    }
    let counters = reporter.stop().unwrap().counters();
    eprintln!(
        "{phases} phases, {} GiB verified, {} blocks offline and online, {} contiguous ranges, {} \
         reports of {} ranges",
        verified_bytes >> 30,
        beside.offlined.load(Ordering::Relaxed),
        beside.contiguous.load(Ordering::Relaxed),
        counters.chains,
        counters.ranges,
    );
    assert!(beside.offlined.load(Ordering::Relaxed) > 0);
    assert!(beside.contiguous.load(Ordering::Relaxed) > 0);
}

/// Everybody at work for a while; how many bytes were checked.
fn phase(vm: &ModelVm, config: Work, beside: &Beside) -> u64 {
    let workload = Workload::new(vm.mm(), vm.ram(), config);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let run = scope.spawn(|| workload.run(&stop));
        scope.spawn(|| offline_and_online(vm.mm(), workload.slots(), config.seed, &stop, beside));
        scope.spawn(|| contiguous(vm.mm(), workload.slots(), config.seed, &stop, beside));
        let end = Instant::now() + PHASE;
        while Instant::now() < end && !run.is_finished() {
            std::thread::park_timeout(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        run.join().unwrap().unwrap_or_else(|lost| panic!("{lost}")).verified_bytes
    })
}

fn offline_and_online(
    mm: &Mm,
    slots: &Slots<'_, Ram>,
    seed: u64,
    stop: &AtomicBool,
    beside: &Beside,
) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let block = random.index(SECTIONS);
        let late = Instant::now() + OFFLINE_PATIENCE;
        let give_up = || Instant::now() > late || stop.load(Ordering::Relaxed);
        if mm.offline_block(block, slots, &give_up).is_ok() {
            beside.offlined.fetch_add(1, Ordering::Relaxed);
            mm.online_block(block).unwrap();
        }
        std::thread::yield_now();
    }
}

fn contiguous(mm: &Mm, slots: &Slots<'_, Ram>, seed: u64, stop: &AtomicBool, beside: &Beside) {
    let mut random = Random(!seed);
    let geometry = mm.geometry();
    while !stop.load(Ordering::Relaxed) {
        let section = geometry.section_range(random.index(SECTIONS));
        let block = u32::try_from(random.below(60)).unwrap();
        let start = section.start.plus(block << geometry.pageblock_order);
        let range = PfnRange { start, end: start.plus(4 << geometry.pageblock_order) };
        if mm.alloc_contig_range(range, IsolateMode::Other, slots).is_ok() {
            beside.contiguous.fetch_add(1, Ordering::Relaxed);
            mm.free_contig_range(CPUS, range);
        }
        std::thread::yield_now();
    }
}

/// The books agree, and with nothing in use everything comes back to the host.
fn quiet(vm: &ModelVm) {
    for section in 0..SECTIONS {
        // Whoever was stopped between the two has left it offline.
        let _ = vm.mm().online_block(section);
    }
    vm.mm().drain_all(ZoneId(0));
    wait_until(TIMEOUT, DELAY, || {
        let resident = vm.resident_bytes().map_err(|error| error.to_string())?;
        // What the reporter holds counts as used, and it may report a section once more.
        match (resident, vm.used_bytes()) {
            (0, 0) => Ok(()),
            (resident, used) => Err(format!("{resident} bytes resident, {used} in use")),
        }
    })
    .unwrap();
    vm.mm().validate().unwrap();
}
