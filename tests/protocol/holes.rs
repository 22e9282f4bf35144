// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that is only looked at: pages that the guest never touched stay holes, and the
//! daemon pays nothing for them.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::Gpa;
use guest_driver::virtio::balloon::BalloonQueue;
use guest_driver::virtio::layout::Descriptor;
use guest_driver::virtio::ring::Buffer;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::cgroup::MemoryLimit;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
const CHAINS: u64 = 16;
const LISTS: u64 = 1000;
const TIMEOUT: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

fn attach(daemon: &DaemonProcess, ram: &Ram) -> Attachment {
    // Page frame number 0 stands in every list.
    let options = AttachOptions {
        ring_area: Some(Gpa(MIB)),
        queue_size: 1024,
        timeout: TIMEOUT,
        ..AttachOptions::default()
    };
    Attachment::connect(&daemon.socket(), ram, options).unwrap()
}

fn start() -> DaemonProcess {
    let args = ["--statistics", "--free-page-hints"].map(Into::into).into();
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    DaemonProcess::spawn(Path::new(BINARY), &options).unwrap()
}

/// Offers buffers in pages that nothing has touched, one in each, on every queue that is read, and
/// indirect tables in such pages.
fn look_everywhere(guest: &mut Attachment) {
    let mut at = 2 * MIB;
    for _ in 0..CHAINS {
        for queue in [BalloonQueue::Inflate, BalloonQueue::Deflate, BalloonQueue::FreePage] {
            let lists: Vec<Buffer> =
                (0..LISTS).map(|i| Buffer::readable(Gpa(at + i * PAGE), 4)).collect();
            let index = guest.index(queue).unwrap();
            guest.submit_and_wait(index, &lists).unwrap();
        }
        at += LISTS * PAGE;
    }
    let statistics = guest.index(BalloonQueue::Stats).unwrap();
    let buffers: Vec<Buffer> = (0..200).map(|i| Buffer::readable(Gpa(at + i * PAGE), 10)).collect();
    // The first is kept until the second comes.
    for _ in 0..2 {
        guest.ring(statistics).unwrap().add_chain(&buffers).unwrap();
        guest.publish(statistics).unwrap();
    }
    assert!(guest.wait_used(statistics, TIMEOUT).unwrap().is_some());
    let reporting = guest.reporting_queue().unwrap();
    for i in 200..400 {
        let ring = guest.ring(reporting).unwrap();
        let head = ring.claim(1).unwrap()[0];
        let table = Descriptor::indirect(Gpa(at + i * PAGE), 512);
        ring.write_descriptor(head, table).unwrap();
        ring.offer(head).unwrap();
        guest.publish(reporting).unwrap();
        assert!(guest.wait_used(reporting, TIMEOUT).unwrap().is_some());
    }
}

#[test]
fn looking_at_untouched_pages_leaves_them_holes() {
    let ram = Ram::new(&RamLayout::flat(128 * MIB, Backing::Memfd)).unwrap();
    let daemon = start();
    let mut guest = attach(&daemon, &ram);
    let before = ram.resident_bytes().unwrap();
    look_everywhere(&mut guest);
    let more = ram.resident_bytes().unwrap() - before;
    // The rings themselves.
    assert!(more <= guest.reserved().len(), "{more} bytes more");
}

#[test]
#[ignore = "needs a memory limit: cargo xtask test"]
fn looking_at_untouched_pages_fits_a_memory_limit() {
    let limit = MemoryLimit::new(64 * MIB).unwrap();
    let ram = Ram::new(&RamLayout::flat(128 * MIB, Backing::Memfd)).unwrap();
    let mut daemon = start();
    limit.add(daemon.pid()).unwrap();
    let mut guest = attach(&daemon, &ram);
    look_everywhere(&mut guest);
    drop(guest);
    daemon.session_summary(TIMEOUT).unwrap();
    daemon.terminate(TIMEOUT).unwrap();
}
