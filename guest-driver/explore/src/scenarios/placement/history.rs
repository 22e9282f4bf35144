// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which nodes were valid when. Nothing here is a scheduling point.

use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_driver::page_alloc::NodeMask;
use guest_driver::placement::{Mempolicy, Mode, Nodes, Scheme};

use super::setting::{Scenario, set};

/// Every state of the cpuset, and of the policies that allocations follow.
#[derive(Debug)]
pub(super) struct History(Mutex<States>);

#[derive(Debug)]
struct States {
    all: Vec<State>,
    /// The last one that an update has reached. Those behind it are being reached.
    stable: usize,
    /// Nodes that the policy of the first task's VMA may have instead, at any time.
    others: Vec<NodeMask>,
}

/// The nodes of the cpuset, and of the policy that follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) mems: NodeMask,
    policy: Mempolicy,
}

impl State {
    /// The nodes of the policy.
    pub(super) fn nodes(&self) -> NodeMask {
        self.policy.nodes
    }

    /// The nodes that the policy limits an allocation to.
    fn limit(&self) -> NodeMask {
        match self.policy.policy.mode {
            Mode::Bind => self.policy.nodes,
            _ => NodeMask::ALL,
        }
    }
}

/// The states that there were during an allocation.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) states: Vec<State>,
    others: Vec<NodeMask>,
}

impl History {
    /// A history that begins as the scenario does.
    pub(super) fn new(scenario: &Scenario) -> Option<Self> {
        let mems = set(scenario.mems);
        let asked = scenario.vma.unwrap_or(scenario.policy);
        let policy = Mempolicy::new(asked.policy(), mems)?;
        // What mbind may make of them, in any cpuset.
        let cpusets = || [scenario.mems].into_iter().chain(scenario.updates.iter().copied());
        let mut others = Vec::new();
        for mbind in scenario.mbind {
            let made = cpusets().filter_map(|mems| Mempolicy::new(mbind.policy(), set(mems)));
            for made in made {
                others.push(made.nodes);
                others.extend(cpusets().map(|mems| made.rebound(set(mems)).nodes));
            }
        }
        let all = vec![State { mems, policy }];
        Some(Self(Mutex::new(States { all, stable: 0, others })))
    }

    fn states(&self) -> MutexGuard<'_, States> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cpuset's nodes are about to be `mems`.
    pub(super) fn begin(&self, scheme: Scheme, mems: NodeMask) {
        let mut states = self.states();
        let Some(&last) = states.all.last() else { return };
        let follows = scheme != Scheme::NoRebind || last.policy.policy.flag == Nodes::Relative;
        let policy = if follows { last.policy.rebound(mems) } else { last.policy };
        states.all.push(State { mems, policy });
    }

    /// They are. Or the update has failed, and they are what they were.
    pub(super) fn end(&self, done: bool) {
        let mut states = self.states();
        if !done && let Some(&before) = states.all.get(states.stable) {
            states.all.push(before);
        }
        states.stable = states.all.len() - 1;
    }

    /// The number of the last state that was reached.
    pub(super) fn now(&self) -> usize {
        self.states().stable
    }

    /// The states since that number.
    pub(super) fn since(&self, number: usize, task: usize) -> Span {
        let states = self.states();
        let others = if task == 0 { states.others.clone() } else { Vec::new() };
        Span { states: states.all[number..].to_vec(), others }
    }

    /// The first state and the last.
    pub(super) fn ends(&self) -> (State, State) {
        let states = self.states();
        (states.all[0], states.all[states.all.len() - 1])
    }

    /// Whether all cpusets had the same number of nodes.
    pub(super) fn is_of_one_size(&self) -> bool {
        let states = self.states();
        states.all.iter().all(|state| state.mems.count() == states.all[0].mems.count())
    }
}

impl Span {
    /// The nodes that an allocation could use, one set for each mixture of a cpuset and a policy: a policy
    /// that has no node of the cpuset's does not limit it.
    pub(super) fn allowed(&self) -> impl Iterator<Item = NodeMask> {
        let limits = || self.states.iter().map(State::limit).chain(self.others.iter().copied());
        self.states.iter().flat_map(move |&State { mems, .. }| {
            limits().map(move |limit| match mems.intersection(limit) {
                NodeMask::EMPTY => mems,
                both => both,
            })
        })
    }

    /// The same for a cpuset with the policy that belongs to it.
    pub(super) fn whole(&self) -> impl Iterator<Item = NodeMask> {
        self.states.iter().map(|state| match state.mems.intersection(state.limit()) {
            NodeMask::EMPTY => state.mems,
            both => both,
        })
    }

    /// Updates that were going on.
    pub(super) fn updates(&self) -> u32 {
        u32::try_from(self.states.len() - 1).unwrap_or(u32::MAX)
    }
}
