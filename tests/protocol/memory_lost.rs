// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that is taken away under the daemon.

use std::path::Path;
use std::time::Duration;

use vmm_integration::daemon::DaemonProcess;
use vmm_integration::frontend::{AttachOptions, Attachment};
use vmm_integration::guest_memory::{Backing, Ram, RamLayout};

const MIB: u64 = 1 << 20;
const REPORTING: u16 = 2;
const TIMEOUT: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_vhost-device-balloon");

#[test]
fn truncated_memory_ends_the_daemon_in_order() {
    let mut daemon = DaemonProcess::spawn_controlled(Path::new(BINARY), [""; 0]).unwrap();
    let ram = Ram::new(&RamLayout::flat(16 * MIB, Backing::Memfd)).unwrap();
    let mut guest = Attachment::connect(&daemon.socket(), &ram, AttachOptions::default()).unwrap();
    assert!(daemon.socket().exists() && daemon.control_socket().exists());
    // From here on this process must not touch the memory either.
    rustix::fs::ftruncate(ram.file(0), 0).unwrap();
    guest.kick(REPORTING).unwrap();
    let status = daemon.wait(TIMEOUT).unwrap().expect("it ends");
    let log = daemon.log();
    assert_eq!(status.code(), Some(3), "{status}: {log}");
    assert!(log.contains("SIGBUS: guest memory is gone"), "{log}");
    assert!(!daemon.socket().exists() && !daemon.control_socket().exists(), "{log}");
}
