// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest, and the device that keeps its reports.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use guest_agent::Failure;
use serde_json::json;
use vmm_integration::linux_guest::{AgentClient, isolation};
use vmm_integration::measure::host::wait_until;
use vmm_integration::vmm::qemu::{Balloon, GuestConfig, LinuxGuest, Toolbox};

use super::operation::Operation;
use super::seen::Outcome;
use crate::faults::device::FaultyDevice;
use crate::faults::plan::FaultPlan;
use crate::race::linux::complaint;
use crate::scheme::KernelScheme;

const MIB: u64 = 1 << 20;
const DELAY: &str = "/sys/module/page_reporting/parameters/page_reporting_delay_ms";
/// Memory from a little below 1 GiB on can be moved; a page of 1 GiB is not cleared, which takes seconds
/// in an emulated guest.
const KERNEL_ARGS: [&str; 3] =
    ["movablecore=1664M", "memhp_default_state=online_movable", "init_on_alloc=0"];
const MOVABLE_GIGANTIC_PAGES: &str = "/proc/sys/vm/movable_gigantic_pages";
/// Between two passes, in milliseconds.
const DELAY_MS: &str = "100";
const STEP: Duration = Duration::from_secs(60);
/// For a report of memory that has become free. It takes another turn if none comes.
const REPORT: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_millis(10);
/// The only page of 1 GiB for which the guest has memory that can be moved.
const GIGANTIC: Range<u64> = 1 << 30..2 << 30;
/// The allocation that stays, and what is in it.
const KEPT: (u32, u64, u16) = (200, 64 * MIB, 1);
/// Another, which comes and goes.
const PASSING: (u32, u64, u16) = (201, 128 * MIB, 2);
/// The virtio-mem device, and what it has in all.
const PLUG: &str = "plug";
pub(super) const PLUGGED: u64 = 128 * MIB;
/// It lies from here on; the guest's own memory ends before.
const ADDED_MEMORY: u64 = 4 << 30;

/// A guest that reports to a device that can be late.
pub(super) struct Machine {
    guest: LinuxGuest,
    device: FaultyDevice,
    block_bytes: u64,
    /// The memory block that is reported, and another one.
    pub(super) target: u32,
    pub(super) other: u32,
}

impl Machine {
    pub(super) fn boot(toolbox: &Toolbox, scheme: KernelScheme) -> Result<Self> {
        let device = FaultyDevice::start(FaultPlan::default())?;
        let plug = format!("memory-backend-memfd,id=more,size={}M,share=on", PLUGGED / MIB);
        let virtio_mem = format!("virtio-mem-pci,id={PLUG},memdev=more,requested-size=0");
        let qemu_args = ["-m", "maxmem=8G", "-object", &plug, "-device", &virtio_mem];
        let config = GuestConfig {
            memory_bytes: 2560 * MIB,
            balloon: Balloon::VhostUser { socket: device.socket() },
            modules: vec!["kernel/drivers/virtio/virtio_mem".to_owned()],
            own_modules: scheme.params().is_some(),
            kernel_args: KERNEL_ARGS.map(str::to_owned).into(),
            qemu_args: qemu_args.map(str::to_owned).into(),
            ..GuestConfig::default()
        };
        let guest = LinuxGuest::boot(toolbox, config)?;
        guest.load_balloon_driver("")?;
        let agent = guest.agent();
        agent.write_file(DELAY, DELAY_MS)?;
        agent.load_module("virtio_mem", "")?;
        // Otherwise a gigantic page comes from no memory that can go offline.
        agent.write_file(MOVABLE_GIGANTIC_PAGES, "1")?;
        let (id, bytes, generation) = KEPT;
        agent.alloc(id, bytes, generation)?;
        let blocks = agent.memory_blocks()?;
        let mut machine =
            Self { guest, device, block_bytes: blocks.block_bytes, target: 0, other: 0 };
        let in_page = |block: &&u32| GIGANTIC.contains(&machine.addresses(**block).start);
        let (inside, outside): (Vec<u32>, Vec<u32>) = blocks.movable().iter().partition(in_page);
        let target = machine.first_that_goes(&inside)?;
        (machine.target, machine.other) = (target, machine.first_that_goes(&outside)?);
        if let Some(params) = scheme.params() {
            isolation::load(machine.agent(), &params)?;
        }
        Ok(machine)
    }

    /// The first of these blocks that goes offline.
    fn first_that_goes(&self, blocks: &[u32]) -> Result<u32> {
        for &block in blocks {
            if self.offline(block)? == Outcome::Done {
                self.online(block)?;
                return Ok(block);
            }
        }
        bail!("none of the memory blocks {blocks:?} goes offline")
    }

    pub(super) fn agent(&self) -> &AgentClient {
        self.guest.agent()
    }

    pub(super) fn kernel(&self) -> &str {
        &self.guest.hello().kernel_release
    }

    /// Has the guest report the memory that an operation is about, and keeps the report. Returns
    /// bytes in it.
    pub(super) fn keep_report(&self, operation: Operation) -> Result<u64> {
        let other = self.addresses(self.other);
        wait_until(4 * STEP, Duration::ZERO, || {
            let text = |error: anyhow::Error| format!("{error:#}");
            let addresses = self.free_all_of(operation).map_err(text)?;
            let report = self.device.kept(REPORT).map_err(text)?;
            if operation == Operation::VirtioMem {
                self.wait_plugged(PLUGGED).map_err(text)?;
            }
            let [bytes, others] =
                [&addresses, &other].map(|at| report.bytes_within(at.start, at.end));
            if (bytes, others) == (self.block_bytes, 0) {
                return Ok(bytes);
            }
            self.device.acknowledge();
            Err(format!("the report has {bytes} bytes of the block, and {others} of another"))
        })
    }

    /// Makes that memory free, after the device was told to keep its report; returns where it lies.
    fn free_all_of(&self, operation: Operation) -> Result<Range<u64>> {
        if operation == Operation::VirtioMem {
            self.request(0)?;
            self.wait_plugged(0)?;
            let addresses = ADDED_MEMORY..u64::MAX;
            self.device.keep(addresses.clone());
            self.request(PLUGGED)?;
            return Ok(addresses);
        }
        self.offline_in_the_end(self.target)?;
        let addresses = self.addresses(self.target);
        self.device.keep(addresses.clone());
        self.online(self.target)?;
        Ok(addresses)
    }

    fn addresses(&self, block: u32) -> Range<u64> {
        let start = u64::from(block) * self.block_bytes;
        start..start + self.block_bytes
    }

    /// Acknowledges the report; returns when.
    pub(super) fn acknowledge(&self) -> Instant {
        let at = Instant::now();
        self.device.acknowledge();
        at
    }

    pub(super) fn offline(&self, block: u32) -> Result<Outcome> {
        outcome(self.agent().write_file(&state_of(block), "offline"))
    }

    /// Whether a block is about to go offline.
    pub(super) fn goes_offline(&self, block: u32) -> Result<bool> {
        Ok(self.agent().read_file(&state_of(block))?.trim() == "going-offline")
    }

    pub(super) fn online(&self, block: u32) -> Result<()> {
        self.agent().write_file(&state_of(block), "online_movable")
    }

    /// Takes a block offline.
    fn offline_in_the_end(&self, block: u32) -> Result<()> {
        wait_until(STEP, EVERY, || match self.offline(block) {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Refused(why)) => Err(why),
            Err(error) => Err(format!("{error:#}")),
        })
        .with_context(|| format!("taking memory{block} offline"))
    }

    /// Asks the guest to have so many bytes of the virtio-mem device plugged.
    pub(super) fn request(&self, bytes: u64) -> Result<()> {
        self.guest.qmp().request_memory(PLUG, bytes)
    }

    /// Bytes of that device that are plugged.
    pub(super) fn plugged(&self) -> Result<u64> {
        let path = format!("/machine/peripheral/{PLUG}");
        let size =
            self.guest.qmp().execute("qom-get", json!({"path": path, "property": "size"}))?;
        size.as_u64().with_context(|| format!("the plugged size is {size}, expected bytes"))
    }

    fn wait_plugged(&self, bytes: u64) -> Result<()> {
        wait_until(2 * STEP, EVERY, || match self.plugged() {
            Ok(now) if now == bytes => Ok(()),
            now => Err(format!("{now:?} bytes are plugged, expected {bytes}")),
        })
    }

    /// Checks that the guest is well.
    pub(super) fn check(&self) -> Result<()> {
        let agent = self.agent();
        let (id, bytes, generation) = PASSING;
        agent.alloc(id, bytes, generation)?;
        agent.expect_intact(id)?;
        agent.free(id)?;
        let (id, bytes, _) = KEPT;
        ensure!(agent.expect_intact(id)? == bytes, "the allocation that stays is shorter");
        match complaint(&self.guest)? {
            Some(complaint) => bail!("{complaint}"),
            None => Ok(()),
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        let said = self.guest.quit()?;
        ensure!(said.is_empty(), "QEMU said {said:?}");
        Ok(())
    }
}

fn state_of(block: u32) -> String {
    format!("/sys/devices/system/memory/memory{block}/state")
}

/// An answer of the guest; an error of its kernel is one, too.
pub(super) fn outcome(result: Result<()>) -> Result<Outcome> {
    let Err(error) = result else { return Ok(Outcome::Done) };
    let failure = error.downcast_ref::<Failure>().and_then(|failure| failure.errno.clone());
    failure.map(Outcome::Refused).ok_or(error)
}
