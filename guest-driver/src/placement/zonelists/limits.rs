// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What limits one allocation: the zonelists of its cpuset, and its policy.

use super::super::swapping::{HeldPolicy, Tally};
use super::super::{Ask, Flaw, Outcome};
use super::Zonelists;
use super::keep::{Cpuset, Keep};
use super::set::Wall;
use crate::page_alloc::{AllocError, Constraint, Look, MigrateType, Pfn, Zoneref};
use crate::swapped::Handle;
use crate::waits::Party;

/// The constraint of one allocation.
pub(super) struct Limits<'a, K> {
    scheme: &'a Zonelists<K>,
    cpuset: &'a Cpuset,
    by: Option<Party>,
    /// Which of the set's lists it walks; none of one that walks the system's.
    wall: Option<Wall>,
    set: Option<Handle>,
    /// The set is held. A lock is not while the allocation reclaims.
    holds_set: bool,
    policy: HeldPolicy<'a>,
    /// What it holds is no longer the current one.
    is_stale: bool,
    tally: Tally,
}

impl<'a, K: Keep> Limits<'a, K> {
    pub(super) fn new(scheme: &'a Zonelists<K>, ask: &Ask) -> Self {
        let task = scheme.tasks.task(ask.task);
        let cpuset = &scheme.cpusets[task.cpuset];
        let by = scheme.watch.as_ref().and_then(|watch| watch.task(ask.task.0));
        let wall = match ask.request.migratetype {
            MigrateType::Movable => Some(Wall::Hard),
            // The kernel's own.
            _ => scheme.shape.softwall.then_some(Wall::Soft),
        };
        let set = wall.and_then(|_| scheme.keep.hold(&scheme.sets, cpuset, by));
        let policy = HeldPolicy::hold(&scheme.tasks, (task, ask.vma), scheme.nodes(set));
        let tally = Tally::new(ask.most_tries);
        Self { scheme, cpuset, by, wall, set, holds_set: true, policy, is_stale: false, tally }
    }

    fn hold_set(&mut self) {
        let scheme = self.scheme;
        self.set = self.wall.and_then(|_| scheme.keep.hold(&scheme.sets, self.cpuset, self.by));
        self.holds_set = true;
    }

    fn release_set(&mut self) {
        if let Some(set) = self.set.filter(|_| core::mem::take(&mut self.holds_set)) {
            self.scheme.keep.release(&self.scheme.sets, self.cpuset, set, self.by);
        }
    }

    fn release(&mut self) {
        self.policy.release(&self.scheme.tasks);
        self.release_set();
    }

    /// The node to begin with.
    pub(super) fn node(&self, local: u8) -> u8 {
        self.policy.node(&self.scheme.tasks, local, self.scheme.nodes(self.set))
    }

    /// Releases what it holds, and says what became of the allocation.
    pub(super) fn end(mut self, page: Result<Pfn, AllocError>) -> Outcome {
        self.release();
        self.tally.outcome(page)
    }

    /// Whether an update has swapped what is held.
    fn has_changed(&self) -> bool {
        self.set.is_some_and(|set| self.cpuset.set.load() != Some(set)) || self.policy.has_changed()
    }

    /// Takes the lock again after reclaim. Returns whether the set is another.
    fn lock_again(&mut self) -> bool {
        let before = self.set;
        self.hold_set();
        self.set != before
    }
}

impl<K: Keep> Constraint for Limits<'_, K> {
    fn allows(&self, node: u8) -> bool {
        !self.tally.abandoned && self.policy.allows(&self.scheme.tasks, node)
    }

    fn in_nodemask(&self, node: u8) -> bool {
        self.allows(node)
    }

    fn begin(&mut self) {
        self.tally.begin();
        if self.is_stale {
            self.release();
            self.hold_set();
            let of = (self.policy.task(), self.policy.vma());
            self.policy = HeldPolicy::hold(&self.scheme.tasks, of, self.scheme.nodes(self.set));
            self.is_stale = false;
        }
    }

    fn before_reclaim(&mut self) {
        if K::LOCKS && self.scheme.tasks.flaw != Some(Flaw::LocksAcrossReclaim) {
            self.release_set();
        }
    }

    fn must_restart(&mut self, at: Look) -> bool {
        if at == Look::TopOfRetry {
            self.tally.try_once();
        }
        if at == Look::AfterReclaim && !self.holds_set {
            self.is_stale |= self.lock_again();
        }
        let looks = matches!(at, Look::BeforeOom | Look::NoPage) && !self.tally.abandoned;
        let trusts = self.scheme.tasks.flaw == Some(Flaw::TrustsItsCopy);
        self.is_stale |= looks && !trusts && self.has_changed();
        self.is_stale
    }

    fn zonelist(&self, node: u8, movable: bool) -> Option<&[Zoneref]> {
        let (set, wall) = (self.set?, self.wall?);
        Some(self.scheme.sets.get(set).list(node, movable, wall))
    }
}
