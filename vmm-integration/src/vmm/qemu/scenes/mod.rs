// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a balloon in another process has to live through in QEMU, on QEMU's generic device and on the
//! project's own, side by side.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_agent::Command;
use serde_json::Value;

use super::{Balloon, GuestConfig, LinuxGuest, Toolbox};
use crate::control::ControlSocket;
use crate::daemon::DaemonProcess;
use crate::linux_guest::BALLOON_DRIVER;
use crate::measure::host::wait_until;

mod away;
mod moved;
mod set_up;

const MIB: u64 = 1 << 20;
/// What a scene waits for takes a moment; a guest is emulated.
const PATIENCE: Duration = Duration::from_secs(30);
/// A driver that waits this long for an answer waits without end.
const HANGS: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A device that attaches the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// QEMU's own for any backend.
    Generic,
    /// The project's.
    Own,
}

/// Something that happens, and how each device has to come through it.
pub struct Scene {
    /// In kebab-case.
    pub name: &'static str,
    /// What happens, in a few words.
    pub about: &'static str,
    play: fn(&Stage<'_>) -> Result<String>,
}

/// All scenes.
pub const SCENES: [Scene; 10] = [
    set_up::TARGET_WITHOUT_DRIVER,
    set_up::PRIVATE_MEMORY,
    set_up::MONITOR,
    away::RELOAD,
    away::POWER_OFF,
    away::RESTART,
    moved::LIVE,
    moved::FILE,
    moved::CANCELLED,
    moved::TO_AND_FRO,
];

/// How a scene ended.
pub struct Played {
    /// Whether it went as it should.
    pub passed: bool,
    /// What was seen.
    pub seen: String,
}

impl Scene {
    /// Plays it with a device of this QEMU, and a daemon of its own.
    pub fn play(&self, toolbox: &Toolbox, device: Device, daemon: &Path) -> Played {
        match (self.play)(&Stage { toolbox, device, daemon }) {
            Ok(seen) => Played { passed: true, seen },
            Err(error) => Played { passed: false, seen: format!("{error:#}") },
        }
    }
}

/// What a scene is played with.
struct Stage<'a> {
    toolbox: &'a Toolbox,
    device: Device,
    daemon: &'a Path,
}

impl Stage<'_> {
    fn daemon(&self, args: &[&str]) -> Result<DaemonProcess> {
        DaemonProcess::spawn_controlled(self.daemon, args)
    }

    fn balloon(&self, socket: PathBuf) -> Balloon {
        match self.device {
            Device::Generic => Balloon::VhostUser { socket },
            Device::Own => Balloon::OwnDevice { socket },
        }
    }

    fn config(&self, daemon: &DaemonProcess) -> GuestConfig {
        GuestConfig {
            memory_bytes: 512 * MIB,
            balloon: self.balloon(daemon.socket()),
            ..GuestConfig::default()
        }
    }

    /// A guest before the daemon, with its driver.
    fn guest(&self, daemon: &DaemonProcess) -> Result<LinuxGuest> {
        let guest = LinuxGuest::boot(self.toolbox, self.config(daemon))?;
        guest.load_balloon_driver("")?;
        Ok(guest)
    }
}

fn control(daemon: &DaemonProcess) -> ControlSocket {
    ControlSocket::new(&daemon.control_socket(), PATIENCE)
}

fn set_target(daemon: &DaemonProcess, bytes: u64) -> Result<()> {
    control(daemon).done("PUT", "/v1/target", &format!("{{\"bytes\":{bytes}}}")).map(drop)
}

/// Waits until the daemon says that the guest has put so much into its balloon.
fn balloon_has(daemon: &DaemonProcess, bytes: u64) -> Result<()> {
    let control = control(daemon);
    wait_until(PATIENCE, LOOK_EVERY, || {
        let status = control.get("/v1/status").map_err(|error| format!("{error:#}"))?;
        let actual = status["actual_bytes"].as_u64();
        if actual == Some(bytes) { Ok(()) } else { Err(format!("actual_bytes is {actual:?}")) }
    })
    .with_context(|| format!("the balloon does not come to {} MiB", bytes / MIB))
}

/// Fills and frees memory; returns how long it takes until the host has it.
fn freed_memory_returns(guest: &LinuxGuest) -> Result<Duration> {
    const ID: u32 = 77;
    const BYTES: u64 = 128 * MIB;
    guest.agent().alloc(ID, BYTES, 1)?;
    let full = guest.resident_bytes()?;
    let start = Instant::now();
    guest.agent().free(ID)?;
    let wanted = full.saturating_sub(BYTES / 10 * 8);
    wait_until(PATIENCE, LOOK_EVERY, || match guest.resident_bytes() {
        Ok(now) if now <= wanted => Ok(start.elapsed()),
        now => Err(format!("{now:?} bytes resident, {wanted} wanted")),
    })
    .context("freed memory does not come back")
}

/// Unloads the driver, which takes long where it waits for an answer that never comes.
fn unload(guest: &LinuxGuest) -> Result<()> {
    let unload = Command::UnloadModule { name: BALLOON_DRIVER.to_owned() };
    match guest.agent().call(unload, HANGS) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.context(fate(guest, "rmmod hangs"))),
    }
}

/// How QEMU has ended, or what else is wrong.
fn fate(guest: &LinuxGuest, otherwise: &str) -> String {
    let Some(status) = guest.end_within(Duration::from_secs(1)) else {
        return otherwise.to_owned();
    };
    let printed = guest.stderr().unwrap_or_default();
    let last = printed.lines().rfind(|line| !line.is_empty()).unwrap_or_default().to_owned();
    format!("QEMU ended: {} ({last})", ended(status))
}

fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "?".to_owned(),
    }
}

/// Powers the guest off, and says how QEMU ended and after how long.
fn power_off(guest: &LinuxGuest) -> Result<String> {
    let start = Instant::now();
    guest.agent().power_off();
    let Some(status) = guest.end_within(HANGS) else { bail!("poweroff hangs") };
    ensure!(status.success(), "QEMU ended: {}", ended(status));
    Ok(format!("exit 0 after {:.1} s", start.elapsed().as_secs_f64()))
}

fn field<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
