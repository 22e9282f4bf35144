// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest is migrated to another QEMU and another daemon.

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::{
    GuestConfig, LOOK_EVERY, LinuxGuest, MIB, PATIENCE, Scene, Stage, balloon_has, control, field,
    freed_memory_returns, power_off, set_target,
};
use crate::measure::host::wait_until;

const KEPT: u32 = 1;
const KEPT_BYTES: u64 = 64 * MIB;
const BALLOON: u64 = 64 * MIB;

/// A guest that keeps memory and has some in its balloon.
fn guest(stage: &Stage<'_>, daemon: &crate::daemon::DaemonProcess) -> Result<LinuxGuest> {
    let guest = stage.guest(daemon)?;
    guest.agent().alloc(KEPT, KEPT_BYTES, 1)?;
    set_target(daemon, BALLOON)?;
    balloon_has(daemon, BALLOON)?;
    Ok(guest)
}

/// Waits for the end of a migration.
fn await_state(guest: &LinuxGuest, wanted: &str) -> Result<()> {
    wait_until(PATIENCE, LOOK_EVERY, || {
        let status = guest.qmp().execute("query-migrate", json!({}));
        let status = status.map_err(|error| format!("{error:#}"))?;
        match field(&status, "status") {
            state if state == wanted => Ok(Ok(())),
            state @ ("failed" | "cancelled" | "completed") => Ok(Err(anyhow::anyhow!(
                "the migration is {state}: {}",
                field(&status, "error-desc")
            ))),
            _ => Err(status.to_string()),
        }
    })?
}

/// Whether the guest is here as it was.
fn is_whole(guest: &LinuxGuest, daemon: &crate::daemon::DaemonProcess) -> Result<()> {
    let kept = guest.agent().expect_intact(KEPT)?;
    ensure!(kept == KEPT_BYTES, "memory was lost");
    balloon_has(daemon, BALLOON)?;
    freed_memory_returns(guest).map(drop)
}

pub(super) const LIVE: Scene = Scene {
    name: "migration",
    about: "live migration to another QEMU with a daemon of its own",
    play: |stage| {
        let (here, there) = (stage.daemon(&[])?, stage.daemon(&[])?);
        let source = guest(stage, &here)?;
        let socket = there.dir().join("migration.sock");
        let uri = format!("unix:{}", socket.display());
        let target = LinuxGuest::incoming(stage.toolbox, stage.config(&there), &source, &uri)?;
        source.qmp().execute("migrate", json!({ "uri": uri }))?;
        await_state(&source, "completed")?;
        is_whole(&target, &there).context("after the migration")?;
        power_off(&target)
    },
};

const TIMES: usize = 10;

pub(super) const TO_AND_FRO: Scene = Scene {
    name: "ten-migrations",
    about: "ten live migrations between two daemons, and what the host holds before and after",
    play: |stage| {
        // A reclaim asks for statistics.
        let mut here = stage.daemon(&["--statistics"])?;
        let mut there = stage.daemon(&["--statistics"])?;
        let mut source = guest(stage, &here)?;
        let mut held = Vec::new();
        for time in 0..TIMES {
            freed_memory_returns(&source)?;
            let before = source.resident_bytes()?;
            let uri = format!("unix:{}", there.dir().join("migration.sock").display());
            let target = LinuxGuest::incoming(stage.toolbox, stage.config(&there), &source, &uri)?;
            // No limit: a guest of this size is moved in a moment.
            source.qmp().execute("migrate-set-parameters", json!({ "max-bandwidth": 0 }))?;
            source.qmp().execute("migrate", json!({ "uri": uri }))?;
            await_state(&source, "completed").with_context(|| format!("migration {time}"))?;
            let filled = [source.resident_bytes()?, target.resident_bytes()?];
            drop(source);
            is_whole(&target, &there).with_context(|| format!("after migration {time}"))?;
            let reported = target.resident_bytes()?;
            control(&there).done("POST", "/v1/reclaim", "")?;
            held.push([before, filled[0], filled[1], reported, target.resident_bytes()?]);
            source = target;
            std::mem::swap(&mut here, &mut there);
        }
        let off = power_off(&source)?;
        let column = |index: usize| {
            let mut column: Vec<_> = held.iter().map(|row| row[index] / MIB).collect();
            column.sort_unstable();
            column[column.len() / 2]
        };
        let [before, at_source, here, reported, reclaimed] = std::array::from_fn(column);
        Ok(format!(
            "{TIMES} of {TIMES}; medians in MiB: the host holds {before} before, then {at_source} at the \
             source and {here} at the destination, {reported} there after new reports, {reclaimed} \
             after a reclaim; {off}"
        ))
    },
};

pub(super) const FILE: Scene = Scene {
    name: "save-to-file",
    about: "the guest is saved to a file, and restored before another daemon",
    play: |stage| {
        let (here, there) = (stage.daemon(&[])?, stage.daemon(&[])?);
        let source = guest(stage, &here)?;
        let file = there.dir().join("saved");
        let uri = format!("file:{}", file.display());
        source.qmp().execute("migrate", json!({ "uri": uri }))?;
        await_state(&source, "completed")?;
        let target = LinuxGuest::incoming(stage.toolbox, stage.config(&there), &source, &uri)?;
        drop(source);
        is_whole(&target, &there).context("after the restore")?;
        power_off(&target)
    },
};

pub(super) const CANCELLED: Scene = Scene {
    name: "migration-cancelled",
    about: "a migration is cancelled, and one fails for a daemon that offers less",
    play: |stage| {
        let (here, there) = (stage.daemon(&[])?, stage.daemon(&["--no-reporting"])?);
        let source = guest(stage, &here)?;
        let slow = json!({ "max-bandwidth": 4096 });
        source.qmp().execute("migrate-set-parameters", slow)?;
        let uri = format!("file:{}", there.dir().join("slow").display());
        source.qmp().execute("migrate", json!({ "uri": uri }))?;
        source.qmp().execute("migrate_cancel", json!({}))?;
        await_state(&source, "cancelled")?;
        is_whole(&source, &here).context("after the cancellation")?;
        let fast = json!({ "max-bandwidth": 1_u64 << 30 });
        source.qmp().execute("migrate-set-parameters", fast)?;
        let uri = format!("unix:{}", there.dir().join("migration.sock").display());
        let config = GuestConfig { ..stage.config(&there) };
        let target = LinuxGuest::incoming(stage.toolbox, config, &source, &uri)?;
        source.qmp().execute("migrate", json!({ "uri": uri }))?;
        let Some(status) = target.end_within(PATIENCE) else { bail!("the destination accepts it") };
        let said = target.stderr()?;
        ensure!(said.contains("restoring the back-end"), "it does not say why: {said}");
        if !source.qmp().is_guest_running()? {
            source.qmp().cont()?;
        }
        is_whole(&source, &here).context("after the failed migration")?;
        let off = power_off(&source)?;
        Ok(format!("destination refuses ({}), source goes on; {off}", super::ended(status)))
    },
};
