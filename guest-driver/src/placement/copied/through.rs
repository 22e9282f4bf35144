// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocations and updates under schemes that swap copies.

use super::super::policy::{Mempolicy, Policy};
use super::super::protocol::{Ask, Copies, CpusetId, Outcome, Protocol, TaskId, UpdateError, Vma};
use super::super::scheme::Flaw;
use super::super::swapping::{NodesCopy, Tasks, of_cpuset};
use super::Copied;
use super::limits::Limits;
use crate::page_alloc::{AllocRequest, Mm, NodeMask};
use crate::swapped::Grace;

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
