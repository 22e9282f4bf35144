// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Real Linux's part: programs of the guest's agent, and a balloon driver that is loaded and
//! unloaded in a guest that was booted once.

use std::time::Duration;

use anyhow::{Context as _, Result};
use guest_agent::faulting::{FaultingPlan, Mapped};

use super::super::daemon::CountedDaemon;
use super::{Guest, MAPPING_BYTES, Work};
use vmm_integration::measure::host;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

const DRIVER: &str = "virtio_balloon";

/// A guest with its device.
pub(super) struct Linux {
    mapped: Mapped,
    tasks: u32,
    guest: LinuxGuest,
    device: CountedDaemon,
}

impl Linux {
    pub(super) fn start(
        toolbox: &Toolbox,
        mapped: Mapped,
        tasks: u32,
        memory_bytes: u64,
        device: CountedDaemon,
    ) -> Result<Self> {
        let balloon = Balloon::VhostUser { socket: device.socket() };
        let config = GuestConfig { memory_bytes, balloon, ..GuestConfig::default() };
        Ok(Self { mapped, tasks, guest: LinuxGuest::boot(toolbox, config)?, device })
    }

    /// CPU time of QEMU's threads but for its main one, which leaves the guest's CPUs.
    fn guest_cpu_time(&self) -> Result<Duration> {
        let pid = self.guest.qemu_pid();
        Ok(host::cpu_time(pid)?.saturating_sub(host::main_thread_cpu_time(pid)?))
    }
}

impl Guest for Linux {
    fn set_reporting(&mut self, on: bool) -> Result<()> {
        self.guest.agent().unload_module(DRIVER).or_else(not_loaded)?;
        if on { self.guest.load_balloon_driver("") } else { Ok(()) }
    }

    fn work(&self, time: Duration) -> Result<Work> {
        let before = self.guest_cpu_time()?;
        let faulted = self.guest.agent().fault(FaultingPlan {
            mapped: self.mapped,
            tasks: self.tasks,
            bytes: MAPPING_BYTES,
            milliseconds: u64::try_from(time.as_millis())?,
        })?;
        let cpu = self.guest_cpu_time()?.saturating_sub(before);
        Ok(Work { pages: faulted.pages, time: Duration::from_nanos(faulted.nanoseconds), cpu })
    }

    fn reported_bytes(&self) -> Result<u64> {
        Ok(self.device.discards()?.bytes)
    }

    fn describe(&self) -> String {
        let what = match self.mapped {
            Mapped::Anonymous => "anonymous memory, with MADV_HUGEPAGE",
            Mapped::File => "a private mapping of a file in its initramfs",
        };
        format!(
            "Linux {} in QEMU, {}. Each task writes a byte to every page of {} MiB of {what}, and \
             unmaps it. Reporting is on while {DRIVER} is loaded.",
            self.guest.hello().kernel_release,
            self.guest.accel(),
            MAPPING_BYTES >> 20
        )
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let Self { guest, device, .. } = *self;
        guest.quit().context("ending the guest")?;
        device.finish()
    }
}

/// A driver that is not there is as good as unloaded.
fn not_loaded(error: anyhow::Error) -> Result<()> {
    let failure = error.downcast_ref::<guest_agent::Failure>();
    match failure.and_then(|failure| failure.errno.as_deref()) {
        Some("ENOENT") => Ok(()),
        _ => Err(error),
    }
}
