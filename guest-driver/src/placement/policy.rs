// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory policies (`struct mempolicy`), and how they follow a cpuset (`mpol_rebind_policy`).

use super::Flaw;
use super::remap::{relative, remap};
use crate::page_alloc::NodeMask;

/// Which nodes an allocation prefers or may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The node that the allocation names (`MPOL_DEFAULT`).
    Default,
    /// No other nodes than these (`MPOL_BIND`).
    Bind,
    /// The first of these, then any (`MPOL_PREFERRED`).
    Preferred,
    /// These in turn, then any (`MPOL_INTERLEAVE`).
    Interleave,
}

/// What the nodes of a policy mean once the cpuset has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Nodes {
    /// The nth of the cpuset's nodes stays the nth.
    #[default]
    Remapped,
    /// These very nodes (`MPOL_F_STATIC_NODES`).
    Static,
    /// The nth of the cpuset's, whatever they are (`MPOL_F_RELATIVE_NODES`).
    Relative,
}

/// A policy as a program asks for it (`set_mempolicy`, `mbind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// What its nodes are for.
    pub mode: Mode,
    /// What its nodes mean.
    pub flag: Nodes,
    /// Its nodes; those of [`Mode::Default`] do not matter.
    pub nodes: NodeMask,
}

impl Policy {
    /// The node that the allocation names, then any.
    pub const DEFAULT: Self =
        Self { mode: Mode::Default, flag: Nodes::Remapped, nodes: NodeMask::EMPTY };

    /// These nodes only.
    pub const fn bind(nodes: NodeMask) -> Self {
        Self { mode: Mode::Bind, flag: Nodes::Remapped, nodes }
    }
}

/// A policy in force (`struct mempolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mempolicy {
    /// What was asked for: its nodes are `w.user_nodemask`.
    pub policy: Policy,
    /// The cpuset's nodes that `nodes` were computed for (`w.cpuset_mems_allowed`).
    pub cpuset_mems: NodeMask,
    /// The nodes that it stands for now.
    pub nodes: NodeMask,
}

impl Mempolicy {
    /// The policy of a task whose cpuset has the nodes `mems` (`mpol_set_nodemask`); none if no node is
    /// left, where Linux returns `EINVAL`.
    pub fn new(policy: Policy, mems: NodeMask) -> Option<Self> {
        let nodes = match policy.flag {
            Nodes::Relative => relative(policy.nodes, mems),
            Nodes::Static | Nodes::Remapped => policy.nodes.intersection(mems),
        };
        let nodes = match (policy.mode, nodes.first()) {
            (Mode::Default, _) => NodeMask::EMPTY,
            (_, None) => return None,
            (Mode::Preferred, Some(first)) => NodeMask::of(first),
            (Mode::Bind | Mode::Interleave, Some(_)) => nodes,
        };
        Some(Self { policy, cpuset_mems: mems, nodes })
    }

    /// The policy once the cpuset has the nodes `mems` (`mpol_rebind_policy`).
    #[must_use]
    pub fn rebound(self, mems: NodeMask) -> Self {
        self.rebound_with(mems, None)
    }

    /// The same with a mistake.
    pub(super) fn rebound_with(self, mems: NodeMask, flaw: Option<Flaw>) -> Self {
        let Self { policy, cpuset_mems, nodes } = self;
        match policy.mode {
            Mode::Default => return self,
            // Its node stays preferred, though it may be allowed no longer.
            Mode::Preferred => return Self { cpuset_mems: mems, ..self },
            Mode::Bind | Mode::Interleave => {}
        }
        let follows = match policy.flag {
            Nodes::Static => policy.nodes.intersection(mems),
            Nodes::Relative => relative(policy.nodes, mems),
            Nodes::Remapped if cpuset_mems == mems => return self,
            Nodes::Remapped => remap(nodes, cpuset_mems, mems),
        };
        let remembered = if flaw == Some(Flaw::RemembersPolicyNodes) { follows } else { mems };
        let nodes = if follows.is_empty() { mems } else { follows };
        Self { cpuset_mems: remembered, nodes, ..self }
    }
}

#[cfg(test)]
mod tests;
