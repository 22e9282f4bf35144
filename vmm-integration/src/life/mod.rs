// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens in the life of a virtual machine while the daemon is its balloon device.
//!
//! A [`Check`] boots a guest in a VMM, beside a daemon of its own, has one thing happen to it, and looks whether
//! the guest's memory is what it must be. The bare guest checks its pages itself. The tests and
//! `cargo xtask vmms` run the same checks.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::vmm::bare::Absent;
use crate::vmm::{GuestKind, Vmm};

mod ends;
mod freed;
mod interrupted;
mod memory;
mod moved;
mod scene;
mod served;

pub use scene::Scene;

/// How long anything may take, on a busy machine, by emulation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// What the bare guest accesses and adds memory in.
const SECTION: u64 = 128 * MIB;
const PAGE: u64 = 4096;

/// One thing that may happen to a guest.
#[derive(Clone, Copy)]
pub struct Check {
    /// Its name, in kebab-case.
    pub name: &'static str,
    /// What is looked at, in one sentence without a full stop.
    pub about: &'static str,
    /// The kind of guest that it needs.
    pub guest: GuestKind,
    run: fn(&Scene<'_>) -> Result<()>,
}

/// All checks.
#[rustfmt::skip]
pub const CHECKS: &[Check] = &[
    Check { name: "freed-memory-returns", guest: GuestKind::Programs, run: freed::memory_returns,
        about: "memory that a program frees returns to the host, and none does with reporting off" },
    Check { name: "linux-follows-target", guest: GuestKind::Programs, run: freed::target_is_followed,
        about: "the driver inflates to a target that changes, and deflates" },
    Check { name: "reports", guest: GuestKind::Bare, run: memory::reports,
        about: "freed pages are reported and read zero, the others hold their pattern" },
    Check { name: "two-regions", guest: GuestKind::Bare, run: memory::two_regions,
        about: "the same for memory on both sides of the hole below 4 GiB" },
    Check { name: "two-files", guest: GuestKind::Bare, run: memory::two_files,
        about: "the same for memory in two files: NUMA nodes or zones" },
    Check { name: "huge-pages", guest: GuestKind::Bare, run: memory::huge_pages,
        about: "the same for memory of 2 MiB pages of hugetlbfs" },
    Check { name: "balloon", guest: GuestKind::Bare, run: memory::balloon,
        about: "the driver inflates and deflates, before and after it resets the device" },
    Check { name: "added-memory", guest: GuestKind::Bare, run: memory::added,
        about: "memory that is added to a running guest is reported" },
    Check { name: "target", guest: GuestKind::Bare, run: served::target,
        about: "a target that changes reaches a running guest" },
    Check { name: "statistics", guest: GuestKind::Bare, run: served::statistics,
        about: "a running guest answers a request for statistics" },
    Check { name: "hints", guest: GuestKind::Bare, run: served::hints,
        about: "a round of free page hints begins, ends, and frees its pages" },
    Check { name: "pause", guest: GuestKind::Bare, run: interrupted::pause,
        about: "ten pauses of a guest that reports lose nothing" },
    Check { name: "reboot", guest: GuestKind::Bare, run: interrupted::reboot,
        about: "a reset of the machine in the middle of reports, and the guest that boots then" },
    Check { name: "snapshot-same-daemon", guest: GuestKind::Bare, run: moved::to_the_same_daemon,
        about: "a guest that was saved goes on in another VMM, beside the same daemon" },
    Check { name: "snapshot-another-daemon", guest: GuestKind::Bare, run: moved::to_another_daemon,
        about: "a guest that was saved goes on twice, beside other daemons" },
    Check { name: "snapshot-fewer-features", guest: GuestKind::Bare, run: moved::to_one_that_offers_less,
        about: "a daemon that lacks a feature of the saved guest refuses it, and goes on" },
    Check { name: "migrate-twice", guest: GuestKind::Bare, run: moved::twice,
        about: "two migrations of a guest that works, each to another daemon" },
    Check { name: "daemon-restarts", guest: GuestKind::Bare, run: ends::daemon_restarts,
        about: "a guest goes on with a daemon that was killed and started again" },
    Check { name: "daemon-killed", guest: GuestKind::Bare, run: ends::daemon_killed,
        about: "after a daemon was killed, the next one serves the next guest" },
    Check { name: "vmm-killed", guest: GuestKind::Bare, run: ends::vmm_killed,
        about: "after a VMM was killed, the daemon serves the next one" },
];

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// All is as it must be.
    Passed {
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// The VMM, or this machine, does not have what it takes.
    Absent {
        /// What is missing.
        why: String,
    },
    /// Something is not as it must be.
    Failed {
        /// What.
        error: String,
    },
}

impl Check {
    /// Whether the VMM boots the kind of guest that this needs.
    pub fn is_for(&self, vmm: &dyn Vmm) -> bool {
        vmm.guests().contains(&self.guest)
    }

    /// Runs it on a VMM that is prepared, with daemons of the program `daemon`.
    pub fn run(&self, vmm: &dyn Vmm, daemon: &Path) -> Outcome {
        let start = Instant::now();
        match (self.run)(&Scene { vmm, daemon }) {
            Ok(()) => Outcome::Passed { seconds: start.elapsed().as_secs_f64() },
            Err(error) => match error.downcast_ref::<Absent>() {
                Some(Absent(why)) => Outcome::Absent { why: why.clone() },
                None => Outcome::Failed { error: format!("{error:#}") },
            },
        }
    }
}
