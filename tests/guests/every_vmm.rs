// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every VMM's guest does with the daemon as its balloon device.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_agent::faulting::{FaultingPlan, Work};
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::{self, GuestSpec, Vmm};

const MIB: u64 = 1 << 20;
/// How long memory may take to return on a busy machine. Linux reports every two seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Names of the allocations: one that stays, one that is freed.
const KEPT: u32 = 1;
const FILLED: u32 = 2;

#[test]
#[ignore = "needs a Linux guest and user-mode Linux: cargo xtask test"]
fn freed_memory_returns_on_every_vmm() {
    for vmm in vmm::ALL {
        freed_memory_returns(*vmm);
    }
}

fn freed_memory_returns(vmm: &dyn Vmm) {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, vmm.daemon_args()).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
    let reported = || {
        let counters = control.get("/v1/counters").unwrap();
        counters.pointer("/reporting/bytes").and_then(serde_json::Value::as_u64).unwrap()
    };
    let guest = vmm.boot(&GuestSpec { memory_bytes: 512 * MIB, socket: daemon.socket() }).unwrap();
    println!("{}: {}", vmm.name(), guest.describe());
    guest.set_reporting(true).unwrap();
    guest.alloc(KEPT, 16 * MIB, 1).unwrap();
    for generation in 2..4 {
        guest.alloc(FILLED, 128 * MIB, generation).unwrap();
        assert_eq!(guest.expect_intact(FILLED).unwrap(), 128 * MIB);
        let before = guest.resident_bytes().unwrap();
        assert!(before >= 144 * MIB, "{}: {before} bytes are resident", vmm.name());
        assert!(guest.used_bytes().unwrap() >= 144 * MIB);
        guest.free(FILLED).unwrap();
        // A part may stay in blocks that are too small to be reported.
        guest.wait_until_resident(before - 96 * MIB, PATIENCE).unwrap();
    }
    assert_eq!(guest.expect_intact(KEPT).unwrap(), 16 * MIB);

    // Without reporting, programs that allocate and free cause no report. The daemon may count the
    // last one after it has returned it.
    guest.set_reporting(false).unwrap();
    let before = wait_until(PATIENCE, LOOK_EVERY, || {
        let before = reported();
        for work in Work::ALL {
            let plan = FaultingPlan { work, tasks: 1, bytes: 16 * MIB, milliseconds: 200 };
            let faulted = guest.fault(plan).unwrap();
            assert!(faulted.pages > 0 && faulted.cpu > Duration::ZERO, "{faulted:?}");
            assert!(faulted.time >= Duration::from_millis(200), "{faulted:?}");
        }
        if reported() == before { Ok(before) } else { Err("reports go on".to_owned()) }
    })
    .unwrap();
    guest.set_reporting(true).unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || {
        if reported() > before { Ok(()) } else { Err("nothing was reported".to_owned()) }
    })
    .unwrap();
    assert_eq!(guest.expect_intact(KEPT).unwrap(), 16 * MIB);
    guest.shut_down().unwrap();
    daemon.session_summary(PATIENCE).unwrap();
}
