// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The project's own device in QEMU, with Linux before it.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::thread;
use std::time::Duration;

use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::scenes::{Device, SCENES};
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, built};

const DAEMON: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// What the guest keeps, and what it fills and frees.
const KEPT: u32 = 1;
const FILLED: u32 = 2;
const KEPT_BYTES: u64 = 64 * MIB;
const FILLED_BYTES: u64 = 128 * MIB;
/// In the balloon all the time.
const BALLOON: u64 = 64 * MIB;
const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";

#[test]
#[ignore = "needs a QEMU of our own: cargo xtask qemu"]
fn own_device_lives_through_every_scene() {
    let toolbox = built::toolbox().unwrap();
    let mut failed = Vec::new();
    for scene in &SCENES {
        let played = scene.play(&toolbox, Device::Own, Path::new(DAEMON));
        println!("{}: {}", scene.name, played.seen);
        if !played.passed {
            failed.push(format!("{}: {}", scene.name, played.seen));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Kills daemons at any moment after a free.
fn kill_daemons(times: u16) {
    let toolbox = built::toolbox().unwrap();
    let start = |before: Option<&DaemonProcess>| {
        let args = [format!("--target={BALLOON}")];
        match before {
            Some(before) => before.successor(Path::new(DAEMON), args).unwrap(),
            None => DaemonProcess::spawn_controlled(Path::new(DAEMON), args).unwrap(),
        }
    };
    let mut daemon = start(None);
    let config = GuestConfig {
        memory_bytes: 512 * MIB,
        balloon: Balloon::OwnDevice { socket: daemon.socket() },
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    guest.load_balloon_driver("").unwrap();
    let agent = guest.agent();
    agent.write_file(DELAY, "50").unwrap();
    agent.alloc(KEPT, KEPT_BYTES, 1).unwrap();
    for time in 0..times {
        agent.alloc(FILLED, FILLED_BYTES, time % 1000 + 2).unwrap();
        assert_eq!(agent.expect_intact(FILLED).unwrap(), FILLED_BYTES);
        let full = guest.resident_bytes().unwrap();
        agent.free(FILLED).unwrap();
        // At another moment of the reports each time.
        let moment = Duration::from_micros(u64::from(time) * 6151 % 120_000);
        thread::sleep(moment);
        daemon.kill().unwrap();
        daemon = start(Some(&daemon));
        let wanted = full - FILLED_BYTES / 10 * 8;
        wait_until(PATIENCE, LOOK_EVERY, || match guest.resident_bytes().unwrap() {
            now if now <= wanted => Ok(()),
            now => Err(format!("{time}: {now} bytes resident, {wanted} wanted\n{}", daemon.log())),
        })
        .unwrap();
        assert_eq!(agent.expect_intact(KEPT).unwrap(), KEPT_BYTES, "{time}: memory was lost");
        let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
        wait_until(PATIENCE, LOOK_EVERY, || {
            let status = control.get("/v1/status").unwrap();
            let actual = status["actual_bytes"] == BALLOON;
            if actual { Ok(()) } else { Err(format!("{time}: {status}")) }
        })
        .unwrap();
    }
    let printed = guest.quit().unwrap();
    // What QEMU says of each outage: the backend's channel has ended, nothing listens.
    let of_outage = ["Unexpected end-of-file", "Unable to connect character device"];
    let wrong = printed.lines().find(|line| !of_outage.iter().any(|words| line.contains(words)));
    assert_eq!(wrong, None, "{printed}");
}

#[test]
#[ignore = "needs a QEMU of our own: cargo xtask qemu"]
fn own_device_survives_daemons_that_are_killed() {
    kill_daemons(5);
}

#[test]
#[ignore = "needs a QEMU of our own and a full run: cargo xtask test --full"]
fn own_device_survives_100_daemons_killed() {
    kill_daemons(100);
}
