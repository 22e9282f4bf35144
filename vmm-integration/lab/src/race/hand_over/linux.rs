// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux in QEMU: it keeps memory, and fills and frees other memory while its daemons end.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmm_integration::control::ControlSocket;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

use super::daemons::{Daemons, LOOK_EVERY, PATIENCE};

const MIB: u64 = 1 << 20;
const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";
/// Between two passes of the guest, so that reports are under way at any moment.
const DELAY_MS: &str = "50";
/// What the guest keeps, and what it fills and frees.
const KEPT: u32 = 1;
const FILLED: u32 = 2;
const KEPT_BYTES: u64 = 64 * MIB;
const FILLED_BYTES: u64 = 256 * MIB;
/// In the balloon all the time.
const BALLOON: u64 = 64 * MIB;
/// When a daemon ends, after a free.
const MOMENTS: Range<Duration> = Duration::ZERO..Duration::from_millis(120);

/// Ends daemons under it; returns the gaps.
///
/// # Errors
/// When memory is lost, or does not come back, or the device is not as before.
pub(super) fn run(toolbox: &Toolbox, daemons: &Daemons<'_>) -> Result<Vec<Duration>> {
    let control = daemons.control();
    let balloon = Balloon::VhostUser { socket: daemons.socket() };
    let guest = LinuxGuest::boot(toolbox, GuestConfig { balloon, ..GuestConfig::default() })?;
    guest.load_balloon_driver("")?;
    let agent = guest.agent();
    agent.write_file(DELAY, DELAY_MS)?;
    agent.alloc(KEPT, KEPT_BYTES, 1)?;
    control.done("PUT", "/v1/target", &format!("{{\"bytes\":{BALLOON}}}"))?;
    balloon_has(control, BALLOON)?;
    // Of no memory that the guest uses here: that it stays is seen in the status.
    control.done("PUT", "/v1/pins", "{\"address\":0,\"bytes\":4096}")?;
    let mut gaps = Vec::new();
    for time in daemons.times() {
        agent.alloc(FILLED, FILLED_BYTES, time? + 2)?;
        let full = guest.resident_bytes()?;
        agent.free(FILLED)?;
        gaps.push(daemons.replace(MOMENTS)?);
        let wanted = full - FILLED_BYTES / 10 * 8;
        wait_until(PATIENCE, LOOK_EVERY, || match guest.resident_bytes() {
            Ok(now) if now <= wanted => Ok(()),
            now => Err(format!("{now:?} bytes resident, {wanted} wanted")),
        })?;
        ensure!(agent.expect_intact(KEPT)? == KEPT_BYTES, "memory was lost");
        let status = control.get("/v1/status")?;
        ensure!(status["target_bytes"] == BALLOON, "the target is gone: {status}");
        ensure!(status["pins"].as_array().is_some_and(|pins| pins.len() == 1), "{status}");
    }
    balloon_has(control, BALLOON)?;
    control.done("PUT", "/v1/target", "{\"bytes\":0}")?;
    balloon_has(control, 0)?;
    guest.quit()?;
    Ok(gaps)
}

/// Waits until the guest says that so much is in its balloon.
fn balloon_has(control: &ControlSocket, bytes: u64) -> Result<()> {
    wait_until(PATIENCE, LOOK_EVERY, || {
        let status = control.get("/v1/status").map_err(|error| format!("{error:#}"))?;
        if status["actual_bytes"] == bytes { Ok(()) } else { Err(status.to_string()) }
    })
}
