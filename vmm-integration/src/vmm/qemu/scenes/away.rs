// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon is killed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::LinuxGuest;
use super::{
    Device, LOOK_EVERY, MIB, Scene, Stage, balloon_has, fate, freed_memory_returns, power_off,
    set_target, unload,
};
use crate::daemon::DaemonProcess;
use crate::measure::host::wait_until;

const KEPT: u32 = 1;
const FILLED: u32 = 2;
/// Linux reports two seconds after a free.
const REPORTED_WITHIN: Duration = Duration::from_secs(10);

/// A guest in the middle of reports, whose daemon is dead.
fn bereft(stage: &Stage<'_>) -> Result<(DaemonProcess, LinuxGuest)> {
    let mut daemon = stage.daemon(&[])?;
    let guest = stage.guest(&daemon)?;
    guest.agent().alloc(KEPT, 64 * MIB, 1)?;
    freed_memory_returns(&guest)?;
    guest.agent().alloc(FILLED, 128 * MIB, 2)?;
    daemon.kill()?;
    guest.agent().free(FILLED)?;
    // The worker that reports it waits for an answer, unless QEMU returns chains already.
    let waits = wait_until(REPORTED_WITHIN, LOOK_EVERY, || match guest.agent().tasks('D') {
        Ok(tasks) if !tasks.is_empty() => Ok(()),
        tasks => Err(format!("nothing waits in the guest: {tasks:?}")),
    });
    if stage.device == Device::Generic {
        waits.with_context(|| fate(&guest, "nothing is reported"))?;
    }
    Ok((daemon, guest))
}

pub(super) const RELOAD: Scene = Scene {
    name: "driver-reload",
    about: "the driver is unloaded and loaded with the daemon dead",
    play: |stage| {
        let (_daemon, guest) = bereft(stage)?;
        unload(&guest)?;
        guest.load_balloon_driver("").with_context(|| fate(&guest, "modprobe fails"))?;
        unload(&guest)?;
        let kept = guest.agent().expect_intact(KEPT)?;
        ensure!(kept == 64 * MIB, "memory was lost");
        power_off(&guest)
    },
};

pub(super) const POWER_OFF: Scene = Scene {
    name: "power-off",
    about: "the guest powers off with the daemon dead",
    play: |stage| {
        let (_daemon, guest) = bereft(stage)?;
        power_off(&guest)
    },
};

pub(super) const RESTART: Scene = Scene {
    name: "daemon-restarts",
    about: "another daemon takes the socket: memory returns, the balloon's size is known",
    play: |stage| {
        let (daemon, guest) = {
            let mut daemon = stage.daemon(&[])?;
            let guest = stage.guest(&daemon)?;
            guest.agent().alloc(KEPT, 64 * MIB, 1)?;
            set_target(&daemon, 64 * MIB)?;
            balloon_has(&daemon, 64 * MIB)?;
            daemon.kill()?;
            (daemon, guest)
        };
        let next = daemon.successor(stage.daemon, ["--target=64M"])?;
        balloon_has(&next, 64 * MIB).with_context(|| fate(&guest, "QEMU runs"))?;
        let after = freed_memory_returns(&guest)?;
        let kept = guest.agent().expect_intact(KEPT)?;
        ensure!(kept == 64 * MIB, "memory was lost");
        let off = power_off(&guest)?;
        Ok(format!("freed memory is back after {:.1} s; {off}", after.as_secs_f64()))
    },
};
