// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! cloud-hypervisor with the bare guest, on `/dev/kvm`. The environment variable `CLOUD_HYPERVISOR` names its
//! binary, of version 52 or later.
//!
//! As it comes, its generic vhost-user device keeps the device's own feature bits to itself: its guest follows
//! targets, and is offered neither reporting nor statistics nor hints.

use anyhow::Result;

use super::bare::{BareMachine, BareSpec};
use super::named::needed;
use super::{GuestKind, Vmm, kvm};
use crate::fetch::SetupEvent;

mod api;
mod arguments;
mod machine;
mod place;
mod serial;
mod version;

use machine::Machine;
use version::Version;

/// Names the binary.
const VARIABLE: &str = "CLOUD_HYPERVISOR";
/// Where added memory lies, in a guest whose own memory ends before the hole below 4 GiB.
const ADDED_MEMORY: u64 = 4 << 30;

/// cloud-hypervisor as a row of [`crate::vmm::ALL`].
pub struct CloudHypervisor;

impl Vmm for CloudHypervisor {
    fn name(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn guests(&self) -> &'static [GuestKind] {
        &[GuestKind::Bare]
    }

    fn prepare(&self, _: &mut dyn FnMut(SetupEvent)) -> Result<String> {
        let version = Version::of(&needed(VARIABLE)?)?;
        kvm::open()?;
        Ok(version.line)
    }

    fn boot_bare(&self, spec: &BareSpec) -> Result<Box<dyn BareMachine>> {
        let binary = needed(VARIABLE)?;
        let version = Version::of(&binary)?;
        Ok(Box::new(Machine::boot(&binary, &version, spec)?))
    }

    fn reconnects(&self) -> bool {
        true
    }

    fn added_memory_at(&self, _: u64) -> Option<u64> {
        Some(ADDED_MEMORY)
    }
}
