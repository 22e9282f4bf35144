// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the actors of a run share, and how an allocation is judged.

use std::sync::{Arc, Mutex, PoisonError};

use super::history::History;
use super::invariant::Holds;
use super::setting::{Asked, Scenario, Setting, set};
use crate::Run;
use guest_driver::page_alloc::{AllocRequest, Constraint, MigrateType, NodeMask, Pfn};
use guest_driver::placement::{Ask, Copies, CpusetId, Outcome, Placement, TaskId, Vma};
use guest_driver::random::Random;
use guest_driver::swapped::Supply;

/// An allocation that tries more often is abandoned.
const MOST_TRIES: u32 = 24;

/// More allocations than an update takes.
const MOST_COPIES: u64 = 8;

/// What the actors of a run share.
pub struct World {
    pub(super) placement: Arc<Placement>,
    /// The memory for what updates must allocate.
    pub(super) supply: Arc<Supply>,
    pub(super) setting: Setting,
    pub(super) run: Arc<Run<Holds>>,
    pub(super) history: History,
    /// What the tasks keep, each with the CPU that frees it.
    pub(super) kept: Mutex<Vec<(usize, Pfn)>>,
}

impl World {
    /// A task allocates its pages.
    pub(super) fn allocate(&self, task: usize) {
        let Scenario { local, pages, vma, .. } = self.setting.scenario;
        let request = AllocRequest {
            node: local,
            migratetype: MigrateType::Movable,
            ..AllocRequest::movable(0)
        };
        let vma = vma.map(|_| Vma(0));
        let ask = Ask { task: TaskId(task), vma, cpu: task, request, most_tries: MOST_TRIES };
        for _ in 0..pages {
            if self.run.is_over() {
                return;
            }
            let began = self.history.now();
            let outcome = self.placement.ask(&ask);
            self.judge(task, began, &outcome);
            if let Ok(page) = outcome.page {
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((task, page));
            }
        }
    }

    fn judge(&self, task: usize, began: usize, outcome: &Outcome) {
        let span = self.history.since(began, task);
        let roomy = self.setting.scenario.roomy();
        let can_serve = span.allowed().all(|allowed| allowed.intersects(roomy));
        let Outcome { page, ooms, tries, restarts, abandoned } = *outcome;
        let updates = span.updates();
        let beside = format!("beside {updates} updates, after {tries} tries, {restarts} restarts");
        if abandoned || (can_serve && tries > 1 + updates) {
            let what = format!("task {task} tries on and on {beside}");
            self.run.violate(Holds::TriesBoundedByUpdates, what);
        } else if can_serve && (page.is_err() || ooms > 0) {
            let what =
                format!("task {task}: {page:?}, the OOM killer was invoked {ooms} times {beside}");
            self.run.violate(Holds::NoOomWhileANodeCanServe, what);
        }
        let Ok(page) = page else { return };
        let mm = self.placement.mm();
        let node = mm.zone_of(page).map(|zone| mm.zone(zone).node());
        let contains = |allowed: NodeMask| node.is_some_and(|node| allowed.contains(node));
        let strict = self.setting.scenario.strict;
        if !(if strict { span.whole().any(contains) } else { span.allowed().any(contains) }) {
            let what = format!("task {task} gets a page of node {node:?} {beside}");
            self.run.violate(Holds::PageFromAValidNode, what);
        }
    }

    /// The cpuset gets its nodes, one set after the other.
    pub(super) fn update(&self, mut random: Random) {
        let Scenario { mems, updates, fills_left, lacks_memory, .. } = self.setting.scenario;
        let mut before = set(mems);
        for mems in updates {
            if self.run.is_over() {
                return;
            }
            if lacks_memory {
                self.supply.fail(random.below(MOST_COPIES), 1 + random.below(2));
            }
            if self.update_to(set(mems)) {
                if fills_left {
                    self.fill(before.difference(set(mems)));
                }
                before = set(mems);
            }
        }
        self.supply.fail(0, 0);
    }

    /// Others take all memory of these nodes.
    fn fill(&self, nodes: NodeMask) {
        let mm = self.placement.mm();
        let cpu = self.setting.scenario.tasks;
        for node in nodes.iter() {
            let request = AllocRequest { node, ..AllocRequest::movable(0) };
            while let Ok(page) = mm.alloc_constrained(cpu, request, &mut Only(node)) {
                self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((cpu, page));
            }
        }
    }

    /// The cpuset gets these nodes, or the update fails.
    pub(super) fn update_to(&self, mems: NodeMask) -> bool {
        // Where another sets policies meanwhile, to look at them would be a read after their free.
        let before = self.setting.scenario.mbind.is_empty().then(|| self.seen());
        self.history.begin(self.setting.scheme, mems);
        let done = self.placement.set_mems(CpusetId(0), mems);
        if let Some(before) = before.filter(|before| done.is_err() && self.seen() != *before) {
            let what = format!("{done:?}, and {before:?} has become {:?}", self.seen());
            self.run.violate(Holds::FailedUpdateChangesNothing, what);
        }
        self.history.end(done.is_ok());
        done.is_ok()
    }

    /// Each task's nodes, and those of its policy and its VMA's.
    fn seen(&self) -> Vec<[NodeMask; 3]> {
        let vma = self.setting.scenario.vma.map(|_| Vma(0));
        let of = |task| {
            let policy = |vma| self.placement.mempolicy(task, vma).nodes;
            [self.placement.mems_allowed(task), policy(None), policy(vma)]
        };
        (0..self.setting.scenario.tasks).map(|task| of(TaskId(task))).collect()
    }

    /// Another thread of the first task gives its VMA other policies.
    pub(super) fn mbind(&self, policies: &[Asked]) {
        for asked in policies {
            // One that has no node of the cpuset's is refused.
            let _ = self.placement.mbind(TaskId(0), Vma(0), asked.policy());
        }
    }

    /// Checks what must hold once all actors are done.
    pub(super) fn at_rest(&self) {
        let (first, last) = self.history.ends();
        let Scenario { tasks, vma, mbind, .. } = self.setting.scenario;
        for task in (0..tasks).map(TaskId) {
            let mems = self.placement.mems_allowed(task);
            if mems != last.mems {
                let what = format!("{task:?} may use {mems:?}, its cpuset has {:?}", last.mems);
                self.run.violate(Holds::ModelAssertionsHold, what);
            }
            if task == TaskId(0) && !mbind.is_empty() {
                continue;
            }
            let nodes = self.placement.mempolicy(task, vma.map(|_| Vma(0))).nodes;
            if self.history.is_of_one_size() {
                self.check_policy(nodes, first.nodes(), first.mems == last.mems);
            }
        }
        for (cpu, page) in self.kept.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.placement.mm().free(cpu, page);
        }
        if let Some(Copies { current, live, .. }) = self.placement.copies()
            && current != live
        {
            let what = format!("{live} copies are there, pointers lead to {current}");
            self.run.violate(Holds::EveryCopyIsFreed, what);
        }
        if let Err(error) = self.placement.mm().validate() {
            self.run.violate(Holds::ModelAssertionsHold, error.to_string());
        }
    }

    fn check_policy(&self, nodes: NodeMask, first: NodeMask, is_back: bool) {
        if nodes.count() != first.count() || (is_back && nodes != first) {
            let [first, nodes] = [first, nodes].map(|mask| mask.iter().collect::<Vec<_>>());
            let what = format!("a policy of nodes {first:?} has become one of {nodes:?}");
            self.run.violate(Holds::PolicyComesBack, what);
        }
    }
}

/// Only one node.
pub(super) struct Only(pub(super) u8);

impl Constraint for Only {
    fn allows(&self, node: u8) -> bool {
        node == self.0
    }

    fn in_nodemask(&self, node: u8) -> bool {
        node == self.0
    }
}
