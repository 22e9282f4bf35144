// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! User-mode Linux with the daemon as its balloon device: a second vhost-user frontend with a real
//! kernel. It sends a memory table longer than it says, a socket as call descriptor, and never
//! `SET_VRING_ENABLE`.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_driver::virtio::balloon::feature;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::user_mode_linux::{UserModeLinux, boot_reporting};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 512 * MIB;
/// How long memory may take to come back on a busy machine. Linux reports every two seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the guest keeps.
const KEPT: u32 = 1;

/// Its guest's memory lies in /dev/shm, which others could fill.
fn daemon() -> (DaemonProcess, ControlSocket) {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, ["--allow-limited-tmpfs"]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
    (daemon, control)
}

/// Sets a target and waits until the guest has followed: it says so itself, in `actual`.
fn follow(control: &ControlSocket, bytes: u64) {
    control.done("PUT", "/v1/target", &format!(r#"{{"bytes": {bytes}}}"#)).unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || {
        let status = control.get("/v1/status").map_err(|error| error.to_string())?;
        if status["actual_bytes"] == bytes { Ok(()) } else { Err(status.to_string()) }
    })
    .unwrap();
}

/// Has the guest power off, and looks for complaints.
fn end(guest: UserModeLinux, daemon: &DaemonProcess, sessions: usize) {
    let console = guest.power_off().unwrap();
    assert!(!console.contains("WARNING:") && !console.contains("BUG:"), "{console}");
    wait_until(PATIENCE, LOOK_EVERY, || {
        let log = daemon.log();
        let ended = log.matches("frontend disconnected").count();
        if ended == sessions { Ok(()) } else { Err(log) }
    })
    .unwrap();
    let log = daemon.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
#[ignore = "needs user-mode Linux: cargo xtask test"]
fn user_mode_linux_follows_target_and_next_is_served() {
    let (daemon, control) = daemon();
    let (kept, target) = (32 * MIB, 128 * MIB);
    for session in 1..=2 {
        let guest = boot_reporting(&daemon.socket(), MEMORY).unwrap();
        let device = guest.agent().balloon().unwrap().expect("a balloon device");
        assert_ne!(device.features & feature::REPORTING, 0, "{:#x}", device.features);
        guest.agent().alloc(KEPT, kept, 1).unwrap();
        follow(&control, target);
        follow(&control, 0);
        assert_eq!(guest.agent().expect_intact(KEPT).unwrap(), kept);
        end(guest, &daemon, session);
    }
}
