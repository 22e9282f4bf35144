// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether a driver is up, as the status, the log, the exit status of `ctl` and the metrics have it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange, GuestRam};
use guest_driver::virtio::balloon::{BalloonQueue, feature};
use guest_driver::virtio::ring::Buffer;
use serde_json::{Value, json};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(120);

struct Device {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl Device {
    fn start(args: &[&str]) -> Self {
        let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        Self { daemon, control }
    }

    fn attach(&self, options: AttachOptions) -> Attachment {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        Attachment::connect(&self.daemon.socket(), &ram, options).unwrap()
    }

    fn status(&self) -> Value {
        self.control.get("/v1/status").unwrap()
    }

    /// Runs `ctl`: its exit status, and what it prints on either stream.
    fn ctl(&self, args: &[&str]) -> (i32, String) {
        let socket = self.daemon.control_socket();
        let mut ctl = Command::new(BINARY);
        let output = ctl.args(["ctl", "--control-socket"]).arg(socket).args(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    /// Waits until status and metrics say this and nothing else.
    fn until(&self, state: &str, within: Duration) {
        wait_until(within, Duration::from_millis(5), || {
            let status = self.status();
            if status["driver"] == state { Ok(()) } else { Err(status.to_string()) }
        })
        .unwrap_or_else(|error| panic!("expected {state}: {error:#}\n{}", self.daemon.log()));
        let metrics = self.control.ask("GET", "/metrics", "").unwrap().body;
        let lines: Vec<_> =
            metrics.lines().filter(|line| line.starts_with("balloon_driver{")).collect();
        assert_eq!(lines, [format!("balloon_driver{{state=\"{state}\"}} 1")], "{metrics}");
    }

    /// What a queue carries, and whether it runs.
    fn queue(&self, index: u16) -> (Value, Value) {
        let queue = &self.status()["queues"][usize::from(index)];
        (queue["role"].clone(), queue["runs"].clone())
    }

    fn said(&self, text: &str) -> usize {
        self.daemon.log().lines().filter(|line| line.contains(text)).count()
    }
}

#[test]
fn a_driver_is_seen_from_connection_to_report() {
    let device = Device::start(&[]);
    device.until("no_frontend", SOON);
    let mut guest = device.attach(AttachOptions::default());
    let reporting = guest.reporting_queue().unwrap();
    device.until("no_report_yet", SOON);
    assert_eq!(device.queue(reporting), (json!("reporting"), json!(true)));
    assert_eq!(device.status()["driver_hint"], Value::Null);
    assert!(guest.given_back(GpaRange::new(Gpa(8 * MIB), MIB).unwrap()).unwrap());
    device.until("reporting", SOON);

    guest.stop().unwrap();
    device.until("stopped", SOON);
    assert_eq!(device.queue(reporting), (json!("reporting"), json!(false)));
    let (code, shown) = device.ctl(&["status"]);
    assert_eq!(code, 0);
    let line = shown.lines().find(|line| line.starts_with(&format!("queue {reporting} ")));
    assert!(line.is_some_and(|line| line.ends_with(" does not run")), "{shown}");
    assert!(shown.contains("stopped, no queue runs"), "{shown}");
    drop(guest);
    device.until("no_frontend", SOON);
}

#[test]
fn a_queue_that_was_not_negotiated_carries_nothing() {
    let device = Device::start(&["--statistics"]);
    let features = AttachOptions::KNOWN_FEATURES & !feature::REPORTING;
    let _guest = device.attach(AttachOptions { features, ..AttachOptions::default() });
    device.until("not_reporting", SOON);
    let roles: Vec<_> = (0..5).map(|index| device.queue(index)).collect();
    let expected = ["inflate", "deflate", "statistics", "none", "none"]
        .map(|role| (json!(role), json!(role != "none")));
    assert_eq!(roles, expected);
    let hint = device.status()["driver_hint"].clone();
    assert!(hint.as_str().unwrap().contains("masks the device's feature bits"), "{hint}");
}

#[test]
fn a_reporting_queue_that_was_not_set_up_is_seen() {
    let device = Device::start(&[]);
    let queues = Some(vec![0, 1]);
    let _guest = device.attach(AttachOptions { queues, ..AttachOptions::default() });
    device.until("not_reporting", SOON);
    assert!(device.status()["driver_hint"].as_str().unwrap().contains("was not set up"));
}

/// In which nothing of the first may be seen, since its own driver may have failed.
#[test]
fn a_second_session_shows_nothing_of_the_first() {
    let device = Device::start(&["--statistics"]);
    let features = AttachOptions::KNOWN_FEATURES & !feature::REPORTING;
    let mut guest = device.attach(AttachOptions { features, ..AttachOptions::default() });
    guest.write_config(4, &[1; 4]).unwrap();
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    let told = [&5_u16.to_le_bytes()[..], &MIB.to_le_bytes()].concat();
    guest.ram().write(guest.scratch().start(), &told).unwrap();
    let buffer = Buffer::readable(guest.scratch().start(), 10);
    guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    guest.publish(queue).unwrap();
    wait_until(SOON, Duration::from_millis(5), || {
        let status = device.status();
        if status["guest_total_bytes"] == MIB { Ok(()) } else { Err(status.to_string()) }
    })
    .unwrap();
    drop(guest);
    device.until("no_frontend", SOON);
    let acked = format!("features {features:#x} acked");
    let masked = "free page reporting (bit 5) is not among the acked features";
    assert_eq!(device.said(masked), 1, "{acked}: {}", device.daemon.log());

    // As QEMU connects, before a driver is there: nothing but the first messages.
    let mut stream = UnixStream::connect(device.daemon.socket()).unwrap();
    // A GET_FEATURES.
    stream.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    device.until("no_driver", SOON);
    let status = device.status();
    for field in ["acked_features", "actual_bytes", "guest_total_bytes", "memory"] {
        assert_eq!(status[field], Value::Null, "{field}: {status}");
    }
    assert_eq!(status["queues"], json!([]));
    assert!(status["driver_hint"].as_str().unwrap().contains("num_vqs=5"), "{status}");
    assert_eq!(device.control.get("/v1/statistics").unwrap()["sample"], Value::Null);
    drop(stream);
    let told = device.daemon.wait_for_log("no driver ran in this session", SOON).unwrap();
    assert!(told, "{}", device.daemon.log());

    // What is said once is said once a session.
    let guest = device.attach(AttachOptions { features, ..AttachOptions::default() });
    wait_until(SOON, Duration::from_millis(5), || match device.said(masked) {
        2 => Ok(()),
        times => Err(format!("{times} times: {}", device.daemon.log())),
    })
    .unwrap();
    drop(guest);
}

#[test]
fn what_no_driver_runs_for_is_told_from_what_was_done() {
    let device = Device::start(&["--statistics", "--free-page-hints"]);
    let kept = "takes effect when the guest driver runs";
    let (code, text) = device.ctl(&["target", "8M"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains(kept), "{text}");
    let (code, text) = device.ctl(&["--json", "target", "4M"]);
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &answer["pending"]), (4, &json!(true)), "{text}");

    let mut guest = device.attach(AttachOptions::default());
    assert_eq!(guest.get_config().unwrap().num_pages, 1024);
    let (code, text) = device.ctl(&["target", "8M"]);
    assert_eq!(code, 0, "{text}");
    assert!(!text.contains("kept"), "{text}");
    guest.stop().unwrap();
    let (code, text) = device.ctl(&["target", "4M"]);
    assert_eq!((code, text.contains(kept)), (4, true), "{text}");
    for args in [&["statistics", "--refresh"][..], &["hinting", "start"]] {
        let (code, text) = device.ctl(args);
        assert_eq!(code, 1, "{args:?}: {text}");
        assert!(text.contains("no balloon driver runs in the guest"), "{args:?}: {text}");
    }
}

/// A driver that begins has an empty balloon, whatever the one before it said.
#[test]
fn a_driver_that_probes_reads_an_empty_balloon() {
    let device = Device::start(&[]);
    let mut guest = device.attach(AttachOptions::default());
    guest.use_balloon().unwrap();
    guest.write_config(4, &256_u32.to_le_bytes()).unwrap();
    assert_eq!(guest.get_config().unwrap().actual, 256);
    // QEMU's way to reset a guest: its queues stop, and there is no other message.
    guest.stop().unwrap();
    assert_eq!(guest.get_config().unwrap().actual, 0);
}

/// Every total that Linux tells is without what is in its balloon: a target that it has reached
/// is not to be refused for that.
#[test]
fn a_target_stays_when_the_guest_tells_what_is_left() {
    let device = Device::start(&["--statistics"]);
    let mut guest = device.attach(AttachOptions::default());
    let memory: u64 = guest.ram().regions().iter().map(|region| region.range.len()).sum();
    let target = (memory / 2) & !4095;
    let body = json!({ "bytes": target }).to_string();
    device.control.done("PUT", "/v1/target", &body).unwrap();
    guest.use_balloon().unwrap();
    let pages = u32::try_from(target / 4096).unwrap();
    guest.write_config(4, &pages.to_le_bytes()).unwrap();
    let queue = guest.index(BalloonQueue::Stats).unwrap();
    let left = memory - target;
    let told = [&5_u16.to_le_bytes()[..], &left.to_le_bytes()].concat();
    guest.ram().write(guest.scratch().start(), &told).unwrap();
    let buffer = Buffer::readable(guest.scratch().start(), 10);
    guest.ring(queue).unwrap().add_chain(&[buffer]).unwrap();
    guest.publish(queue).unwrap();
    wait_until(SOON, Duration::from_millis(5), || {
        let status = device.status();
        if status["guest_total_bytes"] == left { Ok(()) } else { Err(status.to_string()) }
    })
    .unwrap();
    assert_eq!(guest.get_config().unwrap().num_pages, pages);
    assert_eq!(device.status()["target_refused"], Value::Null);
}

fn boot(device: &Device, config: GuestConfig) -> LinuxGuest {
    let toolbox = qemu::available().unwrap();
    let balloon = Balloon::VhostUser { socket: device.daemon.socket() };
    LinuxGuest::boot(&toolbox, GuestConfig { balloon, ..config }).unwrap()
}

/// Linux with one queue too few: its probe fails, and looks like nothing from here.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn a_linux_driver_that_fails_is_no_driver() {
    let device = Device::start(&["--statistics"]);
    let config = GuestConfig { num_vqs: 3, ..GuestConfig::default() };
    let guest = boot(&device, config);
    device.until("no_driver", PATIENCE);
    // The module stays even where the device's probe fails.
    let _ = guest.load_balloon_driver("");
    device.until("no_driver", PATIENCE);
    let (code, text) = device.ctl(&["target", "64M"]);
    assert_eq!(code, 4, "{text}");
    drop(guest);
    assert!(device.daemon.wait_for_log("no driver ran in this session", PATIENCE).unwrap());
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn a_linux_driver_is_seen_to_come_report_and_go() {
    let device = Device::start(&["--statistics"]);
    let guest = boot(&device, GuestConfig::default());
    device.until("no_driver", PATIENCE);
    guest.load_balloon_driver("").unwrap();
    device.until("reporting", PATIENCE);
    guest.qmp().stop().unwrap();
    device.until("stopped", PATIENCE);
    guest.qmp().cont().unwrap();
    device.until("reporting", PATIENCE);
    guest.agent().unload_module("virtio_balloon").unwrap();
    device.until("stopped", PATIENCE);
    guest.load_balloon_driver("").unwrap();
    device.until("reporting", PATIENCE);
    drop(guest);
    device.until("no_frontend", PATIENCE);
}
