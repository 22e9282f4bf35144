// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What all schemes implement, and what they are asked.

use alloc::vec::Vec;

use super::policy::{Mempolicy, Policy};
use super::scheme::Flaw;
use crate::page_alloc::{AllocError, AllocRequest, Mm, NodeMask, Pfn};

/// A task, by its place in [`Setup::tasks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub usize);

/// A part of a task's address space that can have a policy, by its place in [`TaskSetup::vmas`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vma(pub usize);

/// A cpuset, by its place in [`Setup::cpusets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpusetId(pub usize);

/// The tasks and cpusets of a new [`Placement`](super::Placement).
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The nodes of each cpuset (`cpuset.mems`).
    pub cpusets: Vec<NodeMask>,
    /// The tasks.
    pub tasks: Vec<TaskSetup>,
    /// A mistake for the explorer to find. A scheme that cannot make it ignores it.
    pub flaw: Option<Flaw>,
}

/// A task of a [`Setup`].
#[derive(Clone, Debug)]
pub struct TaskSetup {
    /// Its cpuset.
    pub cpuset: CpusetId,
    /// Its policy.
    pub policy: Policy,
    /// The policies of its VMAs; [`Policy::DEFAULT`] where the task's applies.
    pub vmas: Vec<Policy>,
}

/// An allocation: who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The task that allocates.
    pub task: TaskId,
    /// What it is for, if its policy may differ from the task's.
    pub vma: Option<Vma>,
    /// The CPU that the task runs on.
    pub cpu: usize,
    /// What it asks for. Its node is the local one.
    pub request: AllocRequest,
    /// An allocation that tries more often in its slow path is abandoned: one that would go on without end
    /// must end in a model.
    pub most_tries: u32,
}

/// What became of an allocation, and what it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The page, or why there is none.
    pub page: Result<Pfn, AllocError>,
    /// How often the OOM killer was invoked.
    pub ooms: u32,
    /// How often the slow path tried.
    pub tries: u32,
    /// How often it began again because something had changed.
    pub restarts: u32,
    /// It tried too often.
    pub abandoned: bool,
}

/// Why an update did not happen. Everything is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// `ENOSPC`, `EINVAL`.
    #[error("no node is left (a cpuset with tasks, and a policy, need one)")]
    NoNodes,
    /// `ENOMEM`.
    #[error("no memory for the updated copy")]
    NoMemory,
}

/// Copies of a scheme that swaps them, once nothing is being updated and no allocation is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// Those that pointers lead to.
    pub current: usize,
    /// Those that are not freed.
    pub live: usize,
    /// The most that there were at once.
    pub peak: usize,
}

/// A scheme: how allocations read where they may go, and how that is updated.
pub trait Protocol: Send + Sync {
    /// Allocates (`alloc_pages_mpol`).
    fn alloc(&self, mm: &Mm, ask: &Ask) -> Outcome;

    /// Gives a cpuset other nodes, and so its tasks, their policies and those of their VMAs
    /// (`update_nodemask`).
    ///
    /// # Errors
    /// [`UpdateError`]; then everything is as it was.
    fn set_mems(&self, cpuset: CpusetId, mems: NodeMask) -> Result<(), UpdateError>;

    /// Sets the policy of a task, which does so itself (`set_mempolicy`).
    ///
    /// # Errors
    /// [`UpdateError`]; then the old policy stays.
    fn set_policy(&self, task: TaskId, policy: Policy) -> Result<(), UpdateError>;

    /// Sets the policy of a VMA (`mbind`).
    ///
    /// # Errors
    /// [`UpdateError`]; then the old policy stays.
    fn mbind(&self, task: TaskId, vma: Vma, policy: Policy) -> Result<(), UpdateError>;

    /// The nodes that the task may use as long as nothing is being updated (`mems_allowed`).
    fn mems_allowed(&self, task: TaskId) -> NodeMask;

    /// The policy of a VMA, or the task's, as long as nothing is being updated.
    fn mempolicy(&self, task: TaskId, vma: Option<Vma>) -> Mempolicy;

    /// The copies of a scheme that swaps them; frees those that may be freed and wait to be.
    fn copies(&self) -> Option<Copies> {
        None
    }

    /// Bytes of what limits allocations, of all tasks and cpusets, as it is in memory now.
    fn bytes(&self) -> usize;
}
