// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What limits one allocation: the zonelists of its cpuset, and its policy.

use super::super::protocol::{Ask, Outcome};
use super::super::scheme::Flaw;
use super::super::swapping::held::{HeldPolicy, Tally};
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
            // In an interrupt, which has nothing to do with the task.
            _ if ask.request.atomic => None,
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

    /// Holds what is current now, in the place of what it has held.
    fn hold_again(&mut self) {
        self.release();
        self.hold_set();
        let of = (self.policy.task(), self.policy.vma());
        self.policy = HeldPolicy::hold(&self.scheme.tasks, of, self.scheme.nodes(self.set));
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
            self.hold_again();
            self.is_stale = false;
        }
    }

    fn before_reclaim(&mut self) {
        if K::LOCKS && self.scheme.tasks.flaw != Some(Flaw::LocksAcrossReclaim) {
            self.release_set();
        }
    }

    fn after_reclaim(&mut self) {
        if self.set.is_some() && !self.holds_set {
            let before = self.set;
            self.hold_set();
            if self.set != before {
                // Whether the policy intersects was looked at for the set of before.
                self.hold_again();
                self.is_stale = true;
            }
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

    fn zonelist(&self, node: u8, movable: bool) -> Option<&[Zoneref]> {
        let (set, wall) = (self.set?, self.wall?);
        Some(self.scheme.sets.get(set).list(node, movable, wall))
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::keep::{ByLock, Watch};
    use super::*;
    use crate::page_alloc::{AllocRequest, Geometry, Layout, Mm, NodeMask};
    use crate::placement::policy::Policy;
    use crate::placement::protocol::{CpusetId, Protocol, Setup, TaskId, TaskSetup};
    use alloc::sync::Arc;
    use alloc::vec;

    /// One task in one cpuset, whose waits are watched.
    fn scheme(flaw: Flaw) -> Zonelists<ByLock> {
        let mm = Arc::new(Mm::new(&Layout::flat(Geometry::TINY, 1, 1)));
        let task = TaskSetup { cpuset: CpusetId(0), policy: Policy::DEFAULT, vmas: vec![] };
        let (cpusets, tasks) = (vec![NodeMask::of(0)], vec![task]);
        let setup = Setup { cpusets, tasks, flaw: Some(flaw) };
        Zonelists::locked(mm, &setup, Arc::default()).expect("there are nodes and memory")
    }

    fn ask() -> Ask {
        let request = AllocRequest::movable(0);
        Ask { task: TaskId(0), vma: None, cpu: 0, request, most_tries: 1 }
    }

    /// Reclaim allocates for the task that waits for memory, behind an update that waits for the task.
    #[test]
    #[should_panic(
        expected = "deadlock: task 0 waits for its turn at the zonelists of cpuset 0, which \
                               the writer holds, who waits for the zonelists of cpuset 0, which task 0 \
                               holds"
    )]
    fn lock_kept_across_reclaim_is_a_deadlock() {
        let scheme = scheme(Flaw::LocksAcrossReclaim);
        let mut limits = Limits::new(&scheme, &ask());
        limits.before_reclaim();
        scheme.cpusets[0].lock.wait_to_write(scheme.watch.as_ref().map(Watch::writer));
        let _ = Limits::new(&scheme, &ask());
    }

    #[test]
    fn update_during_reclaim_begins_the_walk_again() {
        // A mistake that has its turn elsewhere, so that waits are watched.
        let scheme = scheme(Flaw::TrustsItsCopy);
        let mut limits = Limits::new(&scheme, &ask());
        limits.before_reclaim();
        let again = Limits::new(&scheme, &ask()).end(Err(AllocError::OutOfMemory));
        assert!(again.page.is_err());
        limits.after_reclaim();
        assert!(!limits.must_restart(Look::AfterReclaim));
        limits.before_reclaim();
        scheme.set_mems(CpusetId(0), NodeMask::first_nodes(2)).unwrap();
        limits.after_reclaim();
        assert!(limits.must_restart(Look::AfterReclaim));
        limits.begin();
        assert!(!limits.must_restart(Look::AfterReclaim));
        assert_eq!(limits.set, scheme.cpusets[0].set.load());
        limits.end(Err(AllocError::OutOfMemory));
    }
}
