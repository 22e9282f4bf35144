// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Schemes that swap an updated copy in: of a cpuset's nodes, and of each policy that follows them.
//!
//! An allocation holds the copies that are current as it begins, so its nodes do not change under it, and
//! whether policy and cpuset intersect is looked at once. They may be out of date by the time that it finds
//! nothing: before the OOM killer it looks whether they still are the current ones.

mod limits;
mod through;

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::policy::Policy;
use super::protocol::{Protocol, Setup, TaskId, UpdateError, Vma};
use super::swapping::{NodesCopy, Task, Tasks, allocate, of_cpuset};
use crate::page_alloc::NodeMask;
use crate::swapped::{Grace, Pointer, Supply};
use crate::sync::Lock;

/// A scheme that swaps copies, freed as `G` says.
pub struct Copied<G> {
    tasks: Tasks<G>,
    /// The nodes of each.
    cpusets: Box<[Pointer]>,
    /// One update at a time (`cpuset_mutex`): none swaps what another has prepared a copy of.
    updates: Lock<()>,
}

impl<G: Grace<NodesCopy>> Copied<G> {
    /// Tasks and cpusets of this setup.
    ///
    /// # Errors
    /// [`UpdateError`]: a cpuset or a policy has no node, or `supply` has no memory.
    pub fn new(setup: &Setup, grace: G, supply: Arc<Supply>) -> Result<Self, UpdateError> {
        let tasks = Tasks::new(setup, grace, supply)?;
        let cpuset = |&mems: &NodeMask| {
            let copy = allocate(&tasks.slots, &tasks.supply, of_cpuset(mems))?;
            Ok::<_, UpdateError>(Pointer::new(Some(copy)))
        };
        let cpusets = setup.cpusets.iter().map(cpuset).collect::<Result<_, _>>()?;
        Ok(Self { tasks, cpusets, updates: Lock::new(()) })
    }

    fn mems_of(&self, task: &Task) -> &Pointer {
        &self.cpusets[task.cpuset]
    }

    fn set(&self, task: TaskId, vma: Option<Vma>, policy: Policy) -> Result<(), UpdateError> {
        let _updating = self.updates.lock();
        self.tasks.set((task, vma), policy, self.mems_allowed(task))
    }
}
