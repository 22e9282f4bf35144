// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What limits one allocation: its task's nodes, and the nodes of a policy as they are at each look.

use core::marker::PhantomData;

use super::super::protocol::Outcome;
use super::super::scheme::Flaw;
use super::rules::{Rules, Sequence};
use super::task::Task;
use crate::page_alloc::{AllocError, AtomicNodeMask, Constraint, Look, NodeMask, Pfn};
use crate::sync::Ordering;

/// What an allocation took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) ooms: u32,
    tries: u32,
    restarts: u32,
    abandoned: bool,
}

impl Tally {
    pub(super) fn outcome(self, page: Result<Pfn, AllocError>) -> Outcome {
        let Self { ooms, tries, restarts, abandoned } = self;
        Outcome { page, ooms, tries, restarts, abandoned }
    }
}

/// The constraint of one allocation.
#[derive(Debug)]
pub(super) struct Limits<'a, R> {
    pub(super) task: &'a Task,
    /// `ac->nodemask`.
    pub(super) nodemask: Option<&'a AtomicNodeMask>,
    /// In its slow path it may use any node (`GFP_ATOMIC`, which has no `ALLOC_CPUSET`).
    pub(super) atomic: bool,
    pub(super) flaw: Option<Flaw>,
    pub(super) most_tries: u32,
    pub(super) tally: Tally,
    pub(super) walk: Walk,
    pub(super) rules: PhantomData<R>,
}

/// How far the allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// Without a nodemask of its own, its task's nodes are one.
    Fast,
    /// In its slow path, which has begun at this count.
    Slow(u64),
    /// It has tried too often: no node will do.
    Abandoned,
}

impl<R: Rules> Limits<'_, R> {
    /// Whether a policy's nodes and the cpuset have a node in common
    /// (`cpuset_nodemask_valid_mems_allowed`).
    fn intersects(task: &Task, nodes: &AtomicNodeMask) -> bool {
        let nodes = nodes.load(Ordering::Relaxed);
        nodes.intersects(task.mems.load(Ordering::Relaxed))
    }

    /// The nodes of a policy that binds; none of one that has no node of the cpuset's
    /// (`policy_nodemask`).
    pub(super) fn nodemask<'n>(
        task: &Task,
        nodes: &'n AtomicNodeMask,
    ) -> Option<&'n AtomicNodeMask> {
        Self::intersects(task, nodes).then_some(nodes)
    }

    fn has_changed(&mut self, begun: u64) -> bool {
        let intersects = R::INTERSECTS && self.flaw != Some(Flaw::TrustsSequenceCount);
        let apart = |nodes| intersects && !Self::intersects(self.task, nodes);
        if self.nodemask.is_some_and(apart) {
            self.nodemask = None;
            return true;
        }
        R::SEQUENCE != Sequence::Never && self.task.sequence.read_retry(begun)
    }
}

impl<R: Rules> Constraint for Limits<'_, R> {
    fn allows(&self, node: u8) -> bool {
        let mems = || self.task.mems.contains(node, Ordering::Relaxed);
        let nodemask = || self.nodemask.is_none_or(|nodes| nodes.contains(node, Ordering::Relaxed));
        match self.walk {
            Walk::Fast => nodemask() && mems(),
            Walk::Slow(_) => nodemask() && (self.atomic || mems()),
            Walk::Abandoned => false,
        }
    }

    fn in_nodemask(&self, node: u8) -> bool {
        match (self.walk, self.nodemask) {
            (Walk::Abandoned, _) => false,
            (_, Some(nodes)) => nodes.contains(node, Ordering::Relaxed),
            (Walk::Fast, None) => self.task.mems.contains(node, Ordering::Relaxed),
            (Walk::Slow(_), None) => node < NodeMask::NODES,
        }
    }

    fn begin(&mut self) {
        match self.walk {
            Walk::Abandoned => return,
            Walk::Slow(_) => self.tally.restarts += 1,
            Walk::Fast => {}
        }
        let counts = R::SEQUENCE != Sequence::Never;
        let begun = if counts { self.task.sequence.read_begin() } else { 0 };
        self.walk = Walk::Slow(begun);
    }

    fn must_restart(&mut self, at: Look) -> bool {
        if at == Look::TopOfRetry {
            self.tally.tries += 1;
            if self.tally.tries > self.most_tries {
                self.walk = Walk::Abandoned;
                self.tally.abandoned = true;
            }
        }
        match self.walk {
            Walk::Slow(begun) if R::LOOKS.contains(&at) => self.has_changed(begun),
            _ => false,
        }
    }
}
