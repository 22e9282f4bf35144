// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocations and updates under schemes that swap zonelists.

use super::super::policy::{Mempolicy, Policy};
use super::super::protocol::{Ask, Copies, CpusetId, Outcome, Protocol, TaskId, UpdateError, Vma};
use super::super::scheme::Flaw;
use super::Zonelists;
use super::keep::Keep;
use super::limits::Limits;
use crate::page_alloc::{AllocRequest, Mm, NodeMask};
use crate::swapped::NoMemory;

impl<K: Keep> Protocol for Zonelists<K> {
    fn alloc(&self, mm: &Mm, ask: &Ask) -> Outcome {
        let mut limits = Limits::new(self, ask);
        let request = AllocRequest { node: limits.node(ask.request.node), ..ask.request };
        let page = mm.alloc_constrained(ask.cpu, request, &mut limits);
        limits.end(page)
    }

    fn set_mems(&self, cpuset: CpusetId, mems: NodeMask) -> Result<(), UpdateError> {
        if mems.is_empty() || cpuset.0 >= self.cpusets.len() {
            return Err(UpdateError::NoNodes);
        }
        let _updating = self.updates.lock();
        if self.tasks.flaw == Some(Flaw::SwapsOneByOne) {
            return Ok(self.set_one_by_one(cpuset.0, mems)?);
        }
        let policies = self.tasks.prepare(&self.tasks.rebound(cpuset.0, mems))?;
        match self.allocate(mems) {
            Ok(set) => self.swap(&self.cpusets[cpuset.0], set),
            Err(NoMemory) => {
                self.tasks.discard(policies);
                return Err(UpdateError::NoMemory);
            }
        }
        self.tasks.commit(policies);
        Ok(())
    }

    fn set_policy(&self, task: TaskId, policy: Policy) -> Result<(), UpdateError> {
        self.set(task, None, policy)
    }

    fn mbind(&self, task: TaskId, vma: Vma, policy: Policy) -> Result<(), UpdateError> {
        self.set(task, Some(vma), policy)
    }

    fn mems_allowed(&self, task: TaskId) -> NodeMask {
        self.nodes(self.cpusets[self.tasks.task(task).cpuset].set.load())
    }

    fn mempolicy(&self, task: TaskId, vma: Option<Vma>) -> Mempolicy {
        self.tasks.mempolicy(task, vma, self.mems_allowed(task))
    }

    fn copies(&self) -> Option<Copies> {
        let policies = &self.tasks.slots;
        Some(Copies {
            current: self.cpusets.len() + self.tasks.current(),
            live: self.sets.live() + policies.live(),
            peak: self.sets.peak() + policies.peak(),
        })
    }

    fn bytes(&self) -> usize {
        let entries = self.sets.live() * self.shape.bytes();
        size_of_val(&*self.cpusets) + self.sets.bytes() + entries + self.tasks.bytes()
    }
}
