// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A frontend over a real socket with real memory drives the daemon, hostile chains included.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use guest_driver::{
    ram::{Gpa, GpaRange},
    virtio::{balloon, feature, ring::Buffer},
};
use std::{path::Path, time::Duration};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vmm_integration::{
    daemon::{DaemonOptions, DaemonProcess, Summary},
    frontend::{AttachOptions, Attachment, MemoryHandover},
    guest_memory::{Backing, Ram, RamLayout},
    hostile,
    measure::host::wait_until,
};

const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;
const TIMEOUT: Duration = Duration::from_secs(20);

fn start() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn(binary, &DaemonOptions::default()).unwrap()
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

fn report(start: u64, len: u32) -> Buffer {
    Buffer::writable(Gpa(start), len)
}

/// Every way to announce memory and to be notified ends in the same report.
#[test]
fn a_report_is_discarded_under_every_negotiation() {
    let daemon = start();
    let known = AttachOptions::KNOWN_FEATURES;
    let proto = AttachOptions::KNOWN_PROTOCOL_FEATURES;
    let default = AttachOptions::default();
    let table = MemoryHandover::Table;
    let variants = [
        AttachOptions { poison: Some(0), ..default.clone() },
        AttachOptions { memory: table, ring_area: Some(Gpa(MIB)), ..default.clone() },
        AttachOptions { features: known & !feature::EVENT_IDX, ..default.clone() },
        AttachOptions {
            protocol_features: proto - VhostUserProtocolFeatures::REPLY_ACK,
            ..default.clone()
        },
        AttachOptions {
            protocol_features: VhostUserProtocolFeatures::CONFIG,
            queues: Some(vec![4, 2]),
            queue_size: 4,
            ..default.clone()
        },
        AttachOptions {
            features: known & !VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            ..default
        },
    ];
    for (turn, options) in variants.into_iter().enumerate() {
        let ram = ram();
        let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
        assert_eq!(guest.reporting_queue(), Some(REPORTING));
        ram.write_pattern(range(8 * MIB, 8 * MIB), 1).unwrap();
        let before = ram.resident_bytes().unwrap();
        let buffers = [report(10 * MIB, 1 << 20), report(9 * MIB, 1 << 20)];
        let used = guest.submit_and_wait(REPORTING, &buffers).unwrap();
        assert_eq!(used.len, 0);
        assert_eq!(before - ram.resident_bytes().unwrap(), 2 * MIB, "variant {turn}");
        assert!(ram.is_zero(range(9 * MIB, 2 * MIB)).unwrap());
        ram.verify_pattern(range(8 * MIB, MIB), 1).unwrap();
        ram.verify_pattern(range(11 * MIB, 5 * MIB), 1).unwrap();
    }
}

#[test]
fn hostile_chains_lose_nothing_that_was_not_reported() {
    let daemon = start();
    let known = AttachOptions::KNOWN_FEATURES;
    for features in [known, known & !feature::EVENT_IDX] {
        let options = AttachOptions { features, ..AttachOptions::default() };
        let mut guest = Attachment::connect(&daemon.socket(), &ram(), options).unwrap();
        let mut generation = 0;
        for case in hostile::catalogue() {
            generation += 1;
            hostile::play(case, &mut guest, REPORTING, generation, TIMEOUT)
                .unwrap_or_else(|error| panic!("{error:#}\n{}", daemon.log()));
        }
    }
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let daemon = start();
    let mut guest =
        Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
    for _ in 0..3 {
        guest.submit_and_wait(REPORTING, &[report(8 * MIB, 4096)]).unwrap();
    }
    let bases = guest.stop().unwrap();
    assert_eq!(bases, [(0, 0), (1, 0), (REPORTING, 3)]);
    // What is published while the queue is stopped waits until it is started again.
    guest.ring(REPORTING).unwrap().add_chain(&[report(8 * MIB, 4096)]).unwrap();
    guest.publish(REPORTING).unwrap();
    for (queue, base) in bases {
        guest.start_queue(queue, base).unwrap();
    }
    assert!(guest.wait_used(REPORTING, TIMEOUT).unwrap().is_some());
    guest.submit_and_wait(REPORTING, &[report(8 * MIB, 4096)]).unwrap();
}

#[test]
fn a_driver_goes_on_with_a_backend_that_was_restarted() {
    let mut daemon = start();
    let ram = ram();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    guest.submit_and_wait(REPORTING, &[report(8 * MIB, 4096)]).unwrap();
    daemon.kill().unwrap();
    ram.write_pattern(range(9 * MIB, MIB), 1).unwrap();
    let head = guest.ring(REPORTING).unwrap().add_chain(&[report(9 * MIB, 1 << 20)]).unwrap();
    guest.publish(REPORTING).unwrap();
    assert!(guest.get_config().is_err());

    let again = start();
    let mut guest = guest.reconnect(&again.socket()).unwrap();
    let used = guest.wait_used(REPORTING, TIMEOUT).unwrap().unwrap();
    assert_eq!((used.id, used.len), (head, 0));
    assert!(ram.is_zero(range(9 * MIB, MIB)).unwrap());
}

#[test]
fn memory_comes_and_goes() {
    let daemon = start();
    let ram = ram();
    let options = AttachOptions { regions: Some(vec![0]), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    let second = range(16 * MIB, MIB);
    let report_second = |guest: &mut Attachment| {
        ram.write_pattern(second, 1).unwrap();
        guest.submit_and_wait(REPORTING, &[report(16 * MIB, 1 << 20)]).unwrap();
        ram.is_zero(second).unwrap()
    };
    assert!(!report_second(&mut guest), "a region that was not announced");
    guest.add_region(1).unwrap();
    assert!(report_second(&mut guest));
    guest.remove_region(1).unwrap();
    assert!(!report_second(&mut guest), "a region that was taken back");
    guest.set_mem_table(&[0, 1]).unwrap();
    assert!(report_second(&mut guest));
    assert!(guest.remove_region(2).is_err(), "a region that is not there");
}

#[test]
fn a_poisoned_guest_keeps_its_pages() {
    let daemon = start();
    let ram = ram();
    let options = AttachOptions { poison: Some(0xaaaa_aaaa), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    assert_ne!(guest.features() & balloon::feature::PAGE_POISON, 0);
    assert_eq!(guest.get_config().unwrap().poison_val, 0xaaaa_aaaa);
    ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
    guest.submit_and_wait(REPORTING, &[report(8 * MIB, 1 << 20)]).unwrap();
    ram.verify_pattern(range(8 * MIB, MIB), 1).unwrap();
    guest.set_poison(0).unwrap();
    guest.submit_and_wait(REPORTING, &[report(8 * MIB, 1 << 20)]).unwrap();
    assert!(ram.is_zero(range(8 * MIB, MIB)).unwrap());
}

/// What the daemon counted once the frontend has hung up.
fn summary(daemon: &DaemonProcess, guest: Attachment) -> Summary {
    drop(guest);
    daemon.session_summary(TIMEOUT).unwrap()
}

#[test]
fn adjacent_ranges_in_any_order_take_one_call() {
    let adjacent: Vec<Buffer> = (0..32).map(|i| report(8 * MIB + i * 8192, 8192)).collect();
    let descending = adjacent.iter().rev().copied().collect();
    let mut shuffled = adjacent.clone();
    for i in 0..32 {
        shuffled.swap(i, (i * 7 + 3) % 32);
    }
    for buffers in [adjacent, descending, shuffled] {
        for indirect in [false, true] {
            let daemon = start();
            let ram = ram();
            let mut guest =
                Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
            ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
            if indirect {
                let table = guest.scratch().start();
                guest.ring(REPORTING).unwrap().add_indirect(table, &buffers).unwrap();
                guest.publish(REPORTING).unwrap();
                assert_eq!(guest.wait_used(REPORTING, TIMEOUT).unwrap().unwrap().len, 0);
            } else {
                guest.submit_and_wait(REPORTING, &buffers).unwrap();
            }
            assert!(ram.is_zero(range(8 * MIB, 32 * 8192)).unwrap());
            ram.verify_pattern(range(8 * MIB + 32 * 8192, MIB - 32 * 8192), 1).unwrap();
            let summary = summary(&daemon, guest);
            assert_eq!((summary.chains, summary.ranges, summary.discard_calls), (1, 32, 1));
            assert_eq!(summary.bytes_discarded, 32 * 8192);
        }
    }
}

/// Linux counts only the queues that were negotiated, the specification counts all.
#[test]
fn reports_on_each_permitted_queue_are_discarded() {
    let daemon = start();
    for queue in [2, 3, 4] {
        let ram = ram();
        let options = AttachOptions { queues: Some(vec![0, 1, queue]), ..AttachOptions::default() };
        let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
        ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
        guest.submit_and_wait(queue, &[report(8 * MIB, 1 << 20)]).unwrap();
        assert!(ram.is_zero(range(8 * MIB, MIB)).unwrap(), "queue {queue}");
    }
}

#[test]
fn deflated_pages_and_invalid_lists_discard_nothing() {
    let daemon = start();
    let ram = ram();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
    let list = Buffer::readable(Gpa(8 * MIB), 1024);
    for (queue, buffer) in [(0, report(8 * MIB, 4096)), (1, report(8 * MIB, 4096)), (1, list)] {
        assert_eq!(guest.submit_and_wait(queue, &[buffer]).unwrap().len, 0);
    }
    ram.verify_pattern(range(8 * MIB, MIB), 1).unwrap();
    assert_eq!(summary(&daemon, guest).chains, 0);
}

#[test]
fn a_guest_that_did_not_ack_reporting_keeps_its_pages() {
    let daemon = start();
    let ram = ram();
    let features = AttachOptions::KNOWN_FEATURES & !balloon::feature::REPORTING;
    let options =
        AttachOptions { features, queues: Some(vec![0, 1, 2]), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
    guest.submit_and_wait(2, &[report(8 * MIB, 1 << 20)]).unwrap();
    ram.verify_pattern(range(8 * MIB, MIB), 1).unwrap();
    let said = daemon.wait_for_log("is not among the acked features", TIMEOUT).unwrap();
    assert!(said, "{}", daemon.log());
    assert_eq!(summary(&daemon, guest).skipped_bytes["not_negotiated"], MIB);
}

/// Every byte that a guest names is either given back or counted under the reason why not.
#[test]
fn what_is_skipped_is_counted_by_its_reason() {
    let daemon = start();
    let ram = ram();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    ram.write_pattern(range(8 * MIB, MIB), 1).unwrap();
    let buffers = [
        report(8 * MIB + 100, 8192),
        report(8 * MIB, 0),
        report(1 << 50, 4096),
        report(u64::MAX - 10, 4096),
        Buffer::readable(Gpa(8 * MIB), 512),
        report(8 * MIB + 100, 64),
    ];
    guest.submit_and_wait(REPORTING, &buffers).unwrap();
    assert!(ram.is_zero(range(8 * MIB + 4096, 4096)).unwrap());
    ram.verify_pattern(range(8 * MIB, 4096), 1).unwrap();
    let summary = summary(&daemon, guest);
    let skipped: Vec<_> = summary.skipped_bytes.iter().map(|(n, b)| (n.as_str(), *b)).collect();
    assert_eq!(summary.bytes_discarded, 4096);
    assert_eq!(
        skipped,
        [
            ("empty", 0),
            ("not_writable", 512),
            ("outside_memory", 4096),
            ("overlap", 64),
            ("unaligned", 4096),
            ("wraps", 4096),
        ]
    );
}

#[test]
fn config_write_changes_only_driver_fields() {
    let daemon = start();
    let mut guest =
        Attachment::connect(&daemon.socket(), &ram(), AttachOptions::default()).unwrap();
    for (offset, len) in [(0, 16), (0, 1), (4, 4), (15, 1), (12, 20), (200, 56), (0, 256)] {
        assert_eq!(guest.read_config(offset, len).unwrap().len(), len as usize);
    }
    guest.use_balloon().unwrap();
    guest.write_config(0, &[0xff; 16]).unwrap();
    let config = guest.get_config().unwrap();
    assert_eq!((config.num_pages, config.free_page_hint_cmd_id), (0, 0));
    assert_eq!((config.actual, config.poison_val), (u32::MAX, u32::MAX));
    guest.write_config(250, &[1; 6]).unwrap();
    guest.submit_and_wait(REPORTING, &[report(8 * MIB, 4096)]).unwrap();
}

/// A signal in the middle of the work: discards of 4 KiB pages in one long chain after the other.
#[test]
fn ends_in_the_middle_of_work() {
    let mut daemon = start();
    let size = 2 << 30;
    let ram = Ram::new(&RamLayout::flat(size, Backing::Memfd)).unwrap();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    let all = range(64 * MIB, size - 64 * MIB);
    ram.populate(all).unwrap();
    let half = u32::try_from(all.len() / 2).unwrap();
    let halves = [report(64 * MIB, half), report(64 * MIB + u64::from(half), half)];
    guest.ring(REPORTING).unwrap().add_chain(&halves).unwrap();
    guest.publish(REPORTING).unwrap();
    let resident = ram.resident_bytes().unwrap();
    wait_until(TIMEOUT, Duration::from_micros(100), || {
        let now = ram.resident_bytes().map_err(|error| error.to_string())?;
        if now < resident { Ok(()) } else { Err("nothing discarded yet".to_owned()) }
    })
    .unwrap();
    let ended = daemon.terminate(TIMEOUT).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists());
}

#[test]
fn a_hundred_frontends_leave_nothing_behind() {
    let daemon = start();
    let ram = ram();
    let held = || (daemon.fd_count().unwrap(), daemon.threads().unwrap().len());
    let fresh = held();
    // Mappings are counted while one is connected. Some are the allocator's, a heap for each thread,
    // which it keeps for the next.
    let mut mapped = Vec::new();
    for _ in 0..100 {
        let mut guest =
            Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
        guest.submit_and_wait(REPORTING, &[report(8 * MIB, 4096)]).unwrap();
        mapped.push(daemon.mapping_count().unwrap());
    }
    // Where the kernel puts a mapping it may join it to its neighbour or not: what is left behind
    // each time is ten times as many.
    assert!(mapped[99] < mapped[9] + 9, "{mapped:?}");
    // A thread that was waited for may be seen for a moment still.
    wait_until(TIMEOUT, Duration::from_millis(1), || match held() {
        now if now == fresh => Ok(()),
        now => Err(format!("(descriptors, threads) {now:?} instead of {fresh:?}")),
    })
    .unwrap();
}
