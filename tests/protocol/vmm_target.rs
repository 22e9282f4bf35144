// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A target that the VMM sets, with VHOST_USER_SET_CONFIG and the flag of migration.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");
const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);
/// What the flag is for a guest's write, by the protocol and by QEMU.
const GUEST: u32 = 0;
const MIGRATION: u32 = 1;
/// What vhost 0.18 calls that of a migration.
const VHOST_MIGRATION: u32 = 2;

struct Device {
    daemon: DaemonProcess,
    guest: Attachment,
}

impl Device {
    fn new(args: &[&str]) -> Self {
        let daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), args).unwrap();
        let ram = Ram::new(&RamLayout::flat(512 * MIB, Backing::Memfd)).unwrap();
        let options = AttachOptions { timeout: SOON, ..AttachOptions::default() };
        let guest = Attachment::connect(&daemon.socket(), &ram, options).unwrap();
        Self { daemon, guest }
    }

    fn write(&mut self, pages: u32, flags: u32) {
        self.guest.write_config_with(0, &pages.to_le_bytes(), flags).unwrap();
    }

    fn target(&self) -> Value {
        let control = ControlSocket::new(&self.daemon.control_socket(), SOON);
        control.get("/v1/target").unwrap()["bytes"].clone()
    }
}

#[test]
fn target_of_the_vmm_is_taken_where_allowed() {
    let mut device = Device::new(&["--target-from-vmm", "--target=1M"]);
    device.write(512, MIGRATION);
    assert_eq!(device.guest.get_config().unwrap().num_pages, 512);
    assert_eq!(device.target(), 2 * MIB);
    // More than the reserve leaves: its user has said so to the VMM.
    device.write(400 << 8, MIGRATION);
    assert_eq!(device.guest.get_config().unwrap().num_pages, 400 << 8);
    assert!(device.daemon.log().contains("target 2097152 bytes, by the VMM"));
}

#[test]
fn guest_writes_never_set_the_target() {
    let mut device = Device::new(&["--target-from-vmm", "--target=1M"]);
    for flags in [GUEST, VHOST_MIGRATION] {
        device.write(512, flags);
        assert_eq!(device.guest.get_config().unwrap().num_pages, 256, "{flags}");
    }
    assert_eq!(device.target(), MIB);
}

#[test]
fn without_the_option_the_target_stays() {
    let mut device = Device::new(&["--target=1M"]);
    device.write(512, MIGRATION);
    assert_eq!(device.guest.get_config().unwrap().num_pages, 256);
    assert_eq!(device.target(), MIB);
    // What a driver may write is taken as ever.
    device.guest.write_config_with(4, &7_u32.to_le_bytes(), MIGRATION).unwrap();
    assert_eq!(device.guest.get_config().unwrap().actual, 7);
}

#[test]
fn last_target_of_vmm_and_operator_counts() {
    let mut device = Device::new(&["--target-from-vmm"]);
    device.write(512, MIGRATION);
    let control = ControlSocket::new(&device.daemon.control_socket(), SOON);
    control.done("PUT", "/v1/target", "{\"bytes\":1048576}").unwrap();
    assert_eq!(device.guest.get_config().unwrap().num_pages, 256);
    device.write(128, MIGRATION);
    assert_eq!(device.target(), MIB / 2);
}
