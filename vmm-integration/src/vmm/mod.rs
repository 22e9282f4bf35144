// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMMs that attach a guest to the daemon, each behind [`Vmm`].
//!
//! A new VMM is a file or folder here with a type that implements [`Vmm`], and a row of [`ALL`]:
//! the tests that go through all VMMs then run with it, too.

use std::path::PathBuf;

use anyhow::Result;

pub mod model;
pub(crate) mod process;
pub mod qemu;
pub mod user_mode_linux;

use crate::fetch::SetupEvent;
use crate::guest::Guest;

/// All VMMs.
pub const ALL: &[&dyn Vmm] = &[&qemu::Qemu, &user_mode_linux::Uml, &model::SmallVmm];

/// A VMM that boots a guest with the daemon as its balloon device.
pub trait Vmm: Sync {
    /// The VMM's name, in kebab-case.
    fn name(&self) -> &'static str;

    /// Options that the daemon needs for this VMM's guest memory.
    fn daemon_args(&self) -> &'static [&'static str] {
        &[]
    }

    /// Fetches and builds what a guest needs, and checks that this machine can run it.
    ///
    /// # Errors
    /// When something can neither be found nor fetched; the error names it and the remedy.
    fn prepare(&self, events: &mut dyn FnMut(SetupEvent)) -> Result<()>;

    /// Boots a guest and returns when it takes commands. Reporting is off.
    ///
    /// # Errors
    /// When [`Vmm::prepare`] fails, or the guest does not boot; the error holds its console.
    fn boot(&self, spec: &GuestSpec) -> Result<Box<dyn Guest>>;
}

/// The guest that [`Vmm::boot`] boots: what every VMM can do.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Size of the guest's memory in bytes, a multiple of 128 MiB.
    pub memory_bytes: u64,
    /// The vhost-user socket of the daemon, which must listen already.
    pub socket: PathBuf,
}
