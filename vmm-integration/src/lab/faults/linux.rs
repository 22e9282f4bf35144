//! Real Linux as the guest that meets a fault of the faulty device.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::device::FaultyDevice;
use super::outcome::Met;
use super::plan::{Fault, FaultPlan};
use crate::host::wait_until;
use crate::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

const MIB: u64 = 1 << 20;
const KEPT: u32 = 1;
const FILLED: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Linux reports two seconds after a free; one that has not come back for so long waits.
const QUIET: Duration = Duration::from_secs(10);
/// The function of Linux's driver that waits for the acknowledgement, without a timeout.
const WAITS_IN: &str = "virtballoon_free_page_report";

/// Lets Linux meet a fault of the faulty device.
///
/// # Errors
/// Where the guest cannot be had, or something else goes wrong than the fault.
pub fn meet(fault: &Fault, toolbox: &Toolbox) -> Result<Met> {
    let device = FaultyDevice::start(FaultPlan::new(vec![fault.clone()])?)?;
    let config = GuestConfig {
        memory_bytes: 512 * MIB,
        balloon: Balloon::VhostUser { socket: device.socket() },
        ..GuestConfig::default()
    };
    let guest = LinuxGuest::boot(toolbox, config)?;
    guest.load_balloon_driver("")?;
    let agent = guest.agent();
    agent.alloc(KEPT, 64 * MIB, 1)?;
    let mut lost_bytes = 0;
    let mut generation = 1;
    // Memory is used, freed, and used again while it is being reported.
    let mut churn = || -> Result<()> {
        generation += 1;
        agent.alloc(FILLED, 96 * MIB, generation)?;
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
