// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Real Linux as the guest that meets a fault.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::device::FaultyDevice;
use super::inject::{self, Tampering, wait_until_held_up};
use super::outcome::Met;
use super::plan::{Fault, FaultKind, FaultPlan, Injector};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

const MIB: u64 = 1 << 20;
const KEPT: u32 = 1;
const FILLED: u32 = 2;
const KEPT_BYTES: u64 = 64 * MIB;
const FILLED_BYTES: u64 = 96 * MIB;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Linux reports two seconds after a free; one that has not come back for so long waits.
const QUIET: Duration = Duration::from_secs(10);
/// The function of Linux's driver that waits for the acknowledgement, without a timeout.
const WAITS_IN: &str = "virtballoon_free_page_report";

/// Whether Linux can meet it.
pub fn meets(kind: FaultKind) -> bool {
    match kind.injector() {
        // Linux has one chain at a time, so there are none to be returned in another order.
        Injector::FaultyDevice => kind != FaultKind::ReorderAcks,
        // The others need a hand on the ring or on the control connection, which are QEMU's, or a
        // frontend that connects again.
        Injector::Daemon => matches!(
            kind,
            FaultKind::DiscardFails
                | FaultKind::DiscardSlow
                | FaultKind::StopQueue
                | FaultKind::StopDaemon
        ),
    }
}

/// Lets Linux meet a fault, of the faulty device or of the daemon.
///
/// # Errors
/// Where the guest cannot be had, or something else goes wrong than the fault.
pub fn meet(fault: &Fault, toolbox: &Toolbox, daemon: &Path) -> Result<Met> {
    ensure!(meets(fault.kind), "{} cannot be brought about with Linux as the guest", fault.kind);
    match fault.kind.injector() {
        Injector::FaultyDevice => faulty_device(fault, toolbox),
        Injector::Daemon => with_daemon(fault, toolbox, daemon),
    }
}

fn boot(toolbox: &Toolbox, socket: &Path) -> Result<LinuxGuest> {
    let config = GuestConfig {
        memory_bytes: 512 * MIB,
        balloon: Balloon::VhostUser { socket: socket.to_owned() },
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(toolbox, config)?;
    guest.load_balloon_driver("")?;
    guest.agent().alloc(KEPT, KEPT_BYTES, 1)?;
    Ok(guest)
}

/// Whether the driver waits for an acknowledgement.
fn waits(guest: &LinuxGuest) -> Result<bool> {
    let tasks = guest.agent().tasks('D')?;
    Ok(tasks.iter().any(|task| task.stack.iter().any(|at| at.contains(WAITS_IN))))
}

/// Memory is used and freed; returns what of it was damaged, in bytes.
fn use_and_free(guest: &LinuxGuest, generation: u16) -> Result<u64> {
    let agent = guest.agent();
    agent.alloc(FILLED, FILLED_BYTES, generation)?;
    let lost = agent.verify(FILLED)?.mismatches * 8;
    agent.free(FILLED)?;
    Ok(lost)
}

/// Waits until most of what was freed is back.
fn gives_back(guest: &LinuxGuest, before: u64) -> Result<u64> {
    let mut resident = before;
    wait_until(PATIENCE, LOOK_EVERY, || {
        resident = guest.resident_bytes().map_err(|error| format!("{error:#}"))?;
        if resident + FILLED_BYTES / 2 < before {
            Ok(())
        } else {
            Err(format!("{} MiB are resident, as before", resident / MIB))
        }
    })?;
    Ok(resident)
}

/// A fault of the daemon that happens while Linux reports to it.
fn with_daemon(fault: &Fault, toolbox: &Toolbox, binary: &Path) -> Result<Met> {
    let mut daemon = inject::start(fault, binary)?;
    let guest = boot(toolbox, &daemon.socket())?;
    let agent = guest.agent();
    let mut lost_bytes = use_and_free(&guest, 2)?;
    let seen = match fault.kind {
        FaultKind::DiscardFails | FaultKind::DiscardSlow => {
            let tampering = Tampering::start(daemon.pid(), fault)?;
            let began = Instant::now();
            let mut generation = 2;
            while began.elapsed() < QUIET {
                generation += 1;
                lost_bytes += use_and_free(&guest, generation)?;
                thread::sleep(LOOK_EVERY);
            }
            drop(tampering);
            "used, freed and reported all the while".to_owned()
        }
        FaultKind::StopDaemon => {
            daemon.signal(Signal::STOP)?;
            wait_until(PATIENCE, LOOK_EVERY, || match waits(&guest) {
                Ok(true) => Ok(()),
                Ok(false) => Err("nothing is reported".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            })?;
            thread::sleep(Duration::from_millis(fault.millis()));
            ensure!(waits(&guest)?, "the driver went on without an acknowledgement");
            lost_bytes += agent.verify(KEPT)?.mismatches * 8;
            daemon.signal(Signal::CONT)?;
            format!("the driver waited for {} ms, the rest of the guest went on", fault.millis())
        }
        FaultKind::StopQueue => {
            let slow = Tampering::start(daemon.pid(), fault)?;
            lost_bytes += use_and_free(&guest, 3)?;
            wait_until_held_up(daemon.pid())?;
            let began = Instant::now();
            guest.qmp().stop()?;
            let stopped = began.elapsed();
            drop(slow);
            guest.qmp().cont()?;
            format!("QEMU stopped the queue {stopped:?} later, and started it again")
        }
        other => bail!("{other} needs a hand on the ring"),
    };
    // It goes on.
    agent.alloc(FILLED, FILLED_BYTES, 9)?;
    let used = guest.resident_bytes()?;
    lost_bytes += agent.verify(FILLED)?.mismatches * 8;
    agent.free(FILLED)?;
    let resident = gives_back(&guest, used)?;
    lost_bytes += agent.verify(KEPT)?.mismatches * 8;
    // A report that is under way ends.
    let waits = wait_until(QUIET, LOOK_EVERY, || match waits(&guest) {
        Ok(false) => Ok(()),
        Ok(true) => Err("the driver waits".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    })
    .is_err();
    let kernel = guest.hello().kernel_release.clone();
    drop(guest);
    let summary = daemon.session_summary(PATIENCE)?;
    let skipped: u64 = summary.skipped_bytes.values().sum();
    if fault.kind == FaultKind::DiscardFails {
        ensure!(skipped > 0, "no discard failed: {summary:?}");
    }
    let seen = format!(
        "Linux {kernel}, {} chains, {} MiB stayed with the host by failed discards; {seen}; at last {} MiB \
         of {} went back",
        summary.chains,
        skipped / MIB,
        (used - resident) / MIB,
        FILLED_BYTES / MIB
    );
    Ok(Met { faults: fault.times.max(1), lost_bytes, waits, seen, stack: Vec::new() })
}

fn faulty_device(fault: &Fault, toolbox: &Toolbox) -> Result<Met> {
    let device = FaultyDevice::start(FaultPlan::new(vec![fault.clone()])?)?;
    let guest = boot(toolbox, &device.socket())?;
    let agent = guest.agent();
    let mut lost_bytes = 0;
    let mut generation = 1;
    // Memory is used, freed, and used again while it is being reported.
    let mut churn = || -> Result<()> {
        generation += 1;
        agent.alloc(FILLED, FILLED_BYTES, generation)?;
        lost_bytes += agent.verify(FILLED)?.mismatches * 8;
        agent.free(FILLED)
    };
    churn()?;
    wait_until(PATIENCE, LOOK_EVERY, || {
        if device.served().faults > 0 { Ok(()) } else { Err("the fault was not met".to_owned()) }
    })?;
    let faulted = device.served().chains;
    // It goes on if chains come that the fault does not happen to.
    let began = Instant::now();
    let mut waiting = Vec::new();
    let mut goes_on = false;
    while began.elapsed() < QUIET {
        churn()?;
        waiting = agent.tasks('D')?;
        waiting.retain(|task| task.stack.iter().any(|at| at.contains(WAITS_IN)));
        goes_on = device.served().chains > faulted + 1;
        if goes_on && waiting.is_empty() && fault.times != 0 {
            break;
        }
        thread::sleep(LOOK_EVERY);
    }
    lost_bytes += agent.verify(KEPT)?.mismatches * 8;
    ensure!(guest.is_running(), "QEMU ended");
    let stack = waiting.first().map(|task| task.stack.clone()).unwrap_or_default();
    // One that is found waiting in every look has waited since the fault.
    let waits = !stack.is_empty() && !goes_on;
    let served = device.served();
    let kernel = &guest.hello().kernel_release;
    let mut seen = format!("Linux {kernel}, {} chains", served.chains);
    if waits {
        let serial = guest.serial().context("the serial console")?;
        if let Some(line) = serial.lines().find(|line| line.contains("is not a head")) {
            seen += &format!("; it says {line:?}");
        }
        seen += "; the rest of the guest goes on";
    }
    Ok(Met {
        faults: served.faults,
        lost_bytes,
        waits,
        seen,
        stack: if waits { stack } else { Vec::new() },
    })
}
