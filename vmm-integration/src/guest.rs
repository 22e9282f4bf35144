// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One trait for every guest: Linux in QEMU, user-mode Linux, the model.
//!
//! The lab, the demo and the tests use a guest through [`Guest`] and do not need to know which VMM
//! runs it. What only one kind of guest can do is a method of its own type.

use std::fs::File;
use std::time::Duration;

use anyhow::{Result, ensure};
use guest_agent::faulting::FaultingPlan;

use crate::linux_guest::AgentClient;
use crate::measure::host::wait_until;

/// How often [`Guest::wait_until_resident`] asks the host.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running guest with a balloon device. Dropping it kills it.
///
/// All methods may be called from several threads at once. Each fails when the guest is gone or does
/// not answer in time.
pub trait Guest: Send + Sync {
    /// Names the guest's kernel and what runs it, in one sentence without a full stop.
    fn describe(&self) -> String;

    /// Turns free page reporting on or off. A guest boots with reporting off.
    ///
    /// Turning it on starts from a new driver or a full scan: all free memory is reported once more.
    ///
    /// # Errors
    /// When the driver cannot be loaded or unloaded.
    fn set_reporting(&self, on: bool) -> Result<()>;

    /// Allocates `bytes` as allocation `id` and fills them with the pattern of `generation`.
    ///
    /// # Errors
    /// When `id` is in use or the guest has too little memory.
    fn alloc(&self, id: u32, bytes: u64, generation: u16) -> Result<()>;

    /// Compares allocation `id` with its pattern.
    ///
    /// # Errors
    /// When there is no such allocation. Lost contents are not an error here; see
    /// [`Guest::expect_intact`].
    fn verify(&self, id: u32) -> Result<Contents>;

    /// Frees allocation `id`.
    ///
    /// # Errors
    /// When there is no such allocation.
    fn free(&self, id: u32) -> Result<()>;

    /// Runs programs that fault memory in until their time is over.
    ///
    /// # Errors
    /// When the guest has too little memory or too few CPUs.
    fn fault(&self, plan: FaultingPlan) -> Result<Faulted>;

    /// Memory in use by the guest's own account, in bytes.
    ///
    /// # Errors
    /// See [`Guest`].
    fn used_bytes(&self) -> Result<u64>;

    /// Guest memory that the host holds, in bytes.
    ///
    /// # Errors
    /// When the memory's file cannot be examined.
    fn resident_bytes(&self) -> Result<u64>;

    /// A descriptor of the file behind the memory that the guest booted with.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    fn memory(&self) -> Result<File>;

    /// The process id of the VMM, or none when the VMM runs in this process.
    fn vmm_pid(&self) -> Option<u32>;

    /// The agent of a Linux guest.
    fn agent(&self) -> Option<&AgentClient> {
        None
    }

    /// Shuts the guest down and waits until its VMM has ended; returns what the VMM printed.
    ///
    /// # Errors
    /// When the guest or its VMM does not end, or ends with a failure.
    fn shut_down(self: Box<Self>) -> Result<String>;

    /// Compares allocation `id` with its pattern and returns its size in bytes.
    ///
    /// # Errors
    /// When there is no such allocation, or a word of it differs.
    fn expect_intact(&self, id: u32) -> Result<u64> {
        let Contents { checked_bytes, lost_bytes, first } = self.verify(id)?;
        ensure!(
            lost_bytes == 0,
            "allocation {id} is damaged: {lost_bytes} of {checked_bytes} bytes differ, the first: \
             {}",
            first.unwrap_or_default()
        );
        Ok(checked_bytes)
    }

    /// Waits until the host holds at most `bytes` for the guest.
    ///
    /// # Errors
    /// When the host still holds more after `patience`.
    fn wait_until_resident(&self, bytes: u64, patience: Duration) -> Result<()> {
        wait_until(patience, LOOK_EVERY, || match self.resident_bytes() {
            Ok(now) if now <= bytes => Ok(()),
            Ok(now) => Err(format!("{now} bytes are resident, expected {bytes} or less")),
            Err(error) => Err(format!("{error:#}")),
        })
    }
}

/// The result of [`Guest::verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes compared with the pattern.
    pub checked_bytes: u64,
    /// Bytes of words or pages that differ from the pattern.
    pub lost_bytes: u64,
    /// The first place that differs.
    pub first: Option<String>,
}

/// The result of [`Guest::fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faulted {
    /// Pages that the programs wrote to.
    pub pages: u64,
    /// Time from the start of the first program to the end of the last.
    pub time: Duration,
    /// CPU time on the host of the programs' threads or the guest's CPUs.
    pub cpu: Duration,
}
