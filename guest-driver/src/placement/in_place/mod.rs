// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The schemes that change nodemasks where readers look, as all of Linux's have done. Nothing is
//! allocated, so that no update fails for want of memory; a reader may see any mixture of old and new, and
//! a scheme is the rules by which it notices.
//!
//! The lock of an address space is held to allocate for a VMA, so that the VMA's policy stays while its
//! cpuset may have changed already. A task's own policy changes under its allocations.

mod constraint;
pub mod rules;
mod task;

use core::marker::PhantomData;

use alloc::boxed::Box;

use super::policy::{Mempolicy, Mode, Policy};
use super::protocol::{Ask, CpusetId, Outcome, Protocol, Setup, TaskId, UpdateError, Vma};
use super::scheme::Flaw;
use crate::page_alloc::{AllocError, AllocRequest, AtomicNodeMask, Mm, NodeMask};
use crate::sync::{Lock, Ordering};
use constraint::{Limits, Tally, Walk};
use rules::Rules;
use task::{Slot, Task};

/// A scheme that updates in place, by the rules `R`.
#[derive(Debug)]
pub struct InPlace<R> {
    tasks: Box<[Task]>,
    /// One update of a cpuset at a time (`cpuset_mutex`).
    updates: Lock<()>,
    flaw: Option<Flaw>,
    rules: PhantomData<R>,
}

impl<R: Rules> InPlace<R> {
    /// Tasks and cpusets of this setup.
    ///
    /// # Errors
    /// [`UpdateError::NoNodes`] if a cpuset or a policy has no node.
    pub fn new(setup: &Setup) -> Result<Self, UpdateError> {
        let task = |task: &super::TaskSetup| {
            let mems = setup.cpusets.get(task.cpuset.0).filter(|mems| !mems.is_empty());
            Task::new(task, *mems.ok_or(UpdateError::NoNodes)?)
        };
        Ok(Self {
            tasks: setup.tasks.iter().map(task).collect::<Result<_, _>>()?,
            updates: Lock::new(()),
            flaw: setup.flaw,
            rules: PhantomData,
        })
    }

    /// The policy that an allocation follows (`get_vma_policy`). With the lock of the address space held
    /// if it is for a VMA.
    fn slot(task: &Task, vma: Option<Vma>) -> (&Slot, bool) {
        let own = vma.map(|vma| &task.vmas[vma.0]).filter(|slot| !slot.is_default());
        own.map_or((&task.policy, false), |slot| (slot, true))
    }

    /// The node to begin with, and `ac->nodemask` (`policy_nodemask`).
    fn choose<'a>(
        task: &'a Task,
        (slot, is_vmas): (&'a Slot, bool),
        local: u8,
    ) -> (u8, Option<&'a AtomicNodeMask>) {
        let (node, nodemask) = match slot.mode() {
            Mode::Default => (None, None),
            Mode::Bind => (None, Limits::<R>::nodemask(task, &slot.nodes)),
            Mode::Preferred => (slot.nodes.load(Ordering::Relaxed).first(), None),
            Mode::Interleave if is_vmas => (slot.interleaved(), None),
            Mode::Interleave => (task.next_interleaved::<R>(slot), None),
        };
        (node.unwrap_or(local), nodemask)
    }
}

impl<R: Rules> Protocol for InPlace<R> {
    fn alloc(&self, mm: &Mm, ask: &Ask) -> Outcome {
        let &Ask { task, vma, cpu, request, most_tries } = ask;
        let task = &self.tasks[task.0];
        // A page fault holds it throughout.
        let _mapped = vma.map(|_| task.mmap.read());
        let mut tally = Tally::default();
        loop {
            let begun = R::OUTER_SCOPE.then(|| task.sequence.read_begin());
            let (node, nodemask) = Self::choose(task, Self::slot(task, vma), request.node);
            let mut limits = Limits::<R> {
                task,
                nodemask,
                atomic: request.atomic,
                flaw: self.flaw,
                most_tries,
                tally,
                walk: Walk::Fast,
                rules: PhantomData,
            };
            let request = AllocRequest { node, ..request };
            let page = mm.alloc_constrained(cpu, request, &mut limits);
            tally = limits.tally;
            tally.ooms += u32::from(page == Err(AllocError::OutOfMemory));
            let raced = begun.is_some_and(|begun| task.sequence.read_retry(begun));
            if page.is_ok() || !raced || limits.walk == Walk::Abandoned {
                return tally.outcome(page);
            }
        }
    }

    fn set_mems(&self, cpuset: CpusetId, mems: NodeMask) -> Result<(), UpdateError> {
        if mems.is_empty() {
            return Err(UpdateError::NoNodes);
        }
        let _updating = self.updates.lock();
        for task in self.tasks.iter().filter(|task| task.cpuset == cpuset) {
            task.set_mems::<R>(mems, self.flaw);
            task.rebind_vmas::<R>(mems, self.flaw);
        }
        Ok(())
    }

    fn set_policy(&self, task: TaskId, policy: Policy) -> Result<(), UpdateError> {
        self.tasks[task.0].set_policy(policy)
    }

    fn mbind(&self, task: TaskId, vma: Vma, policy: Policy) -> Result<(), UpdateError> {
        self.tasks[task.0].mbind(vma.0, policy)
    }

    fn mems_allowed(&self, task: TaskId) -> NodeMask {
        self.tasks[task.0].mems.load(Ordering::Relaxed)
    }

    fn mempolicy(&self, task: TaskId, vma: Option<Vma>) -> Mempolicy {
        Self::slot(&self.tasks[task.0], vma).0.mempolicy()
    }

    fn bytes(&self) -> usize {
        self.tasks.iter().map(Task::bytes).sum()
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
