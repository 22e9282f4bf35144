// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The policy that an allocation holds, and what the allocation took.

use super::{NodesCopy, Place, Task, Tasks};
use crate::page_alloc::{AllocError, NodeMask, Pfn};
use crate::placement::policy::Mode;
use crate::placement::protocol::{Outcome, Vma};
use crate::swapped::{Grace, Handle};

/// The policy that an allocation follows.
#[derive(Clone, Copy, Debug)]
pub(in crate::placement) struct HeldPolicy<'a> {
    task: &'a Task,
    vma: Option<Vma>,
    /// Where the policy was found, and whether that is its VMA's.
    place: (&'a Place, bool),
    policy: Option<Handle>,
    /// Its nodes are `ac->nodemask`. Neither they nor the cpuset's change while they are held, so this was
    /// looked at once.
    binds: bool,
}

impl<'a> HeldPolicy<'a> {
    /// Holds the current one, for an allocation that may use the nodes `mems`.
    pub(in crate::placement) fn hold<G: Grace<NodesCopy>>(
        tasks: &'a Tasks<G>,
        (task, vma): (&'a Task, Option<Vma>),
        mems: NodeMask,
    ) -> Self {
        let place = task.place(vma);
        let policy = tasks.grace.hold(&tasks.slots, &place.0.policy);
        let binds = policy
            .map(|policy| tasks.slots.get(policy))
            .is_some_and(|policy| policy.mode() == Mode::Bind && policy.nodes().intersects(mems));
        Self { task, vma, place, policy, binds }
    }

    /// Holds it no longer.
    pub(in crate::placement) fn release<G: Grace<NodesCopy>>(&self, tasks: &Tasks<G>) {
        if let Some(policy) = self.policy {
            tasks.grace.release(&tasks.slots, policy);
        }
    }

    /// Whether the current one is another.
    pub(in crate::placement) fn has_changed(&self) -> bool {
        let now = self.task.place(self.vma).0;
        !core::ptr::eq(now, self.place.0) || now.policy.load() != self.policy
    }

    /// The task that allocates.
    pub(in crate::placement) fn task(&self) -> &'a Task {
        self.task
    }

    /// What it allocates for.
    pub(in crate::placement) fn vma(&self) -> Option<Vma> {
        self.vma
    }

    /// Whether the policy lets pages come from `node`.
    pub(in crate::placement) fn allows<G: Grace<NodesCopy>>(
        &self,
        tasks: &Tasks<G>,
        node: u8,
    ) -> bool {
        match self.policy {
            Some(policy) if self.binds => tasks.slots.get(policy).nodes().contains(node),
            _ => true,
        }
    }

    /// The node to begin with, in a cpuset with the nodes `mems`.
    pub(in crate::placement) fn node<G: Grace<NodesCopy>>(
        &self,
        tasks: &Tasks<G>,
        local: u8,
        mems: NodeMask,
    ) -> u8 {
        let Some(policy) = self.policy.map(|policy| tasks.slots.get(policy)) else {
            return local;
        };
        let node = match policy.mode() {
            Mode::Default | Mode::Bind => None,
            Mode::Preferred => policy.nodes().first(),
            Mode::Interleave => {
                let (own, allowed) = (policy.nodes(), policy.nodes().intersection(mems));
                let nodes = if allowed.is_empty() { own } else { allowed };
                match self.place {
                    (place, true) => place.next(nodes),
                    (_, false) => self.task.next(nodes),
                }
            }
        };
        node.unwrap_or(local)
    }
}

/// What an allocation took.
#[derive(Clone, Copy, Debug)]
pub(in crate::placement) struct Tally {
    most_tries: u32,
    tries: u32,
    restarts: u32,
    in_slow_path: bool,
    pub(in crate::placement) abandoned: bool,
}

impl Tally {
    pub(in crate::placement) fn new(most_tries: u32) -> Self {
        Self { most_tries, tries: 0, restarts: 0, in_slow_path: false, abandoned: false }
    }

    /// The slow path begins, or begins again.
    pub(in crate::placement) fn begin(&mut self) {
        self.restarts += u32::from(self.in_slow_path && !self.abandoned);
        self.in_slow_path = true;
    }

    /// The slow path tries.
    pub(in crate::placement) fn try_once(&mut self) {
        self.tries += 1;
        self.abandoned = self.tries > self.most_tries;
    }

    pub(in crate::placement) fn outcome(self, page: Result<Pfn, AllocError>) -> Outcome {
        let Self { tries, restarts, abandoned, .. } = self;
        let ooms = u32::from(page == Err(AllocError::OutOfMemory));
        Outcome { page, ooms, tries, restarts, abandoned }
    }
}
