// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that reports the pages of its own rings.

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const REPORTS: u64 = 10;
const TIMEOUT: Duration = Duration::from_secs(20);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

/// The guest's memory is twice as large as the file system that holds it, which is full; the guest
/// sees the rings at two addresses.
#[test]
#[ignore = "needs root: cargo xtask test"]
fn guest_reporting_its_rings_on_full_tmpfs_is_served() {
    let mut layout = RamLayout::default();
    let file = layout.file(Backing::LimitedTmpfs { limit_bytes: 16 * MIB });
    let layout = layout.region(Gpa(0), 32 * MIB, file, 0).region(Gpa(4 * GIB), MIB, file, 0);
    let ram = Ram::new(&layout).unwrap();
    let args = ["--allow-limited-tmpfs"].map(Into::into).into();
    let options = DaemonOptions { args, ..DaemonOptions::default() };
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &options).unwrap();
    let options = AttachOptions { timeout: TIMEOUT, ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    let queue = guest.reporting_queue().unwrap();
    // What the other queues' rings need as well.
    ram.populate(GpaRange::new(Gpa(0), MIB).unwrap()).unwrap();
    assert!(ram.populate(GpaRange::new(Gpa(MIB), 31 * MIB).unwrap()).is_err(), "it is full");
    let rings = GpaRange::between(Gpa(0), guest.scratch().start());
    for turn in 0..REPORTS {
        let alias = Gpa(rings.start().0 + 4 * GIB * (turn % 2));
        let report = Buffer::writable(alias, u32::try_from(rings.len()).unwrap());
        guest.submit_and_wait(queue, &[report]).unwrap();
        // Takes what was given back, if anything was.
        let _ = ram.populate(GpaRange::new(Gpa(16 * MIB), 16 * MIB).unwrap());
    }
    let normal = GpaRange::new(Gpa(2 * MIB), MIB).unwrap();
    assert!(guest.given_back(normal).unwrap());
    drop(guest);
    let summary = daemon.session_summary(TIMEOUT).unwrap();
    assert_eq!(summary.bytes_discarded, MIB);
    assert_eq!(summary.skipped_bytes["ring"], REPORTS * rings.len());
}
