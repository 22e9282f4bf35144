// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process that the OOM killer chooses first, and that does not exit when it is killed: what frees
//! its memory is the OOM reaper.
//!
//! A tracer stops it at its exit (`PTRACE_EVENT_EXIT`), where it still has its address space.

use serde::{Deserialize, Serialize};

/// The memory of a victim, and what else uses it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VictimPlan {
    /// Mappings, each of them filled.
    pub memory: Vec<VictimMemory>,
    /// Threads of init that take the lock of the victim's address space for writing, over and over,
    /// through `/proc/PID/clear_refs`. From two on one of them always holds it or waits for it.
    pub lockers: u32,
}

/// A mapping of a victim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VictimMemory {
    /// Size in bytes, a multiple of the page size.
    pub bytes: u64,
    /// Its kind.
    pub kind: MemoryKind,
    /// What uses it beside the victim's page tables.
    pub user: MemoryUser,
}

/// A kind of mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// Private anonymous memory.
    #[default]
    Private,
    /// Shared anonymous memory.
    Shared,
    /// Private huge pages, of a pool that has been filled before.
    Hugetlb,
}

/// A user of memory beside the page tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryUser {
    /// None.
    #[default]
    None,
    /// A virtual machine of KVM, whose CPU has written to each page.
    Kvm,
    /// A registered buffer of `io_uring`, which pins each page.
    Pinned,
}

/// How a victim stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VictimReport {
    /// Its process id.
    pub pid: u32,
    /// Its state.
    pub state: VictimState,
    /// How often the lock of its address space was taken.
    pub locked: u64,
}

/// A state of a victim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VictimState {
    /// It runs.
    Running,
    /// It is killed, and stopped before it gives its memory up.
    Stopped,
    /// It has ended, as said.
    Ended(String),
}

impl VictimState {
    /// Whether it is not there any more.
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Ended(_))
    }
}
