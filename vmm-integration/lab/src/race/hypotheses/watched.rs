// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A real Linux beside a device that remembers each report.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use guest_agent::Failure;
use guest_agent::race::MemoryBlock;

use super::seen::{Seen, seen};
use crate::faults::chain::Chain;
use crate::faults::device::FaultyDevice;
use crate::faults::plan::FaultPlan;
use crate::race::linux::set_block;
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The time without a report after which the guest is done: Linux makes a pass two seconds after a
/// request.
pub(super) const QUIET: Duration = Duration::from_secs(5);
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// The guest's allocations.
pub(super) const KEPT: u32 = 1;
pub(super) const FREED: u32 = 2;
const TRIGGER: u32 = 3;

/// A guest whose device remembers each report.
pub(super) struct Watched {
    /// The guest.
    pub(super) guest: LinuxGuest,
    /// Its device.
    pub(super) device: FaultyDevice,
}

impl Watched {
    /// Boots a guest; its driver is not loaded yet.
    pub(super) fn boot(toolbox: &Toolbox, plan: FaultPlan, kernel_args: &[&str]) -> Result<Self> {
        let device = FaultyDevice::start(plan)?;
        let config = GuestConfig {
            memory_bytes: 1024 * MIB,
            cpus: 1,
            balloon: Balloon::VhostUser { socket: device.socket() },
            kernel_args: kernel_args.iter().map(|&arg| arg.to_owned()).collect(),
            ..GuestConfig::default()
        };
        Ok(Self { guest: LinuxGuest::boot(toolbox, config)?, device })
    }

    /// Boots a guest, loads its driver, and waits until all free memory is reported.
    pub(super) fn reported(toolbox: &Toolbox, kernel_args: &[&str]) -> Result<Self> {
        let watched = Self::boot(toolbox, FaultPlan::default(), kernel_args)?;
        watched.guest.load_balloon_driver("")?;
        watched.rest()?;
        Ok(watched)
    }

    /// Waits until the guest reports nothing for a while, and returns the reports until then.
    pub(super) fn rest(&self) -> Result<Vec<Chain>> {
        let mut chains = self.device.take_chains();
        let mut last = Instant::now();
        wait_until(PATIENCE, LOOK_EVERY, || {
            let more = self.device.take_chains();
            if !more.is_empty() {
                last = Instant::now();
            }
            chains.extend(more);
            if last.elapsed() > QUIET { Ok(()) } else { Err("it still reports".to_owned()) }
        })?;
        Ok(chains)
    }

    /// The bytes in the reports of [`Watched::rest`].
    pub(super) fn rest_bytes(&self) -> Result<u64> {
        Ok(bytes(&self.rest()?))
    }

    /// Frees unreported memory, more than stays on per-CPU lists, and returns the reported bytes.
    pub(super) fn trigger(&self) -> Result<u64> {
        self.guest.agent().alloc(TRIGGER, 48 * MIB, 1)?;
        let before = self.rest_bytes()?;
        self.guest.agent().free(TRIGGER)?;
        Ok(before + self.rest_bytes()?)
    }

    /// The free memory in bytes.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        Ok(self.guest.agent().meminfo()?.bytes("MemFree"))
    }

    /// Uses memory until `free` bytes are left.
    pub(super) fn fill(&self, free: u64) -> Result<()> {
        let bytes = self.free_bytes()?.checked_sub(free).context("too little is free")?;
        self.guest.agent().alloc(KEPT, bytes / MIB * MIB, 1)
    }

    /// Writes a number to a file, and returns the one before.
    pub(super) fn set(&self, path: &str, value: u64) -> Result<u64> {
        let before = self.guest.agent().read_file(path)?;
        // The file of the trace buffer has a remark after the number.
        let before = before.split_whitespace().next().unwrap_or_default().parse();
        let before = before.with_context(|| format!("{path} is not a number"))?;
        self.guest.agent().write_file(path, &value.to_string())?;
        Ok(before)
    }

    /// The size of a memory block in bytes, and all blocks.
    pub(super) fn blocks(&self) -> Result<(u64, Vec<MemoryBlock>)> {
        let blocks = self.guest.agent().memory_blocks()?;
        Ok((blocks.block_bytes, blocks.blocks))
    }

    /// The memory blocks that refuse to go offline; the others come online again.
    pub(super) fn refused(&self) -> Result<Vec<u32>> {
        let mut refused = Vec::new();
        for block in self.blocks()?.1 {
            let one_zone = block.zones.first().is_some_and(|zone| zone != "none");
            if !one_zone || block.state != "online" {
                continue;
            }
            match set_block(&self.guest, block.id, "offline") {
                Ok(()) => set_block(&self.guest, block.id, "online")?,
                Err(error) if is_busy(&error) => refused.push(block.id),
                // The kernel does not try a block with a hole.
                Err(_) => {}
            }
        }
        ensure!(!refused.is_empty(), "every block goes offline");
        Ok(refused)
    }

    /// An observation of this guest.
    pub(super) fn seen(&self, shown: bool, text: String) -> Seen {
        seen(shown, format!("Linux {}: {text}", self.guest.hello().kernel_release))
    }
}

/// Whether an error is EBUSY.
pub(super) fn is_busy(error: &anyhow::Error) -> bool {
    let failure = error.downcast_ref::<Failure>();
    failure.and_then(|failure| failure.errno.as_deref()) == Some("EBUSY")
}

/// The bytes in reports.
pub(super) fn bytes(chains: &[Chain]) -> u64 {
    chains.iter().map(|chain| chain.bytes).sum()
}

/// Bytes in MiB.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes / MIB
}
