// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A Linux guest with too much of its memory in the balloon.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::time::Duration;

use guest_agent::ProcessEnd;
use serde_json::Value;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::DaemonProcess;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const OOM_KILLER: i32 = 9;

/// What became of a process that wants more memory than the balloon has left.
struct Outcome {
    end: ProcessEnd,
    /// What was in the balloon before.
    target: u64,
    /// What was in it after.
    actual: u64,
    /// Bytes that the driver said it took out.
    deflated: u64,
    /// Processes that the guest's OOM killer ended, as the guest counts them.
    killed: u64,
}

fn starve(option: Option<&str>) -> Outcome {
    const WANTED: u64 = 96 * MIB;
    const LEFT: u64 = 48 * MIB;
    let toolbox = qemu::available().unwrap();
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let args = ["--statistics"].into_iter().chain(option);
    let daemon = DaemonProcess::spawn_controlled(binary, args).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
    let number = |path: &str, pointer: &str| {
        control.get(path).unwrap().pointer(pointer).and_then(Value::as_u64)
    };
    let actual = || number("/v1/status", "/actual_bytes").unwrap();

    let balloon = Balloon::VhostUser { socket: daemon.socket() };
    let config = GuestConfig { balloon, memory_bytes: 384 * MIB, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    guest.load_balloon_driver("").unwrap();
    let agent = guest.agent();
    // Whether there is memory is to be found out by touching it.
    agent.write_file("/proc/sys/vm/overcommit_memory", "1").unwrap();
    let available = agent.meminfo().unwrap().bytes("MemAvailable");
    let target = (available - LEFT) & !(MIB - 1);
    control
        .done("PUT", "/v1/target", &format!("{{\"bytes\": {target}, \"force\": true}}"))
        .unwrap();
    wait_until(PATIENCE, LOOK_EVERY, || match actual() {
        now if now == target => Ok(()),
        now => Err(format!("{now} of {target} bytes in the balloon")),
    })
    .unwrap();

    let end = agent.use_memory(WANTED).unwrap();
    let actual = actual();
    control.done("POST", "/v1/statistics/refresh", "").unwrap();
    let killed = wait_until(PATIENCE, LOOK_EVERY, || {
        let killed = number("/v1/statistics", "/sample/values/oom_kills");
        let due = u64::from(matches!(end, ProcessEnd::Killed { .. }));
        killed.filter(|killed| *killed >= due).ok_or_else(|| format!("{killed:?}"))
    })
    .unwrap();
    let deflated = number("/v1/counters", "/named_bytes/deflate").unwrap();
    assert_eq!(guest.quit().unwrap(), "");
    Outcome { end, target, actual, deflated, killed }
}

/// Linux empties the balloon before it looks for a process to kill (`virtio_balloon_oom_notify`).
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn guest_oom_with_deflate_on_oom_deflates_the_balloon() {
    let outcome = starve(Some("--deflate-on-oom"));
    assert_eq!((outcome.end, outcome.killed), (ProcessEnd::Done, 0));
    assert!(outcome.actual < outcome.target, "{} of {}", outcome.actual, outcome.target);
    // Linux moves pages of the balloon about as well, and says so in the same way.
    let taken = outcome.target - outcome.actual;
    assert!(outcome.deflated >= taken, "{} of {taken}", outcome.deflated);
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn guest_oom_without_deflate_on_oom_kills_a_process() {
    let outcome = starve(None);
    assert_eq!(outcome.end, ProcessEnd::Killed { signal: OOM_KILLER });
    assert_eq!(outcome.killed, 1);
    assert_eq!(outcome.actual, outcome.target);
}
