// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM that is set up wrongly, or in an order that the framework does not know: real QEMU, with a
//! real Linux guest.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

use crate::controlled::start;

const MIB: u64 = 1 << 20;
/// An emulated guest on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn daemon() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    DaemonProcess::spawn(binary, &DaemonOptions::default()).unwrap()
}

fn until<T>(look: impl FnMut() -> Result<T, String>) -> T {
    wait_until(PATIENCE, LOOK_EVERY, look).unwrap()
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// QEMU keeps its connection while a device comes and goes.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn a_device_is_unplugged_and_plugged_in_again() {
    let daemon = daemon();
    let toolbox = qemu::available().unwrap();
    let chardev = format!("socket,id=balloon,path={}", daemon.socket().display());
    let port = "pcie-root-port,id=rp,chassis=1";
    let config = GuestConfig {
        balloon: Balloon::None,
        qemu_args: strings(&["-chardev", &chardev, "-device", port]),
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    guest.load_balloon_driver("").unwrap();
    let device = json!({
        "driver": "vhost-user-test-device-pci", "chardev": "balloon", "id": "device",
        "bus": "rp", "virtio-id": 5, "num_vqs": 5, "vq_size": 128, "config_size": 16,
    });
    let agent = guest.agent();
    for round in 1..=3 {
        // The last one goes when the guest has let it go.
        until(|| {
            let added = guest.qmp().execute("device_add", device.clone());
            added.map_err(|error| format!("{error:#}\n{}", daemon.log()))
        });
        until(|| match agent.balloon().map_err(|error| error.to_string())? {
            Some(_) => Ok(()),
            None => Err("no device in the guest".to_owned()),
        });
        agent.alloc(round, 256 * MIB, 1).unwrap();
        let full = guest.resident_bytes().unwrap();
        agent.free(round).unwrap();
        until(|| match guest.resident_bytes().unwrap() {
            now if now + 200 * MIB <= full => Ok(()),
            now => Err(format!("{now} of {full} bytes resident\n{}", daemon.log())),
        });
        guest.qmp().execute("device_del", json!({ "id": "device" })).unwrap();
    }
    until(|| match agent.balloon().map_err(|error| error.to_string())? {
        None => Ok(()),
        Some(_) => Err("the device is still there".to_owned()),
    });
    assert_eq!(guest.quit().unwrap(), "");
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

/// QEMU aborted when the daemon hung up on a device in the middle of its start.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn memory_that_is_not_shared_is_named_and_ends_no_vm() {
    let one = start(&[]);
    let daemon = &one.daemon;
    let toolbox = qemu::available().unwrap();
    let private = "memory-backend-memfd,id=private,size=1024M,share=off";
    let config = GuestConfig {
        balloon: Balloon::VhostUser { socket: daemon.socket() },
        qemu_args: strings(&["-object", private, "-machine", "memory-backend=private"]),
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    guest.load_balloon_driver("").unwrap();
    assert!(daemon.wait_for_log("add share=on", PATIENCE).unwrap(), "{}", daemon.log());
    let (doctor, _) = one.ctl(&["doctor"]);
    let doctor = String::from_utf8(doctor.stdout).unwrap();
    for words in ["wrong   memory_not_shared: ", "share=on at the memory backend", "libvirt: "] {
        assert!(doctor.contains(words), "{doctor}");
    }
    assert!(guest.agent().balloon().unwrap().is_some());
    // Its memory is its own.
    guest.agent().alloc(1, 64 * MIB, 1).unwrap();
    assert_eq!(guest.agent().expect_intact(1).unwrap(), 64 * MIB);
    let printed = guest.quit().unwrap();
    assert!(printed.contains("Error starting vhost-user-base"), "{printed}");
    let log = daemon.log();
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
}

/// Linux inflates to death where it cannot read how much it is to inflate.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn a_vm_without_configuration_does_not_boot() {
    let daemon = daemon();
    let toolbox = qemu::available().unwrap();
    let chardev = format!("socket,id=balloon,path={}", daemon.socket().display());
    let device = "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,vq_size=128";
    let config = GuestConfig {
        balloon: Balloon::None,
        qemu_args: strings(&["-chardev", &chardev, "-device", device]),
        ..GuestConfig::default()
    };
    let Err(error) = LinuxGuest::boot(&toolbox, config) else { panic!("it boots") };
    let printed = format!("{error:#}");
    assert!(printed.contains("vhost_backend_init failed"), "{printed}");
    assert!(daemon.wait_for_log("add config_size=16", PATIENCE).unwrap(), "{}", daemon.log());
}

/// An older Linux gives up on a device whose reporting queue cannot take a batch; 7.2 does not.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn queues_too_small_to_report_are_warned_of() {
    let daemon = daemon();
    let toolbox = qemu::available().unwrap();
    let config = GuestConfig {
        balloon: Balloon::VhostUser { socket: daemon.socket() },
        vq_size: 16,
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    let _ = guest.load_balloon_driver("");
    let says = "has 16 descriptors";
    assert!(daemon.wait_for_log(says, PATIENCE).unwrap(), "{}", daemon.log());
}
