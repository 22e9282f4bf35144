// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What limits one allocation: the copies that were current as it began.

use super::super::protocol::{Ask, Outcome, Vma};
use super::super::scheme::Flaw;
use super::super::swapping::held::{HeldPolicy, Tally};
use super::super::swapping::{NodesCopy, Task};
use super::Copied;
use crate::page_alloc::{AllocError, Constraint, Look, NodeMask, Pfn};
use crate::swapped::{Grace, Handle};

/// The constraint of one allocation.
pub(super) struct Limits<'a, G> {
    scheme: &'a Copied<G>,
    mems: Handle,
    policy: HeldPolicy<'a>,
    /// A copy that it holds is no longer the current one.
    is_stale: bool,
    tally: Tally,
}

impl<'a, G: Grace<NodesCopy>> Limits<'a, G> {
    pub(super) fn new(scheme: &'a Copied<G>, ask: &Ask) -> Self {
        let (mems, policy) = Self::hold(scheme, (scheme.tasks.task(ask.task), ask.vma));
        Self { scheme, mems, policy, is_stale: false, tally: Tally::new(ask.most_tries) }
    }

    fn hold(scheme: &'a Copied<G>, of: (&'a Task, Option<Vma>)) -> (Handle, HeldPolicy<'a>) {
        let tasks = &scheme.tasks;
        let Some(mems) = tasks.grace.hold(&tasks.slots, scheme.mems_of(of.0)) else {
            panic!("a cpuset has nodes")
        };
        let nodes = tasks.slots.get(mems).nodes();
        (mems, HeldPolicy::hold(tasks, of, nodes))
    }

    fn release(&self) {
        let tasks = &self.scheme.tasks;
        self.policy.release(tasks);
        tasks.grace.release(&tasks.slots, self.mems);
    }

    fn nodes(&self) -> NodeMask {
        self.scheme.tasks.slots.get(self.mems).nodes()
    }

    /// The node to begin with.
    pub(super) fn node(&self, local: u8) -> u8 {
        self.policy.node(&self.scheme.tasks, local, self.nodes())
    }

    /// Releases what it holds, and says what became of the allocation.
    pub(super) fn end(self, page: Result<Pfn, AllocError>) -> Outcome {
        self.release();
        self.tally.outcome(page)
    }

    /// Whether an update has swapped a copy that is held.
    fn has_changed(&self) -> bool {
        self.scheme.mems_of(self.policy.task()).load() != Some(self.mems)
            || self.policy.has_changed()
    }
}

impl<G: Grace<NodesCopy>> Constraint for Limits<'_, G> {
    fn allows(&self, node: u8) -> bool {
        !self.tally.abandoned
            && self.policy.allows(&self.scheme.tasks, node)
            && self.nodes().contains(node)
    }

    fn in_nodemask(&self, node: u8) -> bool {
        self.allows(node)
    }

    fn begin(&mut self) {
        self.tally.begin();
        if self.is_stale {
            self.release();
            let of = (self.policy.task(), self.policy.vma());
            (self.mems, self.policy) = Self::hold(self.scheme, of);
            self.is_stale = false;
        }
    }

    fn must_restart(&mut self, at: Look) -> bool {
        if at == Look::TopOfRetry {
            self.tally.try_once();
        }
        let looks = matches!(at, Look::BeforeOom | Look::NoPage) && !self.tally.abandoned;
        let trusts = self.scheme.tasks.flaw == Some(Flaw::TrustsItsCopy);
        self.is_stale |= looks && !trusts && self.has_changed();
        self.is_stale
    }
}
