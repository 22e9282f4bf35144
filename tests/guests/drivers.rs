// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon may believe of a driver when frontends come and go: one that was there before the
//! daemon, one that goes on after its frontend was away, one that begins.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::{BalloonConfig, BalloonQueue};
use guest_driver::virtio::ring::Buffer;
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(1);

struct Device {
    daemon: DaemonProcess,
    control: ControlSocket,
}

fn start() -> Device {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, ["--statistics"]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), SOON);
    Device { daemon, control }
}

fn ram() -> Ram {
    Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap()
}

impl Device {
    fn attach(&self, options: AttachOptions) -> Attachment {
        Attachment::connect(&self.daemon.socket(), &ram(), options).unwrap()
    }

    fn get(&self, path: &str, pointer: &str) -> Value {
        self.control.get(path).unwrap().pointer(pointer).cloned().unwrap_or_default()
    }

    fn actual(&self) -> Value {
        self.get("/v1/status", "/actual_bytes")
    }

    fn told_free(&self) -> Value {
        self.get("/v1/statistics", "/sample/values/free_bytes")
    }

    /// Waits until what `look` finds is `expected`: the queue's thread is as fast as it is.
    fn until(&self, look: impl Fn(&Self) -> Value, expected: impl Into<Value>) {
        let expected = expected.into();
        wait_until(SOON, LOOK_EVERY, || match look(self) {
            found if found == expected => Ok(()),
            found => Err(format!("{found}, expected {expected}")),
        })
        .unwrap();
    }
}

/// Whether a mebibyte that is reported is given back.
fn given_back(guest: &mut Attachment) -> bool {
    guest.given_back(GpaRange::new(Gpa(8 * MIB), MIB).unwrap()).unwrap()
}

/// A daemon that was killed took with it what the driver had told it, and the driver does not say it
/// again. The pages may have to keep their contents.
#[test]
fn poison_unknown_to_a_new_daemon_keeps_the_pages() {
    let first = start();
    let mut guest = first.attach(AttachOptions { poison: None, ..AttachOptions::default() });
    guest.write_config(12, &[0; 4]).unwrap();
    assert!(given_back(&mut guest));
    drop(first);
    let device = start();
    let mut guest = guest.reconnect(&device.daemon.socket()).unwrap();
    assert!(!given_back(&mut guest));
    // QEMU sends the whole space as it has read it, whichever field the guest has written.
    let read = guest.get_config().unwrap();
    guest.write_config(0, &BalloonConfig { actual: 3, ..read }.to_bytes()).unwrap();
    assert!(!given_back(&mut guest));
    let skipped = |device: &Device| device.get("/v1/counters", "/skipped_bytes/poison_not_told");
    assert_eq!(skipped(&device), 2 * MIB);
    let said = device.daemon.wait_for_log("has not told this daemon", SOON).unwrap();
    assert!(said, "{}", device.daemon.log());
    // The driver is loaded again, in a guest that clears what it frees.
    guest.write_config(12, &[0; 4]).unwrap();
    assert!(given_back(&mut guest));
    assert_eq!(skipped(&device), 2 * MIB);
}

/// Tells how much memory is free, and leaves the buffer with the device.
fn tell_free(guest: &mut Attachment, bytes: u64) {
    let statistic = [&4_u16.to_le_bytes()[..], &bytes.to_le_bytes()].concat();
    let at = Gpa(guest.scratch().start().0 + 64);
    guest.ram().write(at, &statistic).unwrap();
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    guest.ring(queue).unwrap().add_chain(&[Buffer::readable(at, 10)]).unwrap();
    guest.publish(queue).unwrap();
}

/// Neither a new VM nor QEMU's way to reboot a guest comes with a message that says so: the queues
/// of a driver that begins do.
#[test]
fn new_driver_inherits_no_state_from_the_last_one() {
    let device = start();
    let mut guest = device.attach(AttachOptions::default());
    guest.use_balloon().unwrap();
    guest.write_config(4, &256_u32.to_le_bytes()).unwrap();
    tell_free(&mut guest, 77);
    device.until(Device::told_free, 77);
    // Asked again, so that a buffer was returned.
    device.control.done("POST", "/v1/statistics/refresh", "").unwrap();
    let statistics = guest.index(BalloonQueue::Stats).unwrap();
    assert!(guest.wait_used(statistics, SOON).unwrap().is_some());
    tell_free(&mut guest, 78);
    device.until(Device::told_free, 78);

    // The same driver over another connection, and after a pause of its VM.
    let mut guest = guest.reconnect(&device.daemon.socket()).unwrap();
    let queues = guest.stop().unwrap();
    for (queue, base) in &queues {
        guest.start_queue(*queue, *base).unwrap();
        guest.enable_queue(*queue, true).unwrap();
    }
    guest.use_balloon().unwrap();
    assert_eq!(device.actual(), MIB);
    assert_eq!(device.told_free(), 78);

    // A guest that reboots.
    guest.stop().unwrap();
    for (queue, _) in queues {
        guest.reset_ring(queue).unwrap();
        guest.start_queue(queue, 0).unwrap();
        guest.enable_queue(queue, true).unwrap();
    }
    device.until(Device::actual, 0);
    device.until(Device::told_free, Value::Null);

    // What the new driver says holds, also for the next VM until its driver is there.
    guest.use_balloon().unwrap();
    guest.write_config(4, &256_u32.to_le_bytes()).unwrap();
    tell_free(&mut guest, 79);
    device.until(Device::told_free, 79);
    drop(guest);
    device.daemon.session_summary(SOON).unwrap();
    // Nor does it look as if there were a driver.
    device.until(Device::actual, Value::Null);
    device.until(Device::told_free, Value::Null);
    let _guest = device.attach(AttachOptions::default());
    device.until(Device::actual, 0);
    device.until(Device::told_free, Value::Null);
}
