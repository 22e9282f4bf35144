// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What limits one allocation: the copies that were current as it began.

use super::super::{Ask, Flaw, Outcome, Vma};
use super::copies::NodesCopy;
use super::{Copied, Place, Task};
use crate::page_alloc::{AllocError, Constraint, Look, Pfn};
use crate::placement::Mode;
use crate::swapped::{Grace, Handle};

/// The copies that an allocation holds.
#[derive(Clone, Copy, Debug)]
struct Held<'a> {
    /// Where the policy was found, and whether that is its VMA's.
    place: (&'a Place, bool),
    mems: Handle,
    policy: Option<Handle>,
    /// The policy's nodes are `ac->nodemask`. Neither they nor the cpuset's change while they are held, so
    /// this was looked at once.
    binds: bool,
}

/// The constraint of one allocation.
pub(super) struct Limits<'a, G> {
    scheme: &'a Copied<G>,
    task: &'a Task,
    vma: Option<Vma>,
    most_tries: u32,
    held: Held<'a>,
    in_slow_path: bool,
    /// A copy that it holds is no longer the current one.
    is_stale: bool,
    outcome: Outcome,
}

impl<'a, G: Grace<NodesCopy>> Limits<'a, G> {
    pub(super) fn new(scheme: &'a Copied<G>, ask: &Ask) -> Self {
        let task = &scheme.tasks[ask.task.0];
        Self {
            scheme,
            task,
            vma: ask.vma,
            most_tries: ask.most_tries,
            held: Self::hold(scheme, task, ask.vma),
            in_slow_path: false,
            is_stale: false,
            outcome: Outcome {
                page: Err(AllocError::OutOfMemory),
                ooms: 0,
                tries: 0,
                restarts: 0,
                abandoned: false,
            },
        }
    }

    fn hold(scheme: &'a Copied<G>, task: &'a Task, vma: Option<Vma>) -> Held<'a> {
        let Copied { grace, slots, .. } = scheme;
        let Some(mems) = grace.hold(slots, scheme.mems_of(task)) else {
            panic!("a cpuset has nodes")
        };
        let place = task.place(vma);
        let policy = grace.hold(slots, &place.0.policy);
        let binds = policy.map(|policy| slots.get(policy)).is_some_and(|policy| {
            policy.mode() == Mode::Bind && policy.nodes().intersects(slots.get(mems).nodes())
        });
        Held { place, mems, policy, binds }
    }

    fn release(&self) {
        let Copied { grace, slots, .. } = self.scheme;
        let Held { mems, policy, .. } = self.held;
        [Some(mems), policy].into_iter().flatten().for_each(|copy| grace.release(slots, copy));
    }

    /// Releases what it holds, and says what became of the allocation.
    pub(super) fn end(mut self, page: Result<Pfn, AllocError>) -> Outcome {
        self.release();
        self.outcome.page = page;
        self.outcome.ooms = u32::from(page == Err(AllocError::OutOfMemory));
        self.outcome
    }

    /// The node to begin with.
    pub(super) fn node(&self, local: u8) -> u8 {
        let Some(policy) = self.held.policy.map(|policy| self.scheme.slots.get(policy)) else {
            return local;
        };
        let node = match policy.mode() {
            Mode::Default | Mode::Bind => None,
            Mode::Preferred => policy.nodes().first(),
            Mode::Interleave => {
                let mems = self.scheme.slots.get(self.held.mems).nodes();
                let (own, allowed) = (policy.nodes(), policy.nodes().intersection(mems));
                let nodes = if allowed.is_empty() { own } else { allowed };
                match self.held.place {
                    (place, true) => place.next(nodes),
                    (_, false) => self.task.next(nodes),
                }
            }
        };
        node.unwrap_or(local)
    }

    /// Whether an update has swapped a copy that is held.
    fn has_changed(&self) -> bool {
        let Held { place, mems, policy, .. } = self.held;
        let now = self.task.place(self.vma).0;
        self.scheme.mems_of(self.task).load() != Some(mems)
            || !core::ptr::eq(now, place.0)
            || now.policy.load() != policy
    }

    fn in_policy(&self, node: u8) -> bool {
        !self.held.binds
            || self.held.policy.is_none_or(|of| self.scheme.slots.get(of).nodes().contains(node))
    }
}

impl<G: Grace<NodesCopy>> Constraint for Limits<'_, G> {
    fn allows(&self, node: u8) -> bool {
        let mems = || self.scheme.slots.get(self.held.mems).nodes().contains(node);
        !self.outcome.abandoned && self.in_policy(node) && mems()
    }

    fn in_nodemask(&self, node: u8) -> bool {
        self.allows(node)
    }

    fn begin(&mut self) {
        self.outcome.restarts += u32::from(self.in_slow_path);
        self.in_slow_path = true;
        if self.is_stale {
            self.release();
            self.held = Self::hold(self.scheme, self.task, self.vma);
            self.is_stale = false;
        }
    }

    fn must_restart(&mut self, at: Look) -> bool {
        if at == Look::TopOfRetry {
            self.outcome.tries += 1;
            self.outcome.abandoned = self.outcome.tries > self.most_tries;
        }
        let looks = matches!(at, Look::BeforeOom | Look::NoPage) && !self.outcome.abandoned;
        if looks && self.scheme.flaw != Some(Flaw::TrustsItsCopy) && self.has_changed() {
            self.is_stale = true;
        }
        self.is_stale
    }
}
