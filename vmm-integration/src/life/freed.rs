// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest in which programs allocate and free memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use guest_agent::faulting::{FaultingPlan, Work};

use super::scene::{Scene, wait};
use super::{MIB, PATIENCE};
use crate::vmm::GuestSpec;
use crate::vmm::bare::absent;

const MEMORY: u64 = 512 * MIB;
/// Names of the allocations: one that stays, one that is freed.
const KEPT: u32 = 1;
const FILLED: u32 = 2;

pub(super) fn memory_returns(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let spec = GuestSpec { memory_bytes: MEMORY, socket: host.daemon.socket() };
    let guest = scene.vmm.boot(&spec)?;
    guest.set_reporting(true)?;
    guest.alloc(KEPT, 16 * MIB, 1)?;
    for generation in 2..4 {
        guest.alloc(FILLED, 128 * MIB, generation)?;
        let intact = guest.expect_intact(FILLED)?;
        ensure!(intact == 128 * MIB, "{intact} bytes were filled");
        let (before, used) = (guest.resident_bytes()?, guest.used_bytes()?);
        ensure!(before.min(used) >= 144 * MIB, "{before} bytes are resident, {used} in use");
        guest.free(FILLED)?;
        // A part may stay in blocks that are too small to be reported.
        guest.wait_until_resident(before - 96 * MIB, PATIENCE)?;
    }
    guest.expect_intact(KEPT)?;

    // Without reporting, programs that allocate and free cause no report. The daemon may count the
    // last one after it has returned it.
    guest.set_reporting(false)?;
    let before = wait(|| {
        let look = || -> Result<(u64, u64)> {
            let before = host.reported()?;
            for work in Work::ALL {
                let plan = FaultingPlan { work, tasks: 1, bytes: 16 * MIB, milliseconds: 200 };
                let faulted = guest.fault(plan)?;
                ensure!(faulted.pages > 0 && faulted.cpu > Duration::ZERO, "{faulted:?}");
                ensure!(faulted.time >= Duration::from_millis(200), "{faulted:?}");
            }
            Ok((before, host.reported()?))
        };
        match look() {
            Ok((before, after)) if before == after => Ok(before),
            other => Err(format!("reports go on: {other:?}")),
        }
    })?;
    guest.set_reporting(true)?;
    host.wait_for_reports(before)?;
    guest.expect_intact(KEPT)?;
    guest.shut_down()?;
    host.daemon.session_summary(PATIENCE).map(drop)
}

pub(super) fn target_is_followed(scene: &Scene<'_>) -> Result<()> {
    let host = scene.host(&[])?;
    let spec = GuestSpec { memory_bytes: MEMORY, socket: host.daemon.socket() };
    let guest = scene.vmm.boot(&spec)?;
    if guest.agent().is_none() {
        return absent("its guest, the model, follows no target");
    }
    guest.set_reporting(true)?;
    guest.alloc(KEPT, 32 * MIB, 1)?;
    for bytes in [128 * MIB, 64 * MIB, 0] {
        host.set_target(bytes)?;
        host.wait_for_actual(bytes)?;
    }
    guest.expect_intact(KEPT)?;
    guest.shut_down().map(drop)
}
