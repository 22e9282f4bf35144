// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The demo with a real Linux in QEMU.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vmm_integration::daemon::{DaemonOptions, DaemonProcess};
use vmm_integration::measure::host::Sampler;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

use super::measure::{self, Plan, SAMPLE_EVERY, WIND_UP};
use super::options::Options;
use super::run::{Device, Run};

/// Boots the guest and runs the demo once with `device`.
///
/// # Errors
/// If the guest or the daemon fails, or Ctrl-C was pressed.
pub(super) fn run(
    toolbox: &Toolbox,
    binary: &Path,
    device: Device,
    options: &Options,
) -> Result<Run> {
    let memory_bytes = options.memory << 20;
    let daemon = match device {
        Device::Daemon => Some(DaemonProcess::spawn(binary, &DaemonOptions::default())?),
        Device::Qemu | Device::None => None,
    };
    let balloon = match &daemon {
        Some(daemon) => Balloon::VhostUser { socket: daemon.socket().to_owned() },
        None if device == Device::Qemu => Balloon::Qemu,
        None => Balloon::None,
    };
    eprintln!("{device}: booting a guest of {} MiB", options.memory);
    let booting = Instant::now();
    let config = GuestConfig { memory_bytes, balloon, ..GuestConfig::default() };
    let guest = LinuxGuest::boot(toolbox, config)?;
    let guest = Arc::new(guest);
    let described = format!(
        "Linux {}, {}, {}; booted in {:.1} s",
        guest.hello().kernel_release,
        guest.accel(),
        toolbox.qemu_version,
        booting.elapsed().as_secs_f64(),
    );
    eprintln!("{device}: {described}");

    let asked = Arc::clone(&guest);
    let sampler = Sampler::start(SAMPLE_EVERY, guest.memory().try_clone()?, move || {
        asked.agent().meminfo().ok().map(|meminfo| meminfo.used_bytes())
    });
    let outcome =
        measure::watch(&*guest, sampler, Plan { device, memory_bytes, rounds: options.rounds })?;
    let own_device = guest.own_device_discards();
    Arc::into_inner(guest).context("the guest is still in use")?.quit()?;
    let (reports, ranges, discard_calls) = match daemon {
        Some(mut daemon) => {
            let summary = daemon.session_summary(WIND_UP)?;
            daemon.terminate(WIND_UP)?;
            (Some(summary.chains), summary.ranges, summary.discard_calls)
        }
        None => {
            let count = own_device.context("reading the trace of QEMU's device")?;
            (None, count.ranges, count.calls)
        }
    };
    Ok(Run {
        device,
        guest: described,
        memory_bytes,
        rounds: outcome.rounds,
        reports,
        ranges,
        discard_calls,
        verified_bytes: outcome.verified_bytes,
        lost_bytes: outcome.lost_bytes,
        curve: outcome.curve,
    })
}
