// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that is stopped or reset in the middle of its reports.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::PATIENCE;
use super::scene::{REPORTING, Scene, end};

/// A target that the guest reaches soon, even where KVM emulates its instructions.
const TARGET: u64 = 16 << 20;
/// How often a guest is paused.
const PAUSES: usize = 10;
/// How often, and in which interval, it is looked whether it stands.
const LOOKS: usize = 10;
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) fn pause(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let guest = scene.serving(&host, &[REPORTING])?;
    for _ in 0..PAUSES {
        guest.pause()?;
        let paused = host.reports()?;
        for _ in 0..LOOKS {
            thread::sleep(LOOK_EVERY);
            let reports = host.reports()? - paused;
            // One may have been in flight.
            ensure!(reports <= 1, "the guest made {reports} reports while it was paused");
        }
        let paused = host.reported()?;
        guest.resume()?;
        host.wait_for_reports(paused)?;
    }
    end(guest)
}

pub(super) fn reboot(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let mut guest = scene.serving(&host, &[])?;
    host.set_target(TARGET)?;
    guest.console().wait_for("target", PATIENCE)?;
    guest.reboot()?;
    guest.console().wait_for("serving", PATIENCE)?;
    // The target outlives the guest, and the balloon of the first guest does not.
    let target = guest.console().wait_for("target", PATIENCE)?;
    ensure!(target.number("pages")? == TARGET / super::PAGE, "another target: {target:?}");
    host.set_target(0)?;
    host.wait_for_actual(0)?;
    end(guest)
}
