// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The model as the guest: its reporter through its driver, over a real socket, into the daemon.

use std::time::Duration;

use guest_driver::page_alloc::{OfflineError, Pfn, PfnRange, ZoneId};
use guest_driver::reporting::ReportSink;
use vmm_integration::frontend::MemoryHandover;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::model::{GuestMemory, ModelConfig, ReporterThread};

use crate::model::{
    FILLED, Guest, KEPT, LOOK_EVERY, MIB, SECTION, TIMEOUT, check, drain, idle,
    nothing_was_skipped, start, start_with_large_calls,
};

#[test]
fn all_free_memory_is_reclaimed_and_used_memory_kept() {
    let daemon = start_with_large_calls();
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
fn memory_reused_at_once_keeps_its_contents() {
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
fn killed_daemon_is_replaced_under_a_running_reporter() {
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
fn report_without_a_device_fails() {
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
