// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Connections that say nothing, and VMMs that wait for another: neither keeps one out in silence.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_driver::ram::{Gpa, GpaRange};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};
use vmm_integration::measure::host::wait_until;

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(20);
const WAITS: &str = "another VMM waits for this socket";
/// A GET_FEATURES.
const MESSAGE: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
/// Its answer: a header and eight bytes.
const ANSWER: usize = 20;

struct Device {
    daemon: DaemonProcess,
    control: ControlSocket,
}

impl Device {
    fn start() -> Self {
        let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), [""; 0]).unwrap();
        let control = ControlSocket::new(&daemon.control_socket(), SOON);
        Self { daemon, control }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.daemon.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Connects as a VMM, and has a range given back.
    fn serve_one(&self) {
        let mut guest = self.attach();
        assert!(guest.given_back(GpaRange::new(Gpa(8 * MIB), MIB).unwrap()).unwrap());
    }

    fn attach(&self) -> Attachment {
        let ram = Ram::new(&RamLayout::with_seam_and_hole(Backing::Memfd)).unwrap();
        let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
        let attached = Attachment::connect(&self.daemon.socket(), &ram, options);
        attached.unwrap_or_else(|error| panic!("{error:#}\n{}", self.daemon.log()))
    }

    fn until_waiting(&self, connections: u64) {
        wait_until(SOON, Duration::from_millis(1), || {
            let status = self.control.get("/v1/status").unwrap();
            let waiting = &status["waiting_connections"];
            if *waiting == connections { Ok(()) } else { Err(waiting.to_string()) }
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.daemon.log()));
    }
}

#[test]
fn a_connection_that_says_nothing_keeps_no_vmm_out() {
    let device = Device::start();
    let silent = device.connect();
    let mut half = device.connect();
    half.write_all(&MESSAGE[..11]).unwrap();
    device.serve_one();
    // Served when it says something after all.
    drop(silent);
    half.write_all(&MESSAGE[11..]).unwrap();
    half.read_exact(&mut [0; ANSWER]).unwrap();
    drop(half);
    device.serve_one();
    assert!(!device.daemon.log().contains("broke"), "{}", device.daemon.log());
}

#[test]
fn second_vmm_is_shown_waiting_then_served() {
    let device = Device::start();
    let first = device.attach();
    let mut second = device.connect();
    device.until_waiting(0);
    second.write_all(&MESSAGE).unwrap();
    device.until_waiting(1);
    assert!(device.daemon.wait_for_log(WAITS, SOON).unwrap(), "{}", device.daemon.log());
    let metrics = device.control.ask("GET", "/metrics", "").unwrap().body;
    assert!(metrics.lines().any(|line| line == "balloon_waiting_connections 1"), "{metrics}");
    let mut ctl = Command::new(BINARY);
    ctl.args(["ctl", "--control-socket"]).arg(device.daemon.control_socket()).arg("status");
    let shown = String::from_utf8(ctl.output().unwrap().stdout).unwrap();
    assert!(shown.contains("connected, 1 more waiting\n"), "{shown}");

    drop(second);
    device.until_waiting(0);

    let mut third = device.connect();
    third.write_all(&MESSAGE).unwrap();
    device.until_waiting(1);
    drop(first);
    third.read_exact(&mut [0; ANSWER]).unwrap();
    device.until_waiting(0);
    drop(third);
    device.serve_one();
}

#[test]
fn silent_connections_are_bounded_and_block_no_vmm() {
    let device = Device::start();
    device.until_waiting(0);
    let fresh = device.daemon.fd_count().unwrap();
    let mut silent: Vec<_> = (0..100).map(|_| device.connect()).collect();
    device.serve_one();
    // Those that were silent for longest have had to go.
    let mut oldest = silent.remove(0);
    assert_eq!(oldest.read(&mut [0]).unwrap(), 0);
    wait_until(SOON, Duration::from_millis(1), || {
        let more = device.daemon.fd_count().unwrap().saturating_sub(fresh);
        if more <= 8 { Ok(()) } else { Err(format!("{more} descriptors more")) }
    })
    .unwrap();
    drop(silent);
    device.serve_one();
    wait_until(SOON, Duration::from_millis(1), || {
        let more = device.daemon.fd_count().unwrap().saturating_sub(fresh);
        if more == 0 { Ok(()) } else { Err(format!("{more} descriptors more")) }
    })
    .unwrap();
}

/// A VMM that waits is not thrown out by connections that say nothing.
#[test]
fn a_vmm_that_waits_keeps_its_place() {
    let device = Device::start();
    let first = device.attach();
    let mut second = device.connect();
    second.write_all(&MESSAGE).unwrap();
    device.until_waiting(1);
    let _silent: Vec<_> = (0..100).map(|_| device.connect()).collect();
    drop(first);
    second.read_exact(&mut [0; ANSWER]).unwrap();
}
