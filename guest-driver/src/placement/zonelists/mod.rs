// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Schemes in which each cpuset has zonelists of its own, with the zones of its nodes. Proposed in February
//! 2017 and never built.
//!
//! An update allocates another set of zonelists and swaps it in. A walk of the list needs no other look at
//! the cpuset, and whether policy and cpuset intersect is looked at once. Pages of programs stay behind the
//! hardwall. The kernel's own come from the system's zonelists, or with softwall from the cpuset's nodes
//! first.

mod keep;
mod limits;
mod set;
mod through;

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::policy::Policy;
use super::protocol::{Protocol, Setup, TaskId, UpdateError, Vma};
use super::swapping::Tasks;
use crate::page_alloc::{Mm, NodeMask};
use crate::swapped::{Counts, Handle, NoMemory, Slots, Supply};
use crate::sync::Lock;
use keep::{Cpuset, Keep, Watch};
use set::{Shape, ZonelistSet};

pub use keep::ByLock;

/// Zonelists a cpuset, kept while they are walked as `K` says.
pub struct Zonelists<K> {
    mm: Arc<Mm>,
    tasks: Tasks<Counts>,
    keep: K,
    sets: Slots<ZonelistSet>,
    shape: Shape,
    cpusets: Box<[Cpuset]>,
    /// One update at a time (`cpuset_mutex`).
    updates: Lock<()>,
    watch: Option<Watch>,
}

impl Zonelists<Counts> {
    /// Freed with the last reference.
    ///
    /// # Errors
    /// [`UpdateError`]: a cpuset or a policy has no node, or `supply` has no memory.
    pub fn counted(
        mm: Arc<Mm>,
        setup: &Setup,
        softwall: bool,
        supply: Arc<Supply>,
    ) -> Result<Self, UpdateError> {
        let counts = Counts::new(setup.flaw.and_then(|flaw| flaw.of_grace().0));
        Self::new(mm, setup, softwall, supply, counts)
    }
}

impl Zonelists<ByLock> {
    /// Swapped and freed while no allocation has the cpuset's lock.
    ///
    /// # Errors
    /// [`UpdateError`]: a cpuset or a policy has no node, or `supply` has no memory.
    pub fn locked(mm: Arc<Mm>, setup: &Setup, supply: Arc<Supply>) -> Result<Self, UpdateError> {
        Self::new(mm, setup, false, supply, ByLock)
    }
}

impl<K: Keep> Zonelists<K> {
    fn new(
        mm: Arc<Mm>,
        setup: &Setup,
        softwall: bool,
        supply: Arc<Supply>,
        keep: K,
    ) -> Result<Self, UpdateError> {
        let shape = Shape::of(&mm, softwall);
        let sets = Slots::new("zonelists", move || ZonelistSet::empty(shape));
        let watch = (K::LOCKS && setup.flaw.is_some()).then(|| Watch::new(setup.tasks.len()));
        let cpuset = |(index, &mems): (usize, &NodeMask)| {
            let set = allocate(&mm, &sets, shape, &supply, mems)?;
            Ok::<_, UpdateError>(Cpuset::new(set, watch.as_ref(), index))
        };
        let cpusets = setup.cpusets.iter().enumerate().map(cpuset).collect::<Result<_, _>>()?;
        let tasks = Tasks::new(setup, Counts::default(), supply)?;
        Ok(Self { mm, tasks, keep, sets, shape, cpusets, updates: Lock::new(()), watch })
    }

    /// The nodes of a set; all without one.
    fn nodes(&self, set: Option<Handle>) -> NodeMask {
        set.map_or(NodeMask::ALL, |set| self.sets.get(set).nodes())
    }

    fn allocate(&self, mems: NodeMask) -> Result<Handle, NoMemory> {
        allocate(&self.mm, &self.sets, self.shape, &self.tasks.supply, mems)
    }

    fn swap(&self, cpuset: &Cpuset, next: Handle) {
        self.keep.swap(&self.sets, cpuset, next, self.watch.as_ref().map(Watch::writer));
    }

    /// Swaps the set in before there are copies of the policies: to go back takes memory as well.
    fn set_one_by_one(&self, index: usize, mems: NodeMask) -> Result<(), NoMemory> {
        let cpuset = &self.cpusets[index];
        let before = self.nodes(cpuset.set.load());
        self.swap(cpuset, self.allocate(mems)?);
        self.tasks.apply_one_by_one(&self.tasks.rebound(index, mems)).or_else(|NoMemory| {
            self.swap(cpuset, self.allocate(before)?);
            Err(NoMemory)
        })
    }

    fn set(&self, task: TaskId, vma: Option<Vma>, policy: Policy) -> Result<(), UpdateError> {
        let _updating = self.updates.lock();
        self.tasks.set((task, vma), policy, self.mems_allowed(task))
    }

    /// Lets every cpuset's lists follow the system's: memory has come online, or goes offline. All or none.
    ///
    /// # Errors
    /// [`UpdateError::NoMemory`]: the memory cannot come online then.
    pub fn rebuild(&self) -> Result<(), UpdateError> {
        let _updating = self.updates.lock();
        let mut next = alloc::vec::Vec::with_capacity(self.cpusets.len());
        for cpuset in &self.cpusets {
            match self.allocate(self.nodes(cpuset.set.load())) {
                Ok(set) => next.push(set),
                Err(NoMemory) => {
                    next.into_iter().for_each(|set| self.sets.free(set));
                    return Err(UpdateError::NoMemory);
                }
            }
        }
        self.cpusets.iter().zip(next).for_each(|(cpuset, set)| self.swap(cpuset, set));
        Ok(())
    }
}

/// Allocates a set: the lists of each node, and what leads to them.
fn allocate(
    mm: &Mm,
    sets: &Slots<ZonelistSet>,
    shape: Shape,
    supply: &Supply,
    mems: NodeMask,
) -> Result<Handle, NoMemory> {
    (0..shape.nodes()).try_for_each(|_| supply.take())?;
    sets.allocate(supply, |set| set.fill(mm, mems))
}
