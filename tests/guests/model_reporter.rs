// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model's reporter: late answers, its sleep, and every way to negotiate.

use std::time::Duration;

use guest_driver::page_alloc::Pfn;
use guest_driver::reporting::{Config, Holding};
use guest_driver::virtio::balloon::{BalloonQueue, QueueNumbering};
use guest_driver::virtio::balloon_driver::FreePages;
use rustix::process::Signal;
use vmm_integration::frontend::AttachOptions;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{
    Backed, GuestMemory, ModelConfig, ModelVm, Pages, ReporterThread, end_to_end, large_memory,
    large_start,
};

use crate::model::{
    FILLED, Guest, KEPT, LOOK_EVERY, MIB, SECTION, TIMEOUT, binary, check, drain, idle,
    nothing_was_skipped, start,
};

/// A daemon that is stopped answers late. What it was given stays held until then, and is discarded
/// once.
#[test]
fn pages_sent_to_a_stopped_daemon_are_held() {
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
fn reporter_thread_continues_after_a_late_ack() {
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
