// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What schemes that swap have in common: tasks, the copies of their policies, and updates that prepare all
//! copies before they swap the first.

mod copies;
pub(super) mod held;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicUsize};

use super::policy::{Mempolicy, Mode, Nodes, Policy};
use super::protocol::{Setup, TaskId, TaskSetup, UpdateError, Vma};
use super::scheme::Flaw;
use crate::page_alloc::NodeMask;
use crate::swapped::{Grace, Handle, NoMemory, Pointer, Slots, Supply};
use crate::sync::Ordering;
pub use copies::NodesCopy;
pub(super) use copies::{allocate, of_cpuset};

impl From<NoMemory> for UpdateError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Where a policy is.
#[derive(Debug)]
pub(super) struct Place {
    /// To none for [`Mode::Default`].
    pub(super) policy: Pointer,
    /// Pages that were allocated by it, while it is interleaved and a VMA's.
    pages: AtomicUsize,
}

impl Place {
    /// The node of the next page of an interleaved VMA, whose pages are touched in order.
    fn next(&self, nodes: NodeMask) -> Option<u8> {
        let page = self.pages.fetch_add(1, Ordering::Relaxed);
        page.checked_rem(nodes.iter().count()).and_then(|nth| nodes.nth(nth))
    }
}

/// A task.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) cpuset: usize,
    policy: Place,
    vmas: Box<[Place]>,
    /// The node after which the next of an interleaved policy is taken (`il_prev`).
    previous: AtomicU8,
}

impl Task {
    /// The policy that an allocation follows (`get_vma_policy`), and whether it is a VMA's.
    fn place(&self, vma: Option<Vma>) -> (&Place, bool) {
        let own = vma.map(|vma| &self.vmas[vma.0]).filter(|place| place.policy.load().is_some());
        own.map_or((&self.policy, false), |place| (place, true))
    }

    /// All its policies.
    fn places(&self) -> impl Iterator<Item = &Place> {
        core::iter::once(&self.policy).chain(&self.vmas)
    }

    fn next(&self, nodes: NodeMask) -> Option<u8> {
        let previous = self.previous.load(Ordering::Relaxed);
        let next = nodes.iter().find(|&node| node > previous).or(nodes.first())?;
        self.previous.store(next, Ordering::Relaxed);
        Some(next)
    }
}

/// Pointers of which each is to lead to a copy of this.
pub(super) type Changes<'a> = Vec<(&'a Pointer, Mempolicy)>;

/// Pointers, and the copies that are there for them.
pub(super) type Prepared<'a> = Vec<(&'a Pointer, Handle)>;

/// The tasks of a scheme that swaps, and the copies of their policies, freed as `G` says.
pub(super) struct Tasks<G> {
    pub(super) grace: G,
    pub(super) slots: Slots<NodesCopy>,
    pub(super) tasks: Box<[Task]>,
    pub(super) supply: Arc<Supply>,
    pub(super) flaw: Option<Flaw>,
}

impl<G: Grace<NodesCopy>> Tasks<G> {
    pub(super) fn new(setup: &Setup, grace: G, supply: Arc<Supply>) -> Result<Self, UpdateError> {
        let slots = Slots::new("nodes", NodesCopy::empty);
        let policy = |policy: Policy, mems: NodeMask| {
            let copy = match policy.mode {
                Mode::Default => None,
                _ => {
                    let whole = Mempolicy::new(policy, mems).ok_or(UpdateError::NoNodes)?;
                    Some(allocate(&slots, &supply, whole)?)
                }
            };
            Ok::<_, UpdateError>(Place { policy: Pointer::new(copy), pages: AtomicUsize::new(0) })
        };
        let task = |task: &TaskSetup| {
            let mems = setup.cpusets.get(task.cpuset.0).filter(|mems| !mems.is_empty());
            let mems = *mems.ok_or(UpdateError::NoNodes)?;
            Ok::<_, UpdateError>(Task {
                cpuset: task.cpuset.0,
                policy: policy(task.policy, mems)?,
                vmas: task.vmas.iter().map(|&of| policy(of, mems)).collect::<Result<_, _>>()?,
                previous: AtomicU8::new(NodeMask::NODES - 1),
            })
        };
        let tasks = setup.tasks.iter().map(task).collect::<Result<_, _>>()?;
        Ok(Self { grace, slots, tasks, supply, flaw: setup.flaw })
    }

    pub(super) fn task(&self, task: TaskId) -> &Task {
        &self.tasks[task.0]
    }

    /// What a pointer leads to. Under the lock of the updates.
    pub(super) fn whole(&self, pointer: &Pointer) -> Mempolicy {
        let copy = pointer.load().map(|copy| self.slots.get(copy).whole());
        copy.unwrap_or(of_cpuset(NodeMask::EMPTY))
    }

    /// Points to another copy, and lets the one of before go.
    pub(super) fn replace(&self, pointer: &Pointer, next: Option<Handle>) {
        if let Some(old) = pointer.swap(next) {
            self.grace.retire(&self.slots, old);
        }
    }

    /// The policies that follow a cpuset, and what they are to be.
    pub(super) fn rebound(&self, cpuset: usize, mems: NodeMask) -> Changes<'_> {
        let places = self.tasks.iter().filter(|task| task.cpuset == cpuset).flat_map(Task::places);
        let changes = places.filter_map(|place| {
            let old = self.whole(&place.policy);
            let new = old.rebound_with(mems, self.flaw);
            (copies::follows_the_cpuset(old.policy) && new != old).then_some((&place.policy, new))
        });
        changes.collect()
    }

    /// Allocates a copy for each change; all or none.
    pub(super) fn prepare<'a>(&self, changes: &Changes<'a>) -> Result<Prepared<'a>, NoMemory> {
        let mut prepared = Vec::with_capacity(changes.len());
        for &(pointer, next) in changes {
            match allocate(&self.slots, &self.supply, next) {
                Ok(copy) => prepared.push((pointer, copy)),
                Err(NoMemory) => {
                    self.discard(prepared);
                    return Err(NoMemory);
                }
            }
        }
        Ok(prepared)
    }

    /// Frees copies that no reader has seen.
    pub(super) fn discard(&self, prepared: Prepared<'_>) {
        prepared.into_iter().for_each(|(_, copy)| self.slots.free(copy));
    }

    /// Swaps all of them in.
    pub(super) fn commit(&self, prepared: Prepared<'_>) {
        prepared.into_iter().for_each(|(pointer, copy)| self.replace(pointer, Some(copy)));
    }

    /// Swaps each copy in as soon as it is there: to go back from the middle takes memory as well.
    pub(super) fn apply_one_by_one(&self, changes: &Changes<'_>) -> Result<(), NoMemory> {
        let mut before = Vec::with_capacity(changes.len());
        for &(pointer, next) in changes {
            let old = self.whole(pointer);
            let Ok(copy) = allocate(&self.slots, &self.supply, next) else {
                for (pointer, old) in before {
                    let back = allocate(&self.slots, &self.supply, old)?;
                    self.replace(pointer, Some(back));
                }
                return Err(NoMemory);
            };
            self.replace(pointer, Some(copy));
            before.push((pointer, old));
        }
        Ok(())
    }

    /// Sets a policy, of the task or of a VMA. Under the lock of the updates: another may have prepared a
    /// copy of the policy before.
    pub(super) fn set(
        &self,
        (task, vma): (TaskId, Option<Vma>),
        policy: Policy,
        mems: NodeMask,
    ) -> Result<(), UpdateError> {
        let task = self.task(task);
        let place = vma.map_or(&task.policy, |vma| &task.vmas[vma.0]);
        let whole = Mempolicy::new(policy, mems).ok_or(UpdateError::NoNodes)?;
        let copy = match policy.mode {
            Mode::Default => None,
            _ => Some(allocate(&self.slots, &self.supply, whole)?),
        };
        self.replace(&place.policy, copy);
        Ok(())
    }

    /// The policy in force in a cpuset with the nodes `mems`.
    pub(super) fn mempolicy(&self, task: TaskId, vma: Option<Vma>, mems: NodeMask) -> Mempolicy {
        let whole = self.whole(&self.task(task).place(vma).0.policy);
        let filtered = whole.policy.flag == Nodes::Static && whole.policy.mode != Mode::Default;
        if filtered { whole.rebound(mems) } else { whole }
    }

    /// Policies that pointers lead to.
    pub(super) fn current(&self) -> usize {
        let places = self.tasks.iter().flat_map(Task::places);
        places.filter(|place| place.policy.load().is_some()).count()
    }

    /// Bytes of the pointers, of the copies, and of what frees them.
    pub(super) fn bytes(&self) -> usize {
        let places = self.tasks.iter().map(|task| 1 + task.vmas.len()).sum::<usize>();
        places * size_of::<Pointer>() + self.slots.bytes() + self.grace.bytes()
    }
}
