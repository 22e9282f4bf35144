// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An unmodified Linux guest in QEMU, with the daemon as its balloon device.

#![expect(clippy::unwrap_used, reason = "the helpers are tests, too")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_driver::virtio::balloon::feature;
use vmm_integration::control::ControlSocket;
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::measure::host::{Sampler, passes, wait_until};
use vmm_integration::vmm::qemu::{self, Balloon, GuestConfig, LinuxGuest};

const MIB: u64 = 1 << 20;
/// How long memory may take to come back. Linux reports every two seconds; an emulated guest on a
/// busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What the guest keeps, and what it fills and frees.
const KEPT: u32 = 1;
const FILLED: u32 = 2;

/// Its calls are as large as several ranges of Linux, so that merging shows.
fn daemon() -> DaemonProcess {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let args = vec!["--max-discard-call=32M".into()];
    DaemonProcess::spawn(binary, &DaemonOptions { args, ..DaemonOptions::default() }).unwrap()
}

/// 1 GiB and two CPUs, with `daemon` as the balloon.
fn config(daemon: &DaemonProcess, kernel_args: &[&str]) -> GuestConfig {
    GuestConfig {
        balloon: Balloon::VhostUser { socket: daemon.socket() },
        kernel_args: kernel_args.iter().map(|&arg| arg.to_owned()).collect(),
        ..GuestConfig::default()
    }
}

/// A guest with `daemon` as its balloon, its driver loaded.
fn boot(daemon: &DaemonProcess) -> LinuxGuest {
    let toolbox = qemu::available().unwrap();
    let guest = LinuxGuest::boot(&toolbox, config(daemon, &[])).unwrap_or_else(|error| {
        // QEMU prints nothing while it waits for the daemon.
        let threads = Command::new("sh")
            .args(["-c", "cd /proc/$0/task && grep -H . */wchan */stat", &daemon.pid().to_string()])
            .output();
        panic!("{error:#}\n{}\n{threads:?}", daemon.log())
    });
    guest.load_balloon_driver("").unwrap();
    guest
}

/// Waits until the host holds at most `bytes` for the guest.
fn wait_until_resident(guest: &LinuxGuest, bytes: u64) {
    wait_until(PATIENCE, LOOK_EVERY, || {
        let now = guest.resident_bytes().map_err(|error| error.to_string())?;
        if now <= bytes { Ok(()) } else { Err(format!("{now} bytes resident, {bytes} wanted")) }
    })
    .unwrap();
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn freed_memory_is_reclaimed_and_used_memory_survives() {
    let daemon = daemon();
    let guest = boot(&daemon);
    let (kept, filled) = (64 * MIB, 512 * MIB);
    let agent = guest.agent();
    agent.alloc(KEPT, kept, 1).unwrap();
    for generation in 2..4 {
        agent.alloc(FILLED, filled, generation).unwrap();
        assert_eq!(agent.expect_intact(FILLED).unwrap(), filled);
        let before = guest.resident_bytes().unwrap();
        assert!(before >= kept + filled, "only {before} bytes resident");
        let memory = guest.memory().try_clone().unwrap();
        let sampler = Sampler::start(LOOK_EVERY, memory, || None);
        agent.free(FILLED).unwrap();
        let wanted = before - filled / 10 * 9;
        wait_until_resident(&guest, wanted);
        // The sampler must have seen it, too.
        wait_until(PATIENCE, LOOK_EVERY, || {
            let last = sampler.samples().last().map(|sample| sample.host_resident_bytes);
            if last.is_some_and(|now| now <= wanted) { Ok(()) } else { Err("not sampled".into()) }
        })
        .unwrap();
        let curve = sampler.stop().unwrap();
        let passes = passes(&curve);
        assert!((1..=3).contains(&passes), "{passes} passes: {curve:?}");
        assert_eq!(agent.expect_intact(KEPT).unwrap(), kept);
    }
    // What was given back is memory again.
    agent.alloc(FILLED, filled, 9).unwrap();
    assert_eq!(agent.expect_intact(FILLED).unwrap(), filled);
    guest.quit().unwrap();

    let summary = daemon.session_summary(PATIENCE).unwrap();
    assert!(summary.bytes_discarded >= 2 * filled / 10 * 9, "{summary:?}");
    assert!(summary.discard_calls * 4 <= summary.ranges, "{summary:?}");
    // Linux reports whole free blocks: nothing of it may have been skipped.
    // A queue that stops goes before what is left of a report.
    assert!(summary.skipped_bytes.keys().all(|reason| reason == "yielded"), "{summary:?}");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn qemu_and_linux_have_nothing_to_complain_about() {
    let daemon = daemon();
    let guest = boot(&daemon);
    let device = guest.agent().balloon().unwrap().expect("a balloon device");
    assert_ne!(device.features & feature::REPORTING, 0, "{:#x}", device.features);
    // Unloading resets the device; loading sets it up again.
    guest.agent().unload_module("virtio_balloon").unwrap();
    guest.load_balloon_driver("").unwrap();
    let serial = guest.serial().unwrap();
    assert!(!serial.contains("WARNING:") && !serial.contains("BUG:"), "{serial}");
    assert_eq!(guest.quit().unwrap(), "", "QEMU printed something");
    let log = daemon.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn daemon_killed_at_work_leaves_guest_memory_intact() {
    let mut daemon = daemon();
    let guest = boot(&daemon);
    let agent = guest.agent();
    agent.alloc(KEPT, 256 * MIB, 1).unwrap();
    agent.alloc(FILLED, 512 * MIB, 2).unwrap();
    let before = guest.resident_bytes().unwrap();
    agent.free(FILLED).unwrap();
    // The first bytes are back, and the guest has much more to report.
    wait_until_resident(&guest, before - MIB);
    daemon.kill().unwrap();
    let resident = guest.resident_bytes().unwrap();
    assert!(resident > 256 * MIB, "killed too late to be in mid-work: {resident} bytes resident");

    assert!(guest.is_running());
    assert_eq!(agent.expect_intact(KEPT).unwrap(), 256 * MIB);
    agent.alloc(FILLED, 384 * MIB, 3).unwrap();
    assert_eq!(agent.expect_intact(FILLED).unwrap(), 384 * MIB);
    agent.rewrite(KEPT, 4).unwrap();
    assert_eq!(agent.expect_intact(KEPT).unwrap(), 256 * MIB);
    assert!(guest.is_running());
}

/// A guest that clears pages when it frees them has touched all its memory when it is up. Linux
/// drops reporting in such a guest unless the device takes its poison value, here zero.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn init_on_free_guest_memory_is_reclaimed_after_boot() {
    let daemon = daemon();
    let toolbox = qemu::available().unwrap();
    let config = config(&daemon, &["init_on_free=1"]);
    let guest = LinuxGuest::boot(&toolbox, config).unwrap();
    let touched = guest.resident_bytes().unwrap();
    assert!(touched > 900 * MIB, "{touched} bytes resident after the boot");
    guest.load_balloon_driver("").unwrap();
    let device = guest.agent().balloon().unwrap().expect("a balloon device");
    let acked = feature::REPORTING | feature::PAGE_POISON;
    assert_eq!(device.features & acked, acked, "{:#x}", device.features);
    wait_until_resident(&guest, 400 * MIB);
    guest.agent().alloc(KEPT, 256 * MIB, 1).unwrap();
    assert_eq!(guest.agent().expect_intact(KEPT).unwrap(), 256 * MIB);
    guest.quit().unwrap();
}

/// Set at run time, it reaches the guest through the backend channel: without reporting, nothing
/// but the balloon gives memory back.
#[test]
#[ignore = "needs a Linux guest: cargo xtask test"]
fn a_target_shrinks_the_guest_and_lets_it_grow_again() {
    let binary = Path::new(env!("CARGO_BIN_EXE_vhost-device-balloon"));
    let daemon = DaemonProcess::spawn_controlled(binary, ["--no-reporting"]).unwrap();
    let control = ControlSocket::new(&daemon.control_socket(), PATIENCE);
    let guest = boot(&daemon);
    let agent = guest.agent();
    agent.alloc(KEPT, 64 * MIB, 1).unwrap();
    for generation in 2..4 {
        agent.alloc(FILLED, 640 * MIB, generation).unwrap();
        assert_eq!(agent.expect_intact(FILLED).unwrap(), 640 * MIB);
        agent.free(FILLED).unwrap();
        let before = guest.resident_bytes().unwrap();
        assert!(before >= 704 * MIB, "only {before} bytes resident");
        let target = 512 * MIB;
        control.done("PUT", "/v1/target", &format!("{{\"bytes\": {target}}}")).unwrap();
        // Which pages Linux takes is its own affair: some were never used.
        wait_until_resident(&guest, config(&daemon, &[]).memory_bytes - target);
        assert_eq!(agent.expect_intact(KEPT).unwrap(), 64 * MIB);
        control.done("PUT", "/v1/target", "{\"bytes\": 0}").unwrap();
        wait_until(PATIENCE, LOOK_EVERY, || {
            let status = control.get("/v1/status").map_err(|error| error.to_string())?;
            let actual = status.pointer("/actual_bytes").cloned();
            if actual == Some(0.into()) { Ok(()) } else { Err(status.to_string()) }
        })
        .unwrap();
    }
    guest.quit().unwrap();
}
