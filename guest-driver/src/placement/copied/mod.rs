// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Schemes that swap an updated copy in: of a cpuset's nodes, and of each policy that follows them.
//!
//! An allocation holds the copies that are current as it begins, so its nodes do not change under it, and
//! whether policy and cpuset intersect is looked at once. They may be out of date by the time that it finds
//! nothing: before the OOM killer it looks whether they still are the current ones.

mod copies;
mod limits;

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicUsize};

use super::policy::{Mempolicy, Mode, Nodes, Policy};
use super::{
    Ask, Copies, CpusetId, Flaw, Outcome, Protocol, Setup, TaskId, TaskSetup, UpdateError, Vma,
};
use crate::page_alloc::{AllocRequest, Mm, NodeMask};
use crate::swapped::{Grace, Handle, NoMemory, Pointer, Slots, Supply};
use crate::sync::{Lock, Ordering};
pub use copies::NodesCopy;
use limits::Limits;

impl From<NoMemory> for UpdateError {
    fn from(NoMemory: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// Where a policy is.
#[derive(Debug)]
struct Place {
    /// To none for [`Mode::Default`].
    policy: Pointer,
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
struct Task {
    cpuset: usize,
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

/// A scheme that swaps copies, freed as `G` says.
pub struct Copied<G> {
    grace: G,
    slots: Slots<NodesCopy>,
    /// The nodes of each.
    cpusets: Box<[Pointer]>,
    tasks: Box<[Task]>,
    /// One update at a time (`cpuset_mutex`): none swaps what another has prepared a copy of.
    updates: Lock<()>,
    supply: Arc<Supply>,
    flaw: Option<Flaw>,
}

impl<G: Grace<NodesCopy>> Copied<G> {
    /// Tasks and cpusets of this setup.
    ///
    /// # Errors
    /// [`UpdateError`]: a cpuset or a policy has no node, or `supply` has no memory.
    pub fn new(setup: &Setup, grace: G, supply: Arc<Supply>) -> Result<Self, UpdateError> {
        let slots = Slots::new("nodes", NodesCopy::empty);
        let policy = |policy: Policy, mems: NodeMask| {
            let copy = match policy.mode {
                Mode::Default => None,
                _ => {
                    let whole = Mempolicy::new(policy, mems).ok_or(UpdateError::NoNodes)?;
                    Some(copies::allocate(&slots, &supply, whole)?)
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
        let cpuset = |&mems: &NodeMask| {
            let copy = copies::allocate(&slots, &supply, copies::of_cpuset(mems))?;
            Ok::<_, UpdateError>(Pointer::new(Some(copy)))
        };
        let cpusets = setup.cpusets.iter().map(cpuset).collect::<Result<_, _>>()?;
        let updates = Lock::new(());
        Ok(Self { grace, slots, cpusets, tasks, updates, supply, flaw: setup.flaw })
    }

    fn mems_of(&self, task: &Task) -> &Pointer {
        &self.cpusets[task.cpuset]
    }

    fn whole(&self, pointer: &Pointer) -> Mempolicy {
        let copy = pointer.load().map(|copy| self.slots.get(copy).whole());
        copy.unwrap_or(copies::of_cpuset(NodeMask::EMPTY))
    }

    /// Points to another copy, and lets the one of before go.
    fn replace(&self, pointer: &Pointer, next: Option<Handle>) {
        if let Some(old) = pointer.swap(next) {
            self.grace.retire(&self.slots, old);
        }
    }

    /// Every pointer that an update of a cpuset replaces, with what the next copy holds.
    fn changes(&self, cpuset: usize, mems: NodeMask) -> Vec<(&Pointer, Mempolicy)> {
        let places = self.tasks.iter().filter(|task| task.cpuset == cpuset).flat_map(Task::places);
        let policies = places.filter_map(|place| {
            let old = self.whole(&place.policy);
            let new = old.rebound_with(mems, self.flaw);
            (copies::follows_the_cpuset(old.policy) && new != old).then_some((&place.policy, new))
        });
        let own = (&self.cpusets[cpuset], copies::of_cpuset(mems));
        core::iter::once(own).chain(policies).collect()
    }

    /// Swaps each copy in as soon as it is there: to go back from the middle takes memory as well.
    fn apply_one_by_one(&self, changes: &[(&Pointer, Mempolicy)]) -> Result<(), NoMemory> {
        let mut before = Vec::with_capacity(changes.len());
        for &(pointer, next) in changes {
            let old = self.whole(pointer);
            let Ok(copy) = copies::allocate(&self.slots, &self.supply, next) else {
                for (pointer, old) in before {
                    let back = copies::allocate(&self.slots, &self.supply, old)?;
                    self.replace(pointer, Some(back));
                }
                return Err(NoMemory);
            };
            self.replace(pointer, Some(copy));
            before.push((pointer, old));
        }
        Ok(())
    }

    /// Allocates all copies before it swaps the first.
    fn apply(&self, changes: &[(&Pointer, Mempolicy)]) -> Result<(), NoMemory> {
        let mut prepared = Vec::with_capacity(changes.len());
        for &(pointer, next) in changes {
            match copies::allocate(&self.slots, &self.supply, next) {
                Ok(copy) => prepared.push((pointer, copy)),
                Err(NoMemory) => {
                    // No reader has seen them.
                    prepared.into_iter().for_each(|(_, copy)| self.slots.free(copy));
                    return Err(NoMemory);
                }
            }
        }
        prepared.into_iter().for_each(|(pointer, copy)| self.replace(pointer, Some(copy)));
        Ok(())
    }

    fn set(&self, task: &Task, place: &Place, policy: Policy) -> Result<(), UpdateError> {
        let _updating = self.updates.lock();
        let mems = self.whole(self.mems_of(task)).nodes;
        let whole = Mempolicy::new(policy, mems).ok_or(UpdateError::NoNodes)?;
        let copy = match policy.mode {
            Mode::Default => None,
            _ => Some(copies::allocate(&self.slots, &self.supply, whole)?),
        };
        self.replace(&place.policy, copy);
        Ok(())
    }
}

impl<G: Grace<NodesCopy>> Protocol for Copied<G> {
    fn alloc(&self, mm: &Mm, ask: &Ask) -> Outcome {
        let section = self.grace.enter(ask.cpu);
        let mut limits = Limits::new(self, ask);
        let request = AllocRequest { node: limits.node(ask.request.node), ..ask.request };
        let page = mm.alloc_constrained(ask.cpu, request, &mut limits);
        let outcome = limits.end(page);
        self.grace.leave(section);
        outcome
    }

    fn set_mems(&self, cpuset: CpusetId, mems: NodeMask) -> Result<(), UpdateError> {
        if mems.is_empty() || cpuset.0 >= self.cpusets.len() {
            return Err(UpdateError::NoNodes);
        }
        let _updating = self.updates.lock();
        let changes = self.changes(cpuset.0, mems);
        match self.flaw {
            Some(Flaw::SwapsOneByOne) => self.apply_one_by_one(&changes)?,
            _ => self.apply(&changes)?,
        }
        Ok(())
    }

    fn set_policy(&self, task: TaskId, policy: Policy) -> Result<(), UpdateError> {
        let task = &self.tasks[task.0];
        self.set(task, &task.policy, policy)
    }

    fn mbind(&self, task: TaskId, vma: Vma, policy: Policy) -> Result<(), UpdateError> {
        let task = &self.tasks[task.0];
        self.set(task, &task.vmas[vma.0], policy)
    }

    fn mems_allowed(&self, task: TaskId) -> NodeMask {
        self.whole(self.mems_of(&self.tasks[task.0])).nodes
    }

    fn mempolicy(&self, task: TaskId, vma: Option<Vma>) -> Mempolicy {
        let task = &self.tasks[task.0];
        let whole = self.whole(&task.place(vma).0.policy);
        if whole.policy.flag == Nodes::Static && whole.policy.mode != Mode::Default {
            return whole.rebound(self.whole(self.mems_of(task)).nodes);
        }
        whole
    }

    fn copies(&self) -> Option<Copies> {
        self.grace.flush(&self.slots);
        let pointers = self
            .cpusets
            .iter()
            .chain(self.tasks.iter().flat_map(Task::places).map(|place| &place.policy));
        Some(Copies {
            live: self.slots.live(),
            peak: self.slots.peak(),
            current: pointers.filter(|pointer| pointer.load().is_some()).count(),
        })
    }

    fn bytes(&self) -> usize {
        let places = self.tasks.iter().map(|task| 1 + task.vmas.len()).sum::<usize>();
        size_of_val(&*self.cpusets)
            + places * size_of::<Pointer>()
            + self.slots.bytes()
            + self.grace.bytes()
    }
}
