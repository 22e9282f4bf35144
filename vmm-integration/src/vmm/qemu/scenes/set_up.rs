// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Targets, and memory that a daemon cannot have.

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::{
    GuestConfig, LOOK_EVERY, LinuxGuest, MIB, PATIENCE, Scene, balloon_has, control, ended, fate,
    power_off, set_target,
};
use crate::measure::host::wait_until;

const TARGET: u64 = 100 * MIB;

pub(super) const TARGET_WITHOUT_DRIVER: Scene = Scene {
    name: "target-without-driver",
    about: "an operator sets a target while no driver runs; then one starts",
    play: |stage| {
        let daemon = stage.daemon(&[])?;
        let guest = LinuxGuest::boot(stage.toolbox, stage.config(&daemon))?;
        set_target(&daemon, TARGET)?;
        guest.load_balloon_driver("").with_context(|| fate(&guest, "no driver"))?;
        balloon_has(&daemon, TARGET).with_context(|| fate(&guest, "QEMU runs"))?;
        power_off(&guest)
    },
};

pub(super) const PRIVATE_MEMORY: Scene = Scene {
    name: "private-memory",
    about: "the guest's memory is not shared: QEMU has to say so, and not to crash",
    play: |stage| {
        let daemon = stage.daemon(&[])?;
        let private = "memory-backend-memfd,id=private,size=512M,share=off";
        let qemu_args = ["-object", private, "-machine", "memory-backend=private"];
        let qemu_args = qemu_args.map(str::to_owned).to_vec();
        let config = GuestConfig { qemu_args, ..stage.config(&daemon) };
        match LinuxGuest::boot(stage.toolbox, config) {
            Err(error) => {
                let said = format!("{error:#}");
                let why = said.lines().find(|line| line.contains("share=on"));
                let why = why.with_context(|| format!("it does not say why: {said}"))?;
                let how = if said.contains("exit status: 1") { "exit 1" } else { bail!("{said}") };
                let why = why.split_once("balloon: ").map_or(why, |(_, why)| why);
                Ok(format!("does not start, {how}: {why}"))
            }
            Ok(guest) => {
                guest.load_balloon_driver("").with_context(|| fate(&guest, "no driver"))?;
                let status = guest.end_within(super::HANGS);
                let printed = guest.stderr()?;
                match status {
                    Some(status) => bail!("QEMU ended: {}: {}", ended(status), printed.trim()),
                    None => bail!("the guest runs on without a balloon: {}", printed.trim()),
                }
            }
        }
    },
};

pub(super) const MONITOR: Scene = Scene {
    name: "monitor",
    about: "QMP: `balloon` and `query-balloon`",
    play: |stage| {
        let daemon = stage.daemon(&[])?;
        let guest = stage.guest(&daemon)?;
        let left = 512 * MIB - TARGET;
        guest.qmp().execute("balloon", json!({ "value": left }))?;
        wait_until(PATIENCE, LOOK_EVERY, || {
            let info = guest.qmp().execute("query-balloon", json!({}));
            match info {
                Ok(info) if info["actual"] == left => Ok(()),
                info => Err(format!("query-balloon: {info:?}")),
            }
        })?;
        let told = control(&daemon).get("/v1/status")?;
        ensure!(told["actual_bytes"] == TARGET, "the daemon does not know: {told}");
        guest.qmp().execute("balloon", json!({ "value": 512 * MIB }))?;
        balloon_has(&daemon, 0)?;
        power_off(&guest)
    },
};
