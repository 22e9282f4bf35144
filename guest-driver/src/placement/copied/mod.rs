// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Schemes that swap an updated copy in: of a cpuset's nodes, and of each policy that follows them.
//!
//! An allocation holds the copies that are current as it begins, so its nodes do not change under it, and
//! whether policy and cpuset intersect is looked at once. They may be out of date by the time that it finds
//! nothing: before the OOM killer it looks whether they still are the current ones.

mod limits;

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::policy::{Mempolicy, Policy};
use super::swapping::{NodesCopy, Task, Tasks, allocate, of_cpuset};
use super::{Ask, Copies, CpusetId, Flaw, Outcome, Protocol, Setup, TaskId, UpdateError, Vma};
use crate::page_alloc::{AllocRequest, Mm, NodeMask};
use crate::swapped::{Grace, Pointer, Supply};
use crate::sync::Lock;
use limits::Limits;

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

impl<G: Grace<NodesCopy>> Protocol for Copied<G> {
    fn alloc(&self, mm: &Mm, ask: &Ask) -> Outcome {
        let section = self.tasks.grace.enter(ask.cpu);
        let mut limits = Limits::new(self, ask);
        let request = AllocRequest { node: limits.node(ask.request.node), ..ask.request };
        let page = mm.alloc_constrained(ask.cpu, request, &mut limits);
        let outcome = limits.end(page);
        self.tasks.grace.leave(section);
        outcome
    }

    fn set_mems(&self, cpuset: CpusetId, mems: NodeMask) -> Result<(), UpdateError> {
        let Some(pointer) = self.cpusets.get(cpuset.0).filter(|_| !mems.is_empty()) else {
            return Err(UpdateError::NoNodes);
        };
        let _updating = self.updates.lock();
        let mut changes = self.tasks.rebound(cpuset.0, mems);
        changes.insert(0, (pointer, of_cpuset(mems)));
        match self.tasks.flaw {
            Some(Flaw::SwapsOneByOne) => self.tasks.apply_one_by_one(&changes)?,
            _ => self.tasks.commit(self.tasks.prepare(&changes)?),
        }
        Ok(())
    }

    fn set_policy(&self, task: TaskId, policy: Policy) -> Result<(), UpdateError> {
        self.set(task, None, policy)
    }

    fn mbind(&self, task: TaskId, vma: Vma, policy: Policy) -> Result<(), UpdateError> {
        self.set(task, Some(vma), policy)
    }

    fn mems_allowed(&self, task: TaskId) -> NodeMask {
        self.tasks.whole(self.mems_of(self.tasks.task(task))).nodes
    }

    fn mempolicy(&self, task: TaskId, vma: Option<Vma>) -> Mempolicy {
        self.tasks.mempolicy(task, vma, self.mems_allowed(task))
    }

    fn copies(&self) -> Option<Copies> {
        let Tasks { grace, slots, .. } = &self.tasks;
        grace.flush(slots);
        let current = self.cpusets.len() + self.tasks.current();
        Some(Copies { current, live: slots.live(), peak: slots.peak() })
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.cpusets) + self.tasks.bytes()
    }
}
