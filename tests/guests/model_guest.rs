// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model as the guest: its reporter through its driver, over a real socket, into the daemon.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guest_driver::page_alloc::{OfflineError, Pfn, PfnRange, ZoneId};
use guest_driver::reporting::{Config, Holding, ReportSink, Reporter};
use guest_driver::virtio::balloon::{BalloonQueue, QueueNumbering};
use guest_driver::virtio::balloon_driver::{FreePages, ReportingQueue};
use rustix::process::Signal;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess, Summary};
use vmm_integration::frontend::{AttachOptions, Line, MemoryHandover};
use vmm_integration::guest_memory::Ram;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{
    Backed, GuestMemory, Holdings, ModelConfig, ModelVm, Pages, ReporterThread, end_to_end,
    large_memory, large_start,
};

const MIB: u64 = 1 << 20;
const SECTION: u64 = 128 * MIB;
const TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// A quiet guest has reported everything after fewer.
const MANY_PASSES: u32 = 64;
/// Names of what the guest has in use.
const KEPT: u32 = 0;
const FILLED: u32 = 1;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"))
}

fn start() -> DaemonProcess {
    DaemonProcess::spawn(binary(), &DaemonOptions::default()).unwrap()
}

/// A guest whose reporter makes a pass when it is told to.
struct Guest {
    vm: ModelVm,
    holdings: Holdings,
    reporter: Reporter,
    queue: ReportingQueue<Ram, Line>,
}

impl Guest {
    fn start(daemon: &DaemonProcess, config: ModelConfig) -> Self {
        Self::with_reporter(daemon, config, Config::default())
    }

    /// One for a reporter on a thread of its own, which makes passes so soon after a free.
    fn hurried(daemon: &DaemonProcess, config: ModelConfig, delay: Duration) -> Self {
        Self::with_reporter(daemon, config, Config { delay, ..Config::default() })
    }

    fn with_reporter(daemon: &DaemonProcess, config: ModelConfig, reporter: Config) -> Self {
        let mut vm = ModelVm::start(&daemon.socket(), config).unwrap();
        let holdings = Holdings::new(vm.mm(), vm.ram());
        let reporter = Reporter::new(Arc::clone(vm.mm()), reporter).unwrap();
        let queue = vm.take_reporting().unwrap();
        Self { vm, holdings, reporter, queue }
    }

    /// Everything that is free gets where the reporter finds it, and is reported.
    fn report(&mut self) {
        drain(&self.vm);
        for _ in 0..MANY_PASSES {
            if !self.reporter.has_work() {
                self.vm.mm().validate().unwrap();
                return;
            }
            self.reporter.pass(&mut self.queue);
        }
        panic!("a guest that does nothing has something to report after {MANY_PASSES} passes");
    }

    fn resident(&self) -> u64 {
        self.vm.resident_bytes().unwrap()
    }
}

/// Pages on per-CPU lists are not free to anybody else.
fn drain(vm: &ModelVm) {
    (0..vm.mm().zone_count()).for_each(|zone| vm.mm().drain_all(ZoneId(zone)));
}

fn check(holdings: &Holdings, name: u32, bytes: u64) {
    let verdict = holdings.verify(name).unwrap();
    assert_eq!((verdict.checked_bytes, verdict.first), (bytes, None));
}

/// Neither makes the reporter a pass, nor is one asked for.
fn idle(thread: &ReporterThread) -> Result<(), String> {
    let schedule = thread.schedule();
    if schedule.is_idle() { Ok(()) } else { Err(format!("{schedule:?}")) }
}

/// The daemon gave back all that the last guest had reported.
fn nothing_was_skipped(daemon: &DaemonProcess) -> Summary {
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!(summary.bytes_reported, summary.bytes_discarded, "{summary:?}");
    assert!(summary.skipped_bytes.values().all(|bytes| *bytes == 0), "{summary:?}");
    summary
}

#[test]
fn all_that_is_free_comes_back_and_nothing_in_use_is_lost() {
    let daemon = start();
    // Blocks lie on both sides of where the regions meet.
    let regions = Some(vec![0..1, 1..3, 3..4]);
    let memory = GuestMemory { regions, ..GuestMemory::flat(4 * SECTION, 2) };
    let mut guest = Guest::start(&daemon, ModelConfig::new(memory));
    guest.holdings.alloc(KEPT, 32 * MIB, 0, 0).unwrap();
    for round in 1..=4 {
        // Huge pages, single pages, and what lies between.
        let order = [9, 0, 3, 10][usize::from(round) % 4];
        guest.holdings.alloc(FILLED, 300 * MIB, order, round).unwrap();
        assert!(guest.resident() >= 332 * MIB);
        check(&guest.holdings, FILLED, 300 * MIB);
        guest.report();
        check(&guest.holdings, FILLED, 300 * MIB);
        guest.holdings.free(FILLED).unwrap();
        guest.report();
        assert!(guest.resident() <= 36 * MIB, "{} bytes", guest.resident());
        check(&guest.holdings, KEPT, 32 * MIB);
    }
    guest.holdings.free(KEPT).unwrap();
    guest.report();
    assert_eq!(guest.resident(), 0);
    assert_eq!(guest.vm.used_bytes(), 0);
    drop(guest);
    let summary = nothing_was_skipped(&daemon);
    assert!(summary.discard_calls < summary.ranges, "{summary:?}");
}

/// Freed and used again while reports are under way, with the reporter on a thread of its own.
#[test]
fn memory_that_is_used_again_at_once_keeps_its_contents() {
    let daemon = start();
    let config = ModelConfig::new(GuestMemory::flat(256 * MIB, 2));
    let guest = Guest::hurried(&daemon, config, Duration::from_millis(1));
    let Guest { vm, holdings, reporter, queue } = guest;
    let thread = ReporterThread::start(reporter, queue).unwrap();
    for round in 0..30 {
        let (name, other) = (u32::from(round % 2), u32::from((round + 1) % 2));
        let order = [9, 0, 10][usize::from(round) % 3];
        holdings.alloc(name, 80 * MIB, order, round).unwrap();
        if round > 0 {
            check(&holdings, other, 80 * MIB);
            holdings.free(other).unwrap();
        }
        check(&holdings, name, 80 * MIB);
    }
    // It has had its turn, whatever else this machine does.
    wait_until(TIMEOUT, LOOK_EVERY, || idle(&thread)).unwrap();
    let counters = thread.stop().unwrap().counters();
    assert!(counters.ranges > 0);
    assert_eq!((counters.refused, counters.timeouts), (0, 0));
    vm.mm().validate().unwrap();
}

#[test]
fn memory_is_plugged_in_reported_and_unplugged() {
    let daemon = start();
    for handover in [MemoryHandover::Negotiated, MemoryHandover::Table] {
        let memory = GuestMemory::flat(2 * SECTION, 1).with_slot(1).with_slot(2);
        let mut config = ModelConfig::new(memory);
        config.attach.memory = handover;
        let mut guest = Guest::start(&daemon, config);
        let boot = guest.vm.mm().zone(ZoneId(0)).managed_pages();
        guest.vm.hot_add(1).unwrap();
        assert!(guest.vm.hot_add(1).is_err(), "there is memory in it");
        guest.vm.hot_add(0).unwrap();
        assert_eq!(guest.vm.mm().zone(ZoneId(0)).managed_pages(), boot / 2 * 5);

        // More than there was before: some of it lies in the new memory.
        guest.holdings.alloc(KEPT, 500 * MIB, 9, 1).unwrap();
        guest.holdings.alloc(FILLED, 64 * MIB, 0, 2).unwrap();
        guest.report();
        assert!(guest.resident() >= 564 * MIB);
        check(&guest.holdings, KEPT, 500 * MIB);

        let holdings = guest.holdings.clone();
        guest.holdings.free(FILLED).unwrap();
        let error = guest.vm.hot_remove(1, &holdings, &|| true).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&OfflineError::Interrupted));
        guest.holdings.alloc(FILLED, 4 * MIB, 9, 3).unwrap();
        guest.holdings.free(KEPT).unwrap();
        guest.holdings.alloc(KEPT, 200 * MIB, 9, 4).unwrap();
        guest.vm.hot_remove(1, &holdings, &|| false).unwrap();
        assert!(guest.vm.hot_remove(1, &holdings, &|| false).is_err(), "there is none in it");
        assert_eq!(guest.vm.mm().zone(ZoneId(0)).managed_pages(), boot / 2 * 3);
        guest.report();
        check(&guest.holdings, KEPT, 200 * MIB);
        check(&guest.holdings, FILLED, 4 * MIB);
        assert!(guest.resident() <= 208 * MIB, "{} bytes", guest.resident());

        // It can come back, and is memory like any other.
        guest.vm.hot_add(1).unwrap();
        guest.holdings.free(KEPT).unwrap();
        guest.holdings.alloc(KEPT, 500 * MIB, 10, 5).unwrap();
        check(&guest.holdings, KEPT, 500 * MIB);
        guest.holdings.free(KEPT).unwrap();
        guest.holdings.free(FILLED).unwrap();
        guest.report();
        assert_eq!(guest.resident(), 0);
    }
}

/// The daemon knows of memory ahead of its first report and until behind its last.
#[test]
fn memory_comes_and_goes_under_a_running_reporter() {
    let daemon = start();
    let memory = GuestMemory::flat(2 * SECTION, 2).with_slot(1);
    let guest = Guest::hurried(&daemon, ModelConfig::new(memory), Duration::ZERO);
    let Guest { mut vm, holdings, reporter, queue } = guest;
    let thread = ReporterThread::start(reporter, queue).unwrap();
    holdings.alloc(KEPT, 20 * MIB, 0, 1).unwrap();
    for round in 2..20 {
        vm.hot_add(0).unwrap();
        holdings.alloc(FILLED, 200 * MIB, 9, round).unwrap();
        check(&holdings, FILLED, 200 * MIB);
        // Some of it has to be moved out of what is unplugged.
        let removed = vm.hot_remove(0, &holdings, &|| false);
        // The reporter may hold a pageblock just then, which Linux answers with EBUSY, too.
        if let Err(error) = removed {
            assert_eq!(error.downcast_ref(), Some(&OfflineError::Busy), "{error:#}");
            wait_until(TIMEOUT, LOOK_EVERY, || {
                vm.hot_remove(0, &holdings, &|| false).map_err(|error| format!("{error:#}"))
            })
            .unwrap();
        }
        check(&holdings, FILLED, 200 * MIB);
        holdings.free(FILLED).unwrap();
    }
    check(&holdings, KEPT, 20 * MIB);
    thread.stop().unwrap();
    vm.mm().validate().unwrap();
    drop(vm);
    // A change of the memory table goes before what is left of a report.
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    let yielded = summary.skipped_bytes.get("yielded").copied().unwrap_or(0);
    assert_eq!(summary.bytes_reported, summary.bytes_discarded + yielded, "{summary:?}");
}

#[test]
fn a_daemon_that_was_killed_is_replaced_under_a_running_reporter() {
    let mut daemon = start();
    let memory = GuestMemory::flat(2 * SECTION, 1).with_slot(1);
    let config = ModelConfig::new(memory);
    let mut guest = Guest::hurried(&daemon, config, Duration::from_millis(1));
    guest.vm.hot_add(0).unwrap();
    guest.holdings.alloc(KEPT, 40 * MIB, 9, 1).unwrap();
    let Guest { mut vm, holdings, reporter, queue } = guest;
    let thread = ReporterThread::start(reporter, queue).unwrap();
    for round in 2..6 {
        holdings.alloc(FILLED, 280 * MIB, 9, round).unwrap();
        daemon.kill().unwrap();
        holdings.free(FILLED).unwrap();
        drain(&vm);
        // Whatever the reporter submits now, nobody takes it.
        daemon = start();
        vm.reconnect(&daemon.socket()).unwrap();
        wait_until(TIMEOUT, LOOK_EVERY, || match vm.resident_bytes() {
            Ok(bytes) if bytes <= 42 * MIB => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .unwrap();
        check(&holdings, KEPT, 40 * MIB);
    }
    let counters = thread.stop().unwrap().counters();
    assert_eq!((counters.refused, counters.timeouts), (0, 0));
    vm.mm().validate().unwrap();
}

#[test]
fn a_guest_without_a_device_is_told_that_nothing_will_come() {
    let mut daemon = start();
    let mut guest = Guest::start(&daemon, ModelConfig::new(GuestMemory::flat(2 * SECTION, 1)));
    daemon.kill().unwrap();
    let socket = daemon.socket();
    let blocks = [PfnRange::block(Pfn(0), 9)];
    let reporting = std::thread::spawn(move || {
        let result = guest.queue.report(&blocks, None);
        (result, guest.queue.outstanding().to_vec())
    });
    assert!(guest.vm.reconnect(&socket).is_err());
    let (result, outstanding) = reporting.join().unwrap();
    assert!(result.is_err());
    assert_eq!(outstanding, blocks);
    assert!(guest.vm.device().is_err());
}

/// A daemon that is stopped answers late. What it was given stays held until then, and is discarded
/// once.
#[test]
fn what_a_stopped_daemon_was_given_is_held_until_it_goes_on() {
    for holding in [Holding::Isolate, Holding::Pull] {
        let mut daemon = start();
        let config = ModelConfig::new(GuestMemory::flat(2 * SECTION, 1));
        let patience = Some(Duration::from_millis(20));
        let reporter = Config { holding, acknowledge_timeout: patience, ..Config::default() };
        let mut guest = Guest::with_reporter(&daemon, config, reporter);
        guest.holdings.alloc(FILLED, 200 * MIB, 9, 1).unwrap();
        guest.holdings.free(FILLED).unwrap();
        drain(&guest.vm);

        daemon.signal(Signal::STOP).unwrap();
        let stats = guest.reporter.pass(&mut guest.queue);
        assert!(stats.failed && stats.reports == 0, "{stats:?}");
        assert_eq!(guest.queue.counters().timeouts, 1);
        let held = guest.reporter.withheld_pages();
        assert_eq!(held, SECTION / 4096, "32 blocks of the largest order");
        assert_eq!(guest.vm.used_bytes(), SECTION);
        // It is not asked again before it has answered.
        let stats = guest.reporter.pass(&mut guest.queue);
        assert!(stats.failed && stats.offered == 0, "{stats:?}");
        assert_eq!(guest.reporter.withheld_pages(), held);
        // What is left can be used, and what is held cannot.
        guest.holdings.alloc(KEPT, 64 * MIB, 9, 2).unwrap();
        let first = guest.queue.outstanding()[0].start.address();
        let section = usize::try_from(first / SECTION).unwrap();
        let offline = guest.vm.mm().offline_block(section, &guest.holdings, &|| true);
        assert!(offline.is_err());
        guest.vm.mm().validate().unwrap();

        daemon.signal(Signal::CONT).unwrap();
        // Its patience is short: what comes now may be late, too.
        while guest.reporter.has_work() {
            assert!(guest.queue.wait_settled(Some(TIMEOUT)));
            guest.reporter.pass(&mut guest.queue);
        }
        guest.vm.mm().validate().unwrap();
        assert_eq!(guest.reporter.withheld_pages(), 0);
        assert_eq!(guest.vm.used_bytes(), 64 * MIB);
        check(&guest.holdings, KEPT, 64 * MIB);
        assert!(guest.resident() <= 64 * MIB, "{} bytes", guest.resident());
        drop(guest);
        let summary = nothing_was_skipped(&daemon);
        assert_eq!(summary.bytes_reported, 2 * SECTION - 64 * MIB, "each once: {summary:?}");
    }
}

/// As on a thread, with nobody to settle it: the next pass does.
#[test]
fn a_reporter_on_its_thread_goes_on_after_a_late_acknowledgement() {
    let mut daemon = start();
    let config = ModelConfig::new(GuestMemory::flat(2 * SECTION, 1));
    let (delay, patience) = (Duration::from_millis(2), Some(Duration::from_millis(5)));
    let reporter = Config { delay, acknowledge_timeout: patience, ..Config::default() };
    let guest = Guest::with_reporter(&daemon, config, reporter);
    let Guest { vm, holdings, reporter, queue } = guest;
    holdings.alloc(FILLED, 200 * MIB, 9, 1).unwrap();
    daemon.signal(Signal::STOP).unwrap();
    let thread = ReporterThread::start(reporter, queue).unwrap();
    holdings.free(FILLED).unwrap();
    drain(&vm);
    let withheld = || match vm.used_bytes() {
        0 => Err("nothing is withheld".to_owned()),
        bytes => Ok(bytes),
    };
    wait_until(TIMEOUT, LOOK_EVERY, withheld).unwrap();
    daemon.signal(Signal::CONT).unwrap();
    wait_until(TIMEOUT, LOOK_EVERY, || match vm.resident_bytes() {
        Ok(0) => idle(&thread),
        other => Err(format!("{other:?}")),
    })
    .unwrap();
    let ended = thread.stop().unwrap();
    assert_eq!((ended.reporter.withheld_pages(), vm.used_bytes()), (0, 0));
    assert!(ended.passes > 0 && ended.counters().refused == 0, "{:?}", ended.stats);
    vm.mm().validate().unwrap();
}

/// While nothing large is freed the reporter's thread is not woken once.
#[test]
fn a_quiet_guest_lets_its_reporter_sleep() {
    let daemon = start();
    let config = ModelConfig::new(GuestMemory::flat(2 * SECTION, 1));
    let Guest { vm: _vm, holdings, reporter, queue } =
        Guest::hurried(&daemon, config, Duration::from_millis(1));
    holdings.alloc(KEPT, 64 * MIB, 9, 1).unwrap();
    let thread = ReporterThread::start(reporter, queue).unwrap();
    wait_until(TIMEOUT, LOOK_EVERY, || idle(&thread)).unwrap();
    // Many delays of reading memory and of small allocations.
    let small = |round| {
        check(&holdings, KEPT, 64 * MIB);
        holdings.alloc(FILLED, MIB / 2, 0, round).unwrap();
        holdings.free(FILLED).unwrap();
    };
    small(2);
    wait_until(TIMEOUT, LOOK_EVERY, || idle(&thread)).unwrap();
    let passes = thread.passes();
    (3..20).for_each(small);
    assert_eq!((thread.schedule().due(), thread.passes()), (None, passes));
    assert!(passes > 0);
    thread.stop().unwrap();
}

#[test]
fn every_way_to_negotiate_ends_in_the_same_report() {
    let daemon = start();
    let plain = ModelConfig::new(GuestMemory::flat(2 * SECTION, 1));
    let attach = |attach: AttachOptions| ModelConfig { attach, ..plain.clone() };
    let variants = [
        ModelConfig { indirect: false, ..plain.clone() },
        ModelConfig { free_pages: FreePages::Zeroes, ..plain.clone() },
        ModelConfig { ack_timeout: Some(TIMEOUT), ..plain.clone() },
        attach(AttachOptions { numbering: QueueNumbering::Specification, ..Default::default() }),
        attach(AttachOptions { queue_size: 32, ..Default::default() }),
        attach(AttachOptions {
            features: AttachOptions::KNOWN_FEATURES
                & !guest_driver::virtio::feature::EVENT_IDX
                & !guest_driver::virtio::feature::INDIRECT_DESC,
            ..Default::default()
        }),
    ];
    for config in variants {
        let mut guest = Guest::start(&daemon, config.clone());
        guest.holdings.alloc(FILLED, 100 * MIB, 9, 1).unwrap();
        guest.holdings.free(FILLED).unwrap();
        guest.report();
        assert_eq!(guest.resident(), 0, "{config:?}");
        for queue in [BalloonQueue::Inflate, BalloonQueue::Deflate] {
            guest.vm.take_pages(queue).unwrap().tell(&[Pfn(1), Pfn(2)]).unwrap();
        }
        assert!(guest.vm.take_stats().is_err(), "the daemon does not offer statistics");
    }
}

#[test]
fn what_a_guest_poisons_is_reported_and_stays() {
    let daemon = start();
    let plain = ModelConfig::new(GuestMemory::flat(2 * SECTION, 1));
    let config = ModelConfig { free_pages: FreePages::Poison(0xaa), ..plain.clone() };
    let mut guest = Guest::start(&daemon, config);
    guest.holdings.alloc(FILLED, 100 * MIB, 9, 1).unwrap();
    guest.holdings.free(FILLED).unwrap();
    guest.report();
    assert_eq!(guest.resident(), 100 * MIB);
    drop(guest);

    // A guest that cannot say what its pages hold does not report them.
    let poison = guest_driver::virtio::balloon::feature::PAGE_POISON;
    let features = AttachOptions::KNOWN_FEATURES & !poison;
    let attach = AttachOptions { features, ..AttachOptions::default() };
    let config = ModelConfig { free_pages: FreePages::Poison(0xaa), attach, ..plain };
    let mut vm = ModelVm::start(&daemon.socket(), config).unwrap();
    assert!(vm.take_reporting().is_err());
}

/// A tebibyte of address space with 8 GiB in it, scattered.
#[test]
fn a_sparse_guest_pays_for_what_is_there() {
    let daemon = start();
    let mut guest = Guest::start(&daemon, ModelConfig::new(large_memory()));
    assert_eq!(guest.resident(), 0);
    guest.holdings.alloc(FILLED, 64 * MIB, 9, 1).unwrap();
    guest.holdings.free(FILLED).unwrap();
    guest.report();
    assert_eq!(guest.resident(), 0);

    let figures = large_start(binary()).unwrap();
    assert_eq!(figures.address_bytes, 1 << 40);
    assert_eq!(figures.populated_bytes, 8 << 30);
    assert!(figures.metadata_bytes_per_page <= 24.0, "{figures:?}");
}

#[test]
fn what_takes_the_time_can_be_told() {
    let result = end_to_end(binary(), &[Pages::Base], 2 * SECTION, 1).unwrap();
    let [Backed { figures: Some(figures), .. }] = result.backings.as_slice() else {
        panic!("{result:?}")
    };
    // All but what the watermark keeps.
    assert!(figures.bytes > 2 * SECTION - 16 * MIB, "{figures:?}");
    assert!(figures.gib_per_second > 0.0 && figures.chains > 0, "{figures:?}");
    assert!(result.to_string().contains(figures.limit()));
}
