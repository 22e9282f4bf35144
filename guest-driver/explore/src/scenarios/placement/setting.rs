// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a scenario consists of.

use guest_driver::page_alloc::{Geometry, NodeMask};
use guest_driver::placement::{Flaw, Mode, Nodes, Policy, Scheme};

/// A scenario under one scheme.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The actors, and the memory that they share.
    pub scenario: Scenario,
    /// The way to update where allocations may go.
    pub scheme: Scheme,
    /// A mistake of it.
    pub flaw: Option<Flaw>,
}

/// The actors, and the memory that they share.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Name in tables.
    pub name: &'static str,
    /// The nodes that have memory.
    pub nodes: &'static [u8],
    /// Of them, those of which nothing is free.
    pub full: &'static [u8],
    /// The node that tasks run on.
    pub local: u8,
    /// The nodes of the cpuset of all tasks.
    pub mems: &'static [u8],
    /// The nodes that it has afterwards, one set after the other.
    pub updates: &'static [&'static [u8]],
    /// Tasks, each of which allocates.
    pub tasks: usize,
    /// Pages that each allocates, and keeps.
    pub pages: usize,
    /// The policy of each task.
    pub policy: Asked,
    /// The policy of each task's VMA, for which it allocates; none of one that allocates for itself.
    pub vma: Option<Asked>,
    /// Policies that another thread of the first task gives its VMA meanwhile.
    pub mbind: &'static [Asked],
    /// Direct reclaim goes on making progress on nodes that are not full.
    pub reclaims: bool,
    /// Direct reclaim allocates a page for the task that it is for, as writing a page out does, and frees
    /// nothing.
    pub reclaim_allocates: bool,
    /// A page is to come from where the cpuset and the policy allow it before an update or after it, and
    /// not from where only the new nodes of the one and the old of the other do.
    pub strict: bool,
    /// Others take all memory of the nodes that an update has taken from the cpuset.
    pub fills_left: bool,
    /// Updates lack memory: which of the allocations of each fail is drawn.
    pub lacks_memory: bool,
}

/// A policy that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked(pub Mode, pub Nodes, pub &'static [u8]);

impl Asked {
    /// No policy.
    pub const DEFAULT: Self = Self(Mode::Default, Nodes::Remapped, &[]);

    /// The policy.
    pub(super) fn policy(self) -> Policy {
        let Self(mode, flag, nodes) = self;
        Policy { mode, flag, nodes: set(nodes) }
    }
}

/// The set of these nodes.
pub(super) fn set(nodes: &[u8]) -> NodeMask {
    nodes.iter().copied().collect()
}

impl Scenario {
    /// A section is a block of the largest order.
    pub(super) const GEOMETRY: Geometry = Geometry::TINY;

    /// The nodes that never run out of memory: tasks take less than one has.
    pub(super) fn roomy(&self) -> NodeMask {
        set(self.nodes).difference(set(self.full))
    }

    /// Whether one block has more pages than all tasks take, and each CPU's lists keep.
    pub(super) fn is_possible(&self) -> bool {
        let pages = usize::try_from(Self::GEOMETRY.section_pages()).unwrap_or(0);
        self.tasks * (self.pages + 1) < pages
    }
}
