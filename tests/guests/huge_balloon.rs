// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Linux guest on huge pages of the host: its balloon takes pages of 4 KiB.

use std::path::Path;
use std::time::Duration;

use guest_agent::ProcessEnd;
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::measure::hugetlb::Pool;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
const HUGE_PAGE: u64 = 2 * MIB;
const MEMORY: u64 = 512 * MIB;
const TARGET: u64 = 128 * MIB;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[test]
#[ignore = "needs a Linux guest and huge pages: cargo xtask test"]
fn balloon_of_a_guest_on_huge_pages_frees_them() {
    let toolbox = qemu::available().unwrap();
    let _alone = crate::huge_pages();
    let _pool = Pool::with_free(HUGE_PAGE, MEMORY).unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let args = ["--hugetlb", "--no-reporting"];
    let daemon = DaemonProcess::spawn_controlled(binary, args).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
    let number = |path: &str, pointer: &str| {
        control.get(path).unwrap().pointer(pointer).and_then(Value::as_u64)
    };
    let balloon = Balloon::VhostUser { socket: daemon.socket() };
    let config = GuestConfig {
        balloon,
        memory_bytes: MEMORY,
        hugetlb_page_bytes: Some(HUGE_PAGE),
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    guest.load_balloon_driver("").unwrap();
    let reach = |target: u64| {
        control.done("PUT", "/v1/target", &format!("{{\"bytes\": {target}}}")).unwrap();
        wait_until(PATIENCE, LOOK_EVERY, || match number("/v1/status", "/actual_bytes") {
            Some(now) if now == target => Ok(()),
            now => Err(format!("{now:?} of {target} bytes in the balloon")),
        })
        .unwrap();
    };
    reach(TARGET);
    let discarded = number("/v1/counters", "/discarded_bytes").unwrap();
    assert!(discarded >= TARGET / 2, "{discarded} bytes given back of {TARGET}");
    // What was given back is there again when the guest takes it.
    reach(0);
    let end = guest.agent().use_memory(TARGET).unwrap();
    assert_eq!(end, ProcessEnd::Done);
    reach(TARGET);
    assert!(number("/v1/counters", "/discarded_bytes").unwrap() > discarded);
    assert_eq!(guest.quit().unwrap(), "");
}
