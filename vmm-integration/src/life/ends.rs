// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon or a VMM that ends without a farewell.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;
use super::scene::{REPORTING, Scene, end};
use crate::vmm::bare::absent;

pub(super) fn daemon_restarts(scene: &Scene<'_>) -> Result<()> {
    if !scene.vmm.reconnects() {
        return absent("it does not connect again");
    }
    let mut host = scene.host(&[])?;
    // Some VMMs end when the guest reads the configuration without a daemon to answer.
    let guest = scene.serving_with(&host, &[REPORTING], &["targets=no"])?;
    host.daemon.kill()?;
    scene.host_after(&mut host)?;
    host.wait_for_reports(0)?;
    end(guest)
}

pub(super) fn daemon_killed(scene: &Scene<'_>) -> Result<()> {
    let mut host = scene.host(&[])?;
    let guest = scene.serving(&host, &[])?;
    host.daemon.kill()?;
    drop(guest);
    scene.host_after(&mut host)?;
    end(scene.serving(&host, &[])?)
}

pub(super) fn vmm_killed(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let guest = scene.serving(&host, &[])?;
    let pid = i32::try_from(guest.vmm_pid()).ok().and_then(Pid::from_raw);
    kill_process(pid.context("no such process")?, Signal::KILL).context("killing the VMM")?;
    host.wait_for_ended(1)?;
    drop(guest);
    let next = scene.serving(&host, &[])?;
    end(next)?;
    host.daemon.session_summary(PATIENCE).map(drop)
}
