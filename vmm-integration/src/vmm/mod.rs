// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMMs that attach a guest to the daemon, each behind [`Vmm`].
//!
//! A new VMM is a file or folder here with a type that implements [`Vmm`], and a row of [`ALL`]:
//! the checks of [`crate::life`] then run on it, in the tests and in `cargo xtask vmms`.

use std::path::PathBuf;

use anyhow::{Result, bail};

pub mod alioth;
pub mod bare;
pub mod cloud_hypervisor;
pub mod crosvm;
pub(crate) mod kvm;
pub mod model;
mod named;
pub(crate) mod process;
pub mod qemu;
pub mod tsc;
pub mod user_mode_linux;

use crate::fetch::SetupEvent;
use crate::guest::Guest;
use bare::{BareMachine, BareSpec};

/// All VMMs.
pub const ALL: &[&dyn Vmm] = &[
    &qemu::Qemu,
    &qemu::QemuKvm,
    &qemu::QemuOwnDevice,
    &alioth::Alioth,
    &cloud_hypervisor::CloudHypervisor,
    &crosvm::Crosvm,
    &user_mode_linux::Uml,
    &model::SmallVmm,
];

/// What a VMM can boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// Linux, or the model of a guest: programs allocate and free memory.
    Programs,
    /// The bare guest (`guest-driver/bare`): the model, on the memory that it models.
    Bare,
}

/// A VMM that boots a guest with the daemon as its balloon device.
pub trait Vmm: Sync {
    /// The VMM's name, in kebab-case.
    fn name(&self) -> &'static str;

    /// Options that the daemon needs for this VMM's guest memory.
    fn daemon_args(&self) -> &'static [&'static str] {
        &[]
    }

    /// The kinds of guest that it boots.
    fn guests(&self) -> &'static [GuestKind];

    /// Fetches and builds what a guest needs, and checks that this machine can run it. Returns the
    /// VMM's version in a few words.
    ///
    /// # Errors
    /// When something can neither be found nor fetched; the error names it and the remedy.
    fn prepare(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<String>;

    /// Boots a guest of the kind [`GuestKind::Programs`] and returns when it takes commands.
    /// Reporting is off.
    ///
    /// # Errors
    /// When [`Vmm::prepare`] fails, or the guest does not boot; the error holds its console.
    fn boot(&self, spec: &GuestSpec) -> Result<Box<dyn Guest>> {
        bail!("{} boots no Linux with a memory of {} bytes", self.name(), spec.memory_bytes)
    }

    /// Starts a guest of the kind [`GuestKind::Bare`], and does not wait for it.
    ///
    /// # Errors
    /// When [`Vmm::prepare`] fails, or the VMM does not start.
    fn boot_bare(&self, spec: &BareSpec) -> Result<Box<dyn BareMachine>> {
        bail!("{} boots no bare guest with a memory of {} bytes", self.name(), spec.memory_bytes)
    }

    /// Whether it connects again to a daemon that was started again.
    fn reconnects(&self) -> bool {
        false
    }

    /// Where memory lies that [`BareMachine::plug_memory`] adds to a guest of this size; none if the
    /// VMM adds none.
    fn added_memory_at(&self, memory_bytes: u64) -> Option<u64> {
        let _ = memory_bytes;
        None
    }
}

/// The guest that [`Vmm::boot`] boots: what every VMM of Linux can do.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Size of the guest's memory in bytes, a multiple of 128 MiB.
    pub memory_bytes: u64,
    /// The vhost-user socket of the daemon, which must listen already.
    pub socket: PathBuf,
}
