// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! No message of the frontend waits for a whole chain.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::{Duration, Instant};

use guest_driver::ram::{Gpa, GpaRange};
use guest_driver::virtio::ring::Buffer;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::frontend::{AttachOptions, Attachment, ControlMessage};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const REPORTING: u16 = 2;
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Rings and what else the guest keeps; the chain names the rest.
const KEPT: u64 = 16 * MIB;
const SIZE: u64 = 1024 * MIB;
/// The region that comes and goes.
const SPARE: usize = 1;

/// What is left of the memory that a chain names when `message` was sent while it was served, and
/// how long the message took.
fn cut_short(guest: &mut Attachment, message: ControlMessage) -> (u64, Duration) {
    let ram = guest.ram().clone();
    message.prepare(guest, SPARE).unwrap();
    let named = GpaRange::new(Gpa(KEPT), SIZE - KEPT).unwrap();
    ram.populate(named).unwrap();
    let full = ram.resident_bytes().unwrap();
    let chain = Buffer::writable(Gpa(KEPT), u32::try_from(SIZE - KEPT).unwrap());
    guest.ring(REPORTING).unwrap().add_chain(&[chain]).unwrap();
    guest.publish(REPORTING).unwrap();
    wait_until(SOON, Duration::from_micros(100), || {
        let resident = ram.resident_bytes().map_err(|error| error.to_string())?;
        if resident < full { Ok(()) } else { Err("the worker has not begun".to_owned()) }
    })
    .unwrap();
    let sent = Instant::now();
    message.send(guest, REPORTING, SPARE).unwrap();
    let took = sent.elapsed();
    wait_until(SOON, LOOK_EVERY, || {
        let used = guest.ring(REPORTING).unwrap().pop_used().unwrap();
        used.ok_or_else(|| "the chain did not come back".to_owned())
    })
    .unwrap();
    let left = ram.resident_bytes().unwrap().saturating_sub(KEPT);
    message.undo(guest, REPORTING, SPARE).unwrap();
    (left, took)
}

/// Each waits for one discarding call: the rest of the chain is skipped, and stays. Where this
/// thread is put off for as long as the chain takes it tries again.
#[test]
fn every_message_cuts_a_chain_short() {
    let daemon = DaemonProcess::spawn(Path::new(BINARY), &DaemonOptions::default()).unwrap();
    let mut layout = RamLayout::flat(SIZE, Backing::Memfd);
    let file = layout.file(Backing::Memfd);
    let layout = layout.region(Gpa(4 * SIZE), 2 * MIB, file, 0);
    let ram = Ram::new(&layout).unwrap();
    let options =
        AttachOptions { timeout: SOON, regions: Some(vec![0]), ..AttachOptions::default() };
    let mut guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
    for message in ControlMessage::ALL {
        let cut = (0..10).any(|_| {
            let (left, took) = cut_short(&mut guest, message);
            println!("{message:?}: answered after {took:?}, {} MiB left", left / MIB);
            left > 32 * MIB
        });
        assert!(cut, "{message:?} waits for the whole chain");
    }
    drop(guest);
    let summary = daemon.session_summary(SOON).unwrap();
    assert!(summary.skipped_bytes["yielded"] > 0);
}
