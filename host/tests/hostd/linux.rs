// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! hostd and a Linux guest.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vmm_integration::control::ControlSocket;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

use crate::host::Host;

const MIB: u64 = 1 << 20;
/// An emulated guest on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the guest keeps, what it fills and frees, and what it needs later.
const KEPT: u32 = 1;
const FILLED: u32 = 2;
const NEEDED: u32 = 3;
const POLICY: &str = "[host]\nreserve = '1000T'\nperiod = '1s'\n[guest]\nstep_percent = 25\n";

/// Memory that Linux has freed goes to the host by the policy, and returns when Linux needs it.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn linux_is_taken_from_and_grows_again() {
    let mut host = Host::new();
    let socket =
        host.daemon("linux", &["--no-reporting", "--statistics", "--deflate-on-oom"]).socket();
    let control = ControlSocket::new(&host.path("linux.ctl"), PATIENCE);
    let config = GuestConfig { balloon: Balloon::VhostUser { socket }, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(&qemu::available().unwrap(), config).unwrap();
    guest.load_balloon_driver("").unwrap();
    let agent = guest.agent();
    agent.alloc(KEPT, 64 * MIB, 1).unwrap();
    agent.alloc(FILLED, 640 * MIB, 2).unwrap();
    agent.free(FILLED).unwrap();
    let before = guest.resident_bytes().unwrap();
    assert!(before >= 640 * MIB, "only {before} bytes resident");

    let policy = host.path("policy.toml");
    fs::write(&policy, POLICY).unwrap();
    let mut hostd = host.hostd(&["--policy", policy.to_str().unwrap()]);
    let wait_for = |what: &str, holds: &dyn Fn(u64, u64) -> bool| {
        wait_until(PATIENCE, LOOK_EVERY, || {
            let status = control.get("/v1/status").map_err(|error| error.to_string())?;
            let bytes = |name: &str| status[name].as_u64().unwrap_or(u64::MAX);
            let (target, actual) = (bytes("target_bytes"), bytes("actual_bytes"));
            if holds(target, actual) { Ok(()) } else { Err(format!("not {what}: {status:#}")) }
        })
        .unwrap();
    };
    let began = Instant::now();
    hostd.wait_until("at its floor", |view| view["guests"][0]["why"] == "at_floor");
    let floor = hostd.view()["guests"][0]["floor_bytes"].as_u64().unwrap();
    let after = guest.resident_bytes().unwrap();
    println!(
        "{} MiB before, {} MiB after, floor {} MiB, {:?}",
        before / MIB,
        after / MIB,
        floor / MIB,
        began.elapsed()
    );
    // What Linux touches meanwhile is little.
    assert!(after <= floor + 64 * MIB && after <= before - 256 * MIB, "{before} {after} {floor}");
    assert_eq!(agent.expect_intact(KEPT).unwrap(), 64 * MIB);

    // What it uses more is left to it besides, before it needs it.
    agent.alloc(NEEDED, 180 * MIB, 3).unwrap();
    let view = hostd.wait_until("grown", |view| {
        view["guests"][0]["leave_bytes"].as_u64() >= Some(floor + 64 * MIB)
    });
    println!("left {} when it used 180 MiB more", view["guests"][0]["leave_bytes"]);
    hostd.signal(Signal::TERM);
    assert_eq!(hostd.wait().code(), Some(0));
    println!("{}", hostd.log());
    wait_for("deflated", &|target, actual| (target, actual) == (0, 0));
    agent.alloc(FILLED, 512 * MIB, 4).unwrap();
    assert_eq!(agent.expect_intact(FILLED).unwrap(), 512 * MIB);
    assert_eq!(agent.expect_intact(NEEDED).unwrap(), 180 * MIB);
    guest.quit().unwrap();
}
