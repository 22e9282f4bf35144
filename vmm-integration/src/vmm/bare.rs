// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM does with the bare guest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use thiserror::Error;

use crate::bare_guest::{Console, Line};

/// The bare guest that [`super::Vmm::boot_bare`] boots.
#[derive(Clone, Debug)]
pub struct BareSpec {
    /// Size of its memory in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Memory that may be added later, in bytes.
    pub growth_bytes: u64,
    /// Size of the huge pages of hugetlbfs behind its memory, in bytes; with none it is of base pages.
    pub hugetlb_page_bytes: Option<u64>,
    /// How many files its memory is in, of equal size: NUMA nodes, or what the VMM calls zones.
    pub files: u64,
    /// The vhost-user socket of the daemon, which must listen already.
    pub socket: PathBuf,
    /// Its command line. The VMM adds what its machine needs.
    pub command_line: Vec<String>,
}

/// A capability that a VMM does not have, as an error.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Absent(pub String);

/// A VMM with a bare guest in it. Dropping it kills the VMM and waits until it is gone.
///
/// What not every VMM can do is an error of the kind [`Absent`] unless the VMM says otherwise.
pub trait BareMachine: Send {
    /// What the guest prints.
    fn console(&mut self) -> &mut Console;

    /// The process id of the VMM.
    fn vmm_pid(&self) -> u32;

    /// Stops the guest's CPU and, with it, its devices.
    ///
    /// # Errors
    /// When the VMM cannot, or refuses.
    fn pause(&self) -> Result<()> {
        absent("it has no command that pauses a guest")
    }

    /// Goes on after [`BareMachine::pause`].
    ///
    /// # Errors
    /// As [`BareMachine::pause`].
    fn resume(&self) -> Result<()> {
        absent("it has no command that pauses a guest")
    }

    /// Resets the machine, which boots its guest again.
    ///
    /// # Errors
    /// When the VMM cannot, or refuses.
    fn reboot(&self) -> Result<()> {
        absent("it has no command that resets a machine")
    }

    /// Adds memory at [`super::Vmm::added_memory_at`].
    ///
    /// # Errors
    /// When the VMM cannot, or refuses.
    fn plug_memory(&self, address: u64, bytes: u64) -> Result<()> {
        absent(&format!("it cannot add {bytes} bytes of memory at {address:#x}"))
    }

    /// Saves the guest as it is, and ends the VMM.
    ///
    /// # Errors
    /// When the VMM cannot, or refuses.
    fn save(self: Box<Self>) -> Result<Box<dyn SavedGuest>> {
        absent("it does not save a guest with a vhost-user device of this kind")
    }

    /// Moves the running guest to another VMM, whose daemon listens on `socket`. The first VMM ends.
    ///
    /// # Errors
    /// When the VMM cannot, or refuses.
    fn migrate(self: Box<Self>, socket: &Path) -> Result<Box<dyn BareMachine>> {
        absent(&format!("it does not migrate a guest to a daemon at {}", socket.display()))
    }

    /// Waits until the guest is done and the VMM has ended; returns the guest's lines.
    ///
    /// # Errors
    /// When the guest fails or is not done within `patience`, or the VMM complains.
    fn finish(self: Box<Self>, patience: Duration) -> Result<Vec<Line>>;
}

/// A guest that was saved by [`BareMachine::save`].
pub trait SavedGuest: Send {
    /// Goes on with the guest in a VMM whose daemon listens on `socket`, as often as asked.
    ///
    /// # Errors
    /// When the VMM refuses; the error holds what it says.
    fn restore(&self, socket: &Path) -> Result<Box<dyn BareMachine>>;
}

/// The error of a capability that is not there.
///
/// # Errors
/// Always.
pub fn absent<T>(why: &str) -> Result<T> {
    bail!(Absent(why.to_owned()))
}
