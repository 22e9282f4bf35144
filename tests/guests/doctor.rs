// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `ctl doctor` and a QEMU whose command line is wrong.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Causes and remedies of what is wrong.
fn doctor(daemon: &DaemonProcess) -> Vec<(String, String)> {
    let mut command = Command::new(BINARY);
    command.args(["ctl", "--json", "--control-socket"]).arg(daemon.control_socket());
    let output = command.arg("doctor").output().unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let found = found.as_array().unwrap().iter().filter(|finding| finding["wrong"] == true);
    found.map(|finding| (text(finding, "cause"), text(finding, "remedy"))).collect()
}

/// Boots a guest with `other`, if that is a device, before ours with this many queues, loads its
/// balloon driver, and waits until the doctor names the `cause` with a remedy that has each of `words`.
/// Returns what the guest printed.
fn expect_named(other: &str, queues: u16, cause: &str, words: &[&str]) -> String {
    let args: [&str; 0] = [];
    let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
    let chardev = format!("socket,id=balloon,path={}", daemon.socket().display());
    let ours = format!(
        "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs={queues},vq_size=128,\
         config_size=16"
    );
    let devices = [other, &ours].into_iter().filter(|device| !device.is_empty());
    let devices = devices.flat_map(|device| ["-device", device]);
    let qemu_args = ["-chardev", &chardev].into_iter().chain(devices).map(str::to_owned).collect();
    let (balloon, memory_bytes) = (Balloon::None, 320 * MIB);
    let config =
        GuestConfig { balloon, memory_bytes, cpus: 1, qemu_args, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&qemu::available().unwrap(), config).unwrap();
    guest.load_balloon_driver("").unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || {
        let found = doctor(&daemon);
        let named = found.iter().find(|(named, _)| named == cause);
        match named.is_some_and(|(_, remedy)| words.iter().all(|word| remedy.contains(word))) {
            true => Ok(()),
            false => Err(format!("{found:?}, expected {cause}: {words:?}\n{}", daemon.log())),
        }
    })
    .unwrap();
    guest.splats().unwrap();
    guest.serial().unwrap()
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn doctor_names_what_is_wrong_with_qemu() {
    expect_named("", 2, "too_few_queues", &["num_vqs=5"]);
    // The driver takes QEMU's own first.
    let other = "virtio-balloon-pci,free-page-reporting=on";
    let serial = expect_named(other, 5, "no_driver", &["-16", "second balloon"]);
    assert!(serial.contains("failed with error -16"), "{serial}");
}
