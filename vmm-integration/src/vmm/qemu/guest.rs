// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU as a [`Vmm`] and its Linux guest as a [`Guest`].

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use guest_agent::faulting::FaultingPlan;

use super::{Accel, Balloon, BareGuest, GuestConfig, LinuxGuest, available, available_with, built};
use crate::fetch::SetupEvent;
use crate::guest::{Contents, Faulted, Guest};
use crate::linux_guest::{AgentClient, fault};
use crate::measure::host;
use crate::vmm::bare::{BareMachine, BareSpec};
use crate::vmm::{GuestKind, GuestSpec, Vmm, kvm};

/// Where a DIMM lies: behind the hole below 4 GiB, in a guest whose own memory ends before it.
const ADDED_MEMORY: u64 = 4 << 30;

/// QEMU as a row of [`crate::vmm::ALL`].
pub struct Qemu;

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn guests(&self) -> &'static [GuestKind] {
        &[GuestKind::Programs, GuestKind::Bare]
    }

    fn prepare(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        Ok(available_with(events)?.qemu_version)
    }

    fn boot(&self, spec: &GuestSpec) -> Result<Box<dyn Guest>> {
        let GuestSpec { memory_bytes, ref socket } = *spec;
        let balloon = Balloon::VhostUser { socket: socket.clone() };
        let config = GuestConfig { memory_bytes, balloon, ..GuestConfig::default() };
        Ok(Box::new(LinuxGuest::boot(&available()?, config)?))
    }

    fn boot_bare(&self, spec: &BareSpec) -> Result<Box<dyn BareMachine>> {
        Ok(Box::new(BareGuest::boot(&available()?, Accel::Tcg, spec)?))
    }

    fn added_memory_at(&self, _: u64) -> Option<u64> {
        Some(ADDED_MEMORY)
    }
}

/// QEMU with the bare guest on `/dev/kvm`, which may be able to run it and not Linux.
pub struct QemuKvm;

impl Vmm for QemuKvm {
    fn name(&self) -> &'static str {
        "qemu-kvm"
    }

    fn guests(&self) -> &'static [GuestKind] {
        &[GuestKind::Bare]
    }

    fn prepare(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        kvm::open()?;
        Qemu.prepare(events)
    }

    fn boot_bare(&self, spec: &BareSpec) -> Result<Box<dyn BareMachine>> {
        Ok(Box::new(BareGuest::boot(&available()?, Accel::Kvm, spec)?))
    }

    fn added_memory_at(&self, memory_bytes: u64) -> Option<u64> {
        Qemu.added_memory_at(memory_bytes)
    }
}

/// QEMU with the project's own device, where it was built.
pub struct QemuOwnDevice;

impl Vmm for QemuOwnDevice {
    fn name(&self) -> &'static str {
        "qemu-own-device"
    }

    fn guests(&self) -> &'static [GuestKind] {
        Qemu.guests()
    }

    fn prepare(&self, _events: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        Ok(built::toolbox()?.qemu_version)
    }

    fn boot(&self, spec: &GuestSpec) -> Result<Box<dyn Guest>> {
        let GuestSpec { memory_bytes, ref socket } = *spec;
        let balloon = Balloon::OwnDevice { socket: socket.clone() };
        let config = GuestConfig { memory_bytes, balloon, ..GuestConfig::default() };
        Ok(Box::new(LinuxGuest::boot(&built::toolbox()?, config)?))
    }

    fn boot_bare(&self, spec: &BareSpec) -> Result<Box<dyn BareMachine>> {
        let balloon = Balloon::OwnDevice { socket: spec.socket.clone() };
        Ok(Box::new(BareGuest::boot_with(&built::toolbox()?, Accel::Tcg, spec, balloon)?))
    }

    fn reconnects(&self) -> bool {
        true
    }

    fn added_memory_at(&self, memory_bytes: u64) -> Option<u64> {
        Qemu.added_memory_at(memory_bytes)
    }
}

impl LinuxGuest {
    /// CPU time of QEMU's threads other than the main one: of the guest's CPUs.
    fn guest_cpu_time(&self) -> Result<Duration> {
        let pid = self.qemu_pid();
        Ok(host::cpu_time(pid)?.saturating_sub(host::main_thread_cpu_time(pid)?))
    }
}

impl Guest for LinuxGuest {
    fn describe(&self) -> String {
        format!("Linux {} in QEMU, {}", self.hello().kernel_release, self.accel())
    }

    fn set_reporting(&self, on: bool) -> Result<()> {
        self.agent().unload_balloon_driver()?;
        if on { self.load_balloon_driver("") } else { Ok(()) }
    }

    fn alloc(&self, id: u32, bytes: u64, generation: u16) -> Result<()> {
        self.agent().alloc(id, bytes, generation)
    }

    fn verify(&self, id: u32) -> Result<Contents> {
        self.agent().verify(id).map(Contents::from)
    }

    fn free(&self, id: u32) -> Result<()> {
        self.agent().free(id)
    }

    fn fault(&self, plan: FaultingPlan) -> Result<Faulted> {
        fault(self.agent(), plan, || self.guest_cpu_time())
    }

    fn used_bytes(&self) -> Result<u64> {
        Ok(self.agent().meminfo()?.used_bytes())
    }

    fn resident_bytes(&self) -> Result<u64> {
        host::resident_bytes(self.memory())
    }

    fn memory(&self) -> Result<File> {
        self.memory().try_clone().context("copying a descriptor")
    }

    fn vmm_pid(&self) -> Option<u32> {
        Some(self.qemu_pid())
    }

    fn agent(&self) -> Option<&AgentClient> {
        Some(self.agent())
    }

    fn shut_down(self: Box<Self>) -> Result<String> {
        self.quit()
    }
}
