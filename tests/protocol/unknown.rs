// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a daemon does not know of a driver it does not make up, and what lasts it says once.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::{BalloonConfig, BalloonQueue};
use guest_driver::virtio::ring::Buffer;
use rustix::fs::{SealFlags, fcntl_add_seals};
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const NOT_TOLD: &str = "has not told this daemon with what";

struct Device {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl Device {
    fn start() -> Self {
        let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), ["--statistics"]).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), SOON);
        Self { daemon, control }
    }

    /// A driver that writes nothing by itself, here or when it comes to another daemon.
    fn attach(&self) -> Attachment {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let options = AttachOptions { poison: None, ..AttachOptions::default() };
        Attachment::connect(&self.daemon.socket(), &ram, options).unwrap()
    }

    /// A daemon in the place of this one, under the same driver.
    fn replaced(self, guest: Attachment) -> (Self, Attachment) {
        drop(self);
        let device = Self::start();
        let guest = guest.reconnect(&device.daemon.socket()).unwrap();
        (device, guest)
    }

    fn actual(&self) -> Value {
        self.control.get("/v1/status").unwrap()["actual_bytes"].clone()
    }

    fn until_actual(&self, expected: impl Into<Value>) {
        let expected = expected.into();
        wait_until(SOON, Duration::from_millis(1), || match self.actual() {
            found if found == expected => Ok(()),
            found => Err(format!("{found}, expected {expected}")),
        })
        .unwrap();
    }

    fn ctl(&self, command: &str) -> String {
        let socket = self.daemon.control_socket();
        let mut ctl = Command::new(BINARY);
        let output = ctl.args(["ctl", "--control-socket"]).arg(socket).arg(command).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }

    /// How many lines of the log hold `text`.
    fn said(&self, text: &str) -> usize {
        self.daemon.log().lines().filter(|line| line.contains(text)).count()
    }
}

/// Whether a mebibyte that is reported is given back.
fn given_back(guest: &mut Attachment) -> bool {
    guest.given_back(GpaRange::new(Gpa(8 * MIB), MIB).unwrap()).unwrap()
}

/// Makes the indices of a queue's ring read 0, as after 65536 chains.
fn come_round(guest: &mut Attachment, queue: u16) {
    let layout = *guest.ring(queue).unwrap().layout();
    for ring in [layout.avail(), layout.used()] {
        guest.ram().write(Gpa(ring.0 + 2), &[0; 2]).unwrap();
    }
}

/// Its used index is 0, as that of a driver that begins, or of one that has sent 65536 reports.
#[test]
fn a_poison_told_before_the_first_report_is_unknown() {
    let first = Device::start();
    let mut guest = first.attach();
    guest.write_config(12, &[0xaa; 4]).unwrap();
    let (_device, mut guest) = first.replaced(guest);
    assert!(!given_back(&mut guest), "a page that has to read 0xaa reads as zeros");
}

/// QEMU sends the whole space with what it has read. A driver that probes does so before its
/// features arrive; one that goes on has acked them when it writes `actual`.
#[test]
fn zeros_over_whole_config_set_only_probe_fields() {
    let first = Device::start();
    let mut guest = first.attach();
    guest.write_config(12, &[0xaa; 4]).unwrap();
    let (_device, mut guest) = first.replaced(guest);
    let read = guest.get_config().unwrap();
    guest.write_config(0, &read.to_bytes()).unwrap();
    assert!(!given_back(&mut guest));
    // The driver is loaded again, in a guest that clears what it frees.
    let queues = guest.stop().unwrap();
    guest.write_config(0, &read.to_bytes()).unwrap();
    guest.set_features(guest.features()).unwrap();
    for (queue, base) in queues {
        guest.start_queue(queue, base).unwrap();
        guest.enable_queue(queue, true).unwrap();
    }
    assert!(given_back(&mut guest));
}

#[test]
fn actual_after_daemon_replacement_is_unknown() {
    let first = Device::start();
    let mut guest = first.attach();
    // A driver that begins has nothing in its balloon.
    first.until_actual(0);
    guest.use_balloon().unwrap();
    guest.write_config(4, &256_u32.to_le_bytes()).unwrap();
    assert_eq!(first.actual(), MIB);

    let (device, mut guest) = first.replaced(guest);
    guest.use_balloon().unwrap();
    assert_eq!(device.actual(), Value::Null);
    let shown = device.ctl("status");
    let line = shown.lines().find(|line| line.starts_with("in the balloon")).unwrap();
    assert!(line.ends_with(" unknown"), "{shown}");
    assert!(!device.ctl("metrics").contains("balloon_actual_bytes"));
    // As QEMU passes another field on: this one it has only read.
    let read = guest.get_config().unwrap();
    guest.write_config(0, &read.to_bytes()).unwrap();
    assert_eq!(device.actual(), Value::Null);
    guest.write_config(0, &BalloonConfig { actual: 200, ..read }.to_bytes()).unwrap();
    assert_eq!(device.actual(), 200 * 4096);
    assert!(device.ctl("metrics").contains("balloon_actual_bytes 819200\n"));
}

#[test]
fn actual_is_unknown_where_an_index_came_round() {
    let first = Device::start();
    let mut guest = first.attach();
    guest.use_balloon().unwrap();
    guest.write_config(4, &256_u32.to_le_bytes()).unwrap();
    let inflate = guest.index(BalloonQueue::Inflate).unwrap();
    come_round(&mut guest, inflate);
    let (device, mut guest) = first.replaced(guest);
    // Its queues have been looked at once one of them has served a chain, if the worker is one.
    given_back(&mut guest);
    guest.enable_queue(inflate, true).unwrap();
    given_back(&mut guest);
    assert_eq!(device.actual(), Value::Null);
}

#[test]
fn a_lasting_state_is_said_once_and_once_when_it_ends() {
    let device = Device::start();
    let mut guest = device.attach();
    for _ in 0..30 {
        assert!(!given_back(&mut guest));
    }
    assert!(device.daemon.wait_for_log(NOT_TOLD, SOON).unwrap());
    guest.write_config(12, &[0; 4]).unwrap();
    for _ in 0..30 {
        assert!(given_back(&mut guest));
    }
    let over = "does not keep reported pages any more";
    assert!(device.daemon.wait_for_log(over, SOON).unwrap(), "{}", device.daemon.log());
    assert_eq!((device.said(NOT_TOLD), device.said(over)), (1, 1), "{}", device.daemon.log());
    assert_eq!(device.said("left out"), 0);
}

#[test]
fn a_flood_of_one_kind_does_not_hide_another() {
    let device = Device::start();
    let mut guest = device.attach();
    let reporting = guest.reporting_queue().unwrap();
    let at = guest.scratch().start();
    for _ in 0..100 {
        guest.submit_and_wait(reporting, &[Buffer::readable(at, 4096)]).unwrap();
    }
    let flood = ": NotWritable, skipped";
    assert!(device.daemon.wait_for_log(flood, SOON).unwrap());
    // Of another kind on the same queue, and on another queue.
    guest.submit_and_wait(reporting, &[Buffer::writable(Gpa(u64::MAX), 4096)]).unwrap();
    assert!(device.daemon.wait_for_log(": Wraps, skipped", SOON).unwrap());
    let inflate = guest.index(BalloonQueue::Inflate).unwrap();
    guest.submit_and_wait(inflate, &[Buffer::readable(at, 5000 * 4)]).unwrap();
    let told = "a chain names more than 4096 pages of the balloon";
    assert!(device.daemon.wait_for_log(told, SOON).unwrap(), "{}", device.daemon.log());
    assert!(device.said(flood) <= 20, "{}", device.daemon.log());
}

/// A call that fails is the host's business, and rare; what is not memory a guest names as often as
/// it likes.
#[test]
fn flood_outside_memory_does_not_hide_a_failed_call() {
    let device = Device::start();
    let mut guest = device.attach();
    guest.write_config(12, &[0; 4]).unwrap();
    let reporting = guest.reporting_queue().unwrap();
    for _ in 0..100 {
        guest.submit_and_wait(reporting, &[Buffer::writable(Gpa(1 << 50), 4096)]).unwrap();
    }
    assert!(device.daemon.wait_for_log("which is not memory", SOON).unwrap());
    // It has three regions in two files.
    for file in 0..2 {
        fcntl_add_seals(guest.ram().file(file), SealFlags::FUTURE_WRITE).unwrap();
    }
    assert!(!given_back(&mut guest));
    assert!(device.daemon.wait_for_log("cannot discard", SOON).unwrap(), "{}", device.daemon.log());
}
