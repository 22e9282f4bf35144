// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a queue carries follows the features that hold when each of its chains is served.

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::Gpa;
use guest_driver::virtio::balloon::feature::STATS_VQ;
use guest_driver::virtio::ring::Buffer;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// Statistics where they were negotiated, else reports.
const QUEUE: u16 = 2;

/// The worker may be between two chains while a frontend stops a queue, negotiates again and starts
/// it again: then it took reports for statistics, and kept them.
#[test]
fn queue_renegotiated_under_the_worker_changes_role() {
    let args = vec!["--statistics".into()];
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
    let ram = Ram::new(&RamLayout::flat(64 * MIB, Backing::Memfd)).unwrap();
    let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    let with_statistics = guest.features();
    assert!(with_statistics & STATS_VQ != 0);
    let scratch = guest.scratch().start();
    for _ in 0..100 {
        let ring = guest.ring(QUEUE).unwrap();
        for _ in 0..100 {
            ring.add_chain(&[Buffer::readable(scratch, 10)]).unwrap();
        }
        guest.publish(QUEUE).unwrap();
        guest.stop_queue(QUEUE).unwrap();
        guest.set_features(with_statistics & !STATS_VQ).unwrap();
        guest.reset_ring(QUEUE).unwrap();
        guest.start_queue(QUEUE, 0).unwrap();
        // Not kept by anything: it comes back.
        guest.submit_and_wait(QUEUE, &[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
        guest.stop_queue(QUEUE).unwrap();
        guest.set_features(with_statistics).unwrap();
        guest.reset_ring(QUEUE).unwrap();
        guest.start_queue(QUEUE, 0).unwrap();
    }
}
